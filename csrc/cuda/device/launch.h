// Which thread this is. Coordinates are int, so that index arithmetic is signed.
#pragma once

#include "cuda/device/target.h"

namespace thalweg::cuda {

inline constexpr int kWarpThreads = 32;

#if defined(__CUDACC__)

struct Index3 {
  int x, y, z;
};

TW_DEVICE Index3 thread_index() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
          static_cast<int>(threadIdx.z)};
}
TW_DEVICE Index3 block_index() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
TW_DEVICE Index3 block_size() {
  return {static_cast<int>(blockDim.x), static_cast<int>(blockDim.y), static_cast<int>(blockDim.z)};
}
TW_DEVICE Index3 grid_size() {
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
}

#else

using Index3 = emulator::Index3;

TW_DEVICE Index3 thread_index() { return emulator::current().index; }
TW_DEVICE Index3 block_index() { return emulator::current().block->index; }
TW_DEVICE Index3 block_size() { return emulator::current_launch().block; }
TW_DEVICE Index3 grid_size() { return emulator::current_launch().grid; }

#endif

// Of one-dimensional blocks.
TW_DEVICE int lane_index() { return thread_index().x % kWarpThreads; }
TW_DEVICE int warp_index() { return thread_index().x / kWarpThreads; }

// Of one-dimensional grids: the first element of a grid-stride loop, and its stride.
TW_DEVICE std::int64_t global_thread_index() {
  return static_cast<std::int64_t>(block_index().x) * block_size().x + thread_index().x;
}
TW_DEVICE std::int64_t global_thread_count() {
  return static_cast<std::int64_t>(grid_size().x) * block_size().x;
}

}  // namespace thalweg::cuda
