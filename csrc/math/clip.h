// Gradient clipping by global norm (Pascanu, Mikolov, Bengio 2013).
#pragma once

#include "math/host_device.h"

namespace thalweg {
inline namespace TW_ISA {

// The factor of every gradient for a sum of squares accumulated in double: clip_norm / norm where
// the norm exceeds clip_norm, else 1. A non-finite norm gives NaN, so that it cannot pass as a zero
// step.
TW_HD double clip_scale(double sum_of_squares, double clip_norm) {
  const double norm = sqrt(sum_of_squares);
  const double scale = select(norm > clip_norm, clip_norm / norm, 1.0);
  return select(is_finite(norm), scale, FloatFormat<double>::nan);
}

}  // namespace TW_ISA
}  // namespace thalweg
