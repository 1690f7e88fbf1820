// Conversion between canonical tensors ([out, in] and [width], dense, row-major) and the
// plan-private layout of core/layout.h. Lanes past the width are written as zeros.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/array_view.h"
#include "core/error.h"
#include "core/layout.h"

namespace thalweg {

// Elements of a packed weight and of its transposed copy; of a packed vector.
constexpr std::int64_t packed_weight_size(std::int64_t out, std::int64_t in) {
  return panels_of(out) * panels_of(in) * kTile;
}
constexpr std::int64_t packed_vector_size(std::int64_t width) { return round_up(width, kPanel); }

namespace detail {

// element(o, i) is W[o, i]; every element of `tiles` is written, in order.
template <class T, class Element>
void fill_tiles(std::int64_t out, std::int64_t in, T* tiles, Element element) {
  for (std::int64_t n = 0; n < panels_of(out); ++n) {
    const std::int64_t lanes = std::min(kPanel, out - n * kPanel);
    for (std::int64_t i = 0; i < panels_of(in) * kPanel; ++i) {
      for (std::int64_t j = 0; j < kPanel; ++j)
        *tiles++ = i < in && j < lanes ? element(n * kPanel + j, i) : T(0);
    }
  }
}

template <class T, class Source>
void fill_tiles_from(const ArrayView& weight, T* tiles) {
  fill_tiles(weight.rows, weight.cols, tiles, [&weight](std::int64_t o, std::int64_t i) {
    Source value;
    std::memcpy(
        &value,
        static_cast<const std::byte*>(weight.data) + o * weight.row_stride + i * weight.col_stride,
        sizeof(value));
    return static_cast<T>(value);
  });
}

}  // namespace detail

// tiles[packed_weight_size(out, in)] from canonical[out * in].
template <class T>
void pack_weight(const T* canonical, std::int64_t out, std::int64_t in, T* tiles) {
  detail::fill_tiles(out, in, tiles,
                     [=](std::int64_t o, std::int64_t i) { return canonical[o * in + i]; });
}

// The same from a [out, in] view of float32 or float64 with any strides; values are cast to T.
template <class T>
void pack_weight_strided(const ArrayView& weight, T* tiles) {
  switch (weight.dtype) {
    case DType::kFloat32:
      return detail::fill_tiles_from<T, float>(weight, tiles);
    case DType::kFloat64:
      return detail::fill_tiles_from<T, double>(weight, tiles);
    default:
      throw TypeError(
          concat("[pack_weight] expected float32 or float64, got ", dtype_name(weight.dtype)));
  }
}

template <class T>
void unpack_weight(const T* tiles, std::int64_t out, std::int64_t in, T* canonical) {
  const std::int64_t panel_size = panels_of(in) * kTile;
  for (std::int64_t o = 0; o < out; ++o) {
    const T* column = tiles + o / kPanel * panel_size + o % kPanel;
    for (std::int64_t i = 0; i < in; ++i) *canonical++ = column[i * kPanel];
  }
}

// The transposed copy, tile by tile: tile (n, k) becomes tile (k, n), transposed inside.
template <class T>
void transpose_weight(const T* tiles, std::int64_t out, std::int64_t in, T* transposed) {
  const std::int64_t out_panels = panels_of(out), in_panels = panels_of(in);
  for (std::int64_t n = 0; n < out_panels; ++n) {
    for (std::int64_t k = 0; k < in_panels; ++k) {
      const T* from = tiles + (n * in_panels + k) * kTile;
      T* to = transposed + (k * out_panels + n) * kTile;
      for (std::int64_t j = 0; j < kPanel; ++j)
        for (std::int64_t i = 0; i < kPanel; ++i) to[j * kPanel + i] = from[i * kPanel + j];
    }
  }
}

// padded[packed_vector_size(width)] from canonical[width].
template <class T>
void pack_vector(const T* canonical, std::int64_t width, T* padded) {
  std::copy_n(canonical, width, padded);
  std::fill(padded + width, padded + packed_vector_size(width), T(0));
}

template <class T>
void unpack_vector(const T* padded, std::int64_t width, T* canonical) {
  std::copy_n(padded, width, canonical);
}

}  // namespace thalweg
