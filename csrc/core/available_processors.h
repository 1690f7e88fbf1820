// How many processors this process may keep busy.
#pragma once

#include <string>

namespace thalweg {

// min(scheduling affinity, cgroup CPU quota rounded up), at least 1.
int available_processors();

// The CPU quota in processors of the cgroup (version 1 or 2) that `membership`, the text of
// /proc/self/cgroup, names below the mount point `root`, or of one of its ancestors; infinity for
// none.
double cgroup_cpu_quota(const std::string& membership, const std::string& root);

}  // namespace thalweg
