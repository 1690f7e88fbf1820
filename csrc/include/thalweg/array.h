// Array: a borrowed view of the caller's numbers.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <string>
#include <type_traits>

#include "thalweg/error.h"
#include "thalweg/thalweg_c.h"

namespace thalweg {
inline namespace wrapper {

enum class DType : tw_dtype { kFloat32 = TW_FLOAT32, kFloat64 = TW_FLOAT64 };

namespace detail {

template <class T>
constexpr tw_dtype dtype_of() {
  if constexpr (std::is_same_v<T, bool>) {
    return TW_BOOL;
  } else if constexpr (std::is_floating_point_v<T>) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "float and double are supported");
    return sizeof(T) == 4 ? TW_FLOAT32 : TW_FLOAT64;
  } else {
    constexpr tw_dtype kSigned[] = {TW_INT8, TW_INT16, TW_INT32, TW_INT64};
    constexpr tw_dtype kUnsigned[] = {TW_UINT8, TW_UINT16, TW_UINT32, TW_UINT64};
    constexpr int kPosition = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return std::is_signed_v<T> ? kSigned[kPosition] : kUnsigned[kPosition];
  }
}

// std::vector, std::array, std::span, C arrays of numbers.
template <class R>
concept Numbers = std::ranges::contiguous_range<R> && std::ranges::sized_range<R> &&
                  std::is_arithmetic_v<std::ranges::range_value_t<R>>;

}  // namespace detail

// Views data that the caller keeps alive during the call that it is passed to. Element types are
// bool, integers, float and double. For a model on "cuda" the data may lie in memory of its GPU,
// see thalweg_c.h.
class Array {
 public:
  // A flat sequence. As x it is read as rows of in_features numbers; as y, as one label or value
  // per row, or as rows of out_features values when it is that long.
  template <detail::Numbers R>
  Array(const R& numbers)
      : view_(tw_vector(std::ranges::data(numbers),
                        detail::dtype_of<std::ranges::range_value_t<R>>(),
                        static_cast<std::int64_t>(std::ranges::size(numbers)))) {}

  // A row-major matrix; ValueError unless there are rows * columns numbers.
  template <detail::Numbers R>
  Array(const R& numbers, std::int64_t rows, std::int64_t columns)
      : view_(tw_matrix(std::ranges::data(numbers),
                        detail::dtype_of<std::ranges::range_value_t<R>>(), rows, columns)) {
    const auto size = static_cast<std::int64_t>(std::ranges::size(numbers));
    const bool fits = columns > 0 ? size % columns == 0 && size / columns == rows
                                  : columns == 0 && size == 0 && rows >= 0;
    if (!fits)
      throw ValueError("[Array] expected " + std::to_string(rows) + " x " +
                       std::to_string(columns) + " numbers, got " + std::to_string(size));
  }

  // Vectors and row-major matrices by address: device memory has no range.
  template <class T>
    requires std::is_arithmetic_v<T>
  static Array vector(const T* data, std::int64_t length) {
    return Array(tw_vector(data, detail::dtype_of<T>(), length));
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  static Array matrix(const T* data, std::int64_t rows, std::int64_t columns) {
    return Array(tw_matrix(data, detail::dtype_of<T>(), rows, columns));
  }

  // A matrix with any strides, in bytes.
  template <class T>
    requires std::is_arithmetic_v<T>
  Array(const T* data, std::int64_t rows, std::int64_t columns, std::int64_t row_stride,
        std::int64_t column_stride)
      : view_{data, detail::dtype_of<T>(), 2, {rows, columns}, {row_stride, column_stride}} {}

  // Any array of the C interface.
  explicit Array(const tw_array& view) : view_(view) {}

  std::int64_t rows() const { return view_.shape[0]; }
  std::int64_t columns() const { return view_.ndim == 2 ? view_.shape[1] : 1; }
  const tw_array& c_array() const { return view_; }

  // A flat sequence as a matrix of so many columns; matrices are returned as they are.
  Array with_columns(std::int64_t columns) const {
    if (view_.ndim == 2) return *this;
    if (columns < 1 || rows() % columns != 0)
      throw ValueError("[Array] expected a multiple of " + std::to_string(columns) +
                       " numbers, got " + std::to_string(rows()) + "; or state rows and columns");
    const std::int64_t stride = view_.strides[0];
    return Array(tw_array{
        view_.data, view_.dtype, 2, {rows() / columns, columns}, {columns * stride, stride}});
  }

 private:
  tw_array view_;
};

}  // namespace wrapper
}  // namespace thalweg
