// How arrays in device memory come to a model on that device, and how its results leave it there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/array_view.h"
#include "math/element_rule.h"

namespace thalweg {

// Device memory that its holders share; the last one frees it, once the device is done with it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* data() const = 0;
  virtual std::int64_t bytes() const = 0;
  virtual int device() const = 0;
  virtual void copy_to_host(void* to) const = 0;  // all of it
  virtual std::shared_ptr<DeviceMemory> copy() const = 0;
};

struct ElementRequest {
  ArrayView array;
  ElementRule rule;
  double limit;
};
// The first element that breaks a rule, row by row, and whether any is above zero.
struct ElementReport {
  std::optional<std::int64_t> first_bad;
  bool positive = false;
};

// Of one model. Any thread may use it at any time.
class DeviceExchange {
 public:
  virtual ~DeviceExchange() = default;

  virtual int device() const = 0;
  // Work that makes arrays for the model is queued on this stream, or the stream waits for it; the
  // model's calls wait for what was queued here when they began.
  virtual std::uintptr_t stream() const = 0;
  // The stream waits for what is queued on another one: 1 is the legacy default stream, 2 the
  // per-thread one.
  virtual void wait_for(std::uintptr_t other) const = 0;

  // Where an address points to.
  virtual Memory memory_of(const void* data) const = 0;
  // DeviceError unless the array lies on the device.
  virtual void check_place(const ArrayView& array, const std::string& operation,
                           const std::string& name) const = 0;
  virtual std::vector<ElementReport> check(const std::vector<ElementRequest>& requests) const = 0;

  // Complete when they return.
  virtual void store(const void* from, void* to, std::int64_t bytes) const = 0;
  virtual void fetch(const void* from, void* to, std::int64_t bytes) const = 0;
  // Rows without gaps, in host memory.
  virtual void fetch(const ArrayView& from, void* to) const = 0;

  // Not initialized.
  virtual std::shared_ptr<DeviceMemory> allocate(std::int64_t bytes,
                                                 const char* operation) const = 0;
};

}  // namespace thalweg
