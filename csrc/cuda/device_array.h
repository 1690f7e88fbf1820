// Elements of caller-owned arrays on the device (core/array_view.h): any real type, any strides.
#pragma once

#include "core/array_view.h"
#include "cuda/device/device.h"
#include "math/host_device.h"

namespace thalweg::cuda {

// Element types: how each is stored, and its value.
struct BoolElement {
  using Storage = std::uint8_t;
  TW_DEVICE static std::uint8_t value(Storage x) { return x != 0 ? 1 : 0; }
};

template <class S>
struct NumberElement {
  using Storage = S;
  TW_DEVICE static S value(Storage x) { return x; }
};

struct HalfElement {
  using Storage = std::uint16_t;
  TW_DEVICE static float value(Storage x) { return float16_to_float(x); }
};

struct BrainFloatElement {
  using Storage = std::uint16_t;
  TW_DEVICE static float value(Storage x) { return bfloat16_to_float(x); }
};

// f(element type)
TW_VISITOR
template <class F>
TW_VISITS decltype(auto) dispatch_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBool:
      return f(BoolElement{});
    case DType::kInt8:
      return f(NumberElement<std::int8_t>{});
    case DType::kInt16:
      return f(NumberElement<std::int16_t>{});
    case DType::kInt32:
      return f(NumberElement<std::int32_t>{});
    case DType::kInt64:
      return f(NumberElement<std::int64_t>{});
    case DType::kUInt8:
      return f(NumberElement<std::uint8_t>{});
    case DType::kUInt16:
      return f(NumberElement<std::uint16_t>{});
    case DType::kUInt32:
      return f(NumberElement<std::uint32_t>{});
    case DType::kUInt64:
      return f(NumberElement<std::uint64_t>{});
    case DType::kFloat16:
      return f(HalfElement{});
    case DType::kBFloat16:
      return f(BrainFloatElement{});
    case DType::kFloat32:
      return f(NumberElement<float>{});
    case DType::kFloat64:
      return f(NumberElement<double>{});
  }
  __builtin_unreachable();
}

// Whether all elements lie at multiples of their size; others are read byte by byte.
inline bool is_aligned(const ArrayView& x, std::int64_t size) {
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(x.data));
  return address % size == 0 && x.row_stride % size == 0 && x.col_stride % size == 0;
}

template <class Element>
TW_DEVICE auto read_element(const char* from, bool aligned) {
  typename Element::Storage stored;
  if (aligned) {
    stored = *reinterpret_cast<const typename Element::Storage*>(from);
  } else {
    __builtin_memcpy(&stored, from, sizeof(stored));
  }
  return Element::value(stored);
}

// An array of one column whose type is looked up for every element: for a few of them per row.
struct DeviceColumn {
  const char* data = nullptr;
  std::int64_t stride = 0;
  DType dtype = DType::kFloat32;
  bool aligned = true;

  DeviceColumn() = default;
  explicit DeviceColumn(const ArrayView& x)
      : data(static_cast<const char*>(x.data)),
        stride(x.row_stride),
        dtype(x.dtype),
        aligned(is_aligned(x, item_size(x.dtype))) {}

  template <class To>
  TW_DEVICE To get(std::int64_t row) const {
    const char* const from = data + row * stride;
    return dispatch_dtype(dtype, [&](auto element) {
      return static_cast<To>(read_element<decltype(element)>(from, aligned));
    });
  }
};

}  // namespace thalweg::cuda
