// New NumPy arrays whose element type is known at run time only.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/array_view.h"
#include "core/error.h"

namespace thalweg::bindings {

// f(float{}) or f(double{}).
template <class F>
auto with_real_type(DType dtype, F&& f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

// Row-major and uninitialized.
inline pybind11::array new_array(DType dtype, const std::vector<std::int64_t>& shape) {
  const std::vector<pybind11::ssize_t> extents(shape.begin(), shape.end());
  return with_real_type(dtype, [&](auto zero) -> pybind11::array {
    return pybind11::array_t<decltype(zero)>(extents);
  });
}

}  // namespace thalweg::bindings
