// Grids of kernels whose blocks stride over the work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/runtime.h"

namespace thalweg::cuda {

inline int multiprocessors(const char* operation) {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), operation);
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), operation);
  return count;
}

// Blocks for `parts` parts of work: one part each while the device holds them all.
inline unsigned strided_blocks(std::int64_t parts, int blocks_per_multiprocessor,
                               const char* operation) {
  const std::int64_t resident =
      std::int64_t{multiprocessors(operation)} * blocks_per_multiprocessor;
  return static_cast<unsigned>(std::clamp<std::int64_t>(parts, 1, resident));
}

}  // namespace thalweg::cuda
