// Loops over rows of one panel: elementwise ones that keep the lanes past the width zero, sums
// over rows, and transposing.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

// Zeros in all columns of a panel from `first`, a multiple of a vector, on. Not row by row: g++
// would call memset for each.
template <class T>
TW_INLINE void zero_columns(T* panel, std::int64_t rows, std::int64_t first) {
  for (std::int64_t j = first; j < kPanel; j += Vec<T>::kLanes)
    for (std::int64_t r = 0; r < rows; ++r) Vec<T>::zero().store(panel + r * kPanel + j);
}

// out[r][j] = f(r, j) for `rows` rows of a panel; zero in the lanes past `lanes`. f may read any
// matrix at (r, j), `out` included.
template <class T, class F>
TW_INLINE void transform_columns(T* out, std::int64_t rows, std::int64_t lanes, F&& f) {
  if (lanes == kPanel) {
    for (std::int64_t r = 0; r < rows; ++r) {
      TW_INDEPENDENT
      for (std::int64_t j = 0; j < kPanel; ++j) out[r * kPanel + j] = f(r, j);
    }
  } else {
    // 32-bit lane numbers: SSE2 compares no wider ones.
    const auto end = static_cast<std::int32_t>(lanes);
    for (std::int64_t r = 0; r < rows; ++r) {
      TW_INDEPENDENT
      for (std::int32_t j = 0; j < static_cast<std::int32_t>(kPanel); ++j) {
        const T value = f(r, j);
        out[r * kPanel + j] = j < end ? value : T(0);
      }
    }
  }
}

// The same with f(i), i = 32 r + j.
template <class T, class F>
TW_INLINE void transform(T* out, std::int64_t rows, std::int64_t lanes, F&& f) {
  if (lanes == kPanel) {
    TW_INDEPENDENT
    for (std::int64_t i = 0; i < rows * kPanel; ++i) out[i] = f(i);
  } else {
    transform_columns(out, rows, lanes, [&](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE {
      return f(r * kPanel + j);
    });
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

// A square of vectors, transposed in registers.
template <std::int64_t kFromStride, std::int64_t kToStride, class T>
TW_INLINE void transpose_square(const T* from, T* to) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> a[kLanes];
  Vec<T> b[kLanes];
  TW_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) a[i] = Vec<T>::load(from + i * kFromStride);
  // log2(kLanes) perfect shuffles of the rows.
  TW_UNROLL(4)
  for (int stage = 1; stage < kLanes; stage *= 2) {
    TW_UNROLL(16)
    for (int i = 0; i < kLanes / 2; ++i) {
      b[2 * i] = interleave<false>(a[i], a[i + kLanes / 2]);
      b[2 * i + 1] = interleave<true>(a[i], a[i + kLanes / 2]);
    }
    TW_UNROLL(16)
    for (int i = 0; i < kLanes; ++i) a[i] = b[i];
  }
  TW_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) a[i].store(to + i * kToStride);
}

// to[j][i] = from[i][j], whose rows and columns are rounded up to whole vectors.
template <std::int64_t kFromStride, std::int64_t kToStride, class T>
TW_INLINE void transpose_squares(const T* from, std::int64_t rows, std::int64_t columns, T* to) {
  for (std::int64_t i = 0; i < rows; i += Vec<T>::kLanes)
    for (std::int64_t j = 0; j < columns; j += Vec<T>::kLanes)
      transpose_square<kFromStride, kToStride>(from + i * kFromStride + j, to + j * kToStride + i);
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu
