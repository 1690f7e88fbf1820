// Dropout: the mask is the one of DESIGN's counters, bit for bit.
#include "cuda/dropout.h"
#include "math/philox.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

template <class T>
void test_dropout(int64_t rows, int64_t width, double rate, int64_t steps, bool from_state) {
  context = concat(sizeof(T) == 4 ? "float32 " : "float64 ", rows, "x", width, " rate ", rate,
                   " step ", steps);
  Random random(static_cast<std::uint64_t>(rows * 31 + width));
  std::vector<T> x = random.normals<T>(rows * width);
  if (x.size() > 5) x[5] = static_cast<T>(std::nan(""));
  StepState host;
  host.steps = steps;
  DeviceArray<StepState> state(std::vector<StepState>{host});

  Dropout problem;
  problem.seed = 0x123456789abcdef0u;
  if (from_state) {
    problem.state = state.data();
    problem.step = 77;  // not read
  } else {
    problem.step = static_cast<std::uint64_t>(steps);
  }
  problem.stream = 3;
  problem.threshold = static_cast<std::uint32_t>(bernoulli_threshold(rate));
  problem.scale = 1.0 / (1.0 - rate);
  problem.first_row = 1000;
  std::vector<T> want(x.size()), twice(x.size());
  int64_t kept = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) {
      const auto element = static_cast<std::uint64_t>((1000 + r) * width + c);
      const bool keeps = philox_word(problem.seed, 3, static_cast<std::uint64_t>(steps), element) >=
                         problem.threshold;
      const auto i = static_cast<std::size_t>(r * width + c);
      want[i] = x[i] * (keeps ? static_cast<T>(problem.scale) : T(0));
      twice[i] = want[i] + want[i];
      kept += keeps ? 1 : 0;
    }

  DeviceMatrix<T> device_x(rows, width, x), y(rows, width);
  dropout<T>(device_x, y, problem, false, nullptr);
  expect_same_bits("y", y.dense(), want);
  dropout<T>(device_x, y, problem, true, nullptr);
  expect_same_bits("accumulated", y.dense(), twice);
  dropout<T>(device_x, device_x, problem, false, nullptr);
  expect_same_bits("in place", device_x.dense(), want);
  if (x.size() > 5000) {
    const double share = static_cast<double>(kept) / static_cast<double>(x.size());
    expect_that(std::abs(share - (1 - rate)) < 0.03, "share kept: ", share);
  }
}

void tests() {
  for (const auto& [rows, width] : odd_shapes()) {
    for (const bool from_state : {false, true}) {
      test_dropout<float>(rows, width, 0.5, 12, from_state);
      test_dropout<double>(rows, width, 0.1, (int64_t{1} << 40) + 5, from_state);
    }
  }
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
