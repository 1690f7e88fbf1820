// What several kernels do on the way of their values to memory.
#pragma once

#include <cstdint>

#include "cuda/step_state.h"

namespace thalweg::cuda {

// phi(z) and phi'(.) by position in math/activations.inc; `parameter` is the slope or alpha.
struct Activation {
  int id = 0;  // 0 is the identity
  double parameter = 0.0;
};

// Multiplies an element by 0 or `scale`, as its random word says (math/philox.h); element = row in
// the global minibatch * width + column.
struct Dropout {
  bool active = false;
  std::uint64_t seed = 0;
  std::uint64_t step = 0;            // when there is no state
  const StepState* state = nullptr;  // in device memory: its `steps` keys the words
  std::uint16_t stream = 0;          // number of the layer
  std::uint64_t threshold = 0;       // bernoulli_threshold(rate): words below it drop
  double scale = 1.0;                // 1 / (1 - rate)
  std::int64_t first_row = 0;        // of the matrix in the global minibatch
};

}  // namespace thalweg::cuda
