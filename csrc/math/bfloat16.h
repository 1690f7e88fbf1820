// Owns the rounding of float32 to bfloat16, the upper half of its bits.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Two bfloat16 numbers that a product of pairs takes together, the first in the low half.
struct BfloatPair {
  std::uint32_t bits;
};

inline namespace TW_ISA {

// The bits of the nearest bfloat16 number, ties to even. Finite values stay finite: the largest
// become the largest bfloat16 number. NaN stays NaN.
TW_HD std::uint32_t bfloat16_bits(float x) {
  constexpr std::uint32_t kLargest = 0x7f7f;
  const std::uint32_t bits = to_bits(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t nearest = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
  nearest = nearest > kLargest ? kLargest : nearest;
  const std::uint32_t special = magnitude > 0x7f800000u ? 0x7fc0u : 0x7f80u;
  return sign | (magnitude >= 0x7f800000u ? special : nearest);
}

// Exact.
TW_HD float bfloat16_value(std::uint32_t bits) { return from_bits<float>(bits << 16); }

TW_HD float round_to_bfloat16(float x) { return bfloat16_value(bfloat16_bits(x)); }

}  // namespace TW_ISA
}  // namespace thalweg
