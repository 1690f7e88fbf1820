// The plan-private memory layout of CUDA: row-major matrices whose rows start at multiples of 32
// bytes, with optional bfloat16 planes for the tensor cores.
//
// Elements from `width` up to `pitch` are zero, always: every kernel that writes a matrix writes
// zeros there, so that kernels may read whole vectors and products may run over the pitch. A weight
// [out, in] is such a matrix in the arena; it has no transposed copy, since the tensor cores and
// the SIMT kernels read both majors.
//
// Planes hold a float32 value v as a sum of bfloat16 numbers: hi = bf16(v), mid = bf16(v - hi), lo
// = bf16(v - hi - mid). One plane serves matmul_precision "medium" (the value itself is then
// rounded to it), two serve "high", three "highest". A value that is not finite is kept whole in
// the first plane and zero in the others. Whoever writes a matrix with planes writes both, see
// cuda/device_matrix.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/layout.h"

namespace thalweg::cuda {

// Pitches are multiples of this many elements: 16-byte vectors of bfloat16, 32 of float32.
inline constexpr std::int64_t kPitch = 8;
inline constexpr int kMaxPlanes = 3;

TW_HD constexpr std::int64_t pitch_of(std::int64_t width) { return round_up(width, kPitch); }

// What multiplies: float32 or float64 arithmetic on the SIMT units, or bfloat16 products on the
// tensor cores (sm_80 and newer) with float32 accumulators, promoted at least every kPromote.
enum class Precision : int {
  kSimt = 0,         // fused multiply-adds of T
  kBfloat16 = 1,     // one plane, one product
  kTwoPlanes = 2,    // hi hi + hi mid + mid hi
  kThreePlanes = 3,  // and hi lo + mid mid + lo hi
};

// Planes that an operand of that precision has.
TW_HD constexpr int planes_of(Precision precision) { return static_cast<int>(precision); }

// A borrowed matrix in device memory. Plane p starts at planes + p * plane_stride and has the pitch
// of the matrix.
template <class T>
struct Matrix {
  using Plane = std::conditional_t<std::is_const_v<T>, const std::uint16_t, std::uint16_t>;

  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::int64_t pitch = 0;
  Plane* planes = nullptr;
  std::int64_t plane_stride = 0;
  int plane_count = 0;
  bool rounded = false;  // "medium": values are rounded to bfloat16 when they are written

  TW_HD bool present() const { return data != nullptr; }
  TW_HD std::int64_t size() const { return rows * pitch; }
  template <class U>
    requires(std::is_same_v<U, const T> && !std::is_const_v<T>)
  TW_HD operator Matrix<U>() const {
    return {data, rows, width, pitch, planes, plane_stride, plane_count, rounded};
  }
};

}  // namespace thalweg::cuda
