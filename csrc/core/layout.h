// The plan-private memory layout of the CPU: matrices as panels of 32 columns.
//
// Panel p of a [rows, width] matrix holds columns [32p, 32p + 32), row-major, and panels follow
// each other. Lanes past `width` are zero, always: every kernel writes zeros there. A weight [out,
// in] is stored as tiles of 32 x 32 in the order of (out panel, in panel), element [in][out]
// inside, so that an out panel is a [padded in, 32] matrix; its transposed copy swaps the two
// roles.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/host_device.h"

namespace thalweg {

inline constexpr std::int64_t kPanel = 32;
inline constexpr std::int64_t kTile = kPanel * kPanel;
// Tensors start at multiples of this many elements; one parameter-group byte covers as many.
inline constexpr std::int64_t kGroupBlock = 256;
// Every reduction over rows is cut into blocks of this many rows, whatever runs them.
inline constexpr std::int64_t kRowBlock = 64;
// Those of the loss into parts of this many, so that threads can share a small minibatch.
inline constexpr std::int64_t kRowPart = 16;
// GEMM accumulators are added into memory at least every this many products.
inline constexpr std::int64_t kPromote = 256;
// The sum over rows of a parameter's gradient is that of its two halves, down to this many rows: a
// tree, so that threads may keep to one half each.
inline constexpr std::int64_t kGradientRows = 128;

TW_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
TW_HD constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }
TW_HD constexpr std::int64_t panels_of(std::int64_t width) { return ceil_div(width, kPanel); }
TW_HD constexpr std::int64_t row_blocks_of(std::int64_t rows) { return ceil_div(rows, kRowBlock); }

struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  constexpr std::int64_t size() const { return end - begin; }
};

constexpr Range rows_of_blocks(Range blocks, std::int64_t rows) {
  const std::int64_t end = blocks.end * kRowBlock;
  return {blocks.begin * kRowBlock, end < rows ? end : rows};
}
constexpr Range row_block(std::int64_t block, std::int64_t rows) {
  return rows_of_blocks({block, block + 1}, rows);
}

constexpr std::int64_t row_parts_of(std::int64_t rows) { return ceil_div(rows, kRowPart); }
// Of rows from a row block's first.
constexpr Range row_parts_of(Range rows) { return {rows.begin / kRowPart, row_parts_of(rows.end)}; }

// The two halves of more than kGradientRows rows.
constexpr Range first_half(Range rows) {
  return {rows.begin, rows.begin + round_up(ceil_div(rows.size(), 2), kGradientRows)};
}
constexpr Range second_half(Range rows) { return {first_half(rows).end, rows.end}; }

// A borrowed [rows, width] matrix in panels.
template <class T>
struct Panels {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t width = 0;

  std::int64_t panels() const { return panels_of(width); }
  std::int64_t size() const { return panels() * rows * kPanel; }
  T* panel(std::int64_t p) const { return data + p * rows * kPanel; }
  T* row(std::int64_t p, std::int64_t r) const { return panel(p) + r * kPanel; }
  // Valid columns of panel p.
  std::int64_t lanes(std::int64_t p) const {
    return (p + 1) * kPanel <= width ? kPanel : width - p * kPanel;
  }
  operator Panels<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, rows, width};
  }
};

}  // namespace thalweg
