// The data of one call from Python.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/arrays.h"
#include "training/model.h"

namespace thalweg::bindings {

// x, y and weights of one call; y and weights may be None. With the exchange of a model on a GPU
// they may lie there.
class DataArguments {
 public:
  DataArguments(const char* operation, const DeviceExchange* exchange, py::handle x, py::handle y,
                py::handle weights, const std::string& prefix = "") {
    import(x_, operation, prefix + "x", x, exchange);
    import(y_, operation, prefix + "y", y, exchange);
    import(weights_, operation, prefix + "sample_weight", weights, exchange);
  }
  bool on_device() const { return x_ && x_->on_device(); }

  Data data() const {
    Data data;
    if (x_) data.x = x_->view();
    if (y_) data.y = y_->view();
    if (weights_) data.weights = weights_->view();
    return data;
  }

 private:
  static void import(std::optional<InputArray>& to, const char* operation, const std::string& name,
                     py::handle object, const DeviceExchange* exchange) {
    if (!object.is_none()) to.emplace(object, operation, name, exchange);
  }

  std::optional<InputArray> x_, y_, weights_;
};

}  // namespace thalweg::bindings
