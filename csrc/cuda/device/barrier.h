// Barriers of a block. They order the memory accesses of the threads that take part.
#pragma once

#include "cuda/device/target.h"

namespace thalweg::cuda {

#if defined(__CUDACC__)

// All threads of the block, from the same line.
TW_DEVICE void sync_block() { __syncthreads(); }
// The same, and how many threads had the predicate set, or whether any or all had.
TW_DEVICE int sync_block_count(bool predicate) { return __syncthreads_count(predicate); }
TW_DEVICE bool sync_block_any(bool predicate) { return __syncthreads_or(predicate) != 0; }
TW_DEVICE bool sync_block_all(bool predicate) { return __syncthreads_and(predicate) != 0; }

// Named barriers, 1 to 15, for part of a block: `threads` is a multiple of 32 and counts all that
// take part. An arrival does not wait; a warp arrives or waits as a whole.
TW_DEVICE void sync_barrier(int barrier, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
TW_DEVICE void arrive_barrier(int barrier, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#else

inline void sync_block(Site site = Site::current()) { emulator::block_barrier(false, site); }
inline int sync_block_count(bool predicate, Site site = Site::current()) {
  return emulator::block_barrier(predicate, site);
}
inline bool sync_block_any(bool predicate, Site site = Site::current()) {
  return emulator::block_barrier(predicate, site) != 0;
}
inline bool sync_block_all(bool predicate, Site site = Site::current()) {
  return emulator::block_barrier(!predicate, site) == 0;
}

inline void sync_barrier(int barrier, int threads, Site site = Site::current()) {
  emulator::named_barrier(barrier, threads, true, site);
}
inline void arrive_barrier(int barrier, int threads, Site site = Site::current()) {
  emulator::named_barrier(barrier, threads, false, site);
}

#endif

}  // namespace thalweg::cuda
