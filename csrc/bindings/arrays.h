// Arrays from Python to the engine: the only file that uses nanobind.
//
// pybind11 has no DLPack; nanobind's untyped ndarray takes NumPy arrays and every DLPack producer
// without a copy. Everything here needs the GIL, destructors of InputArray included.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "core/array_view.h"
#include "core/error.h"

namespace thalweg::bindings {

namespace nb = nanobind;
namespace py = pybind11;

// First statement of PYBIND11_MODULE: nanobind dereferences a null pointer otherwise.
inline void initialize_arrays(const py::module_& module) {
  if (!nb::register_module(nb::handle(module.ptr()))) throw py::error_already_set();
}

inline std::optional<DType> dtype_of_dlpack(nb::dlpack::dtype dtype) {
  using Code = nb::dlpack::dtype_code;
  struct Row {
    Code code;
    int bits;
    DType dtype;
  };
  static constexpr Row kRows[] = {
      {Code::Bool, 8, DType::kBool},        {Code::Int, 8, DType::kInt8},
      {Code::Int, 16, DType::kInt16},       {Code::Int, 32, DType::kInt32},
      {Code::Int, 64, DType::kInt64},       {Code::UInt, 8, DType::kUInt8},
      {Code::UInt, 16, DType::kUInt16},     {Code::UInt, 32, DType::kUInt32},
      {Code::UInt, 64, DType::kUInt64},     {Code::Float, 16, DType::kFloat16},
      {Code::Bfloat, 16, DType::kBFloat16}, {Code::Float, 32, DType::kFloat32},
      {Code::Float, 64, DType::kFloat64},
  };
  for (const Row& row : kRows) {
    if (static_cast<std::uint8_t>(row.code) == dtype.code && row.bits == dtype.bits &&
        dtype.lanes == 1) {
      return row.dtype;
    }
  }
  return std::nullopt;
}

// An argument of real numbers: what lends the memory, and a description of it. Takes NumPy arrays
// (any real dtype, any order and strides, read-only too), DLPack producers in CPU memory, and
// whatever numpy.asarray understands (lists, pandas). Copies only what cannot be described: lists,
// and elements that are not aligned.
class InputArray {
 public:
  static constexpr int kMaxDimensions = 32;

  // `operation` and `name` go into messages: "[fit] expected x ...".
  InputArray(py::handle object, std::string operation, std::string name)
      : operation_(std::move(operation)), name_(std::move(name)) {
    if (!import(object)) {
      const py::array converted = to_numpy(object);
      if (!import(converted) && !import(packed(converted))) reject(type_text(converted));
    }
    const int device = array_.device_type();
    if (device != nb::device::cpu::value && device != nb::device::cuda_host::value) {
      throw DeviceError(concat("[", operation_, "] expected ", name_,
                               " in CPU memory, got an array of another device (DLPack type ",
                               device, "); copy it to the CPU first"));
    }
    const std::optional<DType> dtype = dtype_of_dlpack(array_.dtype());
    if (!dtype) reject(type_text(object));
    dtype_ = *dtype;
  }

  DType dtype() const { return dtype_; }
  int dimensions() const { return static_cast<int>(array_.ndim()); }
  std::int64_t shape(int axis) const { return static_cast<std::int64_t>(array_.shape(axis)); }
  std::int64_t byte_stride(int axis) const { return array_.stride(axis) * item_size(dtype_); }
  const void* data() const { return array_.data(); }

  // "(3, 4)", as Python writes it.
  std::string shape_text() const {
    std::string text = "(";
    for (int axis = 0; axis < dimensions(); ++axis) {
      text += concat(axis > 0 ? ", " : "", shape(axis));
    }
    return text + (dimensions() == 1 ? ",)" : ")");
  }

  // Valid while this object lives.
  ArrayView view() const {
    expect<ValueError>(dimensions() == 1 || dimensions() == 2, "[", operation_, "] expected ",
                       name_, " with 1 or 2 dimensions, got shape ", shape_text(),
                       "; rows are samples: reshape it to (n, features)");
    ArrayView view;
    view.data = data();
    view.dtype = dtype_;
    view.dimensions = dimensions();
    view.rows = shape(0);
    view.row_stride = byte_stride(0);
    view.cols = dimensions() == 2 ? shape(1) : 1;
    view.col_stride = dimensions() == 2 ? byte_stride(1) : item_size(dtype_);
    return view;
  }

 private:
  // False when the object lends no memory, or memory that a view cannot describe.
  bool import(py::handle object) {
    if (!nb::try_cast(nb::handle(object.ptr()), array_, false)) return false;
    const auto item = static_cast<std::uintptr_t>(array_.itemsize());
    return item == 0 || reinterpret_cast<std::uintptr_t>(array_.data()) % item == 0;
  }

  py::array to_numpy(py::handle object) const {
    py::array array;
    try {
      array = py::array(py::module_::import("numpy").attr("asarray")(object));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;
      reject(concat(type_text(object), " (", py::str(error.value()).cast<std::string>(), ")"));
    }
    const py::dtype dtype = array.dtype();
    const std::string kind(1, dtype.kind());
    if (std::string("biuf").find(kind) == std::string::npos) reject(type_text(array));
    if (!dtype.attr("isnative").cast<bool>()) {
      throw TypeError(concat("[", operation_, "] expected ", name_,
                             " in native byte order, got dtype ",
                             py::str(dtype).cast<std::string>(),
                             "; convert it with .astype(x.dtype.newbyteorder('='))"));
    }
    return array;
  }

  static py::array packed(const py::array& array) {
    return py::array(array.attr("copy")(py::arg("order") = "C"));
  }

  static std::string type_text(py::handle object) {
    if (py::isinstance<py::array>(object))
      return "dtype " + py::str(object.attr("dtype")).cast<std::string>();
    return py::str(py::type::handle_of(object).attr("__name__"));
  }

  [[noreturn]] void reject(const std::string& actual) const {
    throw TypeError(concat("[", operation_, "] expected ", name_,
                           " to be an array of real numbers, got ", actual,
                           "; convert it to float32, float64 or an integer type"));
  }

  std::string operation_;
  std::string name_;
  nb::ndarray<nb::ro> array_;
  DType dtype_ = DType::kFloat32;
};

}  // namespace thalweg::bindings
