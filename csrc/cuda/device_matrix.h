// Loads and stores of a Matrix on the device, four elements of a row at a time. Every kernel that
// writes a Matrix stores through here, which keeps its promises: values rounded where the matrix
// says so, zeros from the width to the pitch, planes that add up to the values.
//
// Columns are multiples of kQuad below the pitch. A kernel that covers a matrix goes over
// quads_of(matrix) quads per row, padding included.
#pragma once

#include "cuda/device/device.h"
#include "cuda/matrix.h"
#include "math/host_device.h"

namespace thalweg::cuda {

inline constexpr int kQuad = 4;

template <class T>
struct Quad {
  T values[kQuad];

  TW_DEVICE T& operator[](int i) { return values[i]; }
  TW_DEVICE const T& operator[](int i) const { return values[i]; }
};

template <class T>
TW_DEVICE std::int64_t quads_of(const Matrix<T>& matrix) {
  return matrix.pitch / kQuad;
}

// Four elements from 16-byte aligned memory.
template <class T>
TW_DEVICE Quad<T> load_quad(const T* address) {
  constexpr int kCount = 16 / sizeof(T);
  Quad<T> quad;
  TW_UNROLL
  for (int i = 0; i < kQuad; i += kCount) {
    const auto part = load_vector<kCount>(address + i);
    TW_UNROLL
    for (int j = 0; j < kCount; ++j) quad[i + j] = part[j];
  }
  return quad;
}

template <class T>
TW_DEVICE void store_quad(T* address, const Quad<T>& quad) {
  constexpr int kCount = 16 / sizeof(T);
  TW_UNROLL
  for (int i = 0; i < kQuad; i += kCount) {
    Vector<T, kCount> part;
    TW_UNROLL
    for (int j = 0; j < kCount; ++j) part[j] = quad[i + j];
    store_vector(address + i, part);
  }
}

template <class T>
TW_DEVICE Quad<std::remove_const_t<T>> load_quad(const Matrix<T>& matrix, std::int64_t row,
                                                 std::int64_t column) {
  return load_quad<std::remove_const_t<T>>(matrix.data + row * matrix.pitch + column);
}

// The bfloat16 numbers next to two values, `low` in the low half. Finite values stay finite: the
// largest become the largest bfloat16 number, so that a difference from it is finite too.
TW_DEVICE std::uint32_t nearest_bfloat16(float low, float high) {
  constexpr std::uint32_t kInfinity = 0x7f80u;
  std::uint32_t packed = pack_bfloat16(low, high);
  if ((packed & 0x7fffu) == kInfinity && is_finite(low)) packed -= 1u;
  if ((packed >> 16 & 0x7fffu) == kInfinity && is_finite(high)) packed -= 0x10000u;
  return packed;
}

TW_DEVICE float low_bfloat16(std::uint32_t packed) {
  return bfloat16_to_float(static_cast<std::uint16_t>(packed & 0xffffu));
}
TW_DEVICE float high_bfloat16(std::uint32_t packed) {
  return bfloat16_to_float(static_cast<std::uint16_t>(packed >> 16));
}

// The part of a value that a plane has not taken. A value that is not finite leaves nothing.
TW_DEVICE float remainder_of_plane(float value, float plane) {
  return is_finite(value) ? value - plane : 0.0f;
}

// What store_quad() writes for these values: rounded if the matrix says so, zero from its width on.
template <class T>
TW_DEVICE Quad<T> as_stored(const Matrix<T>& matrix, std::int64_t column, Quad<T> quad) {
  if constexpr (std::is_same_v<T, float>) {
    if (matrix.rounded) {
      TW_UNROLL
      for (int i = 0; i < kQuad; i += 2) {
        const std::uint32_t packed = nearest_bfloat16(quad[i], quad[i + 1]);
        quad[i] = low_bfloat16(packed);
        quad[i + 1] = high_bfloat16(packed);
      }
    }
  }
  if (column + kQuad > matrix.width) {
    TW_UNROLL
    for (int i = 0; i < kQuad; ++i) {
      if (column + i >= matrix.width) quad[i] = T(0);
    }
  }
  return quad;
}

// Writes the planes of values that as_stored() has returned.
template <class T>
TW_DEVICE void store_planes(const Matrix<T>& matrix, std::int64_t row, std::int64_t column,
                            Quad<T> quad) {
  if constexpr (std::is_same_v<T, float>) {
    std::uint16_t* plane = matrix.planes + row * matrix.pitch + column;
    for (int p = 0; p < matrix.plane_count; ++p) {
      Vector<std::uint32_t, 2> packed;
      TW_UNROLL
      for (int i = 0; i < 2; ++i) {
        packed[i] = nearest_bfloat16(quad[2 * i], quad[2 * i + 1]);
        quad[2 * i] = remainder_of_plane(quad[2 * i], low_bfloat16(packed[i]));
        quad[2 * i + 1] = remainder_of_plane(quad[2 * i + 1], high_bfloat16(packed[i]));
      }
      store_vector(reinterpret_cast<std::uint32_t*>(plane), packed);
      plane += matrix.plane_stride;
    }
  }
}

// Writes values and planes; returns what it has written.
template <class T>
TW_DEVICE Quad<T> store_quad(const Matrix<T>& matrix, std::int64_t row, std::int64_t column,
                             const Quad<T>& quad) {
  const Quad<T> stored = as_stored(matrix, column, quad);
  store_quad(matrix.data + row * matrix.pitch + column, stored);
  if (matrix.plane_count > 0) store_planes(matrix, row, column, stored);
  return stored;
}

}  // namespace thalweg::cuda
