// The API's errors, devices, memory and copies, and the start of a launch.
#include "cuda/emulator/runtime.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/emulator/device_memory.h"
#include "cuda/emulator/settings.h"
#include "cuda/emulator/stream.h"

namespace emulator = thalweg::emulator;

namespace {

using emulator::Action;
using emulator::device;
using emulator::enqueue;
using emulator::Fault;
using emulator::forbidden_by_capture;
using emulator::known;
using emulator::lock_device;
using emulator::MemoryKind;
using emulator::result;
using emulator::run_all;
using emulator::run_device;
using emulator::stream_of;

// ---- Copies -------------------------------------------------------------------------------------

// Whether [pointer, pointer + bytes) may be used as device memory, respectively host memory.
bool is_device(const void* pointer, std::size_t bytes) {
  const auto a = emulator::find_allocation(pointer);
  return a && a->kind == MemoryKind::kDevice &&
         static_cast<const unsigned char*>(pointer) + bytes <= a->begin + a->bytes;
}
bool is_pinned(const void* pointer) {
  const auto a = emulator::find_allocation(pointer);
  return a && a->kind == MemoryKind::kPinned;
}
bool is_host(const void* pointer) {
  const auto a = emulator::find_allocation(pointer);
  return !a || a->kind == MemoryKind::kPinned;
}

struct Rectangle {
  unsigned char* destination;
  std::size_t destination_pitch;
  const unsigned char* source;
  std::size_t source_pitch, width, height;

  std::size_t destination_bytes() const { return (height - 1) * destination_pitch + width; }
  std::size_t source_bytes() const { return (height - 1) * source_pitch + width; }
  void copy() const {
    for (std::size_t row = 0; row < height; ++row) {
      std::memcpy(destination + row * destination_pitch, source + row * source_pitch, width);
    }
  }
};

// Replaces cudaMemcpyDefault by the kind that it means here.
cudaError_t check_copy(const Rectangle& r, cudaMemcpyKind& kind) {
  const bool to_device = is_device(r.destination, r.destination_bytes());
  const bool from_device = is_device(r.source, r.source_bytes());
  if (kind == cudaMemcpyDefault) {
    kind = to_device ? (from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                     : (from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
  }
  const bool wants_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool takes_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (wants_device ? !to_device : !is_host(r.destination)) return cudaErrorInvalidValue;
  if (takes_device ? !from_device : !is_host(r.source)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

cudaError_t enqueue_copy(Rectangle r, cudaMemcpyKind kind, cudaStream_t handle) {
  if (r.width == 0 || r.height == 0) return cudaSuccess;
  if (r.destination == nullptr || r.source == nullptr) return cudaErrorInvalidValue;
  if (r.width > r.destination_pitch || r.width > r.source_pitch) return cudaErrorInvalidValue;
  const cudaError_t wrong = check_copy(r, kind);
  if (wrong != cudaSuccess) return wrong;
  if (!known(handle)) return cudaErrorInvalidResourceHandle;
  const bool capturing = stream_of(handle).capture != nullptr;
  const bool pageable_source = kind == cudaMemcpyHostToDevice && !is_pinned(r.source);
  const bool pageable_destination = kind == cudaMemcpyDeviceToHost && !is_pinned(r.destination);
  Action action;
  if (pageable_source && !capturing) {
    // The driver stages pageable memory before the call returns.
    auto staged = std::make_shared<std::vector<unsigned char>>(r.width * r.height);
    Rectangle stage{staged->data(), r.width, r.source, r.source_pitch, r.width, r.height};
    stage.copy();
    r.source = staged->data();
    r.source_pitch = r.width;
    action = [r, staged] {
      r.copy();
      return std::optional<Fault>();
    };
  } else {
    action = [r] {
      r.copy();
      return std::optional<Fault>();
    };
  }
  const cudaError_t error = enqueue(handle, std::move(action));
  if (error == cudaSuccess && pageable_destination && !capturing) run_all(stream_of(handle));
  return error;
}

cudaError_t allocate(void** pointer, std::size_t bytes, MemoryKind kind) {
  const auto lock = lock_device();
  if (pointer == nullptr) return result(cudaErrorInvalidValue);
  if (forbidden_by_capture()) return result(cudaErrorStreamCaptureUnsupported);
  *pointer = nullptr;
  if (bytes == 0) return result(cudaSuccess);
  *pointer = emulator::allocate(bytes, kind);
  return result(*pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t deallocate(void* pointer, MemoryKind kind) {
  const auto lock = lock_device();
  if (pointer == nullptr) return result(cudaSuccess);
  if (forbidden_by_capture()) return result(cudaErrorStreamCaptureUnsupported);
  run_device();
  const bool released = emulator::release(pointer, kind);
  return result(released                      ? cudaSuccess
                : kind == MemoryKind::kDevice ? cudaErrorInvalidDevicePointer
                                              : cudaErrorInvalidValue);
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define TW_ERROR(error, text) {error, #error, text}
constexpr ErrorText kErrors[] = {
    TW_ERROR(cudaSuccess, "no error"),
    TW_ERROR(cudaErrorInvalidValue, "invalid argument"),
    TW_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    TW_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    TW_ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    TW_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    TW_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient"),
    TW_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    TW_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    TW_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    TW_ERROR(cudaErrorNotReady, "device not ready"),
    TW_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    TW_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    TW_ERROR(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    TW_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    TW_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    TW_ERROR(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    TW_ERROR(cudaErrorNotSupported, "operation not supported"),
    TW_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    TW_ERROR(cudaErrorStreamCaptureInvalidated,
             "operation failed due to a previous error during capture"),
    TW_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream"),
    TW_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    TW_ERROR(cudaErrorStreamCaptureImplicit,
             "operation would make the legacy stream depend on a capturing blocking stream"),
    TW_ERROR(cudaErrorInvalidClusterSize, "invalid cluster size"),
};
#undef TW_ERROR

const ErrorText* find_error(cudaError_t error) {
  for (const ErrorText& entry : kErrors) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

constexpr std::size_t kilobytes(std::size_t n) { return n * 1024; }

int dynamic_limit(const void* function) {
  const auto found = device().dynamic_limits.find(function);
  return found == device().dynamic_limits.end() ? static_cast<int>(kilobytes(48)) : found->second;
}

}  // namespace

namespace thalweg::emulator {

cudaError_t enqueue_launch(cudaStream_t stream, Launch launch,
                           const std::vector<const void*>& pointers) {
  const auto lock = lock_device();
  const std::int64_t threads = std::int64_t{launch.block.x} * launch.block.y * launch.block.z;
  const std::int64_t blocks = std::int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads < 1 || threads > 1024 || launch.block.z > 64 || blocks < 1 || launch.grid.y > 65535 ||
      launch.grid.z > 65535) {
    return result(cudaErrorInvalidConfiguration);
  }
  const int resident = max_active_blocks(static_cast<int>(threads), launch.dynamic_shared);
  if (resident == 0 ||
      launch.dynamic_shared > static_cast<std::size_t>(dynamic_limit(launch.function))) {
    return result(cudaErrorInvalidValue);
  }
  if (launch.cluster < 1 || launch.cluster > 8 || launch.grid.x % launch.cluster != 0 ||
      (launch.cluster > 1 && compiled_arch() < 90)) {
    return result(cudaErrorInvalidClusterSize);
  }
  if (launch.cooperative && blocks > std::int64_t{resident} * settings().multiprocessors) {
    return result(cudaErrorCooperativeLaunchTooLarge);
  }
  for (const void* pointer : pointers) {
    if (pointer != nullptr && !find_allocation(pointer)) {
      return result(cudaErrorInvalidDevicePointer);
    }
  }
  Action run = [launch = std::move(launch)]() -> std::optional<Fault> {
    if (auto fault = run_grid(launch)) return fault;
    if (auto text = overrun()) {
      return Fault{FaultKind::kIllegalAddress, concat("[emulator] ", launch.name, ": ", *text)};
    }
    return std::nullopt;
  };
  return result(enqueue(stream, std::move(run)));
}

int max_active_blocks(int threads, std::size_t dynamic_shared) {
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  if (threads < 1 || threads > properties.maxThreadsPerBlock ||
      dynamic_shared > properties.sharedMemPerBlockOptin) {
    return 0;
  }
  // Blocks are given whole warps.
  const int by_threads = properties.maxThreadsPerMultiProcessor / ((threads + 31) / 32 * 32);
  const std::size_t reserved =
      properties.sharedMemPerMultiprocessor - properties.sharedMemPerBlockOptin;
  const auto by_memory = static_cast<int>(properties.sharedMemPerMultiprocessor /
                                          std::max<std::size_t>(dynamic_shared + reserved, 1));
  return std::min({by_threads, by_memory, 32});
}

std::string last_report() {
  const auto lock = lock_device();
  return device().report;
}

}  // namespace thalweg::emulator

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* entry = find_error(error);
  return entry == nullptr ? "unrecognized error code" : entry->name;
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* entry = find_error(error);
  return entry == nullptr ? "unrecognized error code" : entry->text;
}

cudaError_t cudaGetLastError() {
  const auto lock = lock_device();
  return emulator::take_last_error();
}

cudaError_t cudaPeekAtLastError() {
  const auto lock = lock_device();
  return emulator::last_error();
}

// ---- Devices ------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* current) {
  *current = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal) {
  const auto lock = lock_device();
  return result(ordinal == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int ordinal) {
  if (ordinal != 0) return cudaErrorInvalidDevice;
  const emulator::Settings& settings = emulator::settings();
  *properties = {};
  std::strncpy(properties->name, "thalweg CUDA emulator", sizeof(properties->name) - 1);
  properties->totalGlobalMem = settings.memory_bytes;
  properties->sharedMemPerBlock = kilobytes(48);
  properties->sharedMemPerBlockOptin = emulator::shared_memory_limit();
  // From sm_80 on, the system keeps 1 KB of each block's share.
  const bool turing = settings.arch == 75;
  properties->sharedMemPerMultiprocessor =
      emulator::shared_memory_limit() + kilobytes(turing ? 0 : 1);
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  const bool large = properties->sharedMemPerBlockOptin > kilobytes(99);
  properties->maxThreadsPerMultiProcessor = turing ? 1024 : large ? 2048 : 1536;
  properties->major = settings.arch / 10;
  properties->minor = settings.arch % 10;
  properties->multiProcessorCount = settings.multiprocessors;
  properties->l2CacheSize = 1 << 22;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int ordinal) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaDeviceSynchronize() {
  const auto lock = lock_device();
  if (emulator::capturing()) return result(cudaErrorStreamCaptureUnsupported);
  run_device();
  return result(cudaSuccess);
}

cudaError_t cudaDeviceReset() {
  const auto lock = lock_device();
  emulator::Device& d = device();
  d.legacy.queue.clear();
  for (cudaStream_t stream : d.streams) stream->queue.clear();
  d.sticky = cudaSuccess;
  d.report.clear();
  d.dynamic_limits.clear();
  (void)emulator::take_last_error();
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  const auto lock = lock_device();
  *attributes = {};
  attributes->ptxVersion = emulator::compiled_arch();
  attributes->binaryVersion = emulator::settings().arch;
  attributes->maxDynamicSharedSizeBytes = dynamic_limit(function);
  return result(cudaSuccess);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  const auto lock = lock_device();
  if (value < 0 || static_cast<std::size_t>(value) > emulator::shared_memory_limit())
    return result(cudaErrorInvalidValue);
  device().dynamic_limits[function] = value;
  return result(cudaSuccess);
}

// ---- Memory -------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return allocate(pointer, bytes, MemoryKind::kDevice);
}

cudaError_t cudaFree(void* pointer) { return deallocate(pointer, MemoryKind::kDevice); }

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return allocate(pointer, bytes, MemoryKind::kPinned);
}

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  return allocate(pointer, bytes, MemoryKind::kPinned);
}

cudaError_t cudaFreeHost(void* pointer) { return deallocate(pointer, MemoryKind::kPinned); }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = emulator::settings().memory_bytes;
  *free = *total - emulator::memory_in_use();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto a = emulator::find_allocation(pointer);
  *attributes = {cudaMemoryTypeUnregistered, 0, nullptr, const_cast<void*>(pointer)};
  if (a) {
    const bool on_device = a->kind == MemoryKind::kDevice;
    attributes->type = on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = const_cast<void*>(pointer);
    if (on_device) attributes->hostPointer = nullptr;
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, std::size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  return cudaMemcpy2DAsync(destination, bytes, source, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void* destination, std::size_t destination_pitch, const void* source,
                              std::size_t source_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  const auto lock = lock_device();
  return result(
      enqueue_copy({static_cast<unsigned char*>(destination), destination_pitch,
                    static_cast<const unsigned char*>(source), source_pitch, width, height},
                   kind, stream));
}

cudaError_t cudaMemcpy(void* destination, const void* source, std::size_t bytes,
                       cudaMemcpyKind kind) {
  const auto lock = lock_device();
  if (forbidden_by_capture()) return result(cudaErrorStreamCaptureUnsupported);
  const cudaError_t error = cudaMemcpyAsync(destination, source, bytes, kind, nullptr);
  if (error != cudaSuccess) return error;
  run_all(device().legacy);
  return result(cudaSuccess);
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  const auto lock = lock_device();
  if (bytes == 0) return result(cudaSuccess);
  if (!is_device(pointer, bytes)) return result(cudaErrorInvalidValue);
  return result(enqueue(stream, Action([=] {
                          std::memset(pointer, value, bytes);
                          return std::optional<Fault>();
                        })));
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes) {
  return cudaMemsetAsync(pointer, value, bytes, nullptr);
}
