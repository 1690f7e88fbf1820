// cp.async: copies from global to shared memory that bypass registers. On sm_75, plain copies.
//
// A thread issues copies, commits them as a group, and waits for its own groups; a barrier then
// makes the data visible to the block. Nobody may read the destination before that, and the next
// copy into it may be issued only after a barrier behind the last read.
#pragma once

#include "cuda/device/shared_memory.h"

namespace thalweg::cuda {

#if defined(__CUDACC__)

// Copies `bytes` (4, 8 or 16; both addresses are multiples of it), of which only the first `filled`
// are read; the rest is filled with zeros.
template <int bytes>
TW_DEVICE void copy_async(SharedAddress destination, const void* source, int filled = bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
#if TW_CUDA_ARCH >= 800
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination.value),
                 "l"(source), "r"(filled)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination.value),
                 "l"(source), "n"(bytes), "r"(filled)
                 : "memory");
  }
#else
  TW_UNROLL
  for (int i = 0; i < bytes; i += 4) {
    unsigned word = 0;
    if (i + 4 <= filled) {
      word = *reinterpret_cast<const unsigned*>(static_cast<const char*>(source) + i);
    } else {
      for (int j = i; j < filled; ++j) {
        word |= unsigned{static_cast<const unsigned char*>(source)[j]} << (8 * (j - i));
      }
    }
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(destination.value + i), "r"(word) : "memory");
  }
#endif
}

TW_DEVICE void commit_copies() {
#if TW_CUDA_ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Returns when at most the `pending` latest groups of this thread are under way.
template <int pending>
TW_DEVICE void wait_copies() {
#if TW_CUDA_ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

#else

template <int bytes>
void copy_async(SharedAddress destination, const void* source, int filled = bytes,
                Site site = Site::current()) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  emulator::async_copy(destination.value, source, bytes, filled, site);
}

inline void commit_copies() { emulator::async_commit(); }

template <int pending>
void wait_copies() {
  emulator::async_wait(pending);
}

#endif

}  // namespace thalweg::cuda
