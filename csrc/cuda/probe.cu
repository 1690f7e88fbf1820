#include <cstdint>

#include "cuda/device/device.h"
#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace thalweg::cuda {
namespace {

constexpr int kThreads = kWarpThreads;

// One warp: the sum of its lane numbers.
TW_KERNEL_BOUNDS(kThreads, 1) void probe_kernel(std::int32_t* sum) {
  std::int32_t value = lane_index();
  TW_UNROLL
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2)
    value += shuffle_xor(value, distance);
  if (lane_index() == 0) *sum = value;
}

}  // namespace

void probe_device() {
  constexpr const char* kOperation = "device";
  std::int32_t* device_sum = nullptr;
  check(cudaMalloc(reinterpret_cast<void**>(&device_sum), sizeof(std::int32_t)), kOperation);
  std::int32_t sum = 0;
  try {
    launch(probe_kernel, {.operation = kOperation, .grid = dim3(1), .block = dim3(kThreads)},
           device_sum);
    check(cudaMemcpy(&sum, device_sum, sizeof sum, cudaMemcpyDeviceToHost), kOperation);
  } catch (const Error&) {
    (void)cudaFree(device_sum);
    throw;
  }
  check(cudaFree(device_sum), kOperation);
  constexpr std::int32_t kExpected = kThreads * (kThreads - 1) / 2;
  expect<DeviceError>(sum == kExpected, "[device] expected the sum ", kExpected,
                      " from a test kernel, got ", sum, "; the GPU or its driver is faulty");
}

int compiled_architecture(const char* operation) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel)), operation);
  return attributes.ptxVersion;
}

}  // namespace thalweg::cuda
