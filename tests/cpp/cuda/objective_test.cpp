// An objective on the device next to the CPU's, twice at each point, so that the second evaluation
// comes out of a graph, and after calls that were interrupted. Data that are still on their way to
// the device. What products with second derivatives cost, in multiply-adds that the emulator
// counts.
#include "training/objective.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#if defined(TW_CUDA_EMULATED)
#include "cuda/emulator/execution.h"
#endif
#include "cuda/resources.h"
#include "kernel_test.h"
#include "network/cuda_precision.h"

namespace thalweg {
namespace {

using cuda::test::expect_same_bits;
using cuda::test::expect_that;
using cuda::test::Random;
using Doubles = std::vector<double>;

constexpr std::int64_t kRows = 70;
constexpr std::int64_t kFeatures = 5;
constexpr std::int64_t kClasses = 3;

std::string description(const std::string& dtype) {
  return concat(R"({"in_features": 5, "seed": 3, "dtype": ")", dtype, R"(", "layers": [
      {"type": "dense", "units": 33}, {"type": "batch_norm", "weighted": true}, {"type": "silu"},
      {"type": "dropout", "p": 0.2},
      {"type": "residual", "layers": [{"type": "dense", "units": 33}, {"type": "tanh"}]},
      {"type": "maxout", "units": 6, "pieces": 2}, {"type": "dense", "units": 3}],
      "loss": {"type": "cross_entropy"}, "optimizer": {"type": "sgd"}})");
}

struct DataSet {
  Doubles x = Random(1).normals<double>(kRows * kFeatures);
  std::vector<std::int64_t> y;
  Doubles weights;
  Data data;
  DataSet() {
    Random random(2);
    for (std::int64_t r = 0; r < kRows; ++r) {
      y.push_back(random.below(kClasses));
      weights.push_back(0.5 + random.uniform());
    }
    data.x = ArrayView::matrix(x.data(), kRows, kFeatures);
    data.y = ArrayView::vector(y.data(), kRows);
    data.weights = ArrayView::vector(weights.data(), kRows);
  }
};

template <class T>
void test(const ObjectiveOptions& options, double bound) {
  const std::string dtype = sizeof(T) == 4 ? "float32" : "float64";
  cuda::test::context =
      concat(dtype, options.statistics == Statistics::kBatch ? " batch" : " frozen",
             options.dropout ? " dropout" : "", " chunks of ", options.chunk_rows);
  const DataSet set;
  std::unique_ptr<Objective> objectives[2];
  for (const int on_device : {0, 1}) {
    const std::unique_ptr<Model> model =
        Model::create(parse_description(description(dtype)), on_device ? "cuda" : "cpu", 1);
    objectives[on_device] = Objective::create(*model, set.data, options);
  }
  Objective& exact = *objectives[0];
  Objective& objective = *objectives[1];
  const std::int64_t size = exact.dimension();
  const Doubles v = Random(3).normals<double>(size);
  const Doubles u = Random(4).normals<double>(kRows * kClasses);

  using Call = std::function<void(Objective&, const double*, Doubles&)>;
  std::vector<std::pair<const char*, Call>> calls;
  calls.emplace_back("gradient", [&](Objective& o, const double* at, Doubles& out) {
    out.resize(static_cast<std::size_t>(size + 1));
    out.back() = o.value_and_gradient(at, out.data());
  });
  calls.emplace_back("hvp", [&](Objective& o, const double* at, Doubles& out) {
    out.resize(static_cast<std::size_t>(size));
    o.hessian_product(at, v.data(), out.data());
  });
  calls.emplace_back("ggnvp", [&](Objective& o, const double* at, Doubles& out) {
    out.resize(static_cast<std::size_t>(size));
    o.gauss_newton_product(at, v.data(), out.data());
  });
  calls.emplace_back("jvp", [&](Objective& o, const double* at, Doubles& out) {
    out.resize(u.size());
    o.jacobian_product(at, v.data(), out.data());
  });
  calls.emplace_back("vjp", [&](Objective& o, const double* at, Doubles& out) {
    out.resize(static_cast<std::size_t>(size));
    o.jacobian_transposed_product(at, u.data(), out.data());
  });
  if (options.statistics == Statistics::kFrozen) {
    calls.emplace_back("norms of rows", [&](Objective& o, const double* at, Doubles& out) {
      out.resize(static_cast<std::size_t>(kRows));
      o.example_gradient_norms(at, out.data());
    });
  }

  for (const std::uint64_t seed : {5u, 6u}) {
    Doubles theta = Random(seed).normals<double>(size, 0.3);
    for (double& element : theta) element = static_cast<double>(static_cast<T>(element));
    for (const auto& [name, call] : calls) {
      Doubles want, got, again;
      call(exact, theta.data(), want);
      call(objective, theta.data(), got);
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < want.size(); ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
      }
      expect_that(std::sqrt(error) <= bound * std::sqrt(norm), name, ": error ", std::sqrt(error),
                  " of ", std::sqrt(norm));
      objective.set_interrupt([] { return true; });
      bool stopped = false;
      try {
        call(objective, theta.data(), again);
      } catch (const Interrupted&) {
        stopped = true;
      }
      objective.set_interrupt({});
      call(objective, theta.data(), again);
      expect_same_bits(concat(name, stopped ? ", after an interrupt" : ", again").c_str(), again,
                       got);
    }
  }
}

// x arrives on the stream that the model names, while y lies on the host.
void test_arrival() {
  cuda::test::context = "arrival";
  DataSet set;
  const std::unique_ptr<Model> model =
      Model::create(parse_description(description("float64")), "cuda", 1);
  const Doubles theta = Random(5).normals<double>(model->num_parameters(), 0.3);
  const double want = Objective::create(*model, set.data, {})->value(theta.data());
  const auto size = static_cast<std::int64_t>(set.x.size());
  const cuda::PinnedArray<double> from(size, "test");
  const cuda::DeviceArray<double> x(size, "test");
  std::copy(set.x.begin(), set.x.end(), from.data());
  cuda::check(cudaMemcpyAsync(x.data(), from.data(), x.bytes(), cudaMemcpyHostToDevice,
                              reinterpret_cast<cudaStream_t>(model->exchange()->stream())),
              "test");
  set.data.x.data = x.data();
  set.data.x.memory = Memory::kCuda;
  const double got = Objective::create(*model, set.data, {})->value(theta.data());
  expect_that(got == want, "a loss of ", got, ", not ", want);
}

#if defined(TW_CUDA_EMULATED)
// A network whose products are whole tiles of the tensor cores.
void test_cost(bool norm) {
  constexpr std::int64_t kWidth = 64, kBatch = 128, kHidden = 3;
  cuda::test::context = norm ? "cost, batch norm" : "cost";
  std::string layers;
  for (int i = 0; i < kHidden; ++i)
    layers += concat(R"({"type": "dense", "units": )", kWidth, "}, ",
                     norm ? R"({"type": "batch_norm"}, )" : "", R"({"type": "tanh"}, )");
  const std::string text = concat(
      R"({"in_features": )", kWidth, R"(, "layers": [)", layers, R"({"type": "dense", "units": )",
      kWidth, R"(}], "loss": {"type": "cross_entropy"}, "optimizer": {"type": "sgd"}})");
  const std::unique_ptr<Model> model = Model::create(parse_description(text), "cuda", 1);
  const Doubles x = Random(1).normals<double>(kBatch * kWidth);
  std::vector<std::int64_t> y;
  for (std::int64_t r = 0; r < kBatch; ++r) y.push_back(r % kWidth);
  Data data;
  data.x = ArrayView::matrix(x.data(), kBatch, kWidth);
  data.y = ArrayView::vector(y.data(), kBatch);
  const std::unique_ptr<Objective> objective = Objective::create(*model, data, {});
  const std::int64_t size = objective->dimension();
  const Doubles theta = Random(2).normals<double>(size, 0.1);
  const Doubles v = Random(3).normals<double>(size);
  Doubles out(static_cast<std::size_t>(size));
  // Products of one layer that a call takes: float32 is six of bfloat16.
  const auto counted = [&](const auto& call) {
    emulator::reset_counters();
    call();
    return static_cast<double>(emulator::counters().multiply_adds) / (6 * kBatch * kWidth * kWidth);
  };
  const auto gradient = [&] { objective->value_and_gradient(theta.data(), out.data()); };
  const auto hessian = [&] { objective->hessian_product(theta.data(), v.data(), out.data()); };
  const auto expect_count = [](const char* what, double got, double in_first, double in_others) {
    const double want = in_first + kHidden * in_others;
    expect_that(got == want, what, " takes ", got, " products, not ", want);
  };
  const double of_gradient = counted(gradient);
  const double of_hessian = counted(hessian);
  expect_count("a gradient", of_gradient, 2, 3);
  expect_count("a Hessian product", of_hessian, 3, 8);
  expect_that(of_hessian <= 3.5 * of_gradient, "a Hessian product takes ", of_hessian / of_gradient,
              " gradients");
  expect_count("the next gradient", counted(gradient), 2, 3);
  expect_count("the next Hessian product", counted(hessian), 2, 6);
  expect_count(
      "a Gauss-Newton product",
      counted([&] { objective->gauss_newton_product(theta.data(), v.data(), out.data()); }), 2, 4);
}
#endif

void tests() {
  test_arrival();
#if defined(TW_CUDA_EMULATED)
  // The emulator counts the work of tensor cores alone.
  if (CudaPrecision::choose(parse_description(description("float32")), "test").large ==
      cuda::Precision::kThreePlanes) {
    test_cost(false);
    test_cost(true);
  }
#endif
  const ObjectiveOptions cases[] = {
      {.statistics = Statistics::kBatch, .custom_loss = {}},
      {.statistics = Statistics::kBatch, .dropout = true, .custom_loss = {}},
      {.statistics = Statistics::kFrozen, .dropout = true, .custom_loss = {}},
      {.statistics = Statistics::kFrozen, .dropout = true, .chunk_rows = 64, .custom_loss = {}},
  };
  for (const ObjectiveOptions& options : cases) {
    test<double>(options, 1e-12);
    test<float>(options, 3e-5);
  }
}

}  // namespace
}  // namespace thalweg

int main() { return thalweg::cuda::test::run(thalweg::tests); }
