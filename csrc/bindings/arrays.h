// Arrays from Python to the engine: the only file that uses nanobind.
//
// pybind11 has no DLPack; nanobind's untyped ndarray takes NumPy arrays and every DLPack producer
// without a copy. It asks producers for no stream, so arrays on a GPU are asked for here.
// Everything here needs the GIL, destructors of InputArray included.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/cuda_array_interface.h"
#include "core/array_view.h"
#include "core/error.h"
#include "training/device_exchange.h"

namespace thalweg::bindings {

namespace nb = nanobind;
namespace py = pybind11;

// First statement of PYBIND11_MODULE: nanobind dereferences a null pointer otherwise.
inline void initialize_arrays(const py::module_& module) {
  if (!nb::register_module(nb::handle(module.ptr()))) throw py::error_already_set();
}

struct DLPackType {
  nb::dlpack::dtype_code code;
  int bits;
  DType dtype;
};
inline constexpr DLPackType kDLPackTypes[] = {
    {nb::dlpack::dtype_code::Bool, 8, DType::kBool},
    {nb::dlpack::dtype_code::Int, 8, DType::kInt8},
    {nb::dlpack::dtype_code::Int, 16, DType::kInt16},
    {nb::dlpack::dtype_code::Int, 32, DType::kInt32},
    {nb::dlpack::dtype_code::Int, 64, DType::kInt64},
    {nb::dlpack::dtype_code::UInt, 8, DType::kUInt8},
    {nb::dlpack::dtype_code::UInt, 16, DType::kUInt16},
    {nb::dlpack::dtype_code::UInt, 32, DType::kUInt32},
    {nb::dlpack::dtype_code::UInt, 64, DType::kUInt64},
    {nb::dlpack::dtype_code::Float, 16, DType::kFloat16},
    {nb::dlpack::dtype_code::Bfloat, 16, DType::kBFloat16},
    {nb::dlpack::dtype_code::Float, 32, DType::kFloat32},
    {nb::dlpack::dtype_code::Float, 64, DType::kFloat64},
};

inline std::optional<DType> dtype_of_dlpack(nb::dlpack::dtype dtype) {
  for (const DLPackType& row : kDLPackTypes) {
    if (static_cast<std::uint8_t>(row.code) == dtype.code && row.bits == dtype.bits &&
        dtype.lanes == 1) {
      return row.dtype;
    }
  }
  return std::nullopt;
}

inline nb::dlpack::dtype dtype_to_dlpack(DType dtype) {
  const DLPackType& row = kDLPackTypes[static_cast<int>(dtype)];
  nb::dlpack::dtype out = nb::dtype<float>();
  out.code = static_cast<std::uint8_t>(row.code);
  out.bits = static_cast<std::uint8_t>(row.bits);
  return out;
}

// A capsule for DLPack that shares dense memory on a GPU.
inline py::object dlpack_capsule(const std::shared_ptr<DeviceMemory>& memory, DType dtype,
                                 const std::vector<std::int64_t>& shape,
                                 const py::object& max_version) {
  const nb::capsule owner(new std::shared_ptr<DeviceMemory>(memory), [](void* holder) noexcept {
    delete static_cast<std::shared_ptr<DeviceMemory>*>(holder);
  });
  const std::vector<std::size_t> extents(shape.begin(), shape.end());
  const nb::ndarray<nb::array_api> array(memory->data(), extents.size(), extents.data(), owner,
                                         nullptr, dtype_to_dlpack(dtype), nb::device::cuda::value,
                                         memory->device());
  const auto lender = py::reinterpret_steal<py::object>(nb::cast(array).release().ptr());
  return lender.attr("__dlpack__")(py::arg("max_version") = max_version);
}

// An argument of real numbers: what lends the memory, and a description of it. Takes NumPy arrays
// (any real dtype, any order and strides, read-only too), DLPack producers in CPU memory, and
// whatever numpy.asarray understands (lists, pandas); with the exchange of a model on a GPU, arrays
// there by DLPack or __cuda_array_interface__. Copies only what cannot be described: lists, and
// elements that are not aligned.
class InputArray {
 public:
  static constexpr int kMaxDimensions = 32;

  // `operation` and `name` go into messages: "[fit] expected x ...".
  InputArray(py::handle object, std::string operation, std::string name,
             const DeviceExchange* exchange = nullptr)
      : operation_(std::move(operation)), name_(std::move(name)) {
    refuse_masked(object);
    if (!import_from_device(object, exchange) && !import(object)) {
      const py::array converted = to_numpy(object);
      if (!import(converted) && !import(packed(converted))) reject(type_text(converted));
    }
    const int device = array_.device_type();
    if (is_gpu(device)) {
      memory_ = Memory::kCuda;
    } else if (device != nb::device::cpu::value && device != nb::device::cuda_host::value) {
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
  bool on_device() const { return memory_ == Memory::kCuda; }

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
    view.memory = memory_;
    return view;
  }

 private:
  static bool is_gpu(int device) {
    return device == nb::device::cuda::value || device == nb::device::cuda_managed::value;
  }

  // False when the object does not lie on a GPU, or does not say so.
  bool import_from_device(py::handle object, const DeviceExchange* exchange) {
    if (py::isinstance<py::array>(object)) return false;
    if (py::hasattr(object, "__dlpack_device__")) {
      const auto [type, ordinal] =
          py::tuple(object.attr("__dlpack_device__")()).cast<std::pair<int, int>>();
      if (!is_gpu(type)) return false;
      expect_device(ordinal, exchange);
      const py::object capsule = dlpack_of(object, exchange->stream());
      if (!nb::try_cast(nb::handle(capsule.ptr()), array_, false)) reject(type_text(object));
      return true;
    }
    if (!py::hasattr(object, "__cuda_array_interface__")) return false;
    expect_device(exchange ? exchange->device() : 0, exchange);
    const CudaArrayInterface from(object, operation_, name_);
    array_ = nb::ndarray<nb::ro>(from.data, from.shape.size(), from.shape.data(),
                                 nb::handle(object.ptr()), from.strides.data(),
                                 dtype_to_dlpack(from.dtype), nb::device::cuda::value,
                                 exchange->device());
    if (from.stream) exchange->wait_for(*from.stream);
    return true;
  }

  void expect_device(int ordinal, const DeviceExchange* exchange) const {
    expect<DeviceError>(
        exchange != nullptr, "[", operation_, "] expected ", name_,
        " in CPU memory, got an array on GPU ", ordinal,
        "; copy it to the CPU first: only models on device 'cuda' take it as it is");
    expect<DeviceError>(ordinal == exchange->device(), "[", operation_, "] expected ", name_,
                        " on GPU ", exchange->device(), ", where the model is, got GPU ", ordinal,
                        "; copy it there first");
  }

  // The producer sees to it that the stream waits for what it has queued.
  static py::object dlpack_of(py::handle object, std::uintptr_t stream) {
    const py::object produce = object.attr("__dlpack__");
    try {
      return produce(py::arg("stream") = stream, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {  // before version 1.0
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return produce(py::arg("stream") = stream);
  }

  // What lies below a mask of numpy.ma means nothing, but it lends its memory like any array.
  void refuse_masked(py::handle object) const {
    if (!py::isinstance<py::array>(object) || !py::hasattr(object, "mask")) return;
    const auto masked =
        py::module_::import("numpy.ma").attr("count_masked")(object).cast<std::int64_t>();
    expect<ValueError>(masked == 0, "[", operation_, "] expected ", name_,
                       " without masked elements, got ", masked, " of ",
                       object.attr("size").cast<std::int64_t>(),
                       "; replace them with .filled(value), or leave their rows out");
  }

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
  Memory memory_ = Memory::kHost;
};

}  // namespace thalweg::bindings
