// Rounding of panels to bfloat16, and the pairs that the products of "medium" precision read.
#include "math/bfloat16.h"

#include "cpu/operations.h"
#include "cpu/simd.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

inline constexpr std::int64_t kPairs = kPanel / 2;

// [rows, 16] pairs of columns of rounded values.
TW_INLINE void pair_columns(const float* values, std::int64_t rows, BfloatPair* pairs) {
  TW_INDEPENDENT
  for (std::int64_t i = 0; i < rows * kPairs; ++i)
    pairs[i] = {to_bits(values[2 * i]) >> 16 | (to_bits(values[2 * i + 1]) & 0xffff0000u)};
}

}  // namespace

void pair_rows(const float* panel, std::int64_t rows, BfloatPair* pairs) {
  std::int64_t r = 0;
  for (; r + 1 < rows; r += 2, panel += 2 * kPanel, pairs += kPanel) {
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < kPanel; ++j) pairs[j] = bfloat_pair(panel[j], panel[kPanel + j]);
  }
  if (r < rows) {
    for (std::int64_t j = 0; j < kPanel; ++j) pairs[j] = bfloat_pair(panel[j], 0.0f);
    pairs += kPanel;
    r += 2;
  }
  for (; r % kPanel != 0; r += 2, pairs += kPanel) {
    for (std::int64_t j = 0; j < kPanel; ++j) pairs[j] = {0};
  }
}

void round_to_bfloat16(const BfloatPanels& out, Panels<float> x, Range rows, Range panels) {
  const std::int64_t padded = round_up(x.rows, kPanel);
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    float* const values = x.row(p, rows.begin);
    const std::int64_t count = rows.size() * kPanel;
    TW_INDEPENDENT
    for (std::int64_t i = 0; i < count; ++i) values[i] = thalweg::round_to_bfloat16(values[i]);
    pair_columns(values, rows.size(), out.columns + (p * x.rows + rows.begin) * kPairs);
    const std::int64_t chunk = (p * padded + rows.begin) * kPairs;
    if (out.rows) pair_rows(values, rows.size(), out.rows + chunk);
    if (out.transposed == nullptr) continue;
    for (std::int64_t r = 0; r < rows.size(); r += kPanel) {
      float whole[kTile];
      float turned[kTile];
      const float* tile = values + r * kPanel;
      if (rows.size() - r < kPanel) {
        const std::int64_t valid = (rows.size() - r) * kPanel;
        for (std::int64_t i = 0; i < kTile; ++i) whole[i] = i < valid ? tile[i] : 0.0f;
        tile = whole;
      }
      transpose_tile(tile, kPanel, kPanel, turned);
      pair_columns(turned, kPanel, out.transposed + chunk + r * kPairs);
    }
  }
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu
