// Maxout: unit u is the maximum of columns u * pieces .. u * pieces + pieces - 1.
#pragma once

#include <cstdint>

#include "cuda/matrix.h"
#include "cuda/runtime.h"

namespace thalweg::cuda {

template <class T>
void maxout(const Matrix<const T>& z, const Matrix<T>& y, std::int64_t pieces, cudaStream_t stream);
// The gradient goes to the first maximum, zero to the others.
template <class T>
void maxout_backward(const Matrix<const T>& z, const Matrix<const T>& dy, const Matrix<T>& dz,
                     std::int64_t pieces, cudaStream_t stream);

// y_tangent takes the element of z_tangent at the place of z's maximum.
template <class T>
void maxout_tangent(const Matrix<const T>& z, const Matrix<const T>& z_tangent,
                    const Matrix<T>& y_tangent, std::int64_t pieces, cudaStream_t stream);

}  // namespace thalweg::cuda
