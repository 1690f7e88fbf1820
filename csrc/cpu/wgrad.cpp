// The dense layer's parameter gradients: tiles of X^T dY, column sums, and the transposed copy of a
// tile of weights.
#include <type_traits>

#include "cpu/amx.h"
#include "cpu/micro_kernel.h"
#include "cpu/operations.h"
#include "cpu/panel_loops.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// kRows x (kVectors vectors) of a tile; all pointers at its first row and column.
template <class T, class E>
struct BlockArguments {
  // T in panels; or pairs of two rows, 16 per chunk of 32 rows: [32, 16] of x, [16, 32] of dy.
  const E* x;
  const E* dy;
  std::int64_t rows;  // of dy's factors; pairs: whole chunks
  T* tile;
  bool add;             // to what the tile holds, zero past its lanes
  std::int64_t column;  // of the block within the tile
  std::int64_t lanes;   // valid columns of the tile
};

inline constexpr int kPairs = kPanel / 2;  // of a chunk

template <class T, class E, int kVectors>
struct GradientBlock {
  template <int kRows>
  struct Rows {
    static void run(const BlockArguments<T, E>& arguments) {
      const BlockArguments<T, E> block = arguments;
      Accumulator<T, kRows, kVectors> sum;
      sum.clear();
      if constexpr (std::is_same_v<E, T>) {
        sum.template multiply<1, kPanel>(block.x, block.dy, block.rows);
      } else {
        for (std::int64_t r = 0; r < block.rows; r += kPairs)
          sum.template multiply<kPairs, 1>(block.x + r * kPanel, block.dy + r * kPanel, kPairs);
      }
      const bool tail = block.lanes < block.column + kVectors * Vec<T>::kLanes;
      TW_UNROLL(16)
      for (int i = 0; i < kRows; ++i) {
        TW_UNROLL(2)
        for (int j = 0; j < kVectors; ++j) {
          T* const at = block.tile + i * kPanel + j * Vec<T>::kLanes;
          Vec<T> x = sum.at[i][j];
          if (block.add) x = Vec<T>::load(at) + x;
          if (tail) x = keep_lanes(x, block.column + j * Vec<T>::kLanes, block.lanes);
          x.store(at);
        }
      }
    }
  };
};

template <class T, class E, int kVectors>
void multiply_group(BlockArguments<T, E> block, std::int64_t tile_rows) {
  constexpr int kMost = kMaxRows<kVectors>;
  static constexpr BlockTable<GradientBlock<T, E, kVectors>::template Rows, BlockArguments<T, E>,
                              kMost>
      kTable;
  const E* const x = block.x;
  T* const tile = block.tile;
  for_row_parts<kMost>(tile_rows, [&](std::int64_t i, std::int64_t count) {
    block.x = x + i * (std::is_same_v<E, T> ? 1 : kPairs);
    block.tile = tile + i * kPanel;
    kTable.run[count - 1](block);
  });
}

// kSize sums over rows; leaf(rows, add, sums) makes them for at most kGradientRows rows.
template <std::int64_t kSize, class T, class Leaf>
void sum_over_rows(Range rows, bool add, T* sums, const Leaf& leaf) {
  if (rows.size() <= kGradientRows) return leaf(rows, add, sums);
  if (!add) {
    sum_over_rows<kSize>(first_half(rows), false, sums, leaf);
    return sum_over_rows<kSize>(second_half(rows), true, sums, leaf);
  }
  alignas(64) T part[kSize];
  sum_over_rows<kSize>(rows, false, part, leaf);
  for (std::int64_t i = 0; i < kSize; i += Vec<T>::kLanes)
    (Vec<T>::load(sums + i) + Vec<T>::load(part + i)).store(sums + i);
}

// `count` factors of each column; the tile has `tile_rows` rows, zeros past x_lanes.
template <class T, class E>
void multiply_tile(const E* x, std::int64_t x_lanes, const E* dy, std::int64_t dy_lanes,
                   std::int64_t count, bool add, T* tile, std::int64_t tile_rows = kPanel) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const std::int64_t vectors = ceil_div(dy_lanes, kLanes);
  for (std::int64_t vector = 0; vector < vectors; vector += kGroupVectors) {
    const std::int64_t column = vector * kLanes;
    const BlockArguments<T, E> group{.x = x,
                                     .dy = dy + column,
                                     .rows = count,
                                     .tile = tile + column,
                                     .add = add,
                                     .column = column,
                                     .lanes = dy_lanes};
    if (vectors - vector >= kGroupVectors) {
      multiply_group<T, E, kGroupVectors>(group, x_lanes);
    } else {
      multiply_group<T, E, 1>(group, x_lanes);
    }
  }
  if (add) return;
  zero_columns(tile, x_lanes, vectors * kLanes);
  zero_columns(tile + x_lanes * kPanel, tile_rows - x_lanes, 0);
}

// In a tile of [rows, columns].
template <class T>
constexpr std::int64_t vectors_of(std::int64_t rows, std::int64_t columns) {
  return rows * ceil_div(columns, Vec<T>::kLanes);
}

// The tile, made with rows and columns exchanged; kRows are its columns, rounded up.
template <std::int64_t kRows, class T>
void narrow_tile(const T* x, std::int64_t x_lanes, const T* dy, std::int64_t dy_lanes,
                 std::int64_t rows, bool accumulate, T* tile) {
  constexpr std::int64_t kSize = kRows * kPanel;
  alignas(64) T transposed[kSize];
  sum_over_rows<kSize>({0, rows}, false, transposed, [=](Range part, bool add, T* sums) {
    const std::int64_t at = part.begin * kPanel;
    multiply_tile(dy + at, dy_lanes, x + at, x_lanes, part.size(), add, sums, kRows);
  });
  const std::int64_t columns = round_up(dy_lanes, Vec<T>::kLanes);
  if (!accumulate) {
    transpose_tile(transposed, dy_lanes, kPanel, tile);
    return zero_columns(tile, kPanel, columns);
  }
  alignas(64) T sums[kTile];
  transpose_tile(transposed, dy_lanes, kPanel, sums);
  for (std::int64_t j = 0; j < columns; j += Vec<T>::kLanes)
    for (std::int64_t at = j; at < kTile; at += kPanel)
      (Vec<T>::load(tile + at) + Vec<T>::load(sums + at)).store(tile + at);
}

}  // namespace

template <class T>
void wgrad_tile(const T* x, std::int64_t x_lanes, const T* dy, std::int64_t dy_lanes,
                std::int64_t rows, bool accumulate, T* tile) {
  // Few columns fill vectors badly: then those of x do.
  if (vectors_of<T>(dy_lanes, x_lanes) < vectors_of<T>(x_lanes, dy_lanes))
    return dy_lanes <= kPanel / 2
               ? narrow_tile<kPanel / 2>(x, x_lanes, dy, dy_lanes, rows, accumulate, tile)
               : narrow_tile<kPanel>(x, x_lanes, dy, dy_lanes, rows, accumulate, tile);
  sum_over_rows<kTile>({0, rows}, accumulate, tile, [=](Range part, bool add, T* sums) {
    const std::int64_t at = part.begin * kPanel;
    multiply_tile(x + at, x_lanes, dy + at, dy_lanes, part.size(), add, sums);
  });
}

void wgrad_tile_bfloat16(const BfloatPair* x, std::int64_t x_lanes, const BfloatPair* dy,
                         std::int64_t dy_lanes, std::int64_t rows, bool accumulate, float* tile) {
  sum_over_rows<kTile>({0, rows}, accumulate, tile, [=](Range part, bool add, float* sums) {
    const std::int64_t at = part.begin * kPairs;
    const std::int64_t chunks = ceil_div(part.size(), kPanel);
#if defined(TW_AMX)
    if (has_matrix_unit()) {
      const Tiles tiles;
      return multiply_on_tiles(x + at, kPairs * kPanel, dy + at, chunks, kPanel, add, sums);
    }
#endif
    multiply_tile(x + at, x_lanes, dy + at, dy_lanes, chunks * kPairs, add, sums);
  });
}

template <class T>
void transpose_tile(const T* tile, std::int64_t rows, std::int64_t columns, T* transposed) {
  transpose_squares<kPanel, kPanel>(tile, rows, columns, transposed);
}

template <class T>
void column_sum(const T* panel, std::int64_t rows, std::int64_t lanes, bool accumulate, T* out) {
  sum_over_rows<kPanel>({0, rows}, accumulate, out, [=](Range part, bool add, T* sums) {
    double total[kPanel] = {};
    for (std::int64_t begin = part.begin; begin < part.end; begin += kRowBlock) {
      const std::int64_t count = part.end - begin < kRowBlock ? part.end - begin : kRowBlock;
      T sum[kPanel];
      for (std::int64_t vector = 0; vector < kPanelVectors<T>; ++vector) {
        const std::int64_t column = vector * Vec<T>::kLanes;
        // Even and odd rows apart: two chains of additions per vector.
        Vec<T> even = Vec<T>::zero();
        Vec<T> odd = Vec<T>::zero();
        const T* row = panel + begin * kPanel + column;
        for (std::int64_t pair = count / 2; pair > 0; --pair) {
          even = even + Vec<T>::load(row);
          odd = odd + Vec<T>::load(row + kPanel);
          row += 2 * kPanel;
        }
        if (count % 2 != 0) even = even + Vec<T>::load(row);
        (even + odd).store(sum + column);
      }
      for (std::int64_t j = 0; j < kPanel; ++j) total[j] += static_cast<double>(sum[j]);
    }
    for (std::int64_t j = 0; j < kPanel; ++j) {
      const T before = add ? sums[j] : T(0);
      sums[j] = j < lanes ? before + static_cast<T>(total[j]) : T(0);
    }
  });
}

#define TW_INSTANTIATE(T)                                                                      \
  template void wgrad_tile(const T*, std::int64_t, const T*, std::int64_t, std::int64_t, bool, \
                           T*);                                                                \
  template void transpose_tile(const T*, std::int64_t, std::int64_t, T*);                      \
  template void column_sum(const T*, std::int64_t, std::int64_t, bool, T*);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
