// mma.sync: d += a b on tensor cores, with d of 16 x 8 in float32, a of 16 x k and b of k x 8. All
// 32 lanes take part.
//
// With g = lane / 4 and t = lane % 4, a lane holds
//   d: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//   16-bit, k = 16: a: rows g, g+8, g, g+8 and columns 2t, 2t+1; in the last two registers 2t+8,
//   2t+9
//                   b: rows 2t, 2t+1, then 2t+8, 2t+9 of column g
//   16-bit, k = 8:  the first half of these registers
//   tf32, k = 8:    a: (g, t), (g+8, t), (g, t+4), (g+8, t+4); b: (t, g), (t+4, g)
//   tf32, k = 4:    the first half of these registers
// so that load_matrices of row-major 16-bit tiles fills a, and b from a matrix stored [n, k].
// The warpgroup form of Hopper will have a header of its own.
#pragma once

#include "cuda/device/target.h"

#if !defined(__CUDACC__)
#include "cuda/emulator/matrix.h"
#endif

namespace thalweg::cuda {

#if defined(__CUDACC__)

TW_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                 const std::uint32_t (&b)[2]) {
#if TW_CUDA_ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  unsupported_instruction();
#endif
}

TW_DEVICE void mma_m16n8k8_bf16(float (&d)[4], const std::uint32_t (&a)[2],
                                const std::uint32_t (&b)[1]) {
#if TW_CUDA_ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
  unsupported_instruction();
#endif
}

TW_DEVICE void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4],
                                const std::uint32_t (&b)[2]) {
#if TW_CUDA_ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  unsupported_instruction();
#endif
}

// sm_75 and newer.
TW_DEVICE void mma_m16n8k8_f16(float (&d)[4], const std::uint32_t (&a)[2],
                               const std::uint32_t (&b)[1]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

TW_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                const std::uint32_t (&b)[2]) {
#if TW_CUDA_ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  unsupported_instruction();
#endif
}

TW_DEVICE void mma_m16n8k4_tf32(float (&d)[4], const std::uint32_t (&a)[2],
                                const std::uint32_t (&b)[1]) {
#if TW_CUDA_ARCH >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
  unsupported_instruction();
#endif
}

#else

inline void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                              const std::uint32_t (&b)[2], Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kBFloat16, 16, d, a, b, site);
}
inline void mma_m16n8k8_bf16(float (&d)[4], const std::uint32_t (&a)[2],
                             const std::uint32_t (&b)[1], Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kBFloat16, 8, d, a, b, site);
}
inline void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2], Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kFloat16, 16, d, a, b, site);
}
inline void mma_m16n8k8_f16(float (&d)[4], const std::uint32_t (&a)[2], const std::uint32_t (&b)[1],
                            Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kFloat16, 8, d, a, b, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                             const std::uint32_t (&b)[2], Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kTFloat32, 8, d, a, b, site);
}
inline void mma_m16n8k4_tf32(float (&d)[4], const std::uint32_t (&a)[2],
                             const std::uint32_t (&b)[1], Site site = Site::current()) {
  emulator::multiply_matrices(emulator::MmaType::kTFloat32, 4, d, a, b, site);
}

#endif

}  // namespace thalweg::cuda
