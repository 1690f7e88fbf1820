// Shared memory of the emulated blocks: windows, static variables, red zones, bounds.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>

#include "core/error.h"
#include "cuda/emulator/sanitizer.h"
#include "cuda/emulator/wave.h"

namespace thalweg::emulator {
namespace {

constexpr std::size_t kSharedAlignment = 1024;
constexpr std::size_t kStaticSharedLimit = std::size_t{48} * 1024;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

class WindowPool {
 public:
  unsigned char* acquire() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      void* window = mmap(nullptr, kWindowBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (window == MAP_FAILED) throw std::bad_alloc();
      return static_cast<unsigned char*>(window);
    }
    unsigned char* window = free_.back();
    free_.pop_back();
    return window;
  }

  void release(unsigned char* window) {
    permit_access(window, kWindowBytes);
    const std::lock_guard lock(mutex_);
    free_.push_back(window);
  }

 private:
  std::mutex mutex_;
  std::vector<unsigned char*> free_;
};

WindowPool& window_pool() {
  static WindowPool& pool = *new WindowPool;
  return pool;
}

}  // namespace

unsigned char* acquire_window() { return window_pool().acquire(); }

void release_window(unsigned char* window) { window_pool().release(window); }

const Wave::StaticVariable& Wave::static_variable(const void* tag, std::size_t bytes,
                                                  std::size_t alignment, const Site& site) {
  for (const StaticVariable& variable : variables_) {
    if (variable.tag == tag) return variable;
  }
  std::size_t total = bytes;
  for (const StaticVariable& variable : variables_) total += variable.bytes;
  if (total > kStaticSharedLimit) {
    fault(FaultKind::kLaunchFailure,
          concat("static shared memory: expected at most ", kStaticSharedLimit, " bytes, got ",
                 total),
          site);
  }
  if (total + launch_.dynamic_shared > shared_memory_limit()) {
    fault(FaultKind::kLaunchFailure,
          concat("static and dynamic shared memory: expected at most ", shared_memory_limit(),
                 " bytes, got ", total + launch_.dynamic_shared),
          site);
  }
  const std::size_t end = variables_.empty() ? launch_.dynamic_shared
                                             : variables_.back().offset + variables_.back().bytes;
  const std::size_t offset =
      round_up(end + kRedZone, std::max<std::size_t>(alignment, alignof(std::max_align_t)));
  if (offset + bytes + kRedZone > kWindowBytes) {
    fault(FaultKind::kLaunchFailure, "static shared memory: too many variables", site);
  }
  variables_.push_back({tag, offset, bytes});
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      unsigned char* shared = block->shared;
      permit_access(shared + end, offset + bytes + kRedZone - end);
      std::memset(shared + end + kRedZone, kGuard, offset - end - kRedZone);
      std::memset(shared + offset, kPoison, bytes);
      std::memset(shared + offset + bytes, kGuard, kRedZone);
      forbid_access(shared + end, offset - end);
      forbid_access(shared + offset + bytes, kRedZone);
    }
  }
  return variables_.back();
}

bool Wave::within_variable(std::size_t offset, std::size_t bytes) const {
  if (offset + bytes <= launch_.dynamic_shared) return true;
  for (const StaticVariable& variable : variables_) {
    if (offset >= variable.offset && offset + bytes <= variable.offset + variable.bytes)
      return true;
  }
  return false;
}

void Wave::check_red_zones(const Block& block) {
  std::size_t end = launch_.dynamic_shared;
  for (std::size_t i = 0; i <= variables_.size(); ++i) {
    const std::size_t next = i < variables_.size() ? variables_[i].offset : end + kRedZone;
    permit_access(block.shared + end, next - end);
    for (std::size_t at = end; at < next; ++at) {
      if (block.shared[at] != kGuard) {
        stop(FaultKind::kIllegalAddress,
             concat("block ", text_of(block.index), " wrote to shared memory ", at - end,
                    " bytes after the end of ",
                    i == 0 ? std::string("dynamic shared memory")
                           : concat("static variable ", i - 1, " (", variables_[i - 1].bytes,
                                    " bytes)")));
      }
    }
    if (i < variables_.size()) end = variables_[i].offset + variables_[i].bytes;
  }
}

// The shared memory of a block ends with its last thread.
void Wave::retire_block(Block& block) {
  check_red_zones(block);
  if (launch_.cluster == 1) return;
  const std::size_t end = variables_.empty() ? launch_.dynamic_shared
                                             : variables_.back().offset + variables_.back().bytes;
  permit_access(block.shared, end);
  std::memset(block.shared, kPoison, end);
  forbid_access(block.shared, end);
}

unsigned char* dynamic_shared_memory(std::size_t alignment, const Site& site) {
  if (alignment > kSharedAlignment) {
    fault(FaultKind::kMisalignedAddress,
          concat("dynamic shared memory: expected an alignment of at most ", kSharedAlignment,
                 " bytes, got ", alignment),
          site);
  }
  if (current_launch().dynamic_shared == 0) {
    fault(FaultKind::kIllegalAddress, "dynamic shared memory: the launch asks for none", site);
  }
  return current().block->shared;
}

void* static_shared_memory(const void* tag, std::size_t bytes, std::size_t alignment,
                           const Site& site) {
  return current().block->shared +
         current_wave().static_variable(tag, bytes, alignment, site).offset;
}

std::uint32_t shared_offset(const void* pointer, const Site& site) {
  const Block& block = *current().block;
  const std::size_t offset = current_wave().window_offset(block, pointer);
  if (offset >= kWindowBytes) {
    fault(FaultKind::kIllegalAddress, "expected an address in the block's shared memory", site);
  }
  return static_cast<std::uint32_t>(offset);
}

unsigned char* shared_pointer(std::uint32_t offset, std::size_t bytes, const char* what,
                              const Site& site) {
  if (!current_wave().within_variable(offset, bytes)) {
    fault(FaultKind::kIllegalAddress,
          concat(what, ": ", bytes, " bytes at shared address ", offset,
                 " are not within one variable or the ", current_launch().dynamic_shared,
                 " bytes of dynamic shared memory"),
          site);
  }
  return current().block->shared + offset;
}

void* map_shared(const void* pointer, int rank, const Site& site) {
  const Cluster& cluster = *current().block->cluster;
  const std::uint32_t offset = shared_offset(pointer, site);
  if (rank < 0 || rank >= static_cast<int>(cluster.blocks.size())) {
    fault(FaultKind::kIllegalAddress,
          concat("distributed shared memory: expected a rank below ", cluster.blocks.size(),
                 ", got ", rank),
          site);
  }
  const Block& block = *cluster.blocks[static_cast<std::size_t>(rank)];
  if (block.live == 0) {
    fault(FaultKind::kLaunchFailure,
          concat("distributed shared memory: block ", text_of(block.index), " has exited"), site);
  }
  return block.shared + offset;
}

}  // namespace thalweg::emulator
