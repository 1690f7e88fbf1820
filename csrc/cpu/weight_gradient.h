// Weight gradients over many rows: several tiles at a time, so that a part of the rows is fetched
// once for all of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layout.h"
#include "cpu/kernels.h"

namespace thalweg::cpu {

// Up to so many rows the second-level cache holds what one tile reads: tiles are made one by one.
inline constexpr std::int64_t kTileRows = 1024;
// Most tiles of a group: 4 x 4, in double 4 x 2, together 64 KiB.
inline constexpr std::int64_t kGroupIn = 4;
template <class T>
inline constexpr std::int64_t kGroupOut = 16 / static_cast<std::int64_t>(sizeof(T));

// A group is made in a few milliseconds: rows x tiles.
inline constexpr std::int64_t kGroupRows = 1 << 17;

// Tiles of a gradient; those of neighbouring output panels lie `stride` tiles apart.
template <class T>
struct TileGroup {
  Range in_panels;
  Range out_panels;
  T* first;
  std::int64_t stride;

  T* tile(std::int64_t in_panel, std::int64_t out_panel) const {
    return first + ((out_panel - out_panels.begin) * stride + in_panel - in_panels.begin) * kTile;
  }
  // f(in panel, out panel, tile)
  template <class F>
  void for_each(F&& f) const {
    for (std::int64_t o = out_panels.begin; o < out_panels.end; ++o)
      for (std::int64_t k = in_panels.begin; k < in_panels.end; ++k) f(k, o, tile(k, o));
  }
};

template <class T, class Make>
void add_tiles(const Kernels<T>& kernels, Range rows, std::int64_t most_rows,
               const TileGroup<T>& group, const Make& make);

// The tree that kGradientRows tells of, for a group of tiles at once down to `most_rows` rows;
// make(rows, in panel, out panel, add, tile) goes on from there, for one tile.
template <class T, class Make>
void sum_tiles(const Kernels<T>& kernels, Range rows, std::int64_t most_rows,
               const TileGroup<T>& group, bool add, const Make& make) {
  if (rows.size() <= most_rows) {
    group.for_each([&](std::int64_t k, std::int64_t o, T* tile) { make(rows, k, o, add, tile); });
  } else if (add) {
    add_tiles(kernels, rows, most_rows, group, make);
  } else {
    sum_tiles(kernels, first_half(rows), most_rows, group, false, make);
    sum_tiles(kernels, second_half(rows), most_rows, group, true, make);
  }
}

// Apart, so that only levels of the tree that add have sums on the stack: three at most.
template <class T, class Make>
[[gnu::noinline]] void add_tiles(const Kernels<T>& kernels, Range rows, std::int64_t most_rows,
                                 const TileGroup<T>& group, const Make& make) {
  alignas(64) T sums[kGroupIn * kGroupOut<T> * kTile];
  const TileGroup<T> part{group.in_panels, group.out_panels, sums, group.in_panels.size()};
  sum_tiles(kernels, rows, most_rows, part, false, make);
  part.for_each([&](std::int64_t k, std::int64_t o, const T* sum) {
    kernels.axpy(1.0, sum, group.tile(k, o), kTile);
  });
}

// The tiles `own` of a gradient of which `gradient` is the first and `in_panels` make a line;
// stop() is asked before each group.
template <class T, class Stop, class Make>
void weight_gradient(const Kernels<T>& kernels, std::int64_t rows, std::int64_t in_panels,
                     Range own, bool add, T* gradient, const Stop& stop, const Make& make) {
  const bool grouped = rows > kTileRows && 2 * rows <= kGroupRows;
  const std::int64_t most = grouped ? kGroupRows / rows : 1;
  const std::int64_t wide = std::min(kGroupIn, most);
  const std::int64_t high = std::min(kGroupOut<T>, most / wide);
  // An eighth of the rows lies below few levels of the tree.
  const std::int64_t most_rows = grouped ? std::max(kTileRows / 2, ceil_div(rows, 8)) : rows;
  while (own.size() > 0) {
    const std::int64_t line = own.begin / in_panels;
    const std::int64_t begin = own.begin % in_panels;
    const std::int64_t end = std::min(in_panels, begin + own.size());
    const bool whole = end - begin == in_panels;
    const std::int64_t lines = whole ? std::min(high, own.size() / in_panels) : 1;
    for (std::int64_t k = begin; k < end; k += wide) {
      if (stop()) return;
      const TileGroup<T> group{{k, std::min(k + wide, end)},
                               {line, line + lines},
                               gradient + (line * in_panels + k) * kTile,
                               in_panels};
      sum_tiles(kernels, {0, rows}, most_rows, group, add, make);
    }
    own.begin += lines * (end - begin);
  }
}

}  // namespace thalweg::cpu
