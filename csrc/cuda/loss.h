// Losses and their gradients, and softmax.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "cuda/step_state.h"

namespace thalweg::cuda {

// Sums of weight * loss, weight * hit and weight, of a pure pass.
struct LossSums {
  double loss;
  double hits;
  double weight;
};

// gradient = scale * w_i * d(loss_i)/d(output)
template <class T>
struct Loss {
  Matrix<const T> outputs;
  const std::int64_t* labels = nullptr;  // [rows], already checked; or
  Matrix<const T> targets{};             // dense targets (probabilities or values)
  const T* row_weights = nullptr;        // [rows] or null for ones
  double label_smoothing = 0.0;          // cross-entropy only
  double parameter = 0.0;                // huber: delta

  Matrix<T> gradient{};  // absent: value only
  double gradient_scale = 1.0;
  const double* gradient_scale_at = nullptr;  // in device memory, instead

  // Training: the sums go to state->loss and hits, and one that is not finite fails the step.
  StepState* state = nullptr;
  LossSums* sums = nullptr;  // a pure pass: they go here
  bool accumulate = false;   // add to the sums that are there
};

std::size_t loss_scratch_bytes(std::int64_t rows);
template <class T>
void softmax_cross_entropy(const Loss<T>& problem, const Scratch& scratch, cudaStream_t stream);
// loss_id: position in the list of math/losses.inc.
template <class T>
void elementwise_loss(int loss_id, const Loss<T>& problem, const Scratch& scratch,
                      cudaStream_t stream);

// gradient_tangent = gradient_scale * w_i * (d^2(loss_i)/d(output)^2) output_tangent
template <class T>
struct LossTangent {
  Matrix<const T> outputs;
  Matrix<const T> output_tangent;
  Matrix<const T> targets{};       // absent: integer labels, which the product does not need
  const T* row_weights = nullptr;  // [rows] or null for ones
  double label_smoothing = 0.0;
  double parameter = 0.0;
  double gradient_scale = 1.0;
  Matrix<T> gradient_tangent;
};
template <class T>
void softmax_cross_entropy_tangent(const LossTangent<T>& problem, cudaStream_t stream);
template <class T>
void elementwise_loss_tangent(int loss_id, const LossTangent<T>& problem, cudaStream_t stream);

// Rows of probabilities; they may lie where the logits are.
template <class T>
void softmax(const Matrix<const T>& logits, const Matrix<T>& probabilities, cudaStream_t stream);

}  // namespace thalweg::cuda
