// Pure passes on a GPU: evaluation, prediction, loss and gradient. Each call takes a lane, a stream
// with a workspace, and may run beside others.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "cuda/activation.h"
#include "cuda/gather.h"
#include "cuda/loss.h"
#include "math/activations.h"
#include "training/cuda_engine.h"
#include "training/cuda_rows.h"

namespace thalweg {
namespace {

// Rows of one pass: whole row blocks, so that sums over rows do not depend on the batch size.
std::int64_t inference_rows(std::int64_t rows, std::int64_t batch_size) {
  return std::min(round_up(std::min(batch_size, rows), kRowBlock), rows);
}

}  // namespace

template <class T>
CudaEngine<T>::Lane::Lane(const Plan& plan, const CudaParameters<T>& parameters, std::int64_t rows,
                          bool gradients)
    : stream("workspace"),
      workspace(plan, parameters, rows, gradients),
      state(1, "workspace"),
      finished{cuda::Event("workspace"), cuda::Event("workspace")} {
  workspace.reserve_scratch(cuda::gather_targets_scratch_bytes(rows));
}

template <class T>
class CudaEngine<T>::Lease {
 public:
  Lease(const CudaEngine& engine, std::int64_t rows, bool gradients) : engine_(engine) {
    {
      const std::lock_guard lock(engine.pool_mutex_);
      auto& pool = engine.pool_;
      const auto fits = [&](const auto& lane) {
        return lane->workspace.capacity() >= rows && lane->workspace.has_gradients() == gradients;
      };
      const auto found = std::find_if(pool.begin(), pool.end(), fits);
      if (found != pool.end()) {
        lane_ = std::move(*found);
        pool.erase(found);
      }
    }
    if (!lane_) lane_ = std::make_unique<Lane>(engine.plan_, engine.parameters_, rows, gradients);
    lane_->workspace.set_rows(rows);
  }
  ~Lease() {
    // Nothing of this call may be left when the next one takes the lane.
    if (cudaStreamSynchronize(lane_->stream) != cudaSuccess) return;
    const std::lock_guard lock(engine_.pool_mutex_);
    if (engine_.pool_.size() >= kPooledLanes) engine_.pool_.erase(engine_.pool_.begin());
    engine_.pool_.push_back(std::move(lane_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Lane& operator*() const { return *lane_; }
  Lane* operator->() const { return lane_.get(); }

 private:
  const CudaEngine& engine_;
  std::unique_ptr<Lane> lane_;
};

template <class T>
void CudaEngine<T>::release_workspaces() const {
  const cuda::DeviceScope scope(device_);
  (void)release_lanes();
}

template <class T>
bool CudaEngine<T>::release_lanes() const noexcept {
  const std::lock_guard lock(pool_mutex_);
  const bool any = !pool_.empty();
  pool_.clear();
  return any;
}

template <class T>
template <class Queue, class Finish>
void CudaEngine<T>::infer(Lane& lane, const Data& data, Targets targets, std::int64_t chunk,
                          bool with_loss, const Interrupt& interrupt, const char* operation,
                          Queue&& queue, Finish&& finish) const {
  const std::int64_t rows = data.x.rows;
  exchange_.join(data, lane.stream);
  if (device_bytes(data, chunk) > 0 && (!lane.staging || !lane.staging->fits(data, chunk))) {
    lane.staging.reset();
    lane.staging.emplace(data, chunk);
  }
  const auto stop = [&]() { throw Interrupted(concat("[", operation, "] interrupted")); };
  std::int64_t waiting = 0;  // first row of the chunk that the host has not finished
  const auto finish_one = [&] {
    const int slot = static_cast<int>(waiting / chunk % CudaStaging::kSlots);
    if (!wait_for(lane.finished[static_cast<std::size_t>(slot)], interrupt, operation)) stop();
    finish(slot, waiting, std::min(chunk, rows - waiting));
    waiting += chunk;
  };
  for (std::int64_t first = 0; first < rows; first += chunk) {
    if (interrupt && interrupt()) stop();
    const std::int64_t count = std::min(chunk, rows - first);
    const int slot = static_cast<int>(first / chunk % CudaStaging::kSlots);
    Data part = slice(data, first, count);
    if (lane.staging && device_bytes(data, chunk) > 0) {
      lane.staging->fill(
          slot, part, count, [](std::int64_t r) { return r; }, threads_, {}, lane.stream);
      part = lane.staging->view(slot, part, count);
    }
    lane.workspace.set_rows(count);
    queue_rows(plan_, part, targets, 0, false, nullptr, lane.workspace, lane.stream);
    CudaResults<T> results;
    results.accumulate = first > 0;
    CudaBackend<T> backend(plan_, parameters_, lane.workspace, results, lane.stream);
    Executor executor(backend);
    const LossRequest request{0.0, data.weights.present(), targets == Targets::kDense};
    executor.forward(Pass{}, with_loss ? &request : nullptr);
    if (with_loss) executor.loss(Pass{}, request, nullptr);
    queue(slot);
    if (lane.staging) lane.staging->used(slot, lane.stream);
    lane.finished[static_cast<std::size_t>(slot)].record(lane.stream, operation);
    if (waiting < first) finish_one();
  }
  while (waiting < rows) finish_one();
}

template <class T>
void CudaEngine<T>::predict(const ArrayView& x, std::int64_t batch_size, OutputMap map, T* out,
                            const Interrupt& interrupt, const char* operation) const {
  const cuda::DeviceScope scope(device_);
  const std::int64_t width = plan_.out_features;
  const std::int64_t chunk = inference_rows(x.rows, batch_size);
  const Lease lease(*this, chunk, false);
  Lane& lane = *lease;
  const std::int64_t slot_size = element_count(lane.workspace.capacity(), width);
  const bool to_device = exchange_.memory_of(out) == Memory::kCuda;
  if (to_device) exchange_.join(lane.stream);
  if (!to_device && lane.host_outputs.size() == 0) {
    lane.outputs = cuda::DeviceArray<T>(CudaStaging::kSlots * slot_size, operation);
    lane.host_outputs = cuda::PinnedArray<T>(CudaStaging::kSlots * slot_size, operation);
  }
  Data data;
  data.x = x;
  std::int64_t queued = 0;  // rows
  infer(
      lane, data, Targets::kNone, chunk, false, interrupt, operation,
      [&](int slot) {
        const cuda::Matrix<T> outputs =
            lane.workspace.value(plan_.value_holder(plan_.output, true));
        const cuda::Matrix<T> mapped = lane.workspace.targets();
        switch (map) {
          case OutputMap::kIdentity:
            break;
          case OutputMap::kSoftmax:
            cuda::softmax<T>(outputs, mapped, lane.stream);
            break;
          case OutputMap::kSigmoid:
            cuda::activation<T>(outputs, mapped, {kActivationSigmoid, 0.0}, lane.stream);
            break;
          case OutputMap::kSigmoidOfTwice:
            cuda::add<T>(outputs, outputs, mapped, lane.stream);
            cuda::activation<T>(mapped, mapped, {kActivationSigmoid, 0.0}, lane.stream);
            break;
        }
        T* dense = to_device ? out + queued * width : lane.outputs.data() + slot * slot_size;
        cuda::scatter<T>(map == OutputMap::kIdentity ? outputs : mapped, dense, width, lane.stream);
        queued += outputs.rows;
        if (to_device) return;
        cuda::check(cudaMemcpyAsync(lane.host_outputs.data() + slot * slot_size, dense,
                                    array_bytes(outputs.rows * width, sizeof(T)),
                                    cudaMemcpyDeviceToHost, lane.stream),
                    operation);
      },
      [&](int slot, std::int64_t first, std::int64_t rows) {
        if (to_device) return;
        std::copy_n(lane.host_outputs.data() + slot * slot_size, rows * width, out + first * width);
      });
}

template <class T>
LossTotals CudaEngine<T>::evaluate(const Data& data, Targets targets, std::int64_t batch_size,
                                   const CustomLoss& custom_loss,
                                   const Interrupt& interrupt) const {
  const cuda::DeviceScope scope(device_);
  const std::int64_t chunk = inference_rows(data.x.rows, batch_size);
  const Lease lease(*this, chunk, false);
  Lane& lane = *lease;
  LossTotals sum;
  std::int64_t first = 0;
  std::vector<std::int64_t> row_index;
  infer(
      lane, data, targets, chunk, !custom_loss, interrupt, "evaluate",
      [&](int) {
        if (!custom_loss) return;
        const std::int64_t rows = lane.workspace.rows();
        row_index.clear();
        for (std::int64_t r = 0; r < rows; ++r) row_index.push_back(first + r);
        first += rows;
        const auto weight = static_cast<double>(rows);
        sum.loss +=
            weight * call_custom_loss(plan_, lane.workspace, plan_.value_holder(plan_.output, true),
                                      row_index, custom_loss, 0.0, lane.stream);
        sum.weight += weight;
      },
      [](int, std::int64_t, std::int64_t) {});
  if (custom_loss) return sum;
  cuda::LossSums sums;
  cuda::download(lane.workspace.losses.data(), &sums, 1, lane.stream, "evaluate");
  return {sums.loss, sums.hits, sums.weight};
}

template <class T>
Data CudaEngine<T>::stage_all(Lane& lane, const Data& data, const Interrupt& interrupt) const {
  const std::int64_t rows = data.x.rows;
  exchange_.join(data, lane.stream);
  if (device_bytes(data, rows) == 0) return data;
  if (!lane.staging || !lane.staging->fits(data, rows)) {
    lane.staging.reset();
    lane.staging.emplace(data, rows);
  }
  lane.staging->fill(
      0, data, rows, [](std::int64_t r) { return r; }, threads_, interrupt, lane.stream);
  return lane.staging->view(0, data, rows);
}

template <class T>
void CudaEngine<T>::activations(const ArrayView& x, bool training, std::uint64_t step,
                                const std::vector<void*>& out, const Interrupt& interrupt) const {
  constexpr const char* kOperation = "activations";
  const cuda::DeviceScope scope(device_);
  // Unfused, every layer has a buffer.
  const Plan plan = compile(plan_.description, false);
  Lane lane(plan, parameters_, x.rows, false);
  Data data;
  data.x = x;
  if (exchange_.memory_of(out[0]) == Memory::kCuda) exchange_.join(lane.stream);
  queue_rows(plan, stage_all(lane, data, interrupt), Targets::kNone, 0,
             plan.has_weighted_batch_norm(), nullptr, lane.workspace, lane.stream);
  Pass pass;
  pass.mode = training ? Mode::kTraining : Mode::kInference;
  pass.seed = plan.description.seed;
  pass.step = step;
  CudaBackend<T> backend(plan, parameters_, lane.workspace, {}, lane.stream);
  Executor(backend).forward(pass);
  lane.finished[0].record(lane.stream, kOperation);
  if (!wait_for(lane.finished[0], interrupt, kOperation)) {
    lane.stream.synchronize(kOperation);
    throw Interrupted("[activations] interrupted");
  }
  for (std::size_t i = 0; i < out.size(); ++i)
    queue_download(lane.workspace.value(plan.value_holder(plan.layers[i].buffer, !training)),
                   static_cast<T*>(out[i]), lane.stream, kOperation);
  lane.stream.synchronize(kOperation);
}

template <class T>
LossTotals CudaEngine<T>::loss_and_gradient(const Data& data, Targets targets,
                                            const GradientRequest<T>& request) const {
  constexpr const char* kOperation = "loss_and_grad";
  const cuda::DeviceScope scope(device_);
  const std::int64_t rows = data.x.rows;
  const bool with_gradient = request.gradient != nullptr || request.input_gradient != nullptr;
  const Lease lease(*this, rows, with_gradient);
  Lane& lane = *lease;
  cuda::StepState state;
  state.steps = static_cast<std::int64_t>(request.step);
  cuda::upload(&state, lane.state.data(), 1, lane.stream, kOperation);
  for (const T* result : {request.gradient, request.input_gradient})
    if (exchange_.memory_of(result) == Memory::kCuda) exchange_.join(lane.stream);
  queue_rows(plan_, stage_all(lane, data, request.interrupt), targets, 0,
             request.training && plan_.has_weighted_batch_norm(), lane.state.data(), lane.workspace,
             lane.stream);
  if (request.training && plan_.has_weighted_batch_norm()) {
    cuda::download(lane.state.data(), &state, 1, lane.stream, kOperation);
    check_total_weight(plan_, state.weight, kOperation);
  }

  const cuda::DeviceArray<T> gradients(request.gradient ? parameters_.layout.size : 0, kOperation);
  CudaResults<T> results;
  results.state = lane.state.data();
  results.gradients = gradients.data();
  Pass pass;
  pass.mode = request.training ? Mode::kTraining : with_gradient ? Mode::kFrozen : Mode::kInference;
  pass.seed = plan_.description.seed;
  pass.step = request.step;
  pass.input_gradient = request.input_gradient != nullptr;
  CudaBackend<T> backend(plan_, parameters_, lane.workspace, results, lane.stream);
  Executor executor(backend);
  LossTotals totals;
  if (request.custom_loss) {
    executor.forward(pass);
    std::vector<std::int64_t> row_index;
    for (std::int64_t r = 0; r < rows; ++r) row_index.push_back(r);
    const double value = call_custom_loss(
        plan_, lane.workspace, plan_.value_holder(plan_.output, pass.mode == Mode::kInference),
        row_index, request.custom_loss, 1.0, lane.stream);
    cuda::download(lane.state.data(), &state, 1, lane.stream, kOperation);
    totals.weight = state.weight;
    totals.loss = value / loss_scale(plan_, totals.weight);
  } else {
    const LossRequest loss{with_gradient ? 1.0 : 0.0, data.weights.present(),
                           targets == Targets::kDense};
    executor.forward(pass, &loss);
    executor.loss(pass, loss, nullptr);
  }
  if (with_gradient) {
    executor.backward(pass);
    if (request.gradient) executor.gradients(gradients.data(), false, [](int) { return true; });
  }
  lane.finished[0].record(lane.stream, kOperation);
  if (!wait_for(lane.finished[0], request.interrupt, kOperation))
    throw Interrupted("[loss_and_grad] interrupted");
  if (!request.custom_loss) {
    cuda::download(lane.state.data(), &state, 1, lane.stream, kOperation);
    totals = {state.loss, state.hits, state.weight};
  }
  if (request.input_gradient) {
    queue_download(lane.workspace.gradient(0), request.input_gradient, lane.stream, kOperation);
    lane.stream.synchronize(kOperation);
  }
  if (request.gradient)
    download_flat<T>(plan_, parameters_.layout, gradients.data(), request.gradient, lane.stream);
  return totals;
}

template <class T>
void CudaEngine<T>::recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                                           std::uint64_t step, const Interrupt& interrupt) {
  constexpr const char* kOperation = "recalibrate_batch_norm";
  const cuda::DeviceScope scope(device_);
  const Lease lease(*this, std::min(x.rows, batch_size), false);
  Lane& lane = *lease;
  std::vector<double> mean(static_cast<std::size_t>(plan_.state_size), 0.0);  // flat: mean, var
  std::int64_t batches = 0;
  for (std::int64_t first = 0; first < x.rows; first += batch_size) {
    Data data;
    data.x = x.slice(first, std::min(batch_size, x.rows - first));
    const std::int64_t rows = data.x.rows;
    if (rows < 2) break;
    lane.workspace.set_rows(rows);
    queue_rows(plan_, stage_all(lane, data, interrupt), Targets::kNone, 0,
               plan_.has_weighted_batch_norm(), nullptr, lane.workspace, lane.stream);
    Pass pass;
    pass.mode = Mode::kTraining;
    pass.seed = plan_.description.seed;
    pass.step = step;
    pass.first_row = first;
    CudaBackend<T> backend(plan_, parameters_, lane.workspace, {}, lane.stream);
    Executor(backend).forward(pass);
    if (lane.staging) lane.staging->used(0, lane.stream);
    lane.finished[0].record(lane.stream, kOperation);
    if (!wait_for(lane.finished[0], interrupt, kOperation))
      throw Interrupted("[recalibrate_batch_norm] interrupted; nothing was changed");
    ++batches;
    const auto total = static_cast<double>(rows);
    double* to = mean.data();
    for (std::size_t s = 0; s < plan_.states.size(); ++s) {
      const std::int64_t width = plan_.states[s].width;
      std::vector<double> batch(static_cast<std::size_t>(width));
      for (const bool variance : {false, true}) {
        const int index = static_cast<int>(s);
        cuda::download(
            variance ? lane.workspace.batch_var(index) : lane.workspace.batch_mean(index),
            batch.data(), width, lane.stream, kOperation);
        for (const double value : batch) *to++ += variance ? total / (total - 1.0) * value : value;
      }
    }
  }
  std::vector<T> state(mean.size());
  std::transform(mean.begin(), mean.end(), state.begin(), [&](double value) {
    return static_cast<T>(value / static_cast<double>(batches));
  });
  set_state(state.data());
  set_batches(std::vector<std::int64_t>(plan_.states.size(), batches));
}

#define TW_INSTANTIATE(T)                                                                        \
  template CudaEngine<T>::Lane::Lane(const Plan&, const CudaParameters<T>&, std::int64_t, bool); \
  template void CudaEngine<T>::release_workspaces() const;                                       \
  template bool CudaEngine<T>::release_lanes() const noexcept;                                   \
  template void CudaEngine<T>::predict(const ArrayView&, std::int64_t, OutputMap, T*,            \
                                       const Interrupt&, const char*) const;                     \
  template LossTotals CudaEngine<T>::evaluate(const Data&, Targets, std::int64_t,                \
                                              const CustomLoss&, const Interrupt&) const;        \
  template void CudaEngine<T>::activations(const ArrayView&, bool, std::uint64_t,                \
                                           const std::vector<void*>&, const Interrupt&) const;   \
  template LossTotals CudaEngine<T>::loss_and_gradient(const Data&, Targets,                     \
                                                       const GradientRequest<T>&) const;         \
  template void CudaEngine<T>::recalibrate_batch_norm(const ArrayView&, std::int64_t,            \
                                                      std::uint64_t, const Interrupt&);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
