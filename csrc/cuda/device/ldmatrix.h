// ldmatrix and stmatrix: 8x8 matrices of 16-bit elements between shared memory and registers.
//
// All 32 lanes take part. Lanes 8i to 8i + 7 give the addresses of the rows of matrix i, 16 bytes
// each; addresses of lanes beyond 8 * count are ignored. Register i of lane l then holds elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i, or of its transpose.
#pragma once

#include "cuda/device/shared_memory.h"

#if !defined(__CUDACC__)
#include "cuda/emulator/matrix.h"
#endif

namespace thalweg::cuda {

#if defined(__CUDACC__)

// sm_75 and newer.
template <bool transposed = false>
TW_DEVICE void load_matrices(std::uint32_t (&r)[1], SharedAddress row) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(row.value)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(row.value)
                 : "memory");
  }
}
template <bool transposed = false>
TW_DEVICE void load_matrices(std::uint32_t (&r)[2], SharedAddress row) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row.value)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(row.value)
                 : "memory");
  }
}
template <bool transposed = false>
TW_DEVICE void load_matrices(std::uint32_t (&r)[4], SharedAddress row) {
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row.value)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row.value)
                 : "memory");
  }
}

// sm_90 and newer.
template <bool transposed = false>
TW_DEVICE void store_matrices(const std::uint32_t (&r)[4], SharedAddress row) {
#if TW_CUDA_ARCH >= 900
  if constexpr (transposed) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row.value),
        "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
        : "memory");
  } else {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row.value),
        "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
        : "memory");
  }
#else
  unsupported_instruction();
#endif
}

#else

template <bool transposed = false, int count>
void load_matrices(std::uint32_t (&registers)[count], SharedAddress row,
                   Site site = Site::current()) {
  static_assert(count == 1 || count == 2 || count == 4);
  emulator::load_matrices(registers, count, transposed, row.value, site);
}

template <bool transposed = false>
void store_matrices(const std::uint32_t (&registers)[4], SharedAddress row,
                    Site site = Site::current()) {
  emulator::store_matrices(registers, 4, transposed, row.value, site);
}

#endif

}  // namespace thalweg::cuda
