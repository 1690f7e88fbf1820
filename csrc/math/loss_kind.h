// Owns what every elementwise loss declares about itself.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Admissible targets of a loss: any finite number, a number in [0, 1], or exactly -1 or +1.
enum class TargetKind : int { real, unit_interval, sign };

inline namespace TW_ISA {

// Whether prediction z agrees with target t; what counts depends on the kind of target.
template <TargetKind kTarget, class T>
TW_HD bool agrees(T z, T t) {
  if constexpr (kTarget == TargetKind::sign) {
    return z * t > T(0);
  } else if constexpr (kTarget == TargetKind::unit_interval) {
    return (z > T(0)) == (t > T(0.5));
  } else {
    return false;
  }
}

}  // namespace TW_ISA

}  // namespace thalweg
