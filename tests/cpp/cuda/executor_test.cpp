// The walk over a plan on both back ends: random networks, forward, loss and backward on CUDA next
// to the CPU in float64. There the plan is compiled without fusion, so that nothing but the
// formulas is shared, and preactivations next to a kink can be seen: no float32 program could agree
// on them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/batch_norm.h"
#include "cuda/gather.h"
#include "kernel_test.h"
#include "math/activations.h"
#include "math/losses.h"
#include "network/cpu_backend.h"
#include "network/cuda_backend.h"
#include "network/initialize.h"

namespace thalweg {
namespace {

using cuda::test::expect_that;
using cuda::test::Random;

// ---- A network with its data, all numbers exactly representable in float32 ----------------------

struct Case {
  std::string json;
  std::int64_t rows = 0;
  std::vector<float> parameters, running, x, targets, weights;
  std::vector<std::int64_t> labels;
  bool dense_targets = false;
  bool weighted = false;
  std::uint64_t step = 0;
  std::int64_t first_row = 0;
};

template <class Value>
const Value& pick(Random& random, const std::vector<Value>& from) {
  return from[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(from.size())))];
}

std::string activation_text(Random& random) {
  const int id = static_cast<int>(random.below(kActivationCount));
  const std::string name = activation_name(id);
  if (name == "leaky_relu") return R"({"type":"leaky_relu","slope":0.125})";
  if (name == "elu") return R"({"type":"elu","alpha":0.75})";
  return concat("\"", name, "\"");
}

std::string dense_text(std::int64_t units, Random& random) {
  const char* bias = random.below(3) == 0 ? "true" : "null";
  return concat(R"({"type":"dense","units":)", units, R"(,"bias":)", bias, "}");
}

std::string norm_text(Random& random) {
  return concat(R"({"type":"batch_norm","weighted":)", random.below(2) == 0 ? "true" : "false",
                R"(,"momentum":)", random.below(2) == 0 ? "null" : "0.25", "}");
}

std::string block_text(Random& random, std::int64_t* width, bool with_norm) {
  static const std::vector<std::int64_t> widths = {1, 3, 10, 31, 32, 33, 64, 100};
  const bool keep = random.below(4) == 0;
  const std::int64_t units = keep ? *width : pick(random, widths);
  std::string text = dense_text(units, random);
  if (with_norm && random.below(2) == 0) text += "," + norm_text(random);
  if (random.below(5) != 0) text += "," + activation_text(random);
  if (random.below(4) == 0) text += R"(,{"type":"dropout","p":0.25})";
  // Alone behind an activation, with statistics of its own.
  if (with_norm && random.below(6) == 0) text += "," + norm_text(random);
  *width = units;
  return text;
}

std::string layers_text(Random& random, std::int64_t in_features, std::int64_t outputs,
                        bool with_norm) {
  std::int64_t width = in_features;
  std::string text;
  const std::int64_t blocks = 1 + random.below(3);
  for (std::int64_t b = 0; b < blocks; ++b) {
    switch (random.below(5)) {
      case 0: {
        std::int64_t inner = width;
        text += R"({"type":"residual","zero_init":false,"layers":[)";
        text += block_text(random, &inner, with_norm) + "," + dense_text(width, random);
        if (with_norm && random.below(2) == 0) text += "," + norm_text(random);
        if (random.below(3) == 0) text += R"(,{"type":"residual","layers":["tanh"]})";
        text += "]},";
        break;
      }
      case 1:
        width = 1 + random.below(40);
        text += concat(R"({"type":"maxout","units":)", width, R"(,"pieces":)", 2 + random.below(2),
                       "},");
        break;
      default:
        text += block_text(random, &width, with_norm) + ",";
    }
  }
  text += dense_text(outputs, random);
  if (random.below(6) == 0) text += ",\"tanh\"";
  return text;
}

std::string loss_text(Random& random, Case* problem, std::int64_t* outputs) {
  static const char* const reductions[] = {"batch_mean", "sum", "element_mean"};
  const std::int64_t kind = random.below(kLossCount + 3);
  *outputs = pick<std::int64_t>(random, {2, 3, 10, 33, 100});
  if (kind >= kLossCount) {
    problem->dense_targets = kind == kLossCount;
    return concat(R"({"type":"cross_entropy","label_smoothing":)", random.below(2) * 0.125, "}");
  }
  problem->dense_targets = true;
  return concat(R"({"type":")", loss_name(static_cast<int>(kind)), R"(","reduction":")",
                reductions[random.below(3)], "\"}");
}

// With `hidden` layers of its own before the last one, if given.
Case draw(std::uint64_t seed, const char* dtype, const std::string& hidden = {}) {
  static const std::vector<std::int64_t> row_counts = {1,  2,  3,  7,   16,  31,  32, 33,
                                                       63, 64, 65, 100, 128, 129, 200};
  Random random(seed);
  Case problem;
  problem.rows = pick(random, row_counts);
  std::int64_t outputs = 0;
  const std::string loss = loss_text(random, &problem, &outputs);
  const std::int64_t in_features = pick<std::int64_t>(random, {1, 5, 32, 45, 100});
  std::string layers = layers_text(random, in_features, outputs, problem.rows > 2);
  if (!hidden.empty()) layers = hidden + "," + dense_text(outputs, random);
  problem.json = concat(R"({"in_features":)", in_features, R"(,"dtype":")", dtype, R"(","seed":)",
                        seed, R"(,"layers":[)", layers, R"(],"loss":)", loss, "}");
  const Plan plan = compile(parse_description(problem.json));
  problem.weighted = random.below(2) == 0 || plan.has_weighted_batch_norm();
  problem.step = static_cast<std::uint64_t>(random.below(1000));
  problem.first_row = random.below(3) * 64;
  problem.x = random.normals<float>(problem.rows * in_features);
  std::vector<double> values(static_cast<std::size_t>(plan.num_parameters));
  for (std::size_t t = 0; t < plan.tensors.size(); ++t) {
    double* tensor = values.data() + plan.tensors[t].flat_offset;
    initialize(plan, static_cast<int>(t), seed, tensor);
    if (!plan.tensors[t].is_weight())
      for (std::int64_t i = 0; i < plan.tensors[t].size(); ++i) tensor[i] += 0.3 * random.normal();
  }
  problem.parameters.assign(values.begin(), values.end());
  for (const BatchNormState& norm : plan.states) {
    for (std::int64_t c = 0; c < norm.width; ++c)
      problem.running.push_back(static_cast<float>(0.3 * random.normal()));
    for (std::int64_t c = 0; c < norm.width; ++c)
      problem.running.push_back(static_cast<float>(0.5 + random.uniform()));
  }
  const bool cross_entropy = plan.description.loss.kind == LossDescription::Kind::kCrossEntropy;
  for (std::int64_t r = 0; r < problem.rows; ++r) {
    problem.weights.push_back(0.5f * static_cast<float>(1 + random.below(3)));
    problem.labels.push_back(random.below(plan.out_features));
    float sum = 0.0f;
    for (std::int64_t c = 0; c < plan.out_features; ++c) {
      const auto uniform = static_cast<float>(random.uniform());
      float target = 2.0f * uniform - 1.0f;
      if (cross_entropy) {
        target = c + 1 == plan.out_features ? 1.0f - sum
                                            : uniform / static_cast<float>(plan.out_features);
        sum += target;
      } else {
        switch (dispatch_loss(plan.description.loss.elementwise,
                              [](auto rule) { return decltype(rule)::target; })) {
          case TargetKind::real:
            break;
          case TargetKind::unit_interval:
            target = uniform;
            break;
          case TargetKind::sign:
            target = uniform < 0.5f ? -1.0f : 1.0f;
            break;
        }
      }
      problem.targets.push_back(target);
    }
  }
  return problem;
}

template <class T>
std::vector<T> as(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

double total_weight(const Case& problem) {
  if (!problem.weighted) return static_cast<double>(problem.rows);
  double total = 0.0;
  for (const float weight : problem.weights) total += static_cast<double>(weight);
  return total;
}

Pass pass_of(const Case& problem, const Plan& plan, Mode mode) {
  Pass pass;
  pass.mode = mode;
  pass.seed = plan.description.seed;
  pass.step = problem.step;
  pass.first_row = problem.first_row;
  pass.total_weight = total_weight(problem);
  pass.input_gradient = true;
  return pass;
}

LossRequest request_of(const Case& problem, Mode mode) {
  const double scale = 1.0 / total_weight(problem);
  return {mode == Mode::kInference ? 0.0 : scale, problem.weighted, problem.dense_targets};
}

// What a pass leaves.
struct Result {
  std::vector<double> outputs, gradient, input_gradient, batch_mean, batch_var;
  LossTotals totals;
  bool near_kink = false;
};

// ---- On the CPU ---------------------------------------------------------------------------------

template <class T>
std::vector<double> dense_of(const Panels<T>& matrix) {
  std::vector<double> out;
  for (std::int64_t r = 0; r < matrix.rows; ++r)
    for (std::int64_t c = 0; c < matrix.width; ++c)
      out.push_back(static_cast<double>(matrix.row(c / kPanel, r)[c % kPanel]));
  return out;
}

bool near_kink(const Plan& plan, Workspace<double>& workspace, Mode mode) {
  constexpr double kNear = 4e-6;
  for (const Node& node : plan.nodes) {
    const int in = plan.value_holder(node.input, mode == Mode::kInference);
    if (node.kind == NodeKind::kActivation && node.activation.id != kActivationIdentity) {
      for (const double z : dense_of(workspace.value(in)))
        if (std::abs(z) < kNear) return true;
    }
    if (node.kind != NodeKind::kMaxout) continue;
    std::vector<double> z = dense_of(workspace.value(in));
    for (std::size_t i = 0; i < z.size(); i += static_cast<std::size_t>(node.pieces)) {
      const auto piece = z.begin() + static_cast<std::ptrdiff_t>(i);
      std::sort(piece, piece + node.pieces);
      if (piece[node.pieces - 1] - piece[node.pieces - 2] < kNear) return true;
    }
  }
  return false;
}

template <class T>
Result run_on_cpu(const Case& problem, Mode mode) {
  const Plan plan = compile(parse_description(problem.json), false);
  Parameters<T> parameters(plan);
  parameters.set_flat(plan, as<T>(problem.parameters).data());
  const float* running = problem.running.data();
  for (const BatchNormState& norm : plan.states) {
    std::copy_n(running, norm.width, parameters.running_mean(norm));
    std::copy_n(running + norm.width, norm.width, parameters.running_var(norm));
    running += 2 * norm.width;
  }
  Workspace<T> workspace(plan, problem.rows, true);
  const cpu::Kernels<T>& kernels = cpu::kernels<T>();
  const Range rows{0, problem.rows};
  kernels.gather(ArrayView::matrix(problem.x.data(), problem.rows, plan.in_features), nullptr, 0,
                 rows, workspace.value(0));
  kernels.gather(ArrayView::matrix(problem.targets.data(), problem.rows, plan.out_features),
                 nullptr, 0, rows, {workspace.targets.data(), problem.rows, plan.out_features});
  std::copy(problem.labels.begin(), problem.labels.end(), workspace.labels.begin());
  std::copy(problem.weights.begin(), problem.weights.end(), workspace.row_weights.begin());

  Result result;
  std::vector<T> gradient(static_cast<std::size_t>(plan.num_parameters));
  Arena<T> arena(plan.arena_size);
  const Pass pass = pass_of(problem, plan, mode);
  ThreadPool::shared().run(2, [&](Team& team) {
    CpuBackend<T> backend(plan, parameters, workspace, kernels, team);
    Executor executor(backend);
    executor.forward(pass);
    executor.loss(pass, request_of(problem, mode), &result.totals);
    if (mode == Mode::kInference) return;
    executor.backward(pass);
    executor.gradients(arena.data(), false, [](int) { return true; });
  });
  result.outputs =
      dense_of(workspace.value(plan.value_holder(plan.output, mode == Mode::kInference)));
  if (mode != Mode::kInference) {
    unpack_flat(plan, arena.data(), gradient.data());
    result.gradient.assign(gradient.begin(), gradient.end());
    result.input_gradient = dense_of(workspace.gradient(0));
  }
  if (mode == Mode::kTraining) {
    for (std::size_t s = 0; s < plan.states.size(); ++s) {
      const double* mean = workspace.batch_mean(static_cast<int>(s));
      const double* var = workspace.batch_var(static_cast<int>(s));
      result.batch_mean.insert(result.batch_mean.end(), mean, mean + plan.states[s].width);
      result.batch_var.insert(result.batch_var.end(), var, var + plan.states[s].width);
    }
  }
  if constexpr (std::is_same_v<T, double>) result.near_kink = near_kink(plan, workspace, mode);
  return result;
}

// ---- On CUDA ------------------------------------------------------------------------------------

constexpr cudaStream_t kStream = nullptr;

template <class T>
std::vector<double> dense_of(const cuda::Matrix<T>& matrix) {
  cuda::DeviceArray<T> dense(matrix.rows * matrix.width, "test");
  cuda::scatter<T>(matrix, dense.data(), matrix.width, kStream);
  std::vector<T> host(static_cast<std::size_t>(dense.size()));
  cuda::download(dense.data(), host.data(), dense.size(), kStream, "test");
  return std::vector<double>(host.begin(), host.end());
}

template <class T>
void fill(const std::vector<float>& values, const cuda::Matrix<T>& matrix) {
  const std::vector<T> host = as<T>(values);
  cuda::DeviceArray<T> dense(static_cast<std::int64_t>(host.size()), "test");
  cuda::upload(host.data(), dense.data(), dense.size(), kStream, "test");
  cuda::pack<T>(dense.data(), matrix.width, matrix, kStream);
  cuda::check(cudaStreamSynchronize(kStream), "test");
}

template <class T>
class CudaCase {
 public:
  CudaCase(const Case& problem, const CudaPrecision& precision, std::int64_t capacity)
      : problem_(problem),
        plan_(compile(parse_description(problem.json))),
        parameters_(plan_, precision, kStream),
        workspace_(plan_, parameters_, capacity, true),
        gradients_(parameters_.layout.size, "test") {
    parameters_.set_flat(plan_, as<T>(problem.parameters).data(), kStream);
    parameters_.set_state(plan_, as<T>(problem.running).data(), kStream);
    workspace_.set_rows(problem.rows);
    fill(problem.x, workspace_.value(0));
    fill(problem.targets, workspace_.targets());
    cuda::upload(problem.labels.data(), workspace_.labels.data(), problem.rows, kStream, "test");
    const std::vector<T> weights = as<T>(problem.weights);
    cuda::upload(weights.data(), workspace_.row_weights.data(), problem.rows, kStream, "test");
    std::vector<double> blocks(static_cast<std::size_t>(row_blocks_of(problem.rows)), 0.0);
    for (std::int64_t r = 0; r < problem.rows; ++r)
      blocks[static_cast<std::size_t>(r / kRowBlock)] += static_cast<double>(weights[r]);
    const double total = total_weight(problem);
    cuda::upload(blocks.data(), workspace_.block_weights.data(),
                 static_cast<std::int64_t>(blocks.size()), kStream, "test");
    cuda::upload(&total, workspace_.total_weight.data(), 1, kStream, "test");
  }

  // The loss with the last product where that is possible, or alone.
  Result run(Mode mode, bool loss_ahead, bool accumulate = false) {
    CudaBackend<T> backend(
        plan_, parameters_, workspace_,
        {.state = nullptr, .gradients = gradients_.data(), .accumulate = accumulate}, kStream);
    Executor executor(backend);
    const Pass pass = pass_of(problem_, plan_, mode);
    const LossRequest request = request_of(problem_, mode);
    executor.forward(pass, loss_ahead ? &request : nullptr);
    executor.loss(pass, request, nullptr);
    Result result;
    if (mode != Mode::kInference) {
      executor.backward(pass);
      executor.gradients(gradients_.data(), accumulate, [](int) { return true; });
      std::vector<T> gradient(static_cast<std::size_t>(plan_.num_parameters));
      download_flat<T>(plan_, parameters_.layout, gradients_.data(), gradient.data(), kStream);
      result.gradient.assign(gradient.begin(), gradient.end());
      result.input_gradient = dense_of(workspace_.gradient(0));
      expect_zero_between_tensors();
    }
    cuda::LossSums sums;
    cuda::download(workspace_.losses.data(), &sums, 1, kStream, "test");
    result.totals = {sums.loss, sums.hits, sums.weight};
    result.outputs =
        dense_of(workspace_.value(plan_.value_holder(plan_.output, mode == Mode::kInference)));
    if (mode == Mode::kTraining) {
      for (std::size_t s = 0; s < plan_.states.size(); ++s) {
        append(workspace_.batch_mean(static_cast<int>(s)), s, &result.batch_mean);
        append(workspace_.batch_var(static_cast<int>(s)), s, &result.batch_var);
      }
    }
    return result;
  }

  // Running mean and variance after one more batch.
  std::vector<double> running_after(const std::vector<std::int64_t>& batches) {
    parameters_.set_batches(batches, kStream);
    CudaBackend<T> backend(plan_, parameters_, workspace_, {}, kStream);
    backend.running_statistics(pass_of(problem_, plan_, Mode::kTraining), parameters_.state.data(),
                               parameters_.state.data(), parameters_.batches.data(), nullptr);
    std::vector<T> state(problem_.running.size());
    parameters_.get_state(plan_, state.data(), kStream);
    std::vector<std::int64_t> expected = batches;
    for (std::int64_t& count : expected) ++count;
    expect_that(parameters_.get_batches(plan_, kStream) == expected, "batches tracked");
    return std::vector<double>(state.begin(), state.end());
  }

  // After a pass with gradients: activations stored as bfloat16 numbers, the outputs not.
  void expect_rounded() {
    for (const Node& node : plan_.nodes) {
      if (node.output == plan_.output) continue;
      for (const double value : dense_of(workspace_.value(node.output))) {
        const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
        if ((bits & 0xffffu) == 0) continue;
        expect_that(false, node.layer, ": expected a bfloat16 number, got ", value);
        return;
      }
    }
  }

  const Plan& plan() const { return plan_; }

 private:
  void append(const double* from, std::size_t state, std::vector<double>* to) const {
    std::vector<double> host(static_cast<std::size_t>(plan_.states[state].width));
    cuda::download(from, host.data(), plan_.states[state].width, kStream, "test");
    to->insert(to->end(), host.begin(), host.end());
  }
  // Norms and optimizers go over the whole arena.
  void expect_zero_between_tensors() {
    std::vector<T> arena(static_cast<std::size_t>(gradients_.size()));
    cuda::download(gradients_.data(), arena.data(), gradients_.size(), kStream, "test");
    parameters_.layout.for_each_row(plan_, [&](std::int64_t, std::int64_t first, std::int64_t n) {
      std::fill_n(arena.begin() + first, n, T(0));
    });
    for (const T value : arena) {
      if (value == T(0)) continue;
      expect_that(false, "padding of the gradients: expected 0, got ", static_cast<double>(value));
      return;
    }
  }

  const Case& problem_;
  const Plan plan_;
  CudaParameters<T> parameters_;
  CudaWorkspace<T> workspace_;
  cuda::DeviceArray<T> gradients_;
};

// ---- Comparison ---------------------------------------------------------------------------------

double distance(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return HUGE_VAL;
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::isfinite(error) ? std::sqrt(error / std::max(norm, 1e-30)) : HUGE_VAL;
}

struct Bounds {
  double outputs, loss, gradient;
  double hits = 1e-9;
};

// Relative Frobenius norms, DESIGN section 7; float64 has 29 bits more.
template <class T>
constexpr Bounds kBounds = sizeof(T) == 4 ? Bounds{4e-6, 1e-6, 3e-5}
                                          : Bounds{4e-6 * 0x1p-29, 1e-6 * 0x1p-29, 3e-5 * 0x1p-29};
// A case counts when a float32 program of the CPU is this much better than the bound: otherwise the
// network itself amplifies what rounding does.
constexpr double kReserve = 0.25;

double loss_distance(const Result& got, const Result& want) {
  return std::abs(got.totals.loss - want.totals.loss) / std::max(std::abs(want.totals.loss), 1e-30);
}

bool within(const Result& got, const Result& want, const Bounds& bounds, double factor) {
  return distance(got.outputs, want.outputs) <= factor * bounds.outputs &&
         loss_distance(got, want) <= factor * bounds.loss &&
         distance(got.gradient, want.gradient) <= factor * bounds.gradient &&
         distance(got.input_gradient, want.input_gradient) <= factor * bounds.gradient;
}

void expect_result(const char* what, const Result& got, const Result& want, const Bounds& bounds) {
  const auto expect_near = [&](const char* part, double error, double bound) {
    expect_that(error <= bound, what, ", ", part, ": expected a relative error of at most ", bound,
                ", got ", error);
  };
  expect_near("outputs", distance(got.outputs, want.outputs), bounds.outputs);
  expect_near("loss", loss_distance(got, want), bounds.loss);
  expect_near("gradient", distance(got.gradient, want.gradient), bounds.gradient);
  expect_near("input gradient", distance(got.input_gradient, want.input_gradient), bounds.gradient);
  expect_near("batch mean", distance(got.batch_mean, want.batch_mean), bounds.outputs);
  expect_near("batch variance", distance(got.batch_var, want.batch_var), bounds.outputs);
  expect_that(std::abs(got.totals.weight - want.totals.weight) <= 1e-9, what, ", weight: expected ",
              want.totals.weight, ", got ", got.totals.weight);
  // Outputs of reduced precision may change sides.
  expect_that(std::abs(got.totals.hits - want.totals.hits) <= bounds.hits, what,
              ", hits: expected ", want.totals.hits, ", got ", got.totals.hits);
}

bool same(const Result& a, const Result& b) {
  return a.outputs == b.outputs && a.gradient == b.gradient &&
         a.input_gradient == b.input_gradient && a.totals.loss == b.totals.loss;
}

constexpr Mode kModes[] = {Mode::kTraining, Mode::kFrozen, Mode::kInference};
const char* mode_name(Mode mode) {
  return mode == Mode::kTraining ? "training" : mode == Mode::kFrozen ? "frozen" : "inference";
}

// The networks that are drawn, with one precision, until `wanted` of them count.
template <class T>
void test_networks(const char* name, cuda::Precision precision, const Bounds& bounds,
                   std::uint64_t first_seed, int wanted) {
  int counted = 0;
  for (std::uint64_t seed = first_seed; counted < wanted; ++seed) {
    const Case problem = draw(seed, sizeof(T) == 4 ? "float32" : "float64");
    const Mode mode = kModes[seed % 3];
    cuda::test::context = concat(name, " ", mode_name(mode), " seed ", seed, " rows ", problem.rows,
                                 " ", problem.json);
    if (seed > first_seed + 8 * static_cast<std::uint64_t>(wanted)) {
      expect_that(false, "too few networks are well conditioned");
      return;
    }
    const Result want = run_on_cpu<double>(problem, mode);
    if (want.near_kink || !within(run_on_cpu<float>(problem, mode), want, kBounds<float>, kReserve))
      continue;
    ++counted;
    // Sometimes a part of the layers alone; memory for more rows than there are.
    const CudaPrecision products{precision, seed % 2 == 0 ? 1 : 32};
    CudaCase<T> cuda_case(problem, products, problem.rows + static_cast<std::int64_t>(seed % 70));
    const Result ahead = cuda_case.run(mode, true);
    expect_result("loss ahead", ahead, want, bounds);
    if (products.rounds() && mode != Mode::kInference) cuda_case.expect_rounded();
    expect_that(same(cuda_case.run(mode, true), ahead), "expected the same bits again");
    expect_result("loss alone", cuda_case.run(mode, false), want, bounds);
  }
}

// Dropout between two dense layers, behind every kind of derivative.
template <class T>
void test_dropout() {
  for (const char* phi :
       {"", R"("relu",)", R"("gelu",)", R"("tanh",)", R"({"type":"leaky_relu","slope":0.125},)"}) {
    const std::string hidden =
        concat(R"({"type":"dense","units":33},)", phi, R"({"type":"dropout","p":0.25})");
    int counted = 0;
    for (std::uint64_t seed = 800; counted < 2; ++seed) {
      const Case problem = draw(seed, sizeof(T) == 4 ? "float32" : "float64", hidden);
      const Result want = run_on_cpu<double>(problem, Mode::kTraining);
      if (want.near_kink ||
          !within(run_on_cpu<float>(problem, Mode::kTraining), want, kBounds<float>, kReserve))
        continue;
      ++counted;
      cuda::test::context = concat("dropout, seed ", seed, " ", problem.json);
      CudaCase<T> cuda_case(problem, {}, problem.rows);
      expect_result("training", cuda_case.run(Mode::kTraining, true), want, kBounds<T>);
    }
  }
}

// A layer with more columns of tiles than a launch may always count on tickets for.
void test_wide_layer() {
  const std::string dense = concat(R"({"type":"dense","units":)", cuda::kTickets * 64 + 8, "},");
  for (const char* rest : {R"("tanh")", R"("batch_norm","tanh")"}) {
    Case problem;
    std::uint64_t seed = 900;
    do {
      problem = draw(++seed, "float64", R"({"type":"dense","units":1})");
    } while (problem.rows < 3 || problem.rows > 16 ||
             compile(parse_description(problem.json)).in_features > 5);
    problem = draw(seed, "float64", dense + rest);
    cuda::test::context = concat("wide layer, seed ", seed, " ", problem.json);
    const Result want = run_on_cpu<double>(problem, Mode::kTraining);
    CudaCase<double> cuda_case(problem, {}, problem.rows);
    expect_result("training", cuda_case.run(Mode::kTraining, true), want, kBounds<double>);
  }
}

// The rows of a batch in two parts: sums add up.
template <class T>
void test_accumulation() {
  for (std::uint64_t seed = 500; seed < 512; ++seed) {
    const Case problem = draw(seed, sizeof(T) == 4 ? "float32" : "float64");
    cuda::test::context = concat("accumulation, seed ", seed, " ", problem.json);
    CudaCase<T> cuda_case(problem, {}, problem.rows);
    const Result once = cuda_case.run(Mode::kFrozen, seed % 2 == 0);
    const Result twice = cuda_case.run(Mode::kFrozen, seed % 2 == 0, true);
    const auto halves = [](std::vector<double> values) {
      for (double& value : values) value /= 2;
      return values;
    };
    expect_that(distance(halves(twice.gradient), once.gradient) <= kBounds<T>.gradient,
                "gradients add up");
    expect_that(
        std::abs(twice.totals.loss - 2 * once.totals.loss) <= 1e-12 * std::abs(once.totals.loss) &&
            twice.totals.weight == 2 * once.totals.weight,
        "sums of the loss add up");
  }
}

// The evaluation output of a row does not depend on the batch.
template <class T>
void test_batch_size(cuda::Precision precision) {
  for (std::uint64_t seed = 600; seed < 604; ++seed) {
    Case problem = draw(seed, sizeof(T) == 4 ? "float32" : "float64");
    cuda::test::context = concat("batch size, seed ", seed, " ", problem.json);
    problem.first_row = 0;
    const CudaPrecision products{precision, 1};
    const Result all = CudaCase<T>(problem, products, problem.rows).run(Mode::kInference, false);
    const auto outputs = static_cast<std::ptrdiff_t>(all.outputs.size()) / problem.rows;
    const auto in = static_cast<std::ptrdiff_t>(problem.x.size()) / problem.rows;
    for (const std::int64_t row : {problem.rows - 1, problem.rows / 2}) {
      Case one = problem;
      one.rows = 1;
      one.x.assign(problem.x.begin() + row * in, problem.x.begin() + (row + 1) * in);
      one.targets.resize(static_cast<std::size_t>(outputs));
      one.labels.resize(1);
      one.weights.resize(1);
      const Result alone = CudaCase<T>(one, products, 1).run(Mode::kInference, false);
      expect_that(std::equal(alone.outputs.begin(), alone.outputs.end(),
                             all.outputs.begin() + row * outputs),
                  "row ", row, " alone: expected the same bits");
    }
  }
}

template <class T>
void test_running_statistics() {
  int counted = 0;
  for (std::uint64_t seed = 700; counted < 6; ++seed) {
    const Case problem = draw(seed, sizeof(T) == 4 ? "float32" : "float64");
    CudaCase<T> cuda_case(problem, {}, problem.rows);
    const Plan& plan = cuda_case.plan();
    if (!plan.has_batch_norm()) continue;
    ++counted;
    cuda::test::context = concat("running statistics, seed ", seed, " ", problem.json);
    const Result result = cuda_case.run(Mode::kTraining, true);
    std::vector<std::int64_t> batches;
    for (std::size_t s = 0; s < plan.states.size(); ++s) batches.push_back(3 + static_cast<int>(s));
    std::vector<double> want;
    std::size_t at = 0;
    for (std::size_t s = 0; s < plan.states.size(); ++s) {
      const BatchNormState& norm = plan.states[s];
      const double total =
          norm.weighted ? total_weight(problem) : static_cast<double>(problem.rows);
      const double share = norm.momentum.value_or(1.0 / static_cast<double>(batches[s] + 1));
      const float* running = problem.running.data() + 2 * at;
      const auto width = static_cast<std::size_t>(norm.width);
      for (std::size_t c = 0; c < width; ++c)
        want.push_back((1 - share) * static_cast<double>(running[c]) +
                       share * result.batch_mean[at + c]);
      for (std::size_t c = 0; c < width; ++c)
        want.push_back((1 - share) * static_cast<double>(running[width + c]) +
                       share * total / (total - 1) * result.batch_var[at + c]);
      at += width;
    }
    const double error = distance(cuda_case.running_after(batches), want);
    expect_that(error <= kBounds<T>.loss, "expected a relative error of at most ", kBounds<T>.loss,
                ", got ", error);
  }
}

void test_parameters() {
  cuda::test::context = "parameters";
  const Case problem = draw(3, "float32");
  const Plan plan = compile(parse_description(problem.json));
  CudaParameters<float> parameters(plan, {cuda::Precision::kThreePlanes, 1}, kStream);
  parameters.set_flat(plan, problem.parameters.data(), kStream);
  std::vector<float> back(problem.parameters.size());
  parameters.get_flat(plan, back.data(), kStream);
  expect_that(back == problem.parameters, "expected the same bits from the device");
  for (const CudaLayout::Place& place : parameters.layout.tensors)
    expect_that(place.offset % kGroupBlock == 0 && place.padded % kGroupBlock == 0 &&
                    place.pitch % cuda::kPitch == 0,
                "alignment of the tensors");
}

// A workspace has the scratch memory for every smaller minibatch.
template <class T>
void test_scratch_memory() {
  const auto dense = [](int units) { return concat(R"({"type":"dense","units":)", units, "}"); };
  for (const std::string& layers :
       {dense(64) + R"(,"relu",)" + dense(64) + R"(,"relu",)" + dense(10),
        dense(200) + R"(,"relu",)" + dense(2),
        dense(40) + R"(,"batch_norm","relu",)" + dense(130) + R"(,"tanh",)" + dense(3)}) {
    for (const int in : {64, 100}) {
      cuda::test::context = concat("scratch memory ", layers, " of ", in);
      const char* const dtype = sizeof(T) == 4 ? "float32" : "float64";
      const Plan plan = compile(parse_description(concat(R"({"in_features":)", in, R"(,"dtype":")",
                                                         dtype, R"(","layers":[)", layers, "]}")));
      const CudaParameters<T> parameters(plan, {}, kStream);
      const auto bytes = [&](std::int64_t rows) {
        cuda::Region counter;
        return CudaWorkspace<T>(plan, parameters, rows, true, 0, &counter).scratch_bytes();
      };
      for (const auto& [rows, capacity] :
           {std::pair<int, int>{16384, 20000}, {20000, 30000}, {500, 512}, {4096, 5000}})
        expect_that(bytes(rows) <= bytes(capacity), "expected ", capacity, " rows to reserve the ",
                    bytes(rows), " bytes of ", rows, ", got ", bytes(capacity));
    }
  }
}

void test_precision() {
  cuda::test::context = "precision";
  using cuda::Precision;
  const auto large = [](const char* asked, int capability, const char* dtype = "float32",
                        int compiled_for = 0) {
    const std::string json =
        concat(R"({"in_features":4,"layers":["relu"],"dtype":")", dtype,
               R"(","loss":"squared_error","matmul_precision":")", asked, "\"}");
    return CudaPrecision::choose(parse_description(json), capability,
                                 compiled_for > 0 ? compiled_for : capability)
        .large;
  };
  expect_that(large("highest", 90) == Precision::kThreePlanes, "highest on sm_90");
  expect_that(large("high", 80) == Precision::kTwoPlanes, "high on sm_80");
  expect_that(large("highest", 89) == Precision::kSimt, "highest on sm_89");
  expect_that(large("medium", 120) == Precision::kBfloat16, "medium on sm_120");
  expect_that(large("medium", 75) == Precision::kSimt, "medium on sm_75");
  // Code of an older architecture than the device's.
  expect_that(large("highest", 90, "float32", 80) == Precision::kThreePlanes, "sm_80 on sm_90");
  expect_that(large("highest", 86, "float32", 80) == Precision::kSimt, "sm_80 on sm_86");
  expect_that(large("medium", 80, "float32", 75) == Precision::kSimt, "sm_75 on sm_80");
  expect_that(large("medium", 90, "float64") == Precision::kSimt, "float64");
}

void tests() {
  test_parameters();
  test_precision();
  test_scratch_memory<float>();
  test_scratch_memory<double>();
  test_networks<double>("float64", cuda::Precision::kSimt, kBounds<double>, 1000, 12);
  test_networks<float>("float32", cuda::Precision::kSimt, kBounds<float>, 2000, 24);
  if (cuda::test::has_tensor_cores()) {
    test_networks<float>("three planes", cuda::Precision::kThreePlanes, kBounds<float>, 3000, 12);
    // Operands of 16 and of 8 significant bits, in networks of few layers.
    test_networks<float>("two planes", cuda::Precision::kTwoPlanes, {1e-4, 1e-4, 1e-3, 1.0}, 4000,
                         8);
    test_networks<float>("bfloat16", cuda::Precision::kBfloat16, {3e-2, 3e-2, 2e-1, 5.0}, 5000, 8);
    test_batch_size<float>(cuda::Precision::kThreePlanes);
  }
  test_dropout<float>();
  test_dropout<double>();
  test_wide_layer();
  test_accumulation<float>();
  test_accumulation<double>();
  test_batch_size<float>(cuda::Precision::kSimt);
  test_batch_size<double>(cuda::Precision::kSimt);
  test_running_statistics<float>();
  test_running_statistics<double>();
}

}  // namespace
}  // namespace thalweg

int main() { return thalweg::cuda::test::run(thalweg::tests); }
