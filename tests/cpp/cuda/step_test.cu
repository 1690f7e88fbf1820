// A whole step without products, captured once and replayed: what changes from step to step comes
// from the state in device memory, and a step that fails stops all that are queued behind it.
#include "core/layout.h"
#include "cuda/batch_norm.h"
#include "cuda/dropout.h"
#include "cuda/gather.h"
#include "cuda/loss.h"
#include "cuda/optimizer_step.h"
#include "cuda/step_state.h"
#include "math/optimizers.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

constexpr int64_t kData = 400, kRows = 64, kClasses = 12, kSteps = 5;
constexpr int64_t kCount = kRows * 16;  // the gradient of the outputs is the one of the arena

struct Step {
  explicit Step(const std::vector<float>& data)
      : x(data),
        y(kData),
        z(kRows, kClasses),
        outputs(kRows, kClasses),
        gradient(kRows, kClasses),
        labels(kRows),
        mean(16),
        inv_std(16),
        gamma(std::vector<float>(16, 1.0f)),
        beta(std::vector<float>(16, 0.0f)),
        batch_mean(16),
        batch_var(16),
        running_mean(std::vector<float>(16, 0.0f)),
        running_var(std::vector<float>(16, 1.0f)),
        batches(std::vector<int64_t>{0}),
        p(std::vector<float>(kCount, 0.5f)),
        s0(std::vector<float>(kCount, 0.0f)),
        s1(std::vector<float>(kCount, 0.0f)),
        groups(std::vector<std::uint8_t>(kCount / kGroupBlock, 0)),
        frozen(std::vector<std::uint8_t>{0}),
        blocks(std::vector<std::int32_t>{0, 1, 2, 3}),
        coefficients(kSteps * kMaxCoefficients),
        state(1),
        scratch(1 << 16) {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < kData; ++i) all.push_back(i % kClasses);
    y.upload(all);
    std::vector<double> table(kSteps * kMaxCoefficients);
    const double hyper[kMaxHyperParameters] = {0.01, 0.9, 0.999, 1e-8, 0};
    for (int64_t t = 1; t <= kSteps; ++t)
      optimizer_coefficients(kOptimizerAdam, hyper, hyper, t,
                             &table[static_cast<std::size_t>((t - 1) * kMaxCoefficients)]);
    coefficients.upload(table);
    StepState start;
    start.order = Order(Shuffle::kEpoch, kData, 1, 0);
    start.steps = 7;
    state.upload({start});
  }

  void queue(cudaStream_t stream) {
    const RowOrder order{nullptr, state.data(), 0};
    gather<float>(ArrayView::matrix(x.data(), kData, kClasses), order, z, stream);
    GatherTargets<float> targets;
    targets.order = order;
    targets.rows = kRows;
    targets.labels = ArrayView::vector(y.data(), kData);
    targets.classes = kClasses;
    targets.label_out = labels.data();
    targets.state = state.data();
    gather_targets(targets, scratch.scratch(), stream);

    BatchNormApply<float> norm;
    norm.z = z;
    norm.y = outputs;
    norm.gamma = gamma.data();
    norm.beta = beta.data();
    batch_norm_forward(norm, {},
                       BatchStatistics<float>{1e-5, batch_mean.data(), batch_var.data(),
                                              mean.data(), inv_std.data()},
                       scratch.scratch(), stream);
    Dropout drop;
    drop.state = state.data();
    drop.threshold = 1u << 30;
    drop.scale = 4.0 / 3.0;
    dropout<float>(outputs, outputs, drop, false, stream);

    Loss<float> loss;
    loss.outputs = outputs;
    loss.labels = labels.data();
    loss.gradient = gradient;
    loss.gradient_scale_at = &state.data()->gradient_scale;
    loss.state = state.data();
    softmax_cross_entropy(loss, scratch.scratch(), stream);

    RunningStatistics<float> running;
    running.width = kClasses;
    running.batch_mean = batch_mean.data();
    running.batch_var = batch_var.data();
    running.rows = kRows;
    running.momentum = 0.1;
    running.mean_in = running.mean = running_mean.data();
    running.var_in = running.var = running_var.data();
    running.batches = batches.data();
    update_running_statistics(&running, 1, state.data(), stream);

    const ParameterGroups all{groups.data(), frozen.data(), 1};
    const float* const g = gradient.matrix().data;
    GradientNorm<float> clip;
    clip.g = g;
    clip.blocks = blocks.data();
    clip.block_count = blocks.size();
    clip.clip_norm = 0.05;
    clip.state = state.data();
    gradient_norm(clip, scratch.scratch(), stream);
    OptimizerStep<float> update;
    update.optimizer = kOptimizerAdam;
    update.state = state.data();
    update.count = kCount;
    update.p = p.data();
    update.g = g;
    update.s0 = s0.data();
    update.s1 = s1.data();
    update.groups = all;
    update.coefficients = coefficients.data();
    update.advances = true;
    update.rows = kRows;
    optimizer_step(update, scratch.scratch(), stream);
  }

  DeviceArray<float> x;
  DeviceArray<int64_t> y;
  DeviceMatrix<float> z, outputs, gradient;
  DeviceArray<int64_t> labels;
  DeviceArray<float> mean, inv_std, gamma, beta;
  DeviceArray<double> batch_mean, batch_var;
  DeviceArray<float> running_mean, running_var;
  DeviceArray<int64_t> batches;
  DeviceArray<float> p, s0, s1;
  DeviceArray<std::uint8_t> groups, frozen;
  DeviceArray<std::int32_t> blocks;
  DeviceArray<double> coefficients;
  DeviceArray<StepState> state;
  TestScratch scratch;
};

void expect_same_model(Step& a, Step& b) {
  expect_same_bits("p", a.p.download(), b.p.download());
  expect_same_bits("slots", a.s1.download(), b.s1.download());
  expect_same_bits("running variance", a.running_var.download(), b.running_var.download());
  const StepState x = a.state.download()[0], y = b.state.download()[0];
  expect_that(x.run_loss == y.run_loss && x.run_hits == y.run_hits && x.position == y.position &&
                  x.status == y.status && x.squares == y.squares,
              "states differ");
}

void test_replay() {
  context = "replay";
  const std::vector<float> data = Random(1).normals<float>(kData * kClasses);
  Step queued(data), replayed(data);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test");
  check(cudaDeviceSynchronize(), "test");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  replayed.queue(stream);
  check(cudaStreamEndCapture(stream, &graph), "test");
  check(cudaGraphInstantiate(&executable, graph, 0), "test");
  for (int64_t i = 0; i < kSteps; ++i) {
    queued.queue(stream);
    check(cudaGraphLaunch(executable, stream), "test");
  }
  check(cudaStreamSynchronize(stream), "test");
  expect_same_model(queued, replayed);
  const StepState state = replayed.state.download()[0];
  expect_that(state.updates == kSteps && state.steps == 7 + kSteps && state.row == kSteps &&
                  state.position == kSteps * kRows,
              "counters of the replays");
  expect_that(state.run_weight == static_cast<double>(kSteps * kRows) &&
                  state.status == StepStatus::kRunning && state.gradient_factor < 1,
              "sums of the replays");
  expect_that(replayed.batches.download()[0] == kSteps, "batches");
  replayed.scratch.expect_ready();

  // A NaN in the data of the third minibatch: two updates are made, none after it.
  context = "replay with a failure";
  std::vector<float> spoiled = data;
  const Order order(Shuffle::kEpoch, kData, 1, 0);
  spoiled[static_cast<std::size_t>(order(2 * kRows + 5) * kClasses)] = std::nanf("");
  Step two(data), failing(spoiled);
  for (int i = 0; i < 2; ++i) two.queue(stream);
  for (int i = 0; i < kSteps; ++i) failing.queue(stream);
  check(cudaStreamSynchronize(stream), "test");
  const StepState failed = failing.state.download()[0];
  expect_that(failed.status == StepStatus::kLossNotFinite && failed.updates == 2 &&
                  failed.position == 2 * kRows,
              "state after a failure: status ", static_cast<int>(failed.status), ", updates ",
              failed.updates, ", position ", failed.position);
  expect_same_bits("p after a failure", failing.p.download(), two.p.download());
  expect_same_bits("running mean after a failure", failing.running_mean.download(),
                   two.running_mean.download());
  check(cudaGraphExecDestroy(executable), "test");
  check(cudaGraphDestroy(graph), "test");
  check(cudaStreamDestroy(stream), "test");
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::test_replay); }
