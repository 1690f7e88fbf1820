// Data between caller-owned arrays of any real type and strides, and panels.
#include "core/cache_lines.h"
#include "cpu/operations.h"
#include "cpu/simd.h"
#include "math/permutation.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Element types: how each is stored, and its value.
struct Bool {
  using Storage = std::uint8_t;
  static TW_INLINE std::uint8_t value(Storage x) { return x != 0 ? 1 : 0; }
};

template <class S>
struct Number {
  using Storage = S;
  static TW_INLINE S value(Storage x) { return x; }
};

// IEEE binary16: the fields move into place and the exponent's bias is repaired by a product, exact
// for normal and subnormal numbers.
struct Half {
  using Storage = std::uint16_t;
  static TW_INLINE float value(Storage x) {
    const std::uint32_t magnitude = static_cast<std::uint32_t>(x & 0x7fff) << 13;
    const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000) << 16;
    const std::uint32_t finite = to_bits(from_bits<float>(magnitude) * 0x1p112f);
    const std::uint32_t special = magnitude | 0x7f800000u;
    return from_bits<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
  }
};

struct BrainFloat {
  using Storage = std::uint16_t;
  static TW_INLINE float value(Storage x) {
    return from_bits<float>(static_cast<std::uint32_t>(x) << 16);
  }
};

// f(element type); every path of a dtype is compiled in one place.
template <class F>
auto dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBool:
      return f(Bool{});
    case DType::kInt8:
      return f(Number<std::int8_t>{});
    case DType::kInt16:
      return f(Number<std::int16_t>{});
    case DType::kInt32:
      return f(Number<std::int32_t>{});
    case DType::kInt64:
      return f(Number<std::int64_t>{});
    case DType::kUInt8:
      return f(Number<std::uint8_t>{});
    case DType::kUInt16:
      return f(Number<std::uint16_t>{});
    case DType::kUInt32:
      return f(Number<std::uint32_t>{});
    case DType::kUInt64:
      return f(Number<std::uint64_t>{});
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BrainFloat{});
    case DType::kFloat32:
      return f(Number<float>{});
    case DType::kFloat64:
      return f(Number<double>{});
  }
  __builtin_unreachable();
}

// The element at any address, aligned or not.
template <class Element>
TW_INLINE auto read(const char* from) {
  typename Element::Storage stored;
  __builtin_memcpy(&stored, from, sizeof(stored));
  return Element::value(stored);
}

// Rows that are copied panel by panel: the panels of one row lie a power of two apart as often as
// not, and would take turns in the same few lines of the cache.
inline constexpr std::int64_t kRowsAtOnce = 8;

// kColumnStride is the distance of the columns in bytes, or 0 when it is `column_stride`.
template <class Element, std::int64_t kColumnStride, class T>
TW_INLINE void gather_part(const char* from, std::int64_t column_stride, std::int64_t lanes,
                           T* to) {
  const std::int64_t stride = kColumnStride ? kColumnStride : column_stride;
  if (lanes == kPanel) {
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < kPanel; ++j)
      to[j] = static_cast<T>(read<Element>(from + j * stride));
  } else {
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < lanes; ++j)
      to[j] = static_cast<T>(read<Element>(from + j * stride));
    for (std::int64_t j = lanes; j < kPanel; ++j) to[j] = T(0);
  }
}

template <class Element, std::int64_t kColumnStride, class T>
void gather_rows(const ArrayView& x, const std::int64_t* index, std::int64_t first, Range rows,
                 Panels<T> out) {
  const char* const data = static_cast<const char*>(x.data);
  const auto source = [=](std::int64_t r) TW_ALWAYS_INLINE {
    return data + (index ? index[r] : first + r) * x.row_stride;
  };
  for (std::int64_t begin = rows.begin; begin < rows.end; begin += kRowsAtOnce) {
    const std::int64_t end = begin + kRowsAtOnce < rows.end ? begin + kRowsAtOnce : rows.end;
    for (std::int64_t p = 0; p < out.panels(); ++p) {
      const std::int64_t offset = p * kPanel * x.col_stride;
      for (std::int64_t r = begin; r < end; ++r) {
        // The rows of a shuffled minibatch are nowhere near each other.
        if (kColumnStride != 0 && r + kRowsAtOnce < rows.end) {
          const char* const next = source(r + kRowsAtOnce) + offset;
          for (std::int64_t at = 0; at < kPanel * kColumnStride; at += kCacheLine) {
            __builtin_prefetch(next + at);
          }
        }
        gather_part<Element, kColumnStride>(source(r) + offset, x.col_stride, out.lanes(p),
                                            out.row(p, r));
      }
    }
  }
}

// Whether all `count` elements at distance `stride` are finite.
template <class Element, std::int64_t kStride>
TW_INLINE bool line_finite(const char* from, std::int64_t stride, std::int64_t count) {
  using Value = decltype(read<Element>(from));
  const std::int64_t distance = kStride ? kStride : stride;
  FloatBits<Value> bad = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    bad |= is_finite(read<Element>(from + i * distance)) ? 0 : 1;
  }
  return bad == 0;
}

template <class Element>
bool rows_finite(const ArrayView& x, Range rows) {
  constexpr std::int64_t kSize = sizeof(typename Element::Storage);
  const char* const data = static_cast<const char*>(x.data) + rows.begin * x.row_stride;
  // Lines run along the dimension of the smaller stride: rows, or columns of a Fortran-order array.
  const std::int64_t row_distance = x.row_stride < 0 ? -x.row_stride : x.row_stride;
  const std::int64_t col_distance = x.col_stride < 0 ? -x.col_stride : x.col_stride;
  const bool along_rows = x.cols > 1 && (col_distance <= row_distance || rows.size() == 1);
  std::int64_t lines = along_rows ? rows.size() : x.cols;
  std::int64_t count = along_rows ? x.cols : rows.size();
  const std::int64_t line_stride = along_rows ? x.row_stride : x.col_stride;
  const std::int64_t stride = along_rows ? x.col_stride : x.row_stride;
  if (stride == kSize && line_stride == count * kSize) {
    count *= lines;
    lines = 1;
  }
  for (std::int64_t line = 0; line < lines; ++line) {
    const char* const from = data + line * line_stride;
    const bool good = stride == kSize ? line_finite<Element, kSize>(from, kSize, count)
                                      : line_finite<Element, 0>(from, stride, count);
    if (!good) return false;
  }
  return true;
}

}  // namespace

void permute(const PermutationKeys& keys, std::uint64_t first, std::int64_t count,
             std::int64_t* indices) {
  Permutation(keys).fill(first, count, indices);
}

template <class T>
void gather(const ArrayView& x, const std::int64_t* index, std::int64_t first, Range rows,
            Panels<T> out) {
  dispatch_dtype(x.dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr std::int64_t kSize = sizeof(typename Element::Storage);
    if (x.col_stride == kSize || out.width == 1) {
      gather_rows<Element, kSize>(x, index, first, rows, out);
    } else {
      gather_rows<Element, 0>(x, index, first, rows, out);
    }
  });
}

template <class T>
void scatter(Panels<const T> in, Range rows, T* out, std::int64_t leading) {
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    for (std::int64_t p = 0; p < in.panels(); ++p) {
      const T* const from = in.row(p, r);
      T* const to = out + r * leading + p * kPanel;
      const std::int64_t lanes = in.lanes(p);
      TW_INDEPENDENT
      for (std::int64_t j = 0; j < lanes; ++j) to[j] = from[j];
    }
  }
}

template <class T>
bool all_finite(const ArrayView& x, Range rows) {
  switch (x.dtype) {
    case DType::kFloat16:
      return rows_finite<Half>(x, rows);
    case DType::kBFloat16:
      return rows_finite<BrainFloat>(x, rows);
    case DType::kFloat32:
      return rows_finite<Number<float>>(x, rows);
    case DType::kFloat64:
      return rows_finite<Number<double>>(x, rows);
    default:
      return true;
  }
}

#define TW_INSTANTIATE(T)                                                                      \
  template void gather(const ArrayView&, const std::int64_t*, std::int64_t, Range, Panels<T>); \
  template void scatter(Panels<const T>, Range, T*, std::int64_t);                             \
  template bool all_finite<T>(const ArrayView&, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
