#include "training/cuda_exchange.h"

#include <algorithm>

#include "core/error.h"
#include "training/cuda_data.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "device array";

class CudaMemory final : public DeviceMemory {
 public:
  CudaMemory(int device, std::int64_t bytes, const char* operation)
      : device_(device), bytes_(bytes) {
    const cuda::DeviceScope scope(device);
    if (bytes == 0) return;
    cuda::check(cuda::allocate([&] { return cudaMalloc(&data_, static_cast<std::size_t>(bytes)); }),
                operation);
  }
  ~CudaMemory() override {
    // Waits for what the device still does with it, whoever queued that.
    if (data_ != nullptr) (void)cudaFree(data_);
  }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  void* data() const override { return data_; }
  std::int64_t bytes() const override { return bytes_; }
  int device() const override { return device_; }
  void copy_to_host(void* to) const override { transfer(to, cudaMemcpyDeviceToHost); }
  std::shared_ptr<DeviceMemory> copy() const override {
    auto twin = std::make_shared<CudaMemory>(device_, bytes_, kOperation);
    transfer(twin->data_, cudaMemcpyDeviceToDevice);
    return twin;
  }

 private:
  // After what its owners have queued on the default stream; complete when it returns.
  void transfer(void* to, cudaMemcpyKind kind) const {
    if (bytes_ == 0) return;
    const cuda::DeviceScope scope(device_);
    const cuda::Stream stream(kOperation, nullptr, cudaStreamDefault);
    cuda::check(cudaMemcpyAsync(to, data_, static_cast<std::size_t>(bytes_), kind, stream),
                kOperation);
    stream.synchronize(kOperation);
  }

  int device_;
  std::int64_t bytes_;
  void* data_ = nullptr;
};

}  // namespace

CudaExchange::CudaExchange(int device, cudaStream_t stream)
    : device_(device),
      stream_(kOperation, stream),
      check_(kChecks, kOperation),
      host_check_(kChecks, kOperation) {}

std::uintptr_t CudaExchange::stream() const {
  return reinterpret_cast<std::uintptr_t>(static_cast<cudaStream_t>(stream_));
}

void CudaExchange::wait_for(std::uintptr_t other) const {
  const cuda::DeviceScope scope(device_);
  cuda::Event queued(kOperation);
  queued.record(reinterpret_cast<cudaStream_t>(other), kOperation);
  queued.wait_on(stream_, kOperation);
}

Memory CudaExchange::memory_of(const void* data) const {
  if (data == nullptr) return Memory::kHost;
  cudaPointerAttributes attributes;
  cuda::check(cudaPointerGetAttributes(&attributes, data), kOperation);
  const bool on_device =
      attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? Memory::kCuda : Memory::kHost;
}

void CudaExchange::check_place(const ArrayView& array, const std::string& operation,
                               const std::string& name) const {
  if (array.size() == 0) return;
  cudaPointerAttributes attributes;
  cuda::check(cudaPointerGetAttributes(&attributes, array.data), kOperation);
  expect<DeviceError>(attributes.type != cudaMemoryTypeUnregistered, "[", operation, "] expected ",
                      name, " in the memory of GPU ", device_,
                      ", got an address that CUDA does not know");
  expect<DeviceError>(attributes.type != cudaMemoryTypeDevice || attributes.device == device_, "[",
                      operation, "] expected ", name, " on GPU ", device_,
                      ", where the model is, got GPU ", attributes.device, "; copy it there first");
}

std::vector<ElementReport> CudaExchange::check(const std::vector<ElementRequest>& requests) const {
  const cuda::DeviceScope scope(device_);
  const std::lock_guard lock(check_mutex_);
  std::vector<ElementReport> reports;
  const auto total = static_cast<std::int64_t>(requests.size());
  for (std::int64_t first = 0; first < total; first += kChecks) {
    const std::int64_t count = std::min(kChecks, total - first);
    const auto copy = [&](void* to, const void* from, cudaMemcpyKind kind) {
      const std::size_t bytes = array_bytes(count, sizeof(cuda::ElementCheck));
      cuda::check(cudaMemcpyAsync(to, from, bytes, kind, stream_), kOperation);
    };
    for (std::int64_t i = 0; i < count; ++i) host_check_[i] = {~0ull, 0};
    copy(check_.data(), host_check_.data(), cudaMemcpyHostToDevice);
    for (std::int64_t i = 0; i < count; ++i) {
      const ElementRequest& request = requests[static_cast<std::size_t>(first + i)];
      cuda::check_elements(request.array, request.rule, request.limit, check_.data() + i, stream_);
    }
    copy(host_check_.data(), check_.data(), cudaMemcpyDeviceToHost);
    stream_.synchronize(kOperation);
    for (std::int64_t i = 0; i < count; ++i) {
      const cuda::ElementCheck& found = host_check_[i];
      ElementReport& report = reports.emplace_back();
      if (found.first_bad != ~0ull) report.first_bad = static_cast<std::int64_t>(found.first_bad);
      report.positive = found.positive > 0;
    }
  }
  return reports;
}

void CudaExchange::store(const void* from, void* to, std::int64_t bytes) const {
  const cuda::DeviceScope scope(device_);
  cuda::upload(static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytes, stream_,
               kOperation);
}

void CudaExchange::fetch(const void* from, void* to, std::int64_t bytes) const {
  const cuda::DeviceScope scope(device_);
  cuda::download(static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytes, stream_,
                 kOperation);
}

void CudaExchange::fetch(const ArrayView& from, void* to) const {
  const cuda::DeviceScope scope(device_);
  fetch_rows(from, static_cast<std::byte*>(to), stream_);
}

std::shared_ptr<DeviceMemory> CudaExchange::allocate(std::int64_t bytes,
                                                     const char* operation) const {
  return std::make_shared<CudaMemory>(device_, bytes, operation);
}

void CudaExchange::join(cudaStream_t stream) const {
  if (stream_ == stream) return;
  cuda::Event arrived(kOperation);
  arrived.record(stream_, kOperation);
  arrived.wait_on(stream, kOperation);
}

}  // namespace thalweg
