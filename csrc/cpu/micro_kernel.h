// The inner loop of every matrix product: a block of rows x vectors held in registers.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

// Columns of a panel are worked off in groups of at most this many vectors.
inline constexpr int kGroupVectors = 2;

// Rows of a block: accumulators, one group of B and one element of A fill the registers (32 of
// AVX-512, else 16), and there are enough independent sums to hide the latency of an fma.
template <int kVectors>
inline constexpr int kMaxRows = kVectorBytes == 64 ? 14
                                : kVectors == 1    ? 12
                                                   : 6;

template <class T, int kRows, int kVectors>
struct Accumulator {
  Vec<T> at[kRows][kVectors];

  TW_INLINE void clear() {
    TW_UNROLL(16)
    for (int i = 0; i < kRows; ++i) {
      TW_UNROLL(2)
      for (int j = 0; j < kVectors; ++j) at[i][j] = Vec<T>::zero();
    }
  }

  // at[i][:] += a[i * kRowStride + k * kDepthStride] * b[k * kPanel + :] for k in [0, depth), in
  // order; E is T or a pair of bfloat16 numbers.
  template <int kRowStride, int kDepthStride, class E>
  TW_INLINE void multiply(const E* a, const E* b, std::int64_t depth) {
    using Vector = typename Factor<E>::Vector;
    TW_UNROLL(4)
    for (std::int64_t k = 0; k < depth; ++k) {
      Vector group[kVectors];
      TW_UNROLL(2)
      for (int j = 0; j < kVectors; ++j) group[j] = Vector::load(b + j * Vec<T>::kLanes);
      TW_UNROLL(16)
      for (int i = 0; i < kRows; ++i) {
        const Vector element = Vector::set1(a[i * kRowStride]);
        TW_UNROLL(2)
        for (int j = 0; j < kVectors; ++j) at[i][j] = madd(element, group[j], at[i][j]);
      }
      a += kDepthStride;
      b += kPanel;
    }
  }
};

// f(first row, rows, row count as a constant) over [0, rows) in nearly equal parts of at most
// kMost.
template <int kMost, class F>
TW_INLINE void for_row_parts(std::int64_t rows, F&& f) {
  const std::int64_t parts = ceil_div(rows, kMost);
  std::int64_t begin = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t end = rows * (part + 1) / parts;
    f(begin, end - begin);
    begin = end;
  }
}

// A table of Block<kRows>::run for kRows in [1, kMost]: entry [kRows - 1].
template <template <int> class Block, class Argument, int kMost>
struct BlockTable {
  using Function = void (*)(const Argument&);
  Function run[kMost];

  template <int... i>
  constexpr explicit BlockTable(std::integer_sequence<int, i...>) : run{&Block<i + 1>::run...} {}
  constexpr BlockTable() : BlockTable(std::make_integer_sequence<int, kMost>{}) {}
};

}  // namespace TW_ISA
}  // namespace thalweg::cpu
