// The weight of a row of the data in the type of a network.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Smaller weights count as zero: in float32 they are subnormal numbers, which the CPU flushes.
inline constexpr double kLeastWeight = 0x1p-126;

inline namespace TW_ISA {

template <class T>
TW_HD T rounded_weight(double weight) {
  return weight < kLeastWeight ? T(0) : static_cast<T>(weight);
}

}  // namespace TW_ISA

}  // namespace thalweg
