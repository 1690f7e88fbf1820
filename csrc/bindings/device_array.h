// Class DeviceArray: results of models on a GPU, where they were computed.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "bindings/arrays.h"
#include "training/device_exchange.h"

namespace thalweg::bindings {

// A new DeviceArray: row-major, complete.
pybind11::object device_array(std::shared_ptr<DeviceMemory> memory, DType dtype,
                              std::vector<std::int64_t> shape);

// A copy of an array of real numbers on the GPU of an exchange.
pybind11::object device_copy(const pybind11::array& array, const DeviceExchange& exchange,
                             const char* operation);

// A NumPy copy of an array on the GPU of an exchange.
pybind11::array host_copy(const InputArray& array, const DeviceExchange& exchange);

}  // namespace thalweg::bindings
