// Where a call leaves an array that it computes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "bindings/device_array.h"
#include "bindings/numpy_arrays.h"
#include "training/device_exchange.h"

namespace thalweg::bindings {

// Uninitialized, for the engine to write: in host memory, or on the GPU of an exchange.
class ResultArray {
 public:
  ResultArray(DType dtype, std::vector<std::int64_t> shape, const DeviceExchange* exchange,
              const char* operation) {
    if (exchange == nullptr) {
      pybind11::array array = new_array(dtype, shape);
      data_ = array.mutable_data();
      object_ = array;
      return;
    }
    std::int64_t bytes = item_size(dtype);
    for (const std::int64_t extent : shape) bytes *= extent;
    auto memory = exchange->allocate(bytes, operation);
    data_ = memory->data();
    object_ = device_array(std::move(memory), dtype, std::move(shape));
  }
  void* data() const { return data_; }
  const pybind11::object& object() const { return object_; }

 private:
  void* data_ = nullptr;
  pybind11::object object_;
};

}  // namespace thalweg::bindings
