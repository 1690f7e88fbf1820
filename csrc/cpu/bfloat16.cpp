// Rounding of panels to bfloat16, and the pairs that the products of "medium" precision read.
#include "math/bfloat16.h"

#include "cpu/operations.h"
#include "cpu/panel_loops.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

inline constexpr std::int64_t kPairs = kPanel / 2;

TW_INLINE void round_values(const float* values, std::int64_t count, float* rounded) {
  TW_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) rounded[i] = thalweg::round_to_bfloat16(values[i]);
}

// Of rounded values, which are the upper halves of their bits.
TW_INLINE BfloatPair pair_rounded(float first, float second) {
  return {to_bits(first) >> 16 | (to_bits(second) & 0xffff0000u)};
}

// [rows, 16] pairs of columns.
TW_INLINE void pair_columns(const float* rounded, std::int64_t rows, BfloatPair* pairs) {
  TW_INDEPENDENT
  for (std::int64_t i = 0; i < rows * kPairs; ++i)
    pairs[i] = pair_rounded(rounded[2 * i], rounded[2 * i + 1]);
}

// [16, 32] pairs of rows; rows up to 32 count as zeros.
TW_INLINE void pair_rows(const float* rounded, std::int64_t rows, BfloatPair* pairs) {
  std::int64_t r = 0;
  for (; r + 1 < rows; r += 2, rounded += 2 * kPanel, pairs += kPanel) {
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < kPanel; ++j)
      pairs[j] = pair_rounded(rounded[j], rounded[kPanel + j]);
  }
  if (r < rows) {
    for (std::int64_t j = 0; j < kPanel; ++j) pairs[j] = pair_rounded(rounded[j], 0.0f);
    r += 2;
    pairs += kPanel;
  }
  for (; r < kPanel; r += 2, pairs += kPanel)
    for (std::int64_t j = 0; j < kPanel; ++j) pairs[j] = {0};
}

// out[column][row] of [rows, columns] pairs, both multiples of 16.
template <std::int64_t kRows, std::int64_t kColumns>
TW_INLINE void transpose_pairs(const BfloatPair* pairs, BfloatPair* out) {
  transpose_squares<kColumns, kRows>(reinterpret_cast<const float*>(pairs), kRows, kColumns,
                                     reinterpret_cast<float*>(out));
}

}  // namespace

void pair_tile(const float* tile, BfloatPair* pairs, BfloatPair* transposed) {
  alignas(64) float rounded[kTile];
  round_values(tile, kTile, rounded);
  if (pairs) pair_rows(rounded, kPanel, pairs);
  if (!transposed) return;
  alignas(64) BfloatPair columns[kTile / 2];
  pair_columns(rounded, kPanel, columns);
  transpose_pairs<kPanel, kPairs>(columns, transposed);
}

void round_to_bfloat16(const BfloatPanels& out, Panels<float> x, Range rows, Range panels) {
  const std::int64_t padded = round_up(x.rows, kPanel);
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    for (std::int64_t r = rows.begin; r < rows.end; r += kPanel) {
      const std::int64_t count = rows.end - r < kPanel ? rows.end - r : kPanel;
      float* const values = x.row(p, r);
      round_values(values, count * kPanel, values);
      pair_columns(values, count, out.columns + (p * x.rows + r) * kPairs);
      const std::int64_t chunk = (p * padded + r) * kPairs;
      if (out.rows) pair_rows(values, count, out.rows + chunk);
      if (!out.transposed) continue;
      alignas(64) BfloatPair pairs[kTile / 2];
      pair_rows(values, count, pairs);
      transpose_pairs<kPairs, kPanel>(pairs, out.transposed + chunk);
    }
  }
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu
