// Maxout (Goodfellow et al. 2013): a unit is the maximum of its pieces.
#pragma once

#include "math/host_device.h"

namespace thalweg {
inline namespace TW_ISA {

// Whether x takes the place of the maximum m so far: larger, or the first NaN.
template <class T>
TW_HD bool exceeds(T x, T m) {
  return x > m || (x != x && m == m);
}

}  // namespace TW_ISA
}  // namespace thalweg
