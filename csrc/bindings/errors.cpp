// Exception types of the package and the translation of the engine's typed errors into them.
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bindings.h"
#include "core/error.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;

// Never released: translation may happen while the interpreter shuts down.
struct ErrorTypes {
  PyObject* device = nullptr;
  PyObject* non_finite = nullptr;
  PyObject* checkpoint = nullptr;
};
ErrorTypes types;

PyObject* add_type(py::module_& module, const char* name, PyObject* base, const char* doc,
                   const py::dict& members = {}) {
  const std::string qualified = std::string("thalweg.") + name;
  PyObject* type = PyErr_NewExceptionWithDoc(qualified.c_str(), doc, base, members.ptr());
  if (!type) throw py::error_already_set();
  module.add_object(name, py::reinterpret_borrow<py::object>(type));
  return type;
}

void raise_non_finite(const NonFiniteError& error) {
  const py::handle type(types.non_finite);
  const py::object value = type(error.what());
  value.attr("step") = error.step();
  value.attr("layer") = error.layer();
  PyErr_SetObject(type.ptr(), value.ptr());
}

PyObject* type_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kValue:
      return PyExc_ValueError;
    case ErrorCode::kType:
      return PyExc_TypeError;
    case ErrorCode::kDevice:
      return types.device;
    case ErrorCode::kNonFinite:
      return types.non_finite;
    case ErrorCode::kCheckpoint:
      return types.checkpoint;
    case ErrorCode::kMemory:
      return PyExc_MemoryError;
    case ErrorCode::kInterrupted:
      return PyExc_KeyboardInterrupt;
    case ErrorCode::kOk:
    case ErrorCode::kCallback:
    case ErrorCode::kInternal:
      break;
  }
  return PyExc_RuntimeError;
}

}  // namespace

void bind_errors(py::module_& module) {
  types.device = add_type(module, "DeviceError", PyExc_RuntimeError,
                          "The device asked for is missing or cannot be used.");
  py::dict members;
  members["step"] = -1;
  members["layer"] = "";
  types.non_finite =
      add_type(module, "NonFiniteError", PyExc_ArithmeticError,
               "A loss, gradient or parameter became NaN or infinite.\n\n"
               "Attributes\n----------\n"
               "step : int\n    Update in which it happened, counted over the life of the model.\n"
               "layer : str\n    Name of the first layer concerned, or an empty string.",
               members);
  types.checkpoint = add_type(module, "CheckpointError", PyExc_ValueError,
                              "A checkpoint is missing, foreign, truncated or corrupt.");

  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const NonFiniteError& error) {
      raise_non_finite(error);
    } catch (const Error& error) {
      PyErr_SetString(type_of(error.code()), error.what());
    }
  });
}

}  // namespace thalweg::bindings
