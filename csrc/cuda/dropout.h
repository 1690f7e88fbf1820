// Dropout: the mask is recomputed from its counters in the forward and in the backward pass, and is
// the CPU's.
#pragma once

#include <cstdint>

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "cuda/step_state.h"

namespace thalweg::cuda {

struct Dropout {
  std::uint64_t seed = 0;
  const StepState* state = nullptr;  // its `steps` key the mask; null: `step` does
  std::uint64_t step = 0;
  std::uint32_t stream = 0;     // the layer's number, not a CUDA stream
  std::uint32_t threshold = 0;  // keep an element when its 32 random bits are >= threshold
  double scale = 1.0;           // 1 / (1 - p)
  std::int64_t first_row = 0;   // row 0 of the matrix in the global minibatch
};

// y (+)= mask * scale * x: the forward and the backward pass. y may be x.
template <class T>
void dropout(const Matrix<const T>& x, const Matrix<T>& y, const Dropout& dropout, bool accumulate,
             cudaStream_t stream);

}  // namespace thalweg::cuda
