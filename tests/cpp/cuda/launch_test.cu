// Dynamic shared memory of launches: more than 48 KB must be permitted, and what one launch permits
// stays when another launch of the same kernel needs less.
#include "cuda/device/device.h"
#include "cuda/runtime.h"
#include "kernel_test.h"

namespace thalweg::cuda::test {
namespace {

constexpr int kThreads = 32;

// The last word of the block's dynamic shared memory, by way of that memory.
TW_KERNEL_BOUNDS(kThreads, 1) void last_word_kernel(std::int32_t* out, const int words) {
  auto* const shared = dynamic_shared<std::int32_t>();
  for (int i = thread_index().x; i < words; i += kThreads) shared[i] = i;
  sync_block();
  if (thread_index().x == 0) *out = shared[words - 1];
}

void expect_launch(std::size_t bytes) {
  context = concat(bytes, " bytes of dynamic shared memory");
  DeviceArray<std::int32_t> out(1);
  const auto words = static_cast<int>(bytes / sizeof(std::int32_t));
  launch(last_word_kernel,
         {.operation = "test", .grid = 1, .block = kThreads, .dynamic_shared = bytes}, out.data(),
         words);
  expect_that(out.download()[0] == words - 1, "expected the last word");
}

int permitted() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(last_word_kernel)),
        "test");
  return attributes.maxDynamicSharedSizeBytes;
}

void tests() {
  constexpr std::size_t kWithoutAttribute = 48 * 1024;
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), "test");
  expect_launch(1024);
  expect_launch(kWithoutAttribute);
  for (const std::size_t bytes :
       {kWithoutAttribute + 1024, static_cast<std::size_t>(most), kWithoutAttribute + 1024}) {
    expect_launch(bytes);
    // A launch that another thread prepared before this one must still be valid.
    expect_that(permitted() == most, "expected ", most, " bytes to be permitted, got ",
                permitted());
  }
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
