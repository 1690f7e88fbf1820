// The optimizer's pass over the flat arenas, the gradient norm before it, and the end of a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "cuda/step_state.h"

namespace thalweg::cuda {

// Which elements of the arenas move: one group byte per kGroupBlock elements.
struct ParameterGroups {
  const std::uint8_t* of_block = nullptr;  // [count / kGroupBlock]
  const std::uint8_t* frozen = nullptr;    // [groups], 0 or 1
  int groups = 1;
};

// bfloat16 planes of an arena, in an arena of the same layout: plane p at data + p * stride.
struct PlaneArena {
  std::uint16_t* data = nullptr;
  std::int64_t stride = 0;
  int count = 0;
};

// One update of all parameters, nothing unless updates_model(*state). Elements whose gradient is
// not finite stay as they are and are counted in state->skipped_elements.
template <class T>
struct OptimizerStep {
  int optimizer = 0;  // position in the list of math/optimizers.inc
  StepState* state = nullptr;
  std::int64_t count = 0;  // a multiple of kGroupBlock
  T* p = nullptr;
  const T* g = nullptr;  // multiplied by state->gradient_factor
  T* s0 = nullptr;       // null when the optimizer has no such slot
  T* s1 = nullptr;
  ParameterGroups groups;
  // [row][groups][kMaxCoefficients], read at state->row.
  const double* coefficients = nullptr;
  // average += weight (theta - average) for all elements, frozen ones too; null: no average.
  T* average = nullptr;
  const double* average_weights = nullptr;  // [row]; 0 leaves the average alone
  PlaneArena planes;                        // of p; count 0: none
  // The launch ends the step: advance_step() by its last block.
  bool advances = false;
  std::int64_t rows = 0;
};
template <class T>
void optimizer_step(const OptimizerStep<T>& problem, const Scratch& scratch, cudaStream_t stream);

// Moves the state on to the next update, as cuda/step_state.h says; `rows` of the update.
void advance_step(StepState* state, std::int64_t rows, cudaStream_t stream);

// state->squares and the factor that clips their root to clip_norm. Most of the gradient need not
// be read for it: products have left the sums of squares of what they made. A sum that is not
// finite fails the step.
template <class T>
struct GradientNorm {
  const double* sums = nullptr;  // [sum_count]
  std::int64_t sum_count = 0;
  const T* g = nullptr;
  const std::int32_t* blocks = nullptr;  // [block_count]: those of kGroupBlock elements to read
  std::int64_t block_count = 0;
  double clip_norm = std::numeric_limits<double>::infinity();
  StepState* state = nullptr;
};
std::size_t gradient_norm_scratch_bytes(std::int64_t block_count);
template <class T>
void gradient_norm(const GradientNorm<T>& problem, const Scratch& scratch, cudaStream_t stream);

// theta of the look-ahead methods from the stored p and the coefficients [groups][kMaxCoefficients]
// of the last update; a copy for the others.
template <class T>
struct OptimizerTheta {
  int optimizer = 0;
  std::int64_t count = 0;
  const T* p = nullptr;
  const T* s0 = nullptr;
  const T* s1 = nullptr;
  ParameterGroups groups;
  const double* coefficients = nullptr;
  T* theta = nullptr;
};
template <class T>
void optimizer_theta(const OptimizerTheta<T>& problem, cudaStream_t stream);

}  // namespace thalweg::cuda
