// Losses written in Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "bindings/model_lock.h"
#include "bindings/numpy_arrays.h"
#include "bindings/python_call.h"
#include "core/error.h"

namespace thalweg::bindings {

// loss(prediction, target) -> (value, gradient) for one call; target rows are taken by index. A
// call that writes passes its lock, and is paused while the function runs.
class PythonLoss {
 public:
  PythonLoss(PythonCall& call, pybind11::object loss, pybind11::object targets,
             ModelLock* writing = nullptr)
      : call_(call), loss_(std::move(loss)), targets_(std::move(targets)), writing_(writing) {}

  bool present() const { return !loss_.is_none(); }

  double operator()(DType dtype, std::int64_t out_features, const void* outputs,
                    const std::int64_t* row_index, std::int64_t rows, void* gradient) const {
    std::optional<ModelLock::Pause> pause;
    if (writing_) pause.emplace(*writing_);
    double value = 0.0;
    call_.with_gil([&] {
      pybind11::array prediction = new_array(dtype, {rows, out_features});
      std::memcpy(prediction.mutable_data(), outputs,
                  static_cast<std::size_t>(prediction.nbytes()));
      const pybind11::object target =
          row_index ? targets_.attr("take")(pybind11::array_t<std::int64_t>(rows, row_index), 0)
                    : targets_;
      const pybind11::object result = loss_(prediction, target);
      if (!pybind11::isinstance<pybind11::tuple>(result) || pybind11::len(result) != 2) {
        throw pybind11::type_error(
            "[loss] expected the loss function to return (value, gradient), got " +
            pybind11::repr(pybind11::type::of(result)).cast<std::string>());
      }
      const pybind11::tuple pair(result);
      value = pybind11::float_(pair[0]).cast<double>();
      const pybind11::array computed =
          pybind11::module_::import("numpy").attr("ascontiguousarray")(pair[1], prediction.dtype());
      if (computed.ndim() != 2 || computed.shape(0) != rows || computed.shape(1) != out_features) {
        throw pybind11::value_error(concat(
            "[loss] expected a gradient of the prediction's shape (", rows, ", ", out_features,
            "), got ", pybind11::str(computed.attr("shape")).cast<std::string>(),
            "; the loss function returns (value, d value / d prediction)"));
      }
      std::memcpy(gradient, computed.data(), static_cast<std::size_t>(computed.nbytes()));
    });
    return value;
  }

 private:
  PythonCall& call_;
  pybind11::object loss_;
  pybind11::object targets_;
  ModelLock* writing_;
};

}  // namespace thalweg::bindings
