// What an element of a caller's data has to be.
#pragma once

#include "math/host_device.h"

namespace thalweg {

enum class ElementRule : int {
  kFinite,
  kNotNegative,   // and finite
  kBelow,         // in [0, limit)
  kUnitInterval,  // in [0, 1]
  kSign,          // -1 or +1
};

inline namespace TW_ISA {

TW_HD bool obeys(double x, ElementRule rule, double limit) {
  switch (rule) {
    case ElementRule::kFinite:
      return is_finite(x);
    case ElementRule::kNotNegative:
      return x >= 0.0 && is_finite(x);
    case ElementRule::kBelow:
      return x >= 0.0 && x < limit;
    case ElementRule::kUnitInterval:
      return x >= 0.0 && x <= 1.0;
    case ElementRule::kSign:
      return x == 1.0 || x == -1.0;
  }
  return false;
}

}  // namespace TW_ISA

}  // namespace thalweg
