// Processor counting: affinity mask and cgroup quota.
#include "core/available_processors.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>

#include <cerrno>
#endif

namespace thalweg {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Splits off the part of `rest` up to the separator.
std::string_view take(std::string_view& rest, char separator) {
  const std::size_t length = std::min(rest.find(separator), rest.size());
  const std::string_view head = rest.substr(0, length);
  rest.remove_prefix(std::min(length + 1, rest.size()));
  return head;
}

// quota / period; unlimited when either is not a positive whole number ("max", "-1", no such file).
double quota_of(std::string_view quota, std::string_view period) {
  const auto number = [](std::string_view text) {
    long long value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
  };
  const long long q = number(quota);
  const long long p = number(period);
  return q > 0 && p > 0 ? static_cast<double>(q) / static_cast<double>(p) : kUnlimited;
}

double quota_of_folder(const std::string& folder, bool version_2) {
  if (!version_2) {
    return quota_of(read_text(folder + "/cpu.cfs_quota_us"),
                    read_text(folder + "/cpu.cfs_period_us"));
  }
  const std::string text = read_text(folder + "/cpu.max");
  std::string_view rest = text;
  const std::string_view quota = take(rest, ' ');
  return quota_of(quota, rest);
}

// The smallest quota of the cgroup and its ancestors. Inside a container the path may name folders
// that only exist outside; the mount point is then the container's own cgroup.
double quota_along(const std::string& mount, std::string_view path, bool version_2) {
  double quota = kUnlimited;
  while (true) {
    while (!path.empty() && path.back() == '/') path.remove_suffix(1);
    quota = std::min(quota, quota_of_folder(mount + std::string(path), version_2));
    if (path.empty()) return quota;
    path = path.substr(0, path.rfind('/') == std::string_view::npos ? 0 : path.rfind('/'));
  }
}

int affinity_count() {
#if defined(__linux__)
  for (int processors = 1024; processors <= 1 << 20; processors *= 2) {
    std::vector<unsigned long> mask(static_cast<std::size_t>(processors) / (8 * sizeof(long)));
    const std::size_t bytes = mask.size() * sizeof(long);
    auto* set = reinterpret_cast<cpu_set_t*>(mask.data());
    if (sched_getaffinity(0, bytes, set) == 0) return CPU_COUNT_S(bytes, set);
    if (errno != EINVAL) break;
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

double cgroup_cpu_quota(const std::string& membership, const std::string& root) {
  double quota = kUnlimited;
  std::string_view lines = membership;
  while (!lines.empty()) {
    std::string_view path = take(lines, '\n');  // "hierarchy:controllers:path"
    const std::string_view hierarchy = take(path, ':');
    std::string_view controllers = take(path, ':');
    if (hierarchy == "0" && controllers.empty()) {
      quota = std::min(quota, quota_along(root, path, true));
      continue;
    }
    const std::string folder = root + "/" + std::string(controllers);
    while (!controllers.empty()) {
      if (take(controllers, ',') != "cpu") continue;
      quota = std::min(
          {quota, quota_along(folder, path, false), quota_along(root + "/cpu", path, false)});
    }
  }
  return quota;
}

int available_processors() {
  const double quota = cgroup_cpu_quota(read_text("/proc/self/cgroup"), "/sys/fs/cgroup");
  const double processors = std::min(static_cast<double>(affinity_count()), std::ceil(quota));
  return std::max(1, static_cast<int>(processors));
}

}  // namespace thalweg
