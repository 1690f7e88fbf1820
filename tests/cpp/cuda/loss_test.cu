// Losses, their gradients and their sums against loops in double.
#include "core/layout.h"
#include "cuda/loss.h"
#include "math/losses.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

template <class T>
constexpr double kUlp = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;

struct Reference {
  double loss = 0, hits = 0, weight = 0, size = 0;  // size: sum of weight * |terms of the loss|
  std::vector<double> gradient, bound;
};

// targets: rows of probabilities. In long double, since the kernel may be in double; the loss of a
// label keeps its accuracy through log1p.
template <class T>
Reference cross_entropy_of(const std::vector<T>& z, const std::vector<T>& targets,
                           const std::vector<T>& weights, int64_t rows, int64_t classes,
                           double smoothing, double scale) {
  using Real = long double;
  Reference out;
  const auto n = static_cast<std::size_t>(classes);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    const T* const row = &z[r * n];
    const T* const target = &targets[r * n];
    const auto best = static_cast<std::size_t>(std::max_element(row, row + n) - row);
    const auto target_best =
        static_cast<std::size_t>(std::max_element(target, target + n) - target);
    const Real w = weights.empty() ? 1 : static_cast<Real>(weights[r]);
    const auto shifted = [&](std::size_t j) {
      return static_cast<Real>(row[j]) - static_cast<Real>(row[best]);
    };
    const auto smoothed = [&](std::size_t j) {
      return (1 - static_cast<Real>(smoothing)) * static_cast<Real>(target[j]) +
             static_cast<Real>(smoothing) / static_cast<Real>(classes);
    };
    Real rest = 0, loss = 0, size = 0, total = 0;
    for (std::size_t j = 0; j < n; ++j)
      if (j != best) rest += std::exp(shifted(j));
    const Real log_sum = std::log1p(rest);
    for (std::size_t j = 0; j < n; ++j) {
      const Real term = smoothed(j) * (log_sum - shifted(j));
      loss += term;
      size += std::abs(term);
      total += smoothed(j);
    }
    out.loss += static_cast<double>(w * loss);
    out.size += static_cast<double>(w * size);
    out.hits += best == target_best ? static_cast<double>(w) : 0;
    out.weight += static_cast<double>(w);
    for (std::size_t j = 0; j < n; ++j) {
      const Real p = std::exp(shifted(j) - log_sum);
      out.gradient.push_back(
          static_cast<double>(static_cast<Real>(scale) * w * (p * total - smoothed(j))));
      // The rounding of z - m is an error of exp(z - m) in proportion to its size.
      out.bound.push_back(static_cast<double>((8 + std::abs(shifted(j))) * kUlp<T> * scale * w *
                                              (p * total + smoothed(j))) +
                          static_cast<double>(std::numeric_limits<T>::denorm_min()));
    }
  }
  return out;
}

template <class T>
struct LossCase {
  LossCase(int64_t rows, int64_t width, const std::vector<T>& z, const std::vector<T>& target,
           const std::vector<T>& weights)
      : outputs(rows, width, z),
        targets(rows, width, target),
        gradient(rows, width),
        row_weights(weights.empty() ? std::vector<T>(1, T(0)) : weights),
        state(std::vector<StepState>{StepState{}}),
        sums(1),
        scale(std::vector<double>{0.25}),
        scratch(loss_scratch_bytes(rows)) {
    problem.outputs = outputs;
    if (!weights.empty()) problem.row_weights = row_weights.data();
    problem.gradient = gradient;
    problem.gradient_scale_at = scale.data();
    problem.gradient_scale = 77;  // not read
    StepState host;
    host.weight = 1;
    state.upload({host});
    problem.state = state.data();
    problem.sums = sums.data();
  }

  template <class Run>
  void check_against(const Reference& want, double loss_bound, const Run& run_loss) {
    run_loss();
    const StepState got = state.download()[0];
    const LossSums pure = sums.download()[0];
    expect_close("loss", std::vector<double>{got.loss}, {want.loss}, loss_bound);
    expect_close("hits", std::vector<double>{got.hits}, {want.hits}, 1e-12 * (want.weight + 1));
    expect_close("weight", std::vector<double>{pure.weight}, {want.weight},
                 1e-12 * (want.weight + 1));
    expect_that(pure.loss == got.loss && pure.hits == got.hits, "sums of a pure pass");
    const std::vector<T> bits = gradient.dense();
    expect_close("gradient", bits, want.gradient, want.bound);
    scratch.expect_ready();

    // Again, for the same bits; then added to what is there, by value only and a scalar scale.
    run_loss();
    expect_that(state.download()[0].loss == got.loss, "the loss differs from run to run");
    expect_same_bits("gradient again", gradient.dense(), bits);
    problem.gradient = {};
    problem.accumulate = true;
    run_loss();
    expect_close("twice", std::vector<double>{state.download()[0].loss}, {2 * got.loss},
                 1e-14 * std::abs(got.loss));
    expect_close("twice the weight", std::vector<double>{sums.download()[0].weight},
                 {2 * want.weight}, 1e-12 * (want.weight + 1));
    expect_that(state.download()[0].status == StepStatus::kRunning, "status");
    problem.gradient = gradient;
    problem.gradient_scale_at = nullptr;
    problem.gradient_scale = 0.25;
    run_loss();
    expect_same_bits("gradient by a scalar", gradient.dense(), bits);
  }

  DeviceMatrix<T> outputs, targets, gradient;
  DeviceArray<T> row_weights;
  DeviceArray<StepState> state;
  DeviceArray<LossSums> sums;
  DeviceArray<double> scale;
  TestScratch scratch;
  Loss<T> problem;
};

template <class T>
std::vector<T> some_weights(int64_t rows, bool weighted) {
  std::vector<T> weights;
  Random random(3);
  for (int64_t r = 0; weighted && r < rows; ++r)
    weights.push_back(r % 5 == 2 ? T(0) : static_cast<T>(random.uniform() * 2));
  return weights;
}

template <class T>
void test_labels(int64_t rows, int64_t classes, double deviation, double smoothing, bool weighted) {
  context = concat(sizeof(T) == 4 ? "float32 " : "float64 ", rows, "x", classes, " labels, logits ",
                   deviation, " smoothing ", smoothing, weighted ? " weighted" : "");
  Random random(static_cast<std::uint64_t>(rows * 1000 + classes));
  const std::vector<T> z = random.normals<T>(rows * classes, deviation);
  std::vector<int64_t> labels;
  std::vector<T> one_hot(z.size(), T(0));
  for (int64_t r = 0; r < rows; ++r) {
    labels.push_back(random.below(classes));
    if (r % 3 == 0) {  // the label dominates
      const auto row = z.begin() + r * classes;
      labels.back() = std::max_element(row, row + classes) - row;
    }
    one_hot[static_cast<std::size_t>(r * classes + labels.back())] = T(1);
  }
  const std::vector<T> weights = some_weights<T>(rows, weighted);
  const Reference want = cross_entropy_of(z, one_hot, weights, rows, classes, smoothing, 0.25);
  DeviceArray<int64_t> device_labels(labels);
  LossCase<T> c(rows, classes, z, one_hot, weights);
  c.problem.labels = device_labels.data();
  c.problem.label_smoothing = smoothing;
  const double bound = (sizeof(T) == 4 ? 1e-6 : 1e-14) * want.size;
  c.check_against(want, bound,
                  [&] { softmax_cross_entropy(c.problem, c.scratch.scratch(), nullptr); });

  // The same through rows of probabilities.
  LossCase<T> p(rows, classes, z, one_hot, weights);
  p.problem.targets = p.targets;
  p.problem.label_smoothing = smoothing;
  // log S is rounded to T here.
  p.check_against(want, bound + 4 * kUlp<T> * want.weight * std::log(classes),
                  [&] { softmax_cross_entropy(p.problem, p.scratch.scratch(), nullptr); });
}

template <class T>
void test_probabilities(int64_t rows, int64_t classes) {
  context = concat(sizeof(T) == 4 ? "float32 " : "float64 ", rows, "x", classes, " probabilities");
  Random random(static_cast<std::uint64_t>(rows * 1000 + classes));
  const std::vector<T> z = random.normals<T>(rows * classes, 3);
  std::vector<T> targets(z.size());
  for (T& t : targets) t = static_cast<T>(random.uniform());  // rows need not sum to 1
  const std::vector<T> weights = some_weights<T>(rows, true);
  const Reference want = cross_entropy_of(z, targets, weights, rows, classes, 0.1, 0.25);
  LossCase<T> c(rows, classes, z, targets, weights);
  c.problem.targets = c.targets;
  c.problem.label_smoothing = 0.1;
  c.check_against(want, (sizeof(T) == 4 ? 1e-6 : 1e-14) * want.size,
                  [&] { softmax_cross_entropy(c.problem, c.scratch.scratch(), nullptr); });

  DeviceMatrix<T> logits(rows, classes, z), probabilities(rows, classes);
  softmax<T>(logits, probabilities, nullptr);
  std::vector<double> expected, bounds;
  for (std::size_t first = 0; first < z.size(); first += static_cast<std::size_t>(classes)) {
    long double sum = 0;
    const auto term = [&](std::size_t j) {
      return std::exp(static_cast<long double>(z[first + j]));
    };
    for (std::size_t j = 0; j < static_cast<std::size_t>(classes); ++j) sum += term(j);
    for (std::size_t j = 0; j < static_cast<std::size_t>(classes); ++j) {
      expected.push_back(static_cast<double>(term(j) / sum));
      bounds.push_back(32 * kUlp<T> * expected.back());  // z - m down to -24
    }
  }
  const std::vector<T> got = probabilities.dense();
  expect_close("softmax", got, expected, bounds);
  softmax<T>(logits, logits, nullptr);
  expect_same_bits("softmax in place", logits.dense(), got);
}

double elementwise_value(const std::string& name, double z, double t, double delta) {
  const double d = z - t;
  if (name == "squared_error") return d * d;
  if (name == "huber") return std::abs(d) <= delta ? d * d / 2 : delta * (std::abs(d) - delta / 2);
  if (name == "binary_cross_entropy")
    return std::max(z, 0.0) - z * t + std::log1p(std::exp(-std::abs(z)));
  if (name == "logistic") {
    const double u = -t * z;
    return u > 0 ? u + std::log1p(std::exp(-u)) : std::log1p(std::exp(u));
  }
  if (name == "exponential") return std::exp(-t * z);
  expect_that(false, "no reference for ", name);
  return 0;
}

double elementwise_gradient(const std::string& name, double z, double t, double delta) {
  const double d = z - t;
  if (name == "squared_error") return 2 * d;
  if (name == "huber") return std::abs(d) <= delta ? d : std::copysign(delta, d);
  if (name == "binary_cross_entropy") return 1 / (1 + std::exp(-z)) - t;
  if (name == "logistic") return -t / (1 + std::exp(t * z));
  if (name == "exponential") return -t * std::exp(-t * z);
  return 0;
}

template <class T>
void test_elementwise(int id, int64_t rows, int64_t width, bool weighted) {
  const std::string name = loss_name(id);
  context = concat(name, sizeof(T) == 4 ? " float32 " : " float64 ", rows, "x", width,
                   weighted ? " weighted" : "");
  const TargetKind kind = dispatch_loss(id, [](auto rule) { return decltype(rule)::target; });
  Random random(static_cast<std::uint64_t>(rows * 1000 + width));
  const std::vector<T> z = random.normals<T>(rows * width, 1.5);
  std::vector<T> targets;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const double u = random.uniform();
    targets.push_back(kind == TargetKind::sign            ? T(u < 0.5 ? -1 : 1)
                      : kind == TargetKind::unit_interval ? static_cast<T>(i % 3 == 0 ? 1 : u)
                                                          : static_cast<T>(2 * u - 1));
  }
  const std::vector<T> weights = some_weights<T>(rows, weighted);
  Reference want;
  constexpr double kDelta = 0.75;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t r = i / static_cast<std::size_t>(width);
    const double w = weights.empty() ? 1.0 : static_cast<double>(weights[r]);
    const double output = static_cast<double>(z[i]), t = static_cast<double>(targets[i]);
    const double value = elementwise_value(name, output, t, kDelta);
    want.loss += w * value;
    want.size += std::abs(w * value);
    const bool agrees = kind == TargetKind::sign            ? output * t > 0
                        : kind == TargetKind::unit_interval ? (output > 0) == (t > 0.5)
                                                            : false;
    want.hits += agrees ? w / static_cast<double>(width) : 0;
    if (i % static_cast<std::size_t>(width) == 0) want.weight += w;
    want.gradient.push_back(0.25 * w * elementwise_gradient(name, output, t, kDelta));
    want.bound.push_back(8 * kUlp<T> * (std::abs(want.gradient.back()) + 0.25 * w));
  }
  LossCase<T> c(rows, width, z, targets, weights);
  c.problem.targets = c.targets;
  c.problem.parameter = kDelta;
  c.check_against(want, (sizeof(T) == 4 ? 1e-6 : 1e-14) * want.size,
                  [&] { elementwise_loss(id, c.problem, c.scratch.scratch(), nullptr); });
}

// A loss that is not finite fails a step, unless its rows count nothing.
template <class T>
void test_status() {
  for (const double update_weight : {1.0, 0.0})
    for (const bool softmaxed : {true, false}) {
      context = concat("status with weight ", update_weight);
      std::vector<T> z(300, T(0.5));
      z[200] = static_cast<T>(std::nan(""));
      LossCase<T> c(100, 3, z, std::vector<T>(300, T(1) / T(3)), {});
      StepState host;
      host.weight = update_weight;
      c.state.upload({host});
      c.problem.targets = c.targets;
      if (softmaxed)
        softmax_cross_entropy(c.problem, c.scratch.scratch(), nullptr);
      else
        elementwise_loss(kLossSquaredError, c.problem, c.scratch.scratch(), nullptr);
      const StepState got = c.state.download()[0];
      expect_that(!std::isfinite(got.loss), "a NaN is lost");
      expect_that(
          got.status == (update_weight > 0 ? StepStatus::kLossNotFinite : StepStatus::kRunning),
          "status ", static_cast<int>(got.status));
    }
}

template <class T>
void test_all() {
  for (const int64_t classes : {1, 2, 7, 8, 9, 32, 33, 129, 1030}) {
    test_labels<T>(33, classes, 3, 0.0, true);
    test_labels<T>(7, classes, 3, 0.1, false);
    test_probabilities<T>(9, classes);
  }
  for (const int64_t rows : {1, 31, 64, 129, 257}) test_labels<T>(rows, 10, 1, 0.0, true);
  test_labels<T>(64, 10, 1e4, 0.0, false);
  test_labels<T>(20, 300, 1e4, 0.1, false);
  test_labels<T>(8200, 33, 1, 0.0, true);  // several rows for every warp of a block
  for (int id = 0; id < kLossCount; ++id)
    for (const auto& [rows, width] : odd_shapes()) {
      test_elementwise<T>(id, rows, width, rows % 2 == 1);
    }
  for (int id = 0; id < kLossCount; ++id) test_elementwise<T>(id, 600, 1, true);
  test_status<T>();
}

void tests() {
  test_all<float>();
  test_all<double>();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
