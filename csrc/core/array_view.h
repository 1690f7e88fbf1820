// Borrowed views of caller-owned arrays of any real element type and any strides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace thalweg {

enum class DType : std::uint8_t {
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

constexpr int item_size(DType dtype) {
  switch (dtype) {
    case DType::kBool:
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
    case DType::kInt16:
    case DType::kUInt16:
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt32:
    case DType::kUInt32:
    case DType::kFloat32:
      return 4;
    case DType::kInt64:
    case DType::kUInt64:
    case DType::kFloat64:
      return 8;
  }
  return 0;
}

constexpr bool is_integer(DType dtype) { return dtype <= DType::kUInt64; }

constexpr const char* dtype_name(DType dtype) {
  constexpr const char* kNames[] = {"bool",     "int8",    "int16",  "int32",  "int64",
                                    "uint8",    "uint16",  "uint32", "uint64", "float16",
                                    "bfloat16", "float32", "float64"};
  return kNames[static_cast<int>(dtype)];
}

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::kFloat64;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
  return DType::kInt64;
}

// Where the elements lie.
enum class Memory : std::uint8_t { kHost, kCuda };

// One- or two-dimensional; a vector has cols == 1 and dimensions == 1. Strides are in bytes and may
// be zero or negative. `data` may be null only when the view has no elements.
struct ArrayView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int dimensions = 2;
  std::int64_t rows = 0;
  std::int64_t cols = 1;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
  Memory memory = Memory::kHost;

  bool present() const { return data != nullptr || rows > 0; }
  bool on_device() const { return memory != Memory::kHost; }
  std::int64_t size() const { return rows * cols; }

  template <class T>
  static ArrayView matrix(const T* data, std::int64_t rows, std::int64_t cols) {
    return {data, dtype_of<T>(), 2, rows, cols, cols * std::int64_t{sizeof(T)}, sizeof(T)};
  }
  template <class T>
  static ArrayView vector(const T* data, std::int64_t rows) {
    return {data, dtype_of<T>(), 1, rows, 1, sizeof(T), sizeof(T)};
  }
  // Rows [first, first + count).
  ArrayView slice(std::int64_t first, std::int64_t count) const {
    ArrayView part = *this;
    part.data = static_cast<const std::byte*>(data) + first * row_stride;
    part.rows = count;
    return part;
  }
};

}  // namespace thalweg
