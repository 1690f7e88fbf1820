// The CUDA run-time API: cudart, or its emulation where TW_CUDA_EMULATED is defined, under the same
// names. Adds launch() and check().
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/error.h"

#if defined(TW_CUDA_EMULATED)
#include "cuda/emulator/runtime.h"
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <cuda_runtime_api.h>
#endif

namespace thalweg::cuda {

// Throws a DeviceError, or an Error of ErrorCode::kMemory when memory ran out, that names the
// operation. A sticky error stays, since the context is lost: the next call reports it again.
inline void check(cudaError_t status, const char* operation) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  std::string text = concat("[", operation, "] expected the CUDA call to succeed, got ",
                            cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
#if defined(TW_CUDA_EMULATED)
  const std::string report = emulator::last_report();
  if (!report.empty()) text += concat("; ", report);
#endif
  if (status == cudaErrorMemoryAllocation) throw Error(ErrorCode::kMemory, std::move(text));
  // Freeing nothing fails only where nothing works any more.
  if (cudaFree(nullptr) == status)
    text += "; the CUDA context of this process is lost: save nothing from it, start a new process";
  (void)cudaGetLastError();
  throw DeviceError(std::move(text));
}

struct LaunchConfig {
  const char* operation;  // for error messages, such as "dense"
  dim3 grid;
  dim3 block;
  std::size_t dynamic_shared = 0;  // bytes; more than 48 KB is fine
  cudaStream_t stream = nullptr;
  int cluster = 1;           // blocks per cluster, along x; a divisor of grid.x
  bool cooperative = false;  // all blocks resident, for sync_grid()
};

// Defined for both worlds below:
//
//   template <class... Parameters>
//   void launch(void (*kernel)(Parameters...), const LaunchConfig& config,
//               Parameters... arguments);
//
// queues kernel(arguments...) on the stream and throws as check() does. Errors in the kernel itself
// come out of a later call that waits for the stream.
//
//   template <class... Parameters>
//   int max_resident_blocks(void (*kernel)(Parameters...), const LaunchConfig& config);
//
// is how many blocks of such a launch the device holds at the same time: the most that a
// cooperative grid may have, and 0 when not even one cluster fits.

namespace internal {

// More than 48 KB of dynamic shared memory must be asked for. The limit belongs to the kernel, not
// to the launch: everyone asks for all there is, so that no thread takes it from another's launch.
inline void permit_dynamic_shared(const void* kernel, const LaunchConfig& config) {
  constexpr std::size_t kWithoutAttribute = 48 * 1024;
  if (config.dynamic_shared <= kWithoutAttribute) return;
  int device = 0;
  int most = 0;
  cudaFuncAttributes attributes;
  check(cudaGetDevice(&device), config.operation);
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        config.operation);
  check(cudaFuncGetAttributes(&attributes, kernel), config.operation);
  most -= static_cast<int>(attributes.sharedSizeBytes);
  if (attributes.maxDynamicSharedSizeBytes == most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        config.operation);
}

}  // namespace internal

#if defined(TW_CUDA_EMULATED)

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config,
            std::type_identity_t<Parameters>... arguments) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  internal::permit_dynamic_shared(function, config);
  const auto index = [](const dim3& d) {
    return emulator::Index3{static_cast<int>(d.x), static_cast<int>(d.y), static_cast<int>(d.z)};
  };
  emulator::Launch grid;
  grid.name = config.operation;
  grid.function = function;
  grid.grid = index(config.grid);
  grid.block = index(config.block);
  grid.dynamic_shared = config.dynamic_shared;
  grid.cluster = config.cluster;
  grid.cooperative = config.cooperative;
  grid.body = [=] { kernel(arguments...); };
  std::vector<const void*> pointers;
  const auto add_pointer = [&pointers](const auto& argument) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(argument)>>) {
      pointers.push_back(argument);
    }
  };
  (add_pointer(arguments), ...);
  check(emulator::enqueue_launch(config.stream, std::move(grid), pointers), config.operation);
}

template <class... Parameters>
int max_resident_blocks(void (*)(Parameters...), const LaunchConfig& config) {
  const auto threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  const int blocks = emulator::max_active_blocks(threads, config.dynamic_shared) *
                     emulator::settings().multiprocessors;
  return blocks / config.cluster * config.cluster;
}

#elif defined(__CUDACC__)

namespace internal {

// The run-time API's form of a LaunchConfig, with the attributes that it points to.
struct NativeLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2];

  explicit NativeLaunch(const LaunchConfig& from) {
    config.gridDim = from.grid;
    config.blockDim = from.block;
    config.dynamicSmemBytes = from.dynamic_shared;
    config.stream = from.stream;
    config.attrs = attributes;
    if (from.cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = static_cast<unsigned>(from.cluster);
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
    if (from.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  NativeLaunch(const NativeLaunch&) = delete;
  NativeLaunch& operator=(const NativeLaunch&) = delete;
};

}  // namespace internal

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config,
            std::type_identity_t<Parameters>... arguments) {
  internal::permit_dynamic_shared(reinterpret_cast<const void*>(kernel), config);
  const internal::NativeLaunch native(config);
  check(cudaLaunchKernelEx(&native.config, kernel, std::forward<Parameters>(arguments)...),
        config.operation);
}

template <class... Parameters>
int max_resident_blocks(void (*kernel)(Parameters...), const LaunchConfig& config) {
  internal::permit_dynamic_shared(reinterpret_cast<const void*>(kernel), config);
  if (config.cluster > 1) {
    int clusters = 0;
    const internal::NativeLaunch native(config);
    check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &native.config), config.operation);
    return clusters * config.cluster;
  }
  int device = 0;
  int blocks = 0;
  int multiprocessors = 0;
  const auto threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  check(cudaGetDevice(&device), config.operation);
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        config.operation);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads,
                                                      config.dynamic_shared),
        config.operation);
  return blocks * multiprocessors;
}

#endif

}  // namespace thalweg::cuda
