// Owners of what the CUDA run-time API hands out. They throw as check() does; destructors ignore
// errors, since after a fault of the device every call reports it again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/arena.h"
#include "cuda/idle_memory.h"
#include "cuda/runtime.h"

namespace thalweg::cuda {

// A piece of device memory of somebody else's, from which arrays are taken one behind the other;
// without memory it counts the bytes that they would take.
class Region {
 public:
  static constexpr std::size_t kAlignment = 256;

  Region() = default;
  Region(void* memory, std::size_t bytes)
      : memory_(static_cast<std::byte*>(memory)), bytes_(bytes) {}

  bool counts_only() const { return memory_ == nullptr; }
  std::size_t used() const { return used_; }
  // Not to be touched when only counting.
  void* take(std::size_t bytes, const char* operation) {
    const std::size_t offset = used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (counts_only()) return reinterpret_cast<void*>(kAlignment + offset);
    expect<InternalError>(used_ <= bytes_, "[", operation, "] expected at most ", bytes_,
                          " bytes of a workspace to be taken, got ", used_);
    return memory_ + offset;
  }

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t used_ = 0;
};

// A caller's stream, borrowed; or one of its own, which does not wait for the default stream unless
// its flags are cudaStreamDefault.
class Stream {
 public:
  explicit Stream(const char* operation, cudaStream_t borrowed = nullptr,
                  unsigned flags = cudaStreamNonBlocking)
      : stream_(borrowed), owned_(borrowed == nullptr) {
    if (owned_) check(cudaStreamCreateWithFlags(&stream_, flags), operation);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (owned_) (void)cudaStreamDestroy(stream_);
  }

  operator cudaStream_t() const { return stream_; }
  void synchronize(const char* operation) const {
    check(cudaStreamSynchronize(stream_), operation);
  }

 private:
  cudaStream_t stream_ = nullptr;
  bool owned_ = false;
};

// Device memory, zero when new: complete when the constructor returns. Of its own, or out of a
// region that outlives it.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceArray() = default;
  DeviceArray(std::int64_t size, const char* operation, Region* region = nullptr)
      : size_(size), owned_(region == nullptr) {
    if (size == 0) return;
    if (owned_)
      check(allocate([&] { return cudaMalloc(reinterpret_cast<void**>(&data_), bytes()); }),
            operation);
    else
      data_ = static_cast<T*>(region->take(bytes(), operation));
    if (!owned_ && region->counts_only()) return;
    try {
      // Not the default stream, whose use ends the capture of any other stream that waits for it.
      // What the owner of a region has queued there comes first.
      const Stream stream(operation, nullptr, owned_ ? cudaStreamNonBlocking : cudaStreamDefault);
      check(cudaMemsetAsync(data_, 0, bytes(), stream), operation);
      stream.synchronize(operation);
    } catch (...) {
      release();
      throw;
    }
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        owned_(std::exchange(other.owned_, true)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  ~DeviceArray() { release(); }

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return array_bytes(size_, sizeof(T)); }

 private:
  void release() noexcept {
    if (data_ != nullptr && owned_) (void)cudaFree(data_);
    data_ = nullptr;
  }

  T* data_ = nullptr;
  std::int64_t size_ = 0;
  bool owned_ = true;
};

// Page-locked host memory, which copies read and write while the host goes on.
template <class T>
class PinnedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  PinnedArray() = default;
  PinnedArray(std::int64_t size, const char* operation) : size_(size) {
    if (size == 0) return;
    const std::size_t bytes = array_bytes(size, sizeof(T));
    check(allocate([&] { return cudaMallocHost(reinterpret_cast<void**>(&data_), bytes); }),
          operation);
  }
  PinnedArray(PinnedArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedArray& operator=(PinnedArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedArray() {
    if (data_ != nullptr) (void)cudaFreeHost(data_);
  }

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

class Event {
 public:
  explicit Event(const char* operation) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), operation);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { (void)cudaEventDestroy(event_); }

  void record(cudaStream_t stream, const char* operation) {
    check(cudaEventRecord(event_, stream), operation);
  }
  void wait_on(cudaStream_t stream, const char* operation) const {
    check(cudaStreamWaitEvent(stream, event_, 0), operation);
  }
  // Whether everything before record() is done.
  bool done(const char* operation) const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    check(status, operation);
    return true;
  }
  void synchronize(const char* operation) const { check(cudaEventSynchronize(event_), operation); }

 private:
  cudaEvent_t event_ = nullptr;
};

// What capture(stream) queued, to be queued again by one call.
class Graph {
 public:
  Graph() = default;
  // queue() runs nothing: what it queues on the stream is recorded. So would be what anyone else
  // queues there, so the stream must be nobody else's, and not one that the default stream waits
  // for.
  template <class Queue>
  Graph(cudaStream_t stream, const char* operation, Queue&& queue) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), operation);
    cudaGraph_t graph = nullptr;
    try {
      queue();
    } catch (...) {
      if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) (void)cudaGraphDestroy(graph);
      (void)cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), operation);
    cudaError_t status = cudaGraphGetNodes(graph, nullptr, &nodes_);
    if (status == cudaSuccess)
      status = allocate([&] { return cudaGraphInstantiate(&executable_, graph, 0); });
    (void)cudaGraphDestroy(graph);
    check(status, operation);
  }
  Graph(Graph&& other) noexcept
      : executable_(std::exchange(other.executable_, nullptr)), nodes_(other.nodes_) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    std::swap(nodes_, other.nodes_);
    return *this;
  }
  ~Graph() {
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
  }

  void launch(cudaStream_t stream, const char* operation) const {
    check(cudaGraphLaunch(executable_, stream), operation);
  }
  std::size_t nodes() const { return nodes_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
  std::size_t nodes_ = 0;
};

inline int current_device(const char* operation) {
  int device = 0;
  check(cudaGetDevice(&device), operation);
  return device;
}

// 90 for 9.0.
inline int compute_capability(int device, const char* operation) {
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), operation);
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), operation);
  return 10 * major + minor;
}

// Makes a device current, and the one before again at its end.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "device");
    if (before_ != device) check(cudaSetDevice(device), "device");
  }
  ~DeviceScope() {
    int now = before_;
    if (cudaGetDevice(&now) == cudaSuccess && now != before_) (void)cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

// Host memory -> device memory and back, for values: complete when the call returns.
template <class T>
void upload(const T* from, T* to, std::int64_t count, cudaStream_t stream, const char* operation) {
  if (count == 0) return;
  check(cudaMemcpyAsync(to, from, array_bytes(count, sizeof(T)), cudaMemcpyHostToDevice, stream),
        operation);
  check(cudaStreamSynchronize(stream), operation);
}
template <class T>
void download(const T* from, T* to, std::int64_t count, cudaStream_t stream,
              const char* operation) {
  if (count == 0) return;
  check(cudaMemcpyAsync(to, from, array_bytes(count, sizeof(T)), cudaMemcpyDeviceToHost, stream),
        operation);
  check(cudaStreamSynchronize(stream), operation);
}

}  // namespace thalweg::cuda
