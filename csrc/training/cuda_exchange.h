// Arrays of a model on a GPU: intake by stream and event, checks, and memory for results.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/gather.h"
#include "cuda/resources.h"
#include "training/device_exchange.h"
#include "training/model.h"

namespace thalweg {

class CudaExchange final : public DeviceExchange {
 public:
  // On a stream of its own when none is given.
  CudaExchange(int device, cudaStream_t stream);

  int device() const override { return device_; }
  std::uintptr_t stream() const override;
  void wait_for(std::uintptr_t other) const override;
  Memory memory_of(const void* data) const override;
  void check_place(const ArrayView& array, const std::string& operation,
                   const std::string& name) const override;
  std::vector<ElementReport> check(const std::vector<ElementRequest>& requests) const override;
  void store(const void* from, void* to, std::int64_t bytes) const override;
  void fetch(const void* from, void* to, std::int64_t bytes) const override;
  void fetch(const ArrayView& from, void* to) const override;
  std::shared_ptr<DeviceMemory> allocate(std::int64_t bytes, const char* operation) const override;

  // What is queued on `stream` from now on comes after what is queued on the exchange's.
  void join(cudaStream_t stream) const;
  // The same if any of it lies on the device.
  void join(const Data& data, cudaStream_t stream) const {
    if (data.x.on_device() || data.y.on_device() || data.weights.on_device()) join(stream);
  }

 private:
  static constexpr std::int64_t kChecks = 4;  // whose results fit in one copy

  int device_;
  cuda::Stream stream_;
  mutable std::mutex check_mutex_;  // of the memory below
  cuda::DeviceArray<cuda::ElementCheck> check_;
  cuda::PinnedArray<cuda::ElementCheck> host_check_;
};

}  // namespace thalweg
