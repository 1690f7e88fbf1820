#include "bindings/device_array.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "core/error.h"

namespace thalweg::bindings {
namespace {

constexpr int kCpu = 1;   // kDLCPU
constexpr int kCuda = 2;  // kDLCUDA

class PyDeviceArray {
 public:
  PyDeviceArray(std::shared_ptr<DeviceMemory> memory, DType dtype, std::vector<std::int64_t> shape)
      : memory_(std::move(memory)), dtype_(dtype), shape_(std::move(shape)) {}

  py::tuple shape() const { return py::tuple(py::cast(shape_)); }
  py::dtype dtype() const { return py::dtype(dtype_name(dtype_)); }
  std::int64_t ndim() const { return static_cast<std::int64_t>(shape_.size()); }
  std::int64_t size() const { return memory_->bytes() / item_size(dtype_); }
  std::int64_t nbytes() const { return memory_->bytes(); }
  std::string device() const { return concat("cuda:", memory_->device()); }
  std::int64_t length() const {
    expect<TypeError>(!shape_.empty(),
                      "[DeviceArray] expected an array with a length, got one of 0 "
                      "dimensions");
    return shape_.front();
  }
  std::string text() const {
    return concat("DeviceArray(shape=", py::repr(shape()).cast<std::string>(), ", dtype='",
                  dtype_name(dtype_), "', device='", device(), "')");
  }

  py::array numpy() const {
    py::array out(dtype(), shape_);
    void* data = out.mutable_data();
    {
      const py::gil_scoped_release release;
      memory_->copy_to_host(data);
    }
    return out;
  }

  py::object array(const py::object& dtype, const py::object& copy) const {
    expect<ValueError>(!copy.is(py::bool_(false)),
                       "[DeviceArray] expected copy=None or copy=True, got False: NumPy cannot "
                       "share memory of a GPU");
    const py::array host = numpy();
    if (dtype.is_none()) return host;
    return host.attr("astype")(dtype, py::arg("copy") = false);
  }

  py::tuple dlpack_device() const { return py::make_tuple(kCuda, memory_->device()); }

  // The elements are there for every stream: the call that computed them has waited for them.
  py::object dlpack(const py::object& stream, const py::object& max_version,
                    const py::object& dl_device, const py::object& copy) const {
    check_stream(stream);
    if (!dl_device.is_none()) {
      const auto [type, ordinal] = py::tuple(dl_device).cast<std::pair<int, int>>();
      if (type == kCpu) {
        if (copy.is(py::bool_(false)))
          throw py::buffer_error(
              "[DeviceArray] expected copy to be None or True for the CPU, got False");
        return numpy().attr("__dlpack__")(py::arg("max_version") = max_version);
      }
      if (type != kCuda || ordinal != memory_->device())
        throw py::buffer_error(concat(
            "[DeviceArray] expected dl_device ", py::repr(dlpack_device()).cast<std::string>(),
            " or the CPU, got ", py::repr(dl_device).cast<std::string>()));
    }
    const bool copies = copy.is(py::bool_(true));
    return dlpack_capsule(copies ? memory_->copy() : memory_, dtype_, shape_, max_version);
  }

  py::dict interface() const {
    py::dict out;
    out["shape"] = shape();
    out["typestr"] = dtype().attr("str");
    out["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(memory_->data()), false);
    out["strides"] = py::none();
    out["stream"] = py::none();
    out["version"] = 3;
    return out;
  }

 private:
  static void check_stream(const py::object& stream) {
    if (stream.is_none()) return;
    expect<TypeError>(py::isinstance<py::int_>(stream),
                      "[DeviceArray] expected stream to be an integer or None, got ",
                      py::repr(stream).cast<std::string>());
    const auto handle = stream.cast<std::int64_t>();
    expect<ValueError>(handle == -1 || handle > 0,
                       "[DeviceArray] expected stream to be -1 (none), 1 (default), 2 (per thread) "
                       "or a handle, got ",
                       handle);
  }

  std::shared_ptr<DeviceMemory> memory_;
  DType dtype_;
  std::vector<std::int64_t> shape_;
};

}  // namespace

py::object device_array(std::shared_ptr<DeviceMemory> memory, DType dtype,
                        std::vector<std::int64_t> shape) {
  return py::cast(PyDeviceArray(std::move(memory), dtype, std::move(shape)));
}

py::object device_copy(const py::array& array, const DeviceExchange& exchange,
                       const char* operation) {
  const py::array dense(array.attr("copy")(py::arg("order") = "C"));
  const InputArray input(dense, operation, "array");
  std::vector<std::int64_t> shape(dense.shape(), dense.shape() + dense.ndim());
  auto memory = exchange.allocate(dense.nbytes(), operation);
  {
    const py::gil_scoped_release release;
    exchange.store(dense.data(), memory->data(), memory->bytes());
  }
  return device_array(std::move(memory), input.dtype(), std::move(shape));
}

py::array host_copy(const InputArray& array, const DeviceExchange& exchange) {
  const ArrayView view = array.view();
  std::vector<py::ssize_t> shape{view.rows};
  if (view.dimensions == 2) shape.push_back(view.cols);
  expect<TypeError>(view.dtype != DType::kBFloat16,
                    "[DeviceArray] expected a type that NumPy has, got bfloat16");
  py::array out(py::dtype(dtype_name(view.dtype)), shape);
  exchange.fetch(view, out.mutable_data());
  return out;
}

void bind_device_array(py::module_& module) {
  constexpr const char* kDoc =
      R"(An array in the memory of a GPU: what a model on "cuda" returns for data that lie there.

A model makes one; there is no constructor. Libraries take it without a copy, through DLPack or
``__cuda_array_interface__``: ``torch.from_dlpack(a)``, ``cupy.asarray(a)``,
``jax.dlpack.from_dlpack(a)``. It is dense, row-major, writable, and complete when it is returned,
so no stream has to wait for it. The memory is freed with the last array that shares it.

See Also
--------
Model.predict : Returns one for an x on the GPU.)";
  py::class_<PyDeviceArray>(module, "DeviceArray", kDoc)
      .def_property_readonly("shape", &PyDeviceArray::shape, "Extents, a tuple of int.")
      .def_property_readonly("dtype", &PyDeviceArray::dtype, "Type of the elements, of NumPy.")
      .def_property_readonly("ndim", &PyDeviceArray::ndim, "Number of dimensions.")
      .def_property_readonly("size", &PyDeviceArray::size, "Number of elements.")
      .def_property_readonly("nbytes", &PyDeviceArray::nbytes, "Bytes of the elements.")
      .def_property_readonly("device", &PyDeviceArray::device, "Where it lies: \"cuda:0\".")
      .def("numpy", &PyDeviceArray::numpy, "A copy in host memory, a NumPy array.")
      .def("__len__", &PyDeviceArray::length)
      .def("__repr__", &PyDeviceArray::text)
      .def("__array__", &PyDeviceArray::array, py::arg("dtype") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack__", &PyDeviceArray::dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__", &PyDeviceArray::dlpack_device)
      .def_property_readonly("__cuda_array_interface__", &PyDeviceArray::interface);
  module.attr("DeviceArray").attr("__module__") = "thalweg";
}

}  // namespace thalweg::bindings
