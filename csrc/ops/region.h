// The frame of every operation on the CPU: row-major arguments are gathered into panels, kernels
// run on the panels, and results are scattered into row-major outputs, all in one parallel region.
// Memory is allocated before the region starts; the collective functions here are called by every
// thread of the team.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "core/arena.h"
#include "core/array_view.h"
#include "core/layout.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"

namespace thalweg::ops {

// Panels of columns that one GEMM chunk covers.
inline constexpr std::int64_t kPanelsPerChunk = 4;

template <class T>
struct Matrix {
  Matrix(std::int64_t rows, std::int64_t width)
      : memory(element_count(rows, round_up(width, kPanel))), panels{memory.data(), rows, width} {}

  Arena<T> memory;
  Panels<T> panels;
};

// B of a GEMM whose shared dimension is `depth`: its panels are as deep as the padded panels of A.
template <class T>
Matrix<T> right_operand(std::int64_t depth, std::int64_t width) {
  return Matrix<T>(round_up(depth, kPanel), width);
}

inline ArrayView transposed(const ArrayView& view) {
  return {view.data, view.dtype, 2, view.cols, view.rows, view.col_stride, view.row_stride};
}

// A vector cast to T and padded with zeros to whole panels.
template <class T>
Arena<T> load_vector(const ArrayView& vector) {
  Arena<T> values(round_up(vector.rows, kPanel));
  const ArrayView row{vector.data, vector.dtype, 2, 1, vector.rows, 0, vector.row_stride};
  cpu::kernels<T>().gather(row, nullptr, 0, {0, 1}, Panels<T>{values.data(), 1, vector.rows});
  return values;
}

inline void run(int threads, const std::function<void(Team&)>& body) {
  ThreadPool::shared().run(threads > 0 ? threads : ThreadPool::default_threads(), body);
}

// f(Range rows) for every row block.
template <class F>
void for_each_row_block(Team& team, std::int64_t rows, F&& f) {
  team.for_each(row_blocks_of(rows), [&](std::int64_t block) { f(row_block(block, rows)); });
}

// f(Range blocks, Range panels) for every row block of every panel.
template <class F>
void for_each_tile(Team& team, std::int64_t rows, std::int64_t panels, F&& f) {
  team.for_each(row_blocks_of(rows) * panels, [&](std::int64_t chunk) {
    const std::int64_t block = chunk / panels, panel = chunk % panels;
    f(Range{block, block + 1}, Range{panel, panel + 1});
  });
}

// Rows [0, from.rows) of `to`; rows after them are left alone.
template <class T>
void load(Team& team, const ArrayView& from, Panels<T> to) {
  for_each_row_block(team, from.rows,
                     [&](Range rows) { cpu::kernels<T>().gather(from, nullptr, 0, rows, to); });
}

template <class T>
void store(Team& team, Panels<const T> from, T* to) {
  for_each_row_block(team, from.rows,
                     [&](Range rows) { cpu::kernels<T>().scatter(from, rows, to, from.width); });
}

template <class T>
void multiply(Team& team, const cpu::Gemm<T>& problem) {
  const std::int64_t panels = problem.c.panels();
  const std::int64_t groups = ceil_div(panels, kPanelsPerChunk);
  team.for_each(row_blocks_of(problem.c.rows) * groups, [&](std::int64_t chunk) {
    const std::int64_t first = chunk % groups * kPanelsPerChunk;
    cpu::kernels<T>().gemm(problem, row_block(chunk / groups, problem.c.rows),
                           {first, std::min(first + kPanelsPerChunk, panels)});
  });
}

// Row-major c[M, N] = a[K, M]^T b[K, N].
template <class T>
void multiply_transposed(Team& team, Panels<const T> a, Panels<const T> b, T* c) {
  const std::int64_t columns = b.panels();
  team.for_each(a.panels() * columns, [&](std::int64_t chunk) {
    const std::int64_t m = chunk / columns, n = chunk % columns;
    alignas(64) T tile[kTile];
    cpu::kernels<T>().wgrad_tile(a.panel(m), a.lanes(m), b.panel(n), b.lanes(n), a.rows, false,
                                 tile);
    for (std::int64_t i = 0; i < a.lanes(m); ++i)
      std::copy_n(tile + i * kPanel, b.lanes(n), c + (m * kPanel + i) * b.width + n * kPanel);
  });
}

}  // namespace thalweg::ops
