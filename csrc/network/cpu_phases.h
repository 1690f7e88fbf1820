// Phases of a parallel region: independent chunks of matrices spread over a team.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layout.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"

namespace thalweg {

// A chunk between two looks at the interrupt stays below this many multiply-adds (5 ms with
// AVX-512, 100 ms in float64 on a loaded processor without AVX).
inline constexpr double kChunkProducts = 2e8;

// A pass over elements looks at the interrupt after this many row blocks x panels.
inline constexpr std::int64_t kChunkUnits = 256;

// A part of a walk over row blocks x panels.
struct GridShare {
  bool by_columns = false;  // panel after panel, else row block after row block
  std::int64_t across = 0;  // row blocks per panel, or panels per row block
  Range left;               // of all blocks x panels in this order
};

// f(blocks, panels), at most `units` blocks x panels at a time.
template <class F>
void walk(Team& team, GridShare share, std::int64_t units, F&& f) {
  Range& left = share.left;
  const std::int64_t across = share.across;
  while (left.size() > 0 && !team.stop_requested()) {
    const std::int64_t line = left.begin / across;
    const std::int64_t first = left.begin % across;
    const Range part{first, std::min({across, first + left.size(), first + units})};
    const std::int64_t lines =
        part.size() < across ? 1 : std::max<std::int64_t>(1, std::min(left.size(), units) / across);
    const Range along{line, line + lines};
    if (share.by_columns)
      f(part, along);
    else
      f(along, part);
    left.begin += lines * part.size();
  }
}

// Whether a matrix is shared by columns rather than by rows: when it is at least as wide as high. A
// product then leaves the weights, or the rows, in the caches where they are.
inline bool shared_by_columns(std::int64_t rows, std::int64_t panels) {
  return panels * kPanel >= rows;
}

// f(blocks, panels) over this thread's contiguous share of a grid of blocks of rows x panels, at
// most `units` blocks x panels at a time.
template <class F>
void walk_share(Team& team, std::int64_t rows, std::int64_t block_rows, std::int64_t panels,
                std::int64_t units, F&& f) {
  const std::int64_t blocks = ceil_div(rows, block_rows);
  const bool by_columns = shared_by_columns(rows, panels);
  walk(team, {by_columns, by_columns ? blocks : panels, team.share(blocks * panels)}, units, f);
}

// The same by all threads, then a barrier.
template <class F>
void grid(Team& team, std::int64_t rows, std::int64_t block_rows, std::int64_t panels,
          std::int64_t units, F&& f) {
  walk_share(team, rows, block_rows, panels, units, f);
  team.barrier();
}

template <class T, class F>
void grid(Team& team, const Panels<T>& matrix, F&& f) {
  grid(team, matrix.rows, kRowBlock, matrix.panels(), kChunkUnits,
       [&](Range blocks, Range panels) { f(rows_of_blocks(blocks, matrix.rows), panels); });
}

// Of a product over `depth`.
inline std::int64_t units_per_chunk(std::int64_t depth) {
  const double products = static_cast<double>(kRowBlock * kPanel) * static_cast<double>(depth + 1);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(kChunkProducts / products));
}

// The tiles of a weight, in the order of its arena, whose gradients and updates are this thread's:
// the columns whose products grid() gives it, give or take a tile. Vectors count as one tile.
inline Range update_share(const Team& team, int tensor, std::int64_t tiles) {
  return team.share(tiles, tensor);
}

// C of `problem`, in chunks.
template <class T>
void multiply(Team& team, const cpu::Kernels<T>& kernels, const cpu::Gemm<T>& problem) {
  grid(team, problem.c.rows, kRowBlock, problem.c.panels(), units_per_chunk(problem.a.width),
       [&](Range blocks, Range panels) {
         kernels.gemm(problem, rows_of_blocks(blocks, problem.c.rows), panels);
       });
}

}  // namespace thalweg
