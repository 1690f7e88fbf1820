// How a product is cut into tiles, and what its blocks share: the part of cuda/gemm.h that host and
// kernels agree on. Everything follows from shapes, so that results do not depend on the GPU.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "core/layout.h"
#include "cuda/gemm.h"
#include "math/host_device.h"

namespace thalweg::cuda {

// The tiles of a result. Rows come in slabs of one row block.
struct Tiling {
  TileShape shape = TileShape::kAutomatic;
  int rows = 0;  // of a tile
  int columns = 0;
  int count_m = 0;  // tiles
  int count_n = 0;

  TW_HD int count() const { return count_m * count_n; }
};

// Tickets of a merge in two levels: one per group, and one for the groups if there are several.
TW_HD constexpr int tickets_of_merge(int groups) { return groups > 1 ? groups + 1 : 1; }

// Results of row blocks, merged in two levels: blocks of a group in index order by the last block
// that arrives in the group, then groups in index order by the last group. Item i of row block b
// and column c lies at blocks[(b * items + i) * pitch + c].
struct RowMerge {
  double* blocks = nullptr;
  double* groups = nullptr;
  unsigned* tickets = nullptr;  // [tiles along the columns][tickets_of_merge()]
  std::int64_t pitch = 0;
  int block_count = 0;
  int blocks_per_group = 0;
  int group_count = 0;
};

// Parts of the batch that blocks sum up apart from each other, merged in the same way.
struct BatchSplit {
  int count = 1;
  int per_group = 1;
  int group_count = 1;
  std::int64_t rows = 0;  // of a part
};

// What a kernel of each form gets.
template <class T>
struct ForwardTask {
  DenseForward<T> problem;
  Tiling tiling;
  RowMerge statistics;
  RowMerge loss;
  RowMerge bias;
};

template <class T>
struct InputGradientTask {
  DenseInputGradient<T> problem;
  Tiling tiling;
  RowMerge bias;
};

template <class T>
struct WeightGradientTask {
  DenseWeightGradient<T> problem;
  Tiling tiling;
  BatchSplit split;
  T* parts = nullptr;           // [split.count][tiles][tile]
  T* groups = nullptr;          // [split.group_count][tiles][tile]
  unsigned* tickets = nullptr;  // [tiles][tickets_of_merge()]
  double* squares = nullptr;    // [tiles]
  unsigned* squares_ticket = nullptr;
};

// A kernel has the tile that the task was cut for.
template <class Tile, class Task>
void expect_tile(const Task& task) {
  if (task.tiling.rows != Tile::kM || task.tiling.columns != Tile::kN) {
    throw InternalError(concat("[dense] expected a tile of ", Tile::kM, "x", Tile::kN, ", got ",
                               task.tiling.rows, "x", task.tiling.columns));
  }
}

// The kernels, in gemm_simt.cu and gemm_mma.cu.
template <class Task>
void launch_simt(const Task& task, cudaStream_t stream);
template <class Task>
void launch_mma(const Task& task, cudaStream_t stream);

}  // namespace thalweg::cuda
