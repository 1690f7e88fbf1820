// Flat float64 vectors between the engine and NumPy: what minimize/ works on.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/error.h"

namespace thalweg::bindings {

using FlatArray = pybind11::array_t<double, pybind11::array::c_style>;

inline FlatArray flat_array(const double* values, std::int64_t n) {
  FlatArray array(n);
  std::copy_n(values, n, array.mutable_data());
  return array;
}
inline FlatArray flat_array(const std::vector<double>& values) {
  return flat_array(values.data(), static_cast<std::int64_t>(values.size()));
}

inline void read_flat(const pybind11::handle& result, std::int64_t n, double* out) {
  const auto array = result.cast<FlatArray>();
  expect<ValueError>(array.size() == n, "[minimize] expected ", n, " elements, got ", array.size());
  std::copy_n(array.data(), n, out);
}

}  // namespace thalweg::bindings
