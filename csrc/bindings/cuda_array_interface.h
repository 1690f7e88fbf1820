// __cuda_array_interface__, version 3: what an object says about its memory on a GPU.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/array_view.h"
#include "core/error.h"

namespace thalweg::bindings {

// "<f4" and its like.
inline std::optional<DType> dtype_of_typestr(std::string_view type) {
  if (type.size() != 3 || type[0] == '>') return std::nullopt;
  struct Row {
    char kind;
    char size;
    DType dtype;
  };
  static constexpr Row kRows[] = {
      {'b', '1', DType::kBool},    {'i', '1', DType::kInt8},    {'i', '2', DType::kInt16},
      {'i', '4', DType::kInt32},   {'i', '8', DType::kInt64},   {'u', '1', DType::kUInt8},
      {'u', '2', DType::kUInt16},  {'u', '4', DType::kUInt32},  {'u', '8', DType::kUInt64},
      {'f', '2', DType::kFloat16}, {'f', '4', DType::kFloat32}, {'f', '8', DType::kFloat64},
  };
  for (const Row& row : kRows)
    if (row.kind == type[1] && row.size == type[2]) return row.dtype;
  return std::nullopt;
}

struct CudaArrayInterface {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<std::size_t> shape;
  std::vector<std::int64_t> strides;     // in elements
  std::optional<std::uintptr_t> stream;  // to wait for before the memory is read

  // `operation` and `name` go into messages.
  CudaArrayInterface(pybind11::handle object, std::string_view operation, std::string_view name) {
    namespace py = pybind11;
    const py::dict interface(object.attr("__cuda_array_interface__"));
    const auto refuse = [&](const auto&... actual) {
      throw TypeError(concat("[", operation, "] expected ", name, " with ", actual...));
    };
    const auto get = [&](const char* key) -> py::object {
      return interface.contains(key) ? py::object(interface[key]) : py::none();
    };
    for (const char* key : {"shape", "typestr", "data"})
      if (get(key).is_none()) refuse("'", key, "' in its __cuda_array_interface__, got none");
    if (!get("mask").is_none())
      throw ValueError(concat("[", operation, "] expected ", name,
                              " without a mask, got one in its __cuda_array_interface__; fill the "
                              "masked elements in first"));

    const auto type = get("typestr").cast<std::string>();
    const std::optional<DType> found = dtype_of_typestr(type);
    if (!found)
      refuse("real numbers in native byte order, got typestr '", type,
             "'; convert it to float32, float64 or an integer type");
    dtype = *found;
    const std::int64_t item = item_size(dtype);

    shape = get("shape").cast<std::vector<std::size_t>>();
    data = reinterpret_cast<void*>(py::tuple(get("data"))[0].cast<std::uintptr_t>());
    if (get("strides").is_none()) {
      strides.assign(shape.size(), 1);
      for (std::size_t axis = shape.size(); axis-- > 1;)
        strides[axis - 1] = strides[axis] * static_cast<std::int64_t>(shape[axis]);
    } else {
      strides = get("strides").cast<std::vector<std::int64_t>>();
      if (strides.size() != shape.size())
        throw ValueError(concat("[", operation, "] expected ", name,
                                " with one stride per dimension, got ", strides.size(), " for ",
                                shape.size()));
      for (std::int64_t& stride : strides) {
        if (stride % item != 0)
          throw ValueError(concat("[", operation, "] expected ", name,
                                  " with strides of whole elements (", item, " bytes), got ",
                                  stride, "; make a contiguous copy of it"));
        stride /= item;
      }
    }
    if (!get("stream").is_none()) {
      stream = get("stream").cast<std::uintptr_t>();
      if (*stream == 0)
        throw ValueError(concat("[", operation, "] expected ", name,
                                " with a stream of 1 (default), 2 (per thread) or a handle in its "
                                "__cuda_array_interface__, got 0, which is ambiguous"));
    }
  }
};

}  // namespace thalweg::bindings
