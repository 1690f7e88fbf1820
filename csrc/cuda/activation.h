// Activations, and the elementwise operations around them. Outputs may be one of the inputs.
#pragma once

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "math/activation_kind.h"

namespace thalweg::cuda {

// y = phi(z)
template <class T>
void activation(const Matrix<const T>& z, const Matrix<T>& y, Activation phi, cudaStream_t stream);

// dz (+)= dy * phi'(at); `at` is z or y as phi declares, and may be absent for the identity.
template <class T>
void activation_backward(const Matrix<const T>& dy, const Matrix<const T>& at, const Matrix<T>& dz,
                         Activation phi, bool accumulate, cudaStream_t stream);

// dz_tangent (+)= dy_tangent * phi'(at) + dy * phi''(at) * z_tangent
template <class T>
struct ActivationBackwardTangent {
  Matrix<const T> dy;
  Matrix<const T> dy_tangent;
  Matrix<const T> at;  // z or y as phi declares
  Matrix<const T> z_tangent;
  Activation activation{};
  Matrix<T> dz_tangent;
  bool accumulate = false;
};
template <class T>
void activation_backward_tangent(const ActivationBackwardTangent<T>& problem, cudaStream_t stream);

// out = a + b
template <class T>
void add(const Matrix<const T>& a, const Matrix<const T>& b, const Matrix<T>& out,
         cudaStream_t stream);
// out += x
template <class T>
void accumulate(const Matrix<const T>& x, const Matrix<T>& out, cudaStream_t stream);
// out = x
template <class T>
void copy(const Matrix<const T>& x, const Matrix<T>& out, cudaStream_t stream);

}  // namespace thalweg::cuda
