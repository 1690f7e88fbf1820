// What every test of CUDA kernels stands on: buffers in device memory that start as NaN and have
// guard bands, random inputs, one line per failure, and the exit status that ctest and the
// benchmark understand. The programs run under the emulator and on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace thalweg::cuda::test {

using std::int64_t;

inline int failures = 0;
inline std::string context;  // "float32 64x100", printed with a failure

template <class... Parts>
void expect_that(bool good, const Parts&... parts) {
  constexpr int kShown = 40;
  if (good || ++failures > kShown) return;
  std::printf("FAIL %s: %s\n", context.c_str(), concat(parts...).c_str());
  if (std::getenv("THALWEG_TEST_STOP") != nullptr) {  // one failure is enough to know
    std::fflush(nullptr);
    std::_Exit(1);
  }
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33) ^ static_cast<std::uint32_t>(state_ >> 50);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits()) % n; }
  double uniform() { return (static_cast<double>(bits() & 0x7fffffff) + 0.5) * 0x1p-31; }
  double normal() {
    return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
  }
  template <class T>
  std::vector<T> normals(int64_t count, double deviation = 1, double mean = 0) {
    std::vector<T> out(static_cast<std::size_t>(count));
    for (T& value : out) value = static_cast<T>(mean + deviation * normal());
    return out;
  }

 private:
  std::uint64_t state_;
};

// `count` elements of device memory between two guard bands. Bytes that nobody wrote are 0xff: NaN
// as floating-point numbers, -1 as integers.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    check(cudaMalloc(&base_, bytes() + 2 * kGuardBytes), "test");
    check(cudaMemset(base_, 0xff, bytes() + 2 * kGuardBytes), "test");
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    upload(values);
  }
  ~DeviceArray() { (void)cudaFree(base_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() { return reinterpret_cast<T*>(static_cast<char*>(base_) + kGuardBytes); }
  int64_t size() const { return count_; }

  void upload(const std::vector<T>& values) {
    check(cudaMemcpy(data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "test");
  }
  void fill_bytes(int value) { check(cudaMemset(data(), value, bytes()), "test"); }

  // Waits for the device, and looks at the guard bands.
  std::vector<T> download() {
    check(cudaDeviceSynchronize(), "test");
    std::vector<unsigned char> all(bytes() + 2 * kGuardBytes);
    check(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost), "test");
    const auto untouched = [](unsigned char byte) { return byte == 0xff; };
    expect_that(std::all_of(all.begin(), all.begin() + kGuardBytes, untouched),
                "wrote before the beginning of an array of ", count_);
    expect_that(std::all_of(all.end() - kGuardBytes, all.end(), untouched),
                "wrote behind the end of an array of ", count_);
    std::vector<T> values(static_cast<std::size_t>(count_));
    if (count_ > 0) std::memcpy(values.data(), all.data() + kGuardBytes, bytes());
    return values;
  }

 private:
  static constexpr std::size_t kGuardBytes = 512;  // keeps the alignment of cudaMalloc
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }

  void* base_ = nullptr;
  int64_t count_;
};

// |got - want| <= bound, elementwise; NaN never passes. `bound` is a number or one per element.
template <class T>
void expect_close(const char* what, const std::vector<T>& got, const std::vector<double>& want,
                  const std::vector<double>& bound) {
  expect_that(got.size() == want.size(), what, ": expected ", want.size(), " elements, got ",
              got.size());
  for (std::size_t i = 0; i < want.size() && i < got.size(); ++i)
    expect_that(std::abs(static_cast<double>(got[i]) - want[i]) <= bound[i], what, "[", i,
                "]: expected ", want[i], ", got ", static_cast<double>(got[i]), ", bound ",
                bound[i]);
}
template <class T>
void expect_close(const char* what, const std::vector<T>& got, const std::vector<double>& want,
                  double bound) {
  expect_close(what, got, want, std::vector<double>(want.size(), bound));
}

template <class T>
void expect_same_bits(const char* what, const std::vector<T>& got, const std::vector<T>& want) {
  expect_that(got.size() == want.size() &&
                  std::memcmp(got.data(), want.data(), got.size() * sizeof(T)) == 0,
              what, ": expected the same bits");
}

// What the kernels were compiled for has them.
inline bool has_tensor_cores() { return compiled_architecture("test") >= 80; }
inline bool has_clusters() { return compiled_architecture("test") >= 90; }

// The exit status of a test program: 0 passed, 1 failed, 77 skipped for lack of a GPU.
inline int run(void (*tests)()) {
  constexpr int kSkipped = 77;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    const char* required = std::getenv("THALWEG_REQUIRE_GPU");
    const bool fail = required != nullptr && std::strcmp(required, "1") == 0;
    std::printf("%s: no GPU\n", fail ? "FAIL" : "skipped");
    return fail ? 1 : kSkipped;
  }
  try {
    tests();
  } catch (const std::exception& error) {
    expect_that(false, error.what());
  }
  if (failures > 0) std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace thalweg::cuda::test
