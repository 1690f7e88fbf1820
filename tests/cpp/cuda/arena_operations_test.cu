// Operations on flat arenas.
#include "cuda/arena_operations.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

template <class T>
void test_arena(int64_t count) {
  context = concat(sizeof(T) == 4 ? "float32 " : "float64 ", count);
  Random random(static_cast<std::uint64_t>(count));
  const std::vector<T> x = random.normals<T>(count);
  const std::vector<T> y = random.normals<T>(count);
  DeviceArray<T> device_x(x), device_y(y);

  TestScratch scratch(dot_scratch_bytes(count));
  DeviceArray<double> result(1);
  double want = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    want += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    size += std::abs(static_cast<double>(x[i]) * static_cast<double>(y[i]));
  }
  double first = 0;
  for (int replay = 0; replay < 2; ++replay) {
    dot(device_x.data(), device_y.data(), count, result.data(), scratch.scratch(), nullptr);
    const double got = result.download()[0];
    expect_close("dot", std::vector<double>{got}, {want}, 1e-14 * size);
    if (replay == 0) first = got;
    expect_that(got == first, "dot differs from run to run");
    scratch.expect_ready();
  }

  axpy(0.5, device_x.data(), device_y.data(), count, nullptr);
  std::vector<double> sum;
  for (std::size_t i = 0; i < x.size(); ++i)
    sum.push_back(0.5 * static_cast<double>(x[i]) + static_cast<double>(y[i]));
  expect_close("axpy", device_y.download(), sum, sizeof(T) == 4 ? 1e-6 : 1e-15);
  scale(device_x.data(), -2.0, count, nullptr);
  std::vector<T> doubled;
  for (const T v : x) doubled.push_back(T(-2) * v);
  expect_same_bits("scale", device_x.download(), doubled);

  DeviceArray<unsigned long long> bad(std::vector<unsigned long long>{0});
  count_not_finite(device_x.data(), count, bad.data(), nullptr);
  expect_that(bad.download()[0] == 0, "finite values were counted");
  std::vector<T> spoiled = x;
  spoiled[0] = static_cast<T>(std::nan(""));
  spoiled[spoiled.size() - 1] = -std::numeric_limits<T>::infinity();
  device_x.upload(spoiled);
  count_not_finite(device_x.data(), count, bad.data(), nullptr);
  expect_that(bad.download()[0] == 2, "expected 2 values that are not finite, got ",
              bad.download()[0]);
}

// Large terms that cancel leave the small ones, and every element has a sum of its own.
template <class T>
void test_compensated_sum(int64_t count) {
  context = concat("compensated sum ", sizeof(T) == 4 ? "float32 " : "float64 ", count);
  DeviceArray<double> sums(count), rest(count);
  std::vector<double> want(static_cast<std::size_t>(count), 0.0);
  const double factors[] = {1e17, 1.0, 3.0, -1e17};
  for (int term = 0; term < 4; ++term) {
    std::vector<T> x;
    for (int64_t i = 0; i < count; ++i) {
      x.push_back(static_cast<T>(factors[term] * static_cast<double>(i % 7 + 1)));
      if (term == 1 || term == 2)
        want[static_cast<std::size_t>(i)] += static_cast<double>(x.back());
    }
    add_compensated(DeviceArray<T>(x).data(), sums.data(), rest.data(), count, term == 0, nullptr);
  }
  std::vector<double> got = sums.download();
  const std::vector<double> lost = rest.download();
  for (std::size_t i = 0; i < got.size(); ++i) got[i] += lost[i];
  expect_same_bits("sum", got, want);
}

void test_split(int64_t count) {
  context = concat("planes ", count);
  const std::vector<float> x = Random(1).normals<float>(count);
  DeviceArray<float> device_x(x);
  DeviceArray<std::uint16_t> planes(3 * count);
  split_planes(device_x.data(), count, {planes.data(), count, 3}, nullptr);
  const std::vector<std::uint16_t> got = planes.download();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double sum = bfloat16_value(got[i]) + bfloat16_value(got[i + x.size()]) +
                       bfloat16_value(got[i + 2 * x.size()]);
    const double value = static_cast<double>(x[i]);
    expect_that(std::abs(sum - value) <= std::abs(value) * 0x1p-24, "planes at ", i);
    expect_that(std::abs(bfloat16_value(got[i]) - value) <= std::abs(value) * 0x1p-8,
                "first plane at ", i);
  }
}

void test_copy_if_running() {
  context = "copy_if_running";
  const std::vector<float> x = Random(2).normals<float>(260);
  const std::vector<float> old(260, 1.0f);
  for (const bool running : {true, false}) {
    for (const double weight : {0.0, 2.0}) {
      StepState host;
      host.weight = weight;
      host.status = running ? StepStatus::kRunning : StepStatus::kLossNotFinite;
      DeviceArray<StepState> state(std::vector<StepState>{host});
      DeviceArray<float> from(x), to(old);
      copy_if_running(state.data(), from.data(), to.data(), 260 * sizeof(float), nullptr);
      expect_same_bits("copy", to.download(), running && weight > 0 ? x : old);
    }
  }
}

void tests() {
  for (const int64_t count : {4, 256, 1024, 4096, 4352, 70000}) {
    test_arena<float>(count);
    test_arena<double>(count);
    test_compensated_sum<float>(count);
    test_compensated_sum<double>(count);
    test_split(count);
  }
  test_copy_if_running();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
