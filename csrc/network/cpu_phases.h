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

// f(block, panels) over a grid of row blocks x panels: each thread takes a contiguous share in
// block-major order, in runs of at most max_panels.
template <class F>
void grid(Team& team, std::int64_t blocks, std::int64_t panels, std::int64_t max_panels, F&& f) {
  const std::int64_t total = blocks * panels;
  std::int64_t begin = total * team.rank() / team.size();
  const std::int64_t end = total * (team.rank() + 1) / team.size();
  while (begin < end && !team.stop_requested()) {
    const std::int64_t first = begin % panels;
    const std::int64_t last = std::min({panels, first + (end - begin), first + max_panels});
    f(begin / panels, Range{first, last});
    begin += last - first;
  }
  team.barrier();
}

template <class T, class F>
void grid(Team& team, const Panels<T>& matrix, F&& f) {
  grid(team, row_blocks_of(matrix.rows), matrix.panels(), matrix.panels(),
       [&](std::int64_t block, Range panels) { f(row_block(block, matrix.rows), panels); });
}

inline std::int64_t panels_per_chunk(std::int64_t depth) {
  const double products = static_cast<double>(kRowBlock * kPanel) * static_cast<double>(depth + 1);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(kChunkProducts / products));
}

// C of `problem`, in chunks.
template <class T>
void multiply(Team& team, const cpu::Kernels<T>& kernels, const cpu::Gemm<T>& problem) {
  grid(team, row_blocks_of(problem.c.rows), problem.c.panels(), panels_per_chunk(problem.a.width),
       [&](std::int64_t block, Range panels) {
         kernels.gemm(problem, row_block(block, problem.c.rows), panels);
       });
}

}  // namespace thalweg
