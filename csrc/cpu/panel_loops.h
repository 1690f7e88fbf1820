// Loops over rows of one panel: elementwise ones that keep the lanes past the width zero, and sums
// over rows.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

// out[r][j] = f(i, j), i = 32 r + j, for `rows` rows of a panel; zero in the lanes past `lanes`. f may
// read any array at i, `out` included, and arrays of 32 columns at j.
template <class T, class F>
TW_INLINE void transform_columns(T* out, std::int64_t rows, std::int64_t lanes, F&& f) {
  if (lanes == kPanel) {
    for (std::int64_t r = 0; r < rows; ++r) {
      TW_INDEPENDENT
      for (std::int64_t j = 0; j < kPanel; ++j) out[r * kPanel + j] = f(r * kPanel + j, j);
    }
  } else {
    for (std::int64_t r = 0; r < rows; ++r) {
      TW_INDEPENDENT
      for (std::int64_t j = 0; j < kPanel; ++j) {
        const T value = f(r * kPanel + j, j);
        out[r * kPanel + j] = j < lanes ? value : T(0);
      }
    }
  }
}

// The same with f(i).
template <class T, class F>
TW_INLINE void transform(T* out, std::int64_t rows, std::int64_t lanes, F&& f) {
  if (lanes == kPanel) {
    TW_INDEPENDENT
    for (std::int64_t i = 0; i < rows * kPanel; ++i) out[i] = f(i);
  } else {
    transform_columns(out, rows, lanes, [&](std::int64_t i, std::int64_t) { return f(i); });
  }
}

// f(r, sums) adds row r to kSums running sums, for all rows; `sums` receives the totals. Rows go
// round four sets of running sums, so that additions overlap; the sets are merged in a fixed order.
template <class T, int kSums, class F>
TW_INLINE void sum_rows(std::int64_t rows, F&& f, Vec<T> (&sums)[kSums]) {
  constexpr int kSets = 4;
  Vec<T> set[kSets][kSums];
  TW_UNROLL(4)
  for (int s = 0; s < kSets; ++s) {
    TW_UNROLL(4)
    for (int i = 0; i < kSums; ++i) set[s][i] = Vec<T>::zero();
  }
  std::int64_t r = 0;
  for (; r + kSets <= rows; r += kSets) {
    TW_UNROLL(4)
    for (int s = 0; s < kSets; ++s) f(r + s, set[s]);
  }
  for (; r < rows; ++r) f(r, set[0]);
  TW_UNROLL(4)
  for (int i = 0; i < kSums; ++i) sums[i] = (set[0][i] + set[1][i]) + (set[2][i] + set[3][i]);
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu
