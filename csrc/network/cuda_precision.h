// What multiplies: from the accuracy that the description asks for and the GPU to the arithmetic of
// every product.
#pragma once

#include <cstdint>

#include "cuda/matrix.h"
#include "network/plan.h"

namespace thalweg {

// Every dense layer of both widths from `smallest` on multiplies with `large`, the others on the
// SIMT units. The batch size has no say: a row's output does not depend on it.
struct CudaPrecision {
  cuda::Precision large = cuda::Precision::kSimt;
  std::int64_t smallest = 0;

  // compute_capability: 90 for 9.0. compiled_for: cuda::compiled_architecture().
  static CudaPrecision choose(const Description& description, int compute_capability,
                              int compiled_for);
  // For the current device.
  static CudaPrecision choose(const Description& description, const char* operation);

  cuda::Precision of(const Tensor& weight) const {
    const bool is_large = weight.out >= smallest && weight.in >= smallest;
    return is_large ? large : cuda::Precision::kSimt;
  }
  int planes() const { return cuda::planes_of(large); }
  // "medium": activations are stored as bfloat16 numbers.
  bool rounds() const { return large == cuda::Precision::kBfloat16; }
};

}  // namespace thalweg
