// Tangents of batch norm's forward and backward pass: how they change along a direction. The
// tangent of x is called x_tangent; the formulas stand in math/batch_norm.h.
//
// Vectors per column have at least `pitch` elements; those that a launch writes are zero beyond the
// width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/batch_norm.h"
#include "cuda/matrix.h"
#include "cuda/runtime.h"

namespace thalweg::cuda {

// The input of a batch norm with its tangent.
template <class T>
struct BatchNormPoint {
  Matrix<const T> z;
  Matrix<const T> z_tangent;
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  bool frozen = false;        // running statistics are constants: these two are not touched
  T* mean_tangent = nullptr;  // sum of w z_tangent / W
  T* std_tangent = nullptr;   // sum of w z_tangent xhat / W
};

// Writes mean_tangent and std_tangent of the point, unless it is frozen, then
// y_tangent = gamma_tangent * xhat + gamma * xhat_tangent + beta_tangent.
template <class T>
struct BatchNormTangent {
  BatchNormPoint<T> point;
  RowWeights<T> weights{};
  const T* gamma = nullptr;
  const T* gamma_tangent = nullptr;
  const T* beta_tangent = nullptr;
  Matrix<T> y_tangent;
};

// The tangent of BatchNormBackward, whose g = dy here: the activation is another operation.
//   dbeta_tangent = sum g_tangent, dgamma_tangent = sum (g_tangent xhat + g xhat_tangent),
//   dz_tangent as normalize_backward_tangent() says. dgamma and dbeta are the sums of the backward
// pass itself.
template <class T>
struct BatchNormBackwardTangent {
  BatchNormPoint<T> point;
  RowWeights<T> weights{};
  const T* gamma = nullptr;
  const T* gamma_tangent = nullptr;
  const T* dgamma = nullptr;
  const T* dbeta = nullptr;
  Matrix<const T> g;
  Matrix<const T> g_tangent;
  T* dgamma_tangent = nullptr;
  T* dbeta_tangent = nullptr;
  Matrix<T> dz_tangent{};  // absent: the sums alone; may be g_tangent
  bool accumulate = false;
};

// Of both.
std::size_t batch_norm_tangent_scratch_bytes(std::int64_t rows, std::int64_t width);
// `partials`: that many bytes of device memory.
template <class T>
void batch_norm_tangent(const BatchNormTangent<T>& problem, double* partials, cudaStream_t stream);
template <class T>
void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>& problem, double* partials,
                                 cudaStream_t stream);

}  // namespace thalweg::cuda
