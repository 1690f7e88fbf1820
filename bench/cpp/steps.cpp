// Times training steps of the benchmark's cases through the C++ library:
//
//   steps CASE BATCH THREADS [STEPS [PRECISION]]
//
// prints the median and the best of several runs of STEPS steps, in microseconds per step. The
// cases are those of bench/cases.py; the precision of products is "highest" or "medium".
#include <thalweg/thalweg.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace tw = thalweg;

namespace {

constexpr int kRuns = 9;
constexpr std::int64_t kLeastRows = 16384;

struct Case {
  char name;
  std::int64_t inputs;
  std::vector<std::int64_t> hidden;
  bool batch_norm;
  bool momentum;
};

std::vector<Case> cases() {
  return {{'a', 784, {512, 512}, false, false},
          {'b', 784, {512, 512}, true, false},
          {'c', 64, {64, 64}, false, true},
          {'d', 784, std::vector<std::int64_t>(4, 1024), false, false},
          {'e', 128, std::vector<std::int64_t>(20, 128), true, false}};
}

tw::Model build(const Case& chosen, int threads, tw::MatmulPrecision precision) {
  std::vector<tw::Layer> layers;
  for (const std::int64_t width : chosen.hidden) {
    layers.emplace_back(tw::Dense{width});
    if (chosen.batch_norm) layers.emplace_back(tw::BatchNorm{});
    layers.emplace_back(tw::ReLU{});
  }
  layers.emplace_back(tw::Dense{10});
  tw::ModelOptions options{
      .in_features = chosen.inputs, .seed = 0, .matmul_precision = precision, .threads = threads};
  if (chosen.momentum)
    options.optimizer = tw::Momentum{0.05};
  else
    options.optimizer = tw::Adam{1e-3};
  return tw::Model(layers, options);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: steps CASE BATCH THREADS [STEPS [PRECISION]]\n");
    return 2;
  }
  const std::int64_t batch = std::atoll(argv[2]);
  const std::int64_t steps = argc > 4 ? std::atoll(argv[4]) : 200;
  const std::string precision = argc > 5 ? argv[5] : "highest";
  if (precision != "highest" && precision != "medium") {
    std::fprintf(stderr, "expected precision highest or medium, got %s\n", precision.c_str());
    return 2;
  }
  try {
    for (const Case& chosen : cases()) {
      if (chosen.name != argv[1][0]) continue;
      const std::int64_t rows = (kLeastRows + batch - 1) / batch * batch;
      std::mt19937 generator(0);
      std::normal_distribution<float> normal;
      std::vector<float> x(static_cast<std::size_t>(rows * chosen.inputs));
      for (float& value : x) value = normal(generator);
      std::vector<int> labels(static_cast<std::size_t>(rows));
      for (int& label : labels) label = static_cast<int>(generator() % 10);
      tw::Model model = build(
          chosen, std::atoi(argv[3]),
          precision == "medium" ? tw::MatmulPrecision::kMedium : tw::MatmulPrecision::kHighest);
      std::vector<double> microseconds;
      for (int run = 0; run < (steps > 10 ? kRuns : 1); ++run) {
        const auto start = std::chrono::steady_clock::now();
        model.fit(x, labels, {.epochs = steps, .batch_size = batch, .max_steps = steps});
        const std::chrono::duration<double, std::micro> took =
            std::chrono::steady_clock::now() - start;
        microseconds.push_back(took.count() / static_cast<double>(steps));
      }
      std::sort(microseconds.begin(), microseconds.end());
      std::printf("%c batch %lld threads %s: median %.2f us, best %.2f us per step\n", chosen.name,
                  static_cast<long long>(batch), argv[3], microseconds[microseconds.size() / 2],
                  microseconds[0]);
      return 0;
    }
    std::fprintf(stderr, "expected a case from a to e, got %s\n", argv[1]);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
