// Minibatches out of a data set that lies in device memory, checks of such data, and the way from
// matrices back to dense arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/array_view.h"
#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "cuda/step_state.h"
#include "math/element_rule.h"

namespace thalweg::cuda {

// Which row of the data set is row r of a minibatch: index[r], or with `state` the row at position
// state->position + offset + r of state->order, or offset + r.
struct RowOrder {
  const std::int64_t* index = nullptr;
  const StepState* state = nullptr;
  std::int64_t offset = 0;
};

// out[r] = x[row of r], cast to T.
template <class T>
void gather(const ArrayView& x, const RowOrder& order, const Matrix<T>& out, cudaStream_t stream);

// Labels, row weights and their sums of a minibatch.
template <class T>
struct GatherTargets {
  RowOrder order;
  std::int64_t rows = 0;

  ArrayView labels;          // integers; absent: none
  std::int64_t classes = 0;  // one outside [0, classes) becomes 0 and fails the step
  std::int64_t* label_out = nullptr;

  ArrayView weights;                      // any real type, one per row of the data; absent: ones
  const double* class_weights = nullptr;  // [classes], with labels; null: ones
  T* row_weights = nullptr;               // [rows] weight * class weight, rounded; null: not wanted
  double* block_weights = nullptr;        // [row_blocks_of(rows)] sums of them; null: not wanted
  double* total_weight = nullptr;         // their sum; null: not wanted

  // Training: kInvalidLabel goes here, and when these rows are the whole update, their weight and
  // the scale of its gradients, 1 / (weight * gradient_divisor), or 1 for the divisor 0. A weight
  // of zero has the scale 0.
  StepState* state = nullptr;
  bool whole_update = true;
  double gradient_divisor = 1.0;
};

std::size_t gather_targets_scratch_bytes(std::int64_t rows);
template <class T>
void gather_targets(const GatherTargets<T>& problem, const Scratch& scratch, cudaStream_t stream);

// out[r * leading + c] = in(r, c).
template <class T>
void scatter(const Matrix<const T>& in, T* out, std::int64_t leading, cudaStream_t stream);
// out(r, c) = in[r * leading + c].
template <class T>
void pack(const T* in, std::int64_t leading, const Matrix<T>& out, cudaStream_t stream);

struct ElementCheck {
  unsigned long long first_bad;  // r * cols + c, or ~0
  unsigned long long positive;   // how many would count as weights
};
// *result of the elements of x; the caller sets it to {~0, 0} before.
void check_elements(const ArrayView& x, ElementRule rule, double limit, ElementCheck* result,
                    cudaStream_t stream);

}  // namespace thalweg::cuda
