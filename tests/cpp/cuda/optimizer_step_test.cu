// Every optimizer over several updates against its textbook formula in double, and the rules of a
// step: groups, clipping, averages, planes, gradients that are not finite, and steps that failed.
#include <map>

#include "core/layout.h"
#include "cuda/optimizer_step.h"
#include "math/optimizers.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

using Hyper = std::map<std::string, double>;

Hyper default_hyper(int id) {
  Hyper hyper;
  for (const HyperParameter& row : optimizer_hyper(id)) hyper[row.name] = row.default_value;
  hyper["lr"] = 0.05;
  hyper["weight_decay"] = 0.01;
  return hyper;
}

std::vector<double> coefficients_of(int id, const Hyper& hyper, int64_t t) {
  std::vector<double> values(kMaxHyperParameters), c(kMaxCoefficients, 0.0);
  const HyperTable table = optimizer_hyper(id);
  for (int h = 0; h < table.count; ++h)
    values[static_cast<std::size_t>(h)] = hyper.at(table[h].name);
  optimizer_coefficients(id, values.data(), values.data(), t, c.data());
  return c;
}

// One parameter. `theta` is the point itself; the look-ahead methods store another one.
struct Element {
  double theta = 0, s0 = 0, s1 = 0;
  double stored(const std::string& name, const Hyper& h) const {
    if (name == "nesterov") return theta + h.at("momentum") * s0;
    if (name == "rmsprop_nesterov") return theta + h.at("momentum") * s1;
    return theta;
  }
};

void textbook_update(const std::string& name, const Hyper& h, int64_t t, double g, Element& e) {
  const double lr = h.at("lr"), decay = h.at("weight_decay");
  if (name == "adamw")
    e.theta *= 1 - lr * decay;
  else
    g += decay * e.stored(name, h);
  const auto average = [](double old, double rate, double x) {
    return rate * old + (1 - rate) * x;
  };
  if (name == "sgd") {
    e.theta -= lr * g;
  } else if (name == "momentum" || name == "nesterov") {
    e.s0 = h.at("momentum") * e.s0 - lr * g;
    e.theta += e.s0;
  } else if (name == "adagrad") {
    e.s0 += g * g;
    e.theta -= lr * g / (h.at("delta") + std::sqrt(e.s0));
  } else if (name == "rmsprop") {
    e.s0 = average(e.s0, h.at("rho"), g * g);
    e.theta -= lr * g / (h.at("delta") + std::sqrt(e.s0));
  } else if (name == "rmsprop_nesterov") {
    e.s0 = average(e.s0, h.at("rho"), g * g);
    e.s1 = h.at("momentum") * e.s1 - lr * g / (h.at("delta") + std::sqrt(e.s0));
    e.theta += e.s1;
  } else if (name == "adadelta") {
    e.s0 = average(e.s0, h.at("rho"), g * g);
    const double d = std::sqrt(e.s1 + h.at("delta")) / std::sqrt(e.s0 + h.at("delta")) * g;
    e.s1 = average(e.s1, h.at("rho"), d * d);
    e.theta -= lr * d;
  } else if (name == "adam" || name == "adamw") {
    const double steps = static_cast<double>(t);
    e.s0 = average(e.s0, h.at("beta1"), g);
    e.s1 = average(e.s1, h.at("beta2"), g * g);
    e.theta -= lr * e.s0 / (1 - std::pow(h.at("beta1"), steps)) /
               (std::sqrt(e.s1 / (1 - std::pow(h.at("beta2"), steps))) + h.at("delta"));
  } else {
    expect_that(false, "no reference for ", name);
  }
}

StepState running_state() {
  StepState state;
  state.weight = 3.0;
  state.loss = 6.0;
  state.hits = 2.0;
  state.position = 40;
  state.steps = 100;
  return state;
}

// An arena of `blocks` group blocks and everything that an update of it reads.
template <class T>
struct Case {
  static constexpr int kGroups = 3;  // the last one is frozen
  static constexpr int kRows = 4;

  int id;
  std::string name;
  int64_t count;
  std::vector<std::uint8_t> group;
  std::vector<Hyper> hyper;
  std::vector<Element> elements;
  DeviceArray<T> p, g, s0, s1, average;
  DeviceArray<std::uint16_t> planes;
  DeviceArray<std::uint8_t> group_of_block, frozen;
  DeviceArray<double> coefficients, average_weights;
  DeviceArray<StepState> state;
  TestScratch scratch;

  Case(int optimizer, int64_t blocks)
      : id(optimizer),
        name(optimizer_name(optimizer)),
        count(blocks * kGroupBlock),
        p(count),
        g(count),
        s0(std::vector<T>(static_cast<std::size_t>(count), T(0))),
        s1(std::vector<T>(static_cast<std::size_t>(count), T(0))),
        average(std::vector<T>(static_cast<std::size_t>(count), T(0))),
        planes(3 * count),
        group_of_block(blocks),
        frozen(std::vector<std::uint8_t>{0, 0, 1}),
        coefficients(kRows * kGroups * kMaxCoefficients),
        average_weights(std::vector<double>{1.0, 0.5, 0.0, 0.25}),
        state(std::vector<StepState>{running_state()}),
        scratch(gradient_norm_scratch_bytes(blocks)) {
    for (int64_t b = 0; b < blocks; ++b) group.push_back(static_cast<std::uint8_t>(b % kGroups));
    group_of_block.upload(group);
    hyper.assign(kGroups, default_hyper(id));
    hyper[1]["lr"] = 0.01;
    hyper[1]["weight_decay"] = 0.0;
    std::vector<double> table;
    for (int t = 1; t <= kRows; ++t)
      for (const Hyper& h : hyper) {
        const std::vector<double> c = coefficients_of(id, h, t);
        table.insert(table.end(), c.begin(), c.end());
      }
    coefficients.upload(table);
    std::vector<T> start;
    Random random(static_cast<std::uint64_t>(id));
    for (int64_t i = 0; i < count; ++i) {
      elements.push_back({random.normal()});
      start.push_back(static_cast<T>(elements.back().theta));
      elements.back().theta = static_cast<double>(start.back());
    }
    p.upload(start);
  }

  OptimizerStep<T> problem(bool averages = true, bool with_planes = true) {
    OptimizerStep<T> step;
    step.optimizer = id;
    step.state = state.data();
    step.count = count;
    step.p = p.data();
    step.g = g.data();
    if (optimizer_slots(id) > 0) step.s0 = s0.data();
    if (optimizer_slots(id) > 1) step.s1 = s1.data();
    step.groups = {group_of_block.data(), frozen.data(), kGroups};
    step.coefficients = coefficients.data();
    if (averages) {
      step.average = average.data();
      step.average_weights = average_weights.data();
    }
    if (with_planes) step.planes = {planes.data(), count, 3};
    step.advances = true;
    step.rows = 20;
    return step;
  }
  int group_of(std::size_t i) const { return group[i / kGroupBlock]; }
};

template <class T>
void test_optimizer(int id) {
  Case<T> c(id, 19);
  context = concat(c.name, sizeof(T) == 4 ? " float32" : " float64");
  Random random(9);
  std::vector<double> average(c.elements.size(), 0.0);
  const double weights[] = {1.0, 0.5, 0.0, 0.25};
  StepState clipped = running_state();
  clipped.gradient_factor = 0.5;
  c.state.upload({clipped});
  for (int64_t t = 1; t <= Case<T>::kRows; ++t) {
    const std::vector<T> gradient = random.normals<T>(c.count);
    c.g.upload(gradient);
    optimizer_step(c.problem(), c.scratch.scratch(), nullptr);
    for (std::size_t i = 0; i < c.elements.size(); ++i) {
      const int group = c.group_of(i);
      if (group != 2)
        textbook_update(c.name, c.hyper[static_cast<std::size_t>(group)], t,
                        0.5 * static_cast<double>(gradient[i]), c.elements[i]);
      average[i] += weights[t - 1] * (c.elements[i].theta - average[i]);
    }
  }
  std::vector<double> p, s0, s1;
  for (std::size_t i = 0; i < c.elements.size(); ++i) {
    p.push_back(c.elements[i].stored(c.name, c.hyper[static_cast<std::size_t>(c.group_of(i))]));
    s0.push_back(c.elements[i].s0);
    s1.push_back(c.elements[i].s1);
  }
  const double bound = sizeof(T) == 4 ? 48 * 0x1p-23 : 1e-12;
  const std::vector<T> got = c.p.download();
  expect_close("p", got, p, bound);
  expect_close("slot 0", c.s0.download(), s0, bound);
  expect_close("slot 1", c.s1.download(), s1, bound);
  expect_close("average", c.average.download(), average, 2 * bound);
  if (sizeof(T) == 4) {
    const std::vector<std::uint16_t> planes = c.planes.download();
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (c.group_of(i) == 2) continue;  // never written: its parameters never move
      const double sum = bfloat16_value(planes[i]) + bfloat16_value(planes[i + got.size()]) +
                         bfloat16_value(planes[i + 2 * got.size()]);
      expect_that(std::abs(sum - static_cast<double>(got[i])) <= 0x1p-22, "planes at ", i);
    }
  }
  const StepState state = c.state.download()[0];
  expect_that(state.row == 4 && state.steps == 104 && state.updates == 4 && state.position == 120,
              "advance: row ", state.row, ", steps ", state.steps, ", position ", state.position);
  expect_that(state.run_loss == 24 && state.run_hits == 8 && state.run_weight == 12 &&
                  state.last_loss == 6 && state.last_weight == 3,
              "sums of the run");
  expect_that(state.status == StepStatus::kRunning && state.skipped_rows == 0, "status");
  c.scratch.expect_ready();

  // theta again, from the coefficients of the last update.
  DeviceArray<T> theta(c.count);
  OptimizerTheta<T> problem;
  problem.optimizer = id;
  problem.count = c.count;
  problem.p = c.p.data();
  problem.s0 = c.s0.data();
  problem.s1 = c.s1.data();
  problem.groups = {c.group_of_block.data(), c.frozen.data(), Case<T>::kGroups};
  problem.coefficients = c.coefficients.data() + 3 * Case<T>::kGroups * kMaxCoefficients;
  problem.theta = theta.data();
  optimizer_theta(problem, nullptr);
  std::vector<double> want;
  for (const Element& e : c.elements) want.push_back(e.theta);
  expect_close("theta", theta.download(), want, bound);
}

// Non-finite gradients leave their elements alone, and the step after is not made.
template <class T>
void test_not_finite(int id) {
  Case<T> c(id, 7);
  context = concat(c.name, sizeof(T) == 4 ? " float32" : " float64", " not finite");
  std::vector<T> gradient = Random(4).normals<T>(c.count);
  const std::size_t bad[] = {0, 5, 257, 700, gradient.size() - 1};  // 700: of a frozen group
  for (const std::size_t i : bad) gradient[i] = static_cast<T>(std::nan(""));
  gradient[5] = std::numeric_limits<T>::infinity();
  c.g.upload(gradient);
  const std::vector<T> before = c.p.download();
  optimizer_step(c.problem(false, false), c.scratch.scratch(), nullptr);
  const std::vector<T> after = c.p.download();
  const std::vector<T> s0 = c.s0.download();
  for (std::size_t i = 0; i < after.size(); ++i) {
    const bool moves = std::isfinite(gradient[i]) && c.group_of(i) != 2;
    expect_that((after[i] != before[i]) == moves, "p[", i, "] moved: ", !moves);
    if (!moves) expect_that(s0[i] == T(0), "slot [", i, "]");
  }
  StepState state = c.state.download()[0];
  expect_that(state.skipped_elements == 4, "expected 4 skipped, got ", state.skipped_elements);
  expect_that(state.status == StepStatus::kElementsNotFinite && state.updates == 1, "status");

  optimizer_step(c.problem(false, false), c.scratch.scratch(), nullptr);
  expect_same_bits("p of a failed run", c.p.download(), after);
  state = c.state.download()[0];
  expect_that(state.updates == 1 && state.row == 1 && state.position == 60, "a failed run moved");
}

// A failed step writes nothing and moves nothing; a step without weight only moves on.
template <class T>
void test_no_update() {
  for (const bool failed : {true, false}) {
    for (const bool apart : {true, false}) {
      Case<T> c(kOptimizerAdam, 7);
      context = concat("no update: ", failed ? "failed" : "no weight");
      StepState host = running_state();
      if (failed)
        host.status = StepStatus::kLossNotFinite;
      else
        host.weight = 0.0;
      c.state.upload({host});
      c.g.upload(Random(4).normals<T>(c.count));
      const std::vector<T> before = c.p.download(), average = c.average.download();
      OptimizerStep<T> problem = c.problem(true, false);
      problem.advances = !apart;
      optimizer_step(problem, c.scratch.scratch(), nullptr);
      if (apart) advance_step(c.state.data(), 20, nullptr);
      expect_same_bits("p", c.p.download(), before);
      expect_same_bits("average", c.average.download(), average);
      const StepState state = c.state.download()[0];
      expect_that(state.position == (failed ? 40 : 60), "position ", state.position);
      expect_that(state.skipped_rows == (failed ? 0 : 20), "skipped rows ", state.skipped_rows);
      expect_that(state.steps == 100 && state.row == 0 && state.updates == 0, "counters");
      c.scratch.expect_ready();
    }
  }
}

// Of the blocks that move, every fourth has left its sum of squares; the others are read.
template <class T>
void test_norm(int64_t blocks, double clip_norm) {
  Case<T> c(kOptimizerSgd, blocks);
  context = concat("norm of ", blocks, " blocks", sizeof(T) == 4 ? " float32" : " float64");
  std::vector<T> gradient = Random(8).normals<T>(c.count);
  std::vector<double> sums;
  std::vector<std::int32_t> read;
  double squares = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    T* const block = gradient.data() + b * kGroupBlock;
    double own = 0;
    for (int64_t i = 0; i < kGroupBlock; ++i) own += double{block[i]} * double{block[i]};
    const bool moves = c.group[static_cast<std::size_t>(b)] != 2;
    if (moves) squares += own;
    if (moves && b % 4 != 3) {
      read.push_back(static_cast<std::int32_t>(b));
      continue;
    }
    if (moves) sums.push_back(own);
    std::fill_n(block, kGroupBlock, static_cast<T>(std::nan("")));
  }
  c.g.upload(gradient);
  DeviceArray<double> left(sums);
  DeviceArray<std::int32_t> list(read);
  const GradientNorm<T> problem{
      .sums = left.data(),
      .sum_count = static_cast<int64_t>(sums.size()),
      .g = c.g.data(),
      .blocks = list.data(),
      .block_count = static_cast<int64_t>(read.size()),
      .clip_norm = clip_norm,
      .state = c.state.data(),
  };
  double first = 0;
  for (int replay = 0; replay < 3; ++replay) {
    gradient_norm(problem, c.scratch.scratch(), nullptr);
    const StepState state = c.state.download()[0];
    const double factor = std::sqrt(squares) > clip_norm ? clip_norm / std::sqrt(squares) : 1;
    expect_close("squares", std::vector<double>{state.squares}, {squares}, 1e-13 * squares);
    expect_close("factor", std::vector<double>{state.gradient_factor}, {factor}, 1e-13);
    expect_that(state.status == StepStatus::kRunning, "status");
    if (replay == 0) first = state.squares;
    expect_that(state.squares == first, "the norm differs from run to run");
    c.scratch.expect_ready();
  }
  gradient[1] = std::numeric_limits<T>::infinity();
  c.g.upload(gradient);
  gradient_norm(problem, c.scratch.scratch(), nullptr);
  expect_that(c.state.download()[0].status == StepStatus::kGradientNotFinite,
              "a gradient that is not finite passed");
}

// Weights alone move.
template <class T>
void test_norm_of_sums() {
  Case<T> c(kOptimizerSgd, 1);
  context = "norm of sums";
  for (const double last : {9.0, std::nan("")}) {
    DeviceArray<double> sums(std::vector<double>{16.0, 0.0, last});
    const GradientNorm<T> problem{
        .sums = sums.data(), .sum_count = 3, .clip_norm = 1.0, .state = c.state.data()};
    gradient_norm(problem, c.scratch.scratch(), nullptr);
    const StepState state = c.state.download()[0];
    if (last == 9.0)
      expect_that(state.squares == 25.0 && state.gradient_factor == 0.2, "squares ", state.squares);
    else
      expect_that(state.status == StepStatus::kGradientNotFinite,
                  "a sum that is not finite passed");
  }
}

template <class T>
void test_all() {
  for (int id = 0; id < kOptimizerCount; ++id) {
    test_optimizer<T>(id);
    test_not_finite<T>(id);
  }
  test_no_update<T>();
  for (const int64_t blocks : {1, 2, 16, 17, 131}) {
    test_norm<T>(blocks, 1.0);
    test_norm<T>(blocks, std::numeric_limits<double>::infinity());
  }
  test_norm_of_sums<T>();
}

void tests() {
  test_all<float>();
  test_all<double>();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
