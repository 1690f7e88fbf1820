// The operands of the three products as the main loops see them, and the copies of their tiles into
// shared memory.
//
// A product is C[m, n] = sum over k of A(m, k) B(n, k). An operand is stored with k along its rows
// (kAlongRows) or with k from row to row:
//                        A                    B
//   forward              X  [m, k]            W [n, k]
//   input gradient       dY [m, k]            W [k, n]
//   weight gradient      dY [k, m]            X [k, n]
#pragma once

#include "cuda/device/device.h"
#include "cuda/gemm_plan.h"

namespace thalweg::cuda {

enum class Major { kAlongRows, kAcrossRows };

// A matrix of elements E (T, or bfloat16 for planes), which may be read in whole rows of `pitch`.
template <class E>
struct Operand {
  const E* data;
  std::int64_t pitch;
  std::int64_t plane_stride;
  std::int64_t rows;
};

template <class E, class T>
TW_DEVICE Operand<E> operand_of(const Matrix<const T>& matrix) {
  if constexpr (std::is_same_v<E, T>) {
    return {matrix.data, matrix.pitch, 0, matrix.rows};
  } else {
    return {matrix.planes, matrix.pitch, matrix.plane_stride, matrix.rows};
  }
}

// Which matrices a task multiplies, over which k.
template <class Task>
struct Product;

template <class T>
struct Product<ForwardTask<T>> {
  using Element = T;
  static constexpr Major kMajorA = Major::kAlongRows;
  static constexpr Major kMajorB = Major::kAlongRows;
  TW_DEVICE static const Matrix<const T>& a(const ForwardTask<T>& task) { return task.problem.x; }
  TW_DEVICE static const Matrix<const T>& b(const ForwardTask<T>& task) {
    return task.problem.weight;
  }
  TW_DEVICE static std::int64_t first_k(const ForwardTask<T>&) { return 0; }
  TW_DEVICE static std::int64_t last_k(const ForwardTask<T>& task) { return task.problem.x.width; }
};

template <class T>
struct Product<InputGradientTask<T>> {
  using Element = T;
  static constexpr Major kMajorA = Major::kAlongRows;
  static constexpr Major kMajorB = Major::kAcrossRows;
  TW_DEVICE static const Matrix<const T>& a(const InputGradientTask<T>& task) {
    return task.problem.dy;
  }
  TW_DEVICE static const Matrix<const T>& b(const InputGradientTask<T>& task) {
    return task.problem.weight;
  }
  TW_DEVICE static std::int64_t first_k(const InputGradientTask<T>&) { return 0; }
  TW_DEVICE static std::int64_t last_k(const InputGradientTask<T>& task) {
    return task.problem.dy.width;
  }
};

template <class T>
struct Product<WeightGradientTask<T>> {
  using Element = T;
  static constexpr Major kMajorA = Major::kAcrossRows;
  static constexpr Major kMajorB = Major::kAcrossRows;
  TW_DEVICE static const Matrix<const T>& a(const WeightGradientTask<T>& task) {
    return task.problem.dy;
  }
  TW_DEVICE static const Matrix<const T>& b(const WeightGradientTask<T>& task) {
    return task.problem.x;
  }
  TW_DEVICE static std::int64_t first_k(const WeightGradientTask<T>& task) {
    return block_index().y * task.split.rows;
  }
  TW_DEVICE static std::int64_t last_k(const WeightGradientTask<T>& task) {
    const std::int64_t last = (block_index().y + 1) * task.split.rows;
    return last < task.problem.x.rows ? last : task.problem.x.rows;
  }
};

// Layouts of rows of 16-byte units in shared memory.

// Units of a row are permuted so that eight rows of one column of units, which ldmatrix reads
// together, lie in different banks.
struct Swizzled {
  template <int rows, int units>
  struct Layout {
    static constexpr int kBytes = rows * units * 16;
    TW_DEVICE static int offset(int row, int unit) {
      constexpr int kRowsPerLine = units < 8 ? 8 / units : 1;
      constexpr int kMask = units < 8 ? units - 1 : 7;
      return (row * units + (unit ^ (row / kRowsPerLine & kMask))) * 16;
    }
  };
};

// A unit of padding keeps units of neighbouring rows in different banks.
struct Padded {
  template <int rows, int units>
  struct Layout {
    static constexpr int kBytes = rows * (units + 1) * 16;
    TW_DEVICE static int offset(int row, int unit) { return (row * (units + 1) + unit) * 16; }
  };
};

// A tile of an operand in shared memory: kRows rows of kUnits units of 16 bytes, where
// Layout::offset(row, unit) says, in bytes. Elements outside of the operand, and those with k >=
// last_k, are zero: they are not read.
template <class E, Major major, int kMn, int kK, class LayoutOf>
struct TileCopy {
  static constexpr int kUnit = 16 / static_cast<int>(sizeof(E));  // elements
  static constexpr int kRows = major == Major::kAlongRows ? kMn : kK;
  static constexpr int kUnits = (major == Major::kAlongRows ? kK : kMn) / kUnit;
  using Layout = typename LayoutOf::template Layout<kRows, kUnits>;

  const E* source;  // of this thread's first unit
  std::int64_t pitch;
  std::int64_t plane_stride;
  std::int64_t rows_left;     // from that unit's row on
  std::int64_t columns_left;  // from that unit on

  TW_DEVICE static int first_row() { return thread_index().x / kUnits; }
  TW_DEVICE static int unit() { return thread_index().x % kUnits; }

  // The tile at position `mn` of the operand and first_k.
  TW_DEVICE TileCopy(const Operand<E>& operand, std::int64_t mn, std::int64_t first_k,
                     std::int64_t last_k) {
    const bool along = major == Major::kAlongRows;
    const std::int64_t row = (along ? mn : first_k) + first_row();
    const std::int64_t column = (along ? first_k : mn) + unit() * kUnit;
    source = operand.data + row * operand.pitch + column;
    pitch = operand.pitch;
    plane_stride = operand.plane_stride;
    rows_left = (along ? operand.rows : last_k) - row;
    columns_left = operand.pitch - column;
  }

  // Queues the copies of `planes` planes, which follow each other in shared memory, and moves on by
  // kK.
  template <int kThreads, int planes>
  TW_DEVICE void copy_and_advance(SharedAddress tile) {
    constexpr int kStep = kThreads / kUnits;  // rows between the units of a thread
    static_assert(kThreads % kUnits == 0);
    TW_UNROLL
    for (int i = 0; i < kRows; i += kStep) {
      if (kRows % kStep != 0 && i + first_row() >= kRows) break;
      const bool inside = i < rows_left && columns_left > 0;
      TW_UNROLL
      for (int p = 0; p < planes; ++p) {
        const E* const from = inside ? source + i * pitch + p * plane_stride : source;
        copy_async<16>(tile + p * Layout::kBytes + Layout::offset(i + first_row(), unit()), from,
                       inside ? 16 : 0);
      }
    }
    if (major == Major::kAlongRows) {
      source += kK;
      columns_left -= kK;
    } else {
      source += kK * pitch;
      rows_left -= kK;
    }
  }
};

}  // namespace thalweg::cuda
