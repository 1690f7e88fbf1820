// cp.async: carried out as late as the issuing thread's waits allow or, at random, before.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/emulator/sanitizer.h"
#include "cuda/emulator/wave.h"

namespace thalweg::emulator {

namespace {

void carry_out(const AsyncCopy& copy) {
  std::memcpy(copy.destination, copy.source, static_cast<std::size_t>(copy.filled));
  std::memset(copy.destination + copy.filled, 0,
              static_cast<std::size_t>(copy.bytes - copy.filled));
}

// The first `groups` groups of a thread, oldest first.
void carry_out_groups(Thread& thread, std::size_t groups) {
  if (groups == 0) return;
  const std::size_t end = thread.copy_groups[groups - 1];
  for (std::size_t i = 0; i < end; ++i) carry_out(thread.copies[i]);
  thread.copies.erase(thread.copies.begin(),
                      thread.copies.begin() + static_cast<std::ptrdiff_t>(end));
  thread.copy_groups.erase(thread.copy_groups.begin(),
                           thread.copy_groups.begin() + static_cast<std::ptrdiff_t>(groups));
  for (std::size_t& group : thread.copy_groups) group -= end;
}

}  // namespace

void async_copy(std::uint32_t destination, const void* source, int bytes, int filled,
                const Site& site) {
  require_aligned(source, static_cast<std::size_t>(bytes), "cp.async source", site);
  unsigned char* target =
      shared_pointer(destination, static_cast<std::size_t>(bytes), "cp.async destination", site);
  require_aligned(target, static_cast<std::size_t>(bytes), "cp.async destination", site);
  if (filled < 0 || filled > bytes) {
    fault(FaultKind::kLaunchFailure,
          concat("cp.async: expected to fill 0 to ", bytes, " bytes, got ", filled), site);
  }
  const AsyncCopy copy{target, static_cast<const unsigned char*>(source), bytes, filled};
  Wave& wave = current_wave();
  if (wave.shuffled() && wave.random().one_in(4)) {
    carry_out(copy);
    return;
  }
  // The destination is undefined until the copy completes.
  std::memset(target, kPoison, static_cast<std::size_t>(bytes));
  current().copies.push_back(copy);
}

void async_commit() {
  Thread& self = current();
  self.copy_groups.push_back(self.copies.size());
  Wave& wave = current_wave();
  if (wave.shuffled() && wave.random().one_in(4)) carry_out_groups(self, self.copy_groups.size());
}

void async_wait(int keep) {
  Thread& self = current();
  if (keep < 0) async_commit();
  const std::size_t kept = static_cast<std::size_t>(std::max(keep, 0));
  if (self.copy_groups.size() > kept) carry_out_groups(self, self.copy_groups.size() - kept);
}

}  // namespace thalweg::emulator
