// The loop of elementwise kernels over matrices.
#pragma once

#include "cuda/device_matrix.h"
#include "cuda/launch_shape.h"

namespace thalweg::cuda {

inline constexpr int kElementwiseThreads = 256;

// A launch with one quad per thread, or as many threads as the device holds.
inline LaunchConfig elementwise(const char* operation, std::int64_t elements, cudaStream_t stream) {
  constexpr int kBlocksPerMultiprocessor = 8;
  const std::int64_t parts = ceil_div(elements, std::int64_t{kElementwiseThreads} * kQuad);
  return {.operation = operation,
          .grid = strided_blocks(parts, kBlocksPerMultiprocessor, operation),
          .block = kElementwiseThreads,
          .stream = stream};
}

// f(row, column) for every quad of the matrix, padding included, spread over the grid.
template <class T, class F>
TW_DEVICE void for_quads(const Matrix<T>& matrix, F&& f) {
  const std::int64_t quads = quads_of(matrix);
  const std::int64_t total = matrix.rows * quads;
  const std::int64_t stride = global_thread_count();
  std::int64_t at = global_thread_index();
  if (at >= total) return;
  std::int64_t row = at / quads;
  std::int64_t quad = at - row * quads;
  const std::int64_t row_stride = stride / quads;
  const std::int64_t quad_stride = stride - row_stride * quads;
  for (; at < total; at += stride) {
    f(row, quad * kQuad);
    row += row_stride;
    quad += quad_stride;
    if (quad >= quads) {
      quad -= quads;
      ++row;
    }
  }
}

}  // namespace thalweg::cuda
