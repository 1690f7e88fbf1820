// Conversions between float32 and the types of the tensor cores, which are held as bits.
#pragma once

#include "cuda/device/target.h"

#if !defined(__CUDACC__)
#include <bit>
#include <cmath>

#include "cuda/emulator/matrix.h"
#endif

namespace thalweg::cuda {

// Exact.
TW_DEVICE float bfloat16_to_float(std::uint16_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(std::uint32_t{bits} << 16);
#else
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
#endif
}

#if defined(__CUDACC__)

// Two values, rounded to nearest even, `low` in the low half. sm_80 has an instruction.
TW_DEVICE std::uint32_t pack_bfloat16(float low, float high) {
  std::uint32_t packed;
#if TW_CUDA_ARCH >= 800
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
  const auto round = [](float value) -> std::uint32_t {
    const std::uint32_t bits = __float_as_uint(value);
    if (value != value) return 0x7fffu;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  packed = round(low) | round(high) << 16;
#endif
  return packed;
}

TW_DEVICE std::uint32_t pack_float16(float low, float high) {
  std::uint32_t packed;
#if TW_CUDA_ARCH >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
  asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
      : "=r"(packed)
      : "f"(low), "f"(high));
#endif
  return packed;
}

TW_DEVICE float float16_to_float(std::uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Rounded to nearest, ties away from zero. Without it, mma truncates: a bias on positive data.
TW_DEVICE std::uint32_t float_to_tfloat32(float value) {
  std::uint32_t bits;
#if TW_CUDA_ARCH >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  bits = (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
#endif
  return bits;
}

#else

inline std::uint32_t pack_bfloat16(float low, float high) {
  return emulator::float_to_bfloat16(low) | std::uint32_t{emulator::float_to_bfloat16(high)} << 16;
}
inline std::uint32_t pack_float16(float low, float high) {
  return emulator::float_to_half(low) | std::uint32_t{emulator::float_to_half(high)} << 16;
}
inline float float16_to_float(std::uint16_t bits) { return emulator::half_to_float(bits); }
inline std::uint32_t float_to_tfloat32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (!std::isfinite(value)) return bits & 0xffffe000u;
  return (bits + 0x1000u) & 0xffffe000u;
}

#endif

}  // namespace thalweg::cuda
