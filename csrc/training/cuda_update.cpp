// Training on a GPU: the queue of updates.
//
// The rules of cuda/step_state.h keep a failing update, and all that is queued behind it, from
// changing the model: the host finds the failure when it looks, and runs the update's passes again
// to name the layer.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <thread>
#include <utility>

#include "core/error.h"
#include "cuda/arena_operations.h"
#include "cuda/gather.h"
#include "training/cuda_engine.h"
#include "training/cuda_rows.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "fit";
using Clock = std::chrono::steady_clock;

// Between two questions whether to stop.
constexpr std::chrono::milliseconds kAskEvery{2};
// The queue holds as many updates as take about this long, so that an interrupt is heard in time.
constexpr std::chrono::milliseconds kQueued{40};
constexpr std::int64_t kMostQueued = 64;
constexpr std::int64_t kLookEvery = 16;  // updates between two looks at the status
// Data sets that stay on the device from one call to the next.
constexpr std::int64_t kKeptBytes = std::int64_t{64} << 20;

bool has_dropout(const Plan& plan) {
  return std::any_of(plan.nodes.begin(), plan.nodes.end(),
                     [](const Node& node) { return node.kind == NodeKind::kDropout; });
}

// Asks the caller, but not too often, and never again after it has said yes.
class Question {
 public:
  explicit Question(const Interrupt& interrupt) : interrupt_(interrupt) {}
  bool stop() {
    if (stopped_ || !interrupt_) return stopped_;
    const Clock::time_point now = Clock::now();
    if (asked_ && now - last_ < kAskEvery) return false;
    asked_ = true;
    last_ = now;
    stopped_ = interrupt_();
    return stopped_;
  }

 private:
  const Interrupt& interrupt_;
  bool asked_ = false;
  bool stopped_ = false;
  Clock::time_point last_;
};

}  // namespace

template <class T>
void CudaEngine<T>::reserve_workspace(std::int64_t rows) {
  if (!workspace_ || workspace_->capacity() < rows) {
    if (workspace_memory_ != nullptr) {
      const std::size_t needed = workspace_bytes(rows);
      expect<ValueError>(needed <= workspace_memory_bytes_, "[fit] expected a workspace of ",
                         needed, " bytes for minibatches of ", rows, " rows, got ",
                         workspace_memory_bytes_, "; give more, or take smaller minibatches");
    }
    steps_.clear();
    workspace_.reset();
    cuda::Region region(workspace_memory_, workspace_memory_bytes_);
    cuda::Region* from = workspace_memory_ != nullptr ? &region : nullptr;
    if (from != nullptr || gradients_.size() == 0) gradients_ = take_gradients(from);
    workspace_ = take_workspace(rows, from);
  }
  if (coefficients_.size() == 0) {
    const std::int64_t count = kRunUpdates * slots_.rules.groups() * kMaxCoefficients;
    host_coefficients_ = cuda::PinnedArray<double>(count, kOperation);
    coefficients_ = cuda::DeviceArray<double>(count, kOperation);
  }
  if (plan_.has_batch_norm() && staged_state_.size() == 0) {
    staged_batches_ = cuda::DeviceArray<std::int64_t>(parameters_.batches.size(), kOperation);
    staged_state_ = cuda::DeviceArray<T>(plan_.state_size, kOperation);
  }
}

template <class T>
cuda::DeviceArray<T> CudaEngine<T>::take_gradients(cuda::Region* region) const {
  return cuda::DeviceArray<T>(parameters_.layout.size, kOperation, region);
}

template <class T>
std::unique_ptr<CudaWorkspace<T>> CudaEngine<T>::take_workspace(std::int64_t rows,
                                                                cuda::Region* region) const {
  const std::size_t scratch =
      std::max(cuda::gather_targets_scratch_bytes(rows),
               cuda::gradient_norm_scratch_bytes(parameters_.layout.size / kGroupBlock));
  return std::make_unique<CudaWorkspace<T>>(plan_, parameters_, rows, true, scratch, region);
}

template <class T>
std::size_t CudaEngine<T>::workspace_bytes(std::int64_t rows) const {
  cuda::Region counter;
  (void)take_gradients(&counter);
  (void)take_workspace(rows, &counter);
  return counter.used();
}

template <class T>
void CudaEngine<T>::set_workspace(void* memory, std::size_t bytes) {
  const cuda::DeviceScope scope(device_);
  stream_.synchronize(kOperation);  // what the caller has queued for that memory
  steps_.clear();
  workspace_.reset();
  gradients_ = {};
  workspace_memory_ = memory;
  workspace_memory_bytes_ = bytes;
}

template <class T>
void CudaEngine<T>::begin_fit(const FitSource& source, std::int64_t batch_size,
                              const Interrupt& interrupt) {
  const cuda::DeviceScope scope(device_);
  reserve_workspace(batch_size);
  fit_.emplace();
  Fit& fit = *fit_;
  fit.source = source;
  exchange_.join(source.data, stream_);
  // A step's data lie at other addresses every time, and a graph knows one.
  if (source.data.x.rows <= batch_size) fit.source.data = placed_.place(source.data, stream_);
  fit.weighted = source.data.weights.present() || !source.class_weights.empty();
  if (!source.class_weights.empty()) {
    const auto count = static_cast<std::int64_t>(source.class_weights.size());
    if (class_weights_.size() != count) {
      steps_.clear();
      class_weights_ = cuda::DeviceArray<double>(count, kOperation);
    }
    cuda::upload(source.class_weights.data(), class_weights_.data(), count, stream_, kOperation);
  }
  const Data& data = fit.source.data;
  const std::int64_t rows = data.x.rows;
  const std::int64_t bytes = device_bytes(data, rows);
  if (resident_.size() < bytes) {
    resident_ = {};
    const auto fits = [bytes] {
      std::size_t free = 0;
      std::size_t total = 0;
      cuda::check(cudaMemGetInfo(&free, &total), kOperation);
      // Some room is left to pure passes.
      return static_cast<std::size_t>(bytes) + total / 16 <= free;
    };
    if (fits() || (cuda::release_idle_memory() && fits())) {
      try {
        resident_ = cuda::DeviceArray<std::byte>(bytes, kOperation);
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kMemory) throw;
      }
    }
  }
  fit.resident = resident_.size() >= bytes;
  if (fit.resident) {
    upload_rows(data, resident_.data(), threads_, interrupt, stream_);
    fit.data = device_view(data, rows, resident_.data());
    return;
  }
  if (data.x.on_device())
    throw Error(
        ErrorCode::kMemory,
        concat("[fit] expected room for y and sample_weight in the memory of the GPU that x "
               "lies in, got none for ",
               bytes, " bytes"));
  if (data.y.on_device() || data.weights.on_device()) {
    fit.host.emplace(data, stream_);
    fit.source.data = fit.host->data();
  }
  if (!staging_ || !staging_->fits(fit.source.data, batch_size)) {
    steps_.clear();
    staging_.reset();
    staging_.emplace(fit.source.data, batch_size);
  }
}

template <class T>
void CudaEngine<T>::end_fit() noexcept {
  fit_.reset();
  if (resident_.size() <= kKeptBytes) return;
  try {
    const cuda::DeviceScope scope(device_);
    resident_ = {};
  } catch (const Error&) {
    // Without its device the memory is gone as well.
  }
}

template <class T>
std::int64_t CudaEngine<T>::plan_run(const Cursor& cursor, std::int64_t updates) {
  planned_.resize(kRunUpdates);
  Cursor ahead = cursor;
  std::int64_t count = 0;
  while (count < std::min(updates, kRunUpdates) && ahead.position < ahead.rows) {
    Planned& update = planned_[static_cast<std::size_t>(count++)];
    update.begin = ahead.position;
    next_parts(plan_, ahead, &update.parts);
    update.rows = update.parts.end - update.begin - update.parts.lone_rows;
    ahead.position = update.parts.end;
  }
  return count;
}

template <class T>
double CudaEngine<T>::weigh(const Order& order, const Part& part,
                            const Interrupt& interrupt) const {
  Batch batch;
  const Data& data = fit_->host ? fit_->host->data() : fit_->source.data;
  batch.data = &data;
  batch.class_weights = fit_->source.class_weights.empty() ? nullptr : &fit_->source.class_weights;
  batch.rows = part.rows;
  batch.classes = plan_.out_features;
  std::vector<double> blocks(static_cast<std::size_t>(row_blocks_of(part.rows)));
  return total_weight<T>(
      batch, [&](std::int64_t r) { return order(part.position + r); }, blocks.data(), threads_,
      interrupt, kOperation);
}

template <class T>
void CudaEngine<T>::fill_tables(const Cursor& cursor, std::int64_t rows) {
  const std::int64_t width = std::int64_t{slots_.rules.groups()} * kMaxCoefficients;
  Cursor ahead = cursor;
  for (std::int64_t row = 0; row < rows; ++row) {
    lr_[static_cast<std::size_t>(row)] = slots_.rules.coefficients(
        ahead.updates + 1, ahead.steps_per_epoch, host_coefficients_.data() + row * width);
    if (average_.size() > 0) {
      const double weight = average_weight(plan_, ahead);
      host_average_weights_[row] = weight;
      if (weight > 0.0) ++ahead.averaged;
    }
    ++ahead.steps;
    ++ahead.updates;
  }
  const auto send = [&](const double* from, double* to, std::int64_t count) {
    cuda::check(cudaMemcpyAsync(to, from, array_bytes(count, sizeof(double)),
                                cudaMemcpyHostToDevice, stream_),
                kOperation);
  };
  send(host_coefficients_.data(), coefficients_.data(), rows * width);
  if (average_.size() > 0) send(host_average_weights_.data(), average_weights_.data(), rows);
}

template <class T>
void CudaEngine<T>::upload_state(const Order& order, const Cursor& cursor) {
  cuda::StepState& state = host_state_[0];
  state = {};
  state.steps = cursor.steps;
  state.position = cursor.position;
  state.order = order;
  state.run_loss = cursor.loss;
  state.run_hits = cursor.hits;
  state.run_weight = cursor.weight;
  cuda::check(cudaMemcpyAsync(state_.data(), host_state_.data(), sizeof(cuda::StepState),
                              cudaMemcpyHostToDevice, stream_),
              kOperation);
  host_status_[0] = 0;
}

template <class T>
void CudaEngine<T>::download_state() {
  cuda::download(state_.data(), host_state_.data(), 1, stream_, kOperation);
}

template <class T>
auto CudaEngine<T>::resident_minibatch(const Planned& update, std::size_t part) const -> Minibatch {
  Minibatch minibatch;
  minibatch.data = fit_->data;
  minibatch.order.state = state_.data();
  minibatch.rows = update.parts.parts[part].rows;
  minibatch.first_row = update.parts.parts[part].position - update.begin;
  minibatch.order.offset = minibatch.first_row;
  minibatch.whole = update.parts.parts.size() == 1;
  return minibatch;
}

template <class T>
auto CudaEngine<T>::staged_minibatch(const Order& order, const Planned& update, std::size_t part)
    -> Minibatch {
  const Part& rows = update.parts.parts[part];
  const Data& source = fit_->source.data;
  slot_ = 1 - slot_;
  staging_->fill(
      slot_, source, rows.rows, [&](std::int64_t r) { return order(rows.position + r); }, threads_,
      {}, stream_);
  Minibatch minibatch;
  minibatch.data = staging_->view(slot_, source, rows.rows);
  minibatch.rows = rows.rows;
  minibatch.first_row = rows.position - update.begin;
  minibatch.whole = update.parts.parts.size() == 1;
  return minibatch;
}

template <class T>
auto CudaEngine<T>::shape_of(const Minibatch& first, std::int64_t rows) const -> Shape {
  Shape shape;
  const ArrayView* arrays[] = {&first.data.x, &first.data.y, &first.data.weights};
  for (std::size_t i = 0; i < 3; ++i) {
    if (!arrays[i]->present()) continue;
    shape.data[i] = arrays[i]->data;
    shape.dtypes[i] = arrays[i]->dtype;
    shape.strides[i] = {arrays[i]->row_stride, arrays[i]->col_stride, arrays[i]->cols};
  }
  shape.targets = fit_->source.targets;
  shape.class_weights = !fit_->source.class_weights.empty();
  shape.resident = fit_->resident;
  shape.batch = first.rows;
  shape.rows = rows;
  // Without dropout it only tells the first minibatch from the others.
  shape.first_row =
      has_dropout(plan_) ? first.first_row : std::min<std::int64_t>(first.first_row, 1);
  shape.whole = first.whole;
  return shape;
}

template <class T>
template <class Queue>
void CudaEngine<T>::replay(const Shape& shape, Queue&& queue) {
  const auto found = std::find_if(steps_.begin(), steps_.end(),
                                  [&](const Step& step) { return step.shape == shape; });
  if (found != steps_.end()) {
    steps_.splice(steps_.begin(), steps_, found);
  } else {
    steps_.push_front({shape, cuda::Graph(capture_, kOperation, [&] { queue(capture_); })});
    if (steps_.size() > kMostSteps) {
      stream_.synchronize(kOperation);
      steps_.pop_back();
    }
  }
  steps_.front().graph.launch(stream_, kOperation);
}

template <class T>
Pass CudaEngine<T>::training_pass(const Minibatch& minibatch) const {
  Pass pass;
  pass.mode = Mode::kTraining;
  pass.seed = plan_.description.seed;
  pass.first_row = minibatch.first_row;
  return pass;
}

template <class T>
CudaResults<T> CudaEngine<T>::training_results(const Minibatch& minibatch) const {
  return {state_.data(), gradients_.data(), minibatch.first_row > 0, squares_.data()};
}

template <class T>
void CudaEngine<T>::queue_gather(const Minibatch& minibatch, cudaStream_t stream) {
  const Fit& fit = *fit_;
  CudaWorkspace<T>& workspace = *workspace_;
  workspace.set_rows(minibatch.rows);
  cuda::gather<T>(minibatch.data.x, minibatch.order, workspace.value(0), stream);
  if (fit.source.targets == Targets::kDense)
    cuda::gather<T>(minibatch.data.y, minibatch.order, workspace.targets(), stream);
  cuda::GatherTargets<T> problem;
  problem.order = minibatch.order;
  problem.rows = minibatch.rows;
  if (fit.source.targets == Targets::kLabels) {
    problem.labels = minibatch.data.y;
    problem.classes = plan_.out_features;
    problem.label_out = workspace.labels.data();
  }
  problem.weights = minibatch.data.weights;
  if (!fit.source.class_weights.empty()) problem.class_weights = class_weights_.data();
  if (fit.weighted || plan_.has_weighted_batch_norm())
    problem.row_weights = workspace.row_weights.data();
  if (plan_.has_weighted_batch_norm()) {
    problem.block_weights = workspace.block_weights.data();
    problem.total_weight = workspace.total_weight.data();
  }
  problem.state = state_.data();
  problem.whole_update = minibatch.whole && !fit.source.custom_loss;
  problem.gradient_divisor = loss_scale_divisor(plan_);
  cuda::gather_targets(problem, workspace.scratch(), stream);
}

template <class T>
void CudaEngine<T>::queue_minibatch(const Minibatch& minibatch, cudaStream_t stream) {
  queue_gather(minibatch, stream);
  CudaBackend<T> backend(plan_, parameters_, *workspace_, training_results(minibatch), stream);
  Executor executor(backend);
  const Pass pass = training_pass(minibatch);
  const LossRequest request{1.0, fit_->weighted, fit_->source.targets == Targets::kDense};
  executor.forward(pass, &request);
  executor.loss(pass, request, nullptr);
  queue_backward(backend, minibatch, stream);
}

template <class T>
void CudaEngine<T>::queue_backward(CudaBackend<T>& backend, const Minibatch& minibatch,
                                   cudaStream_t stream) {
  Executor executor(backend);
  const Pass pass = training_pass(minibatch);
  executor.backward(pass);
  executor.gradients(gradients_.data(), minibatch.first_row > 0,
                     [&](int tensor) { return !slots_.rules.frozen(tensor); });
  if (minibatch.whole || !plan_.has_batch_norm()) return;
  const bool first = minibatch.first_row == 0;
  if (first)
    cuda::check(cudaMemcpyAsync(staged_batches_.data(), parameters_.batches.data(),
                                staged_batches_.bytes(), cudaMemcpyDeviceToDevice, stream),
                kOperation);
  backend.running_statistics(pass, first ? parameters_.state.data() : staged_state_.data(),
                             staged_state_.data(), staged_batches_.data(), nullptr);
}

template <class T>
void CudaEngine<T>::queue_finish(std::int64_t rows, bool whole, cudaStream_t stream) {
  cuda::StepState* state = state_.data();
  const cuda::Scratch scratch = workspace_->scratch();
  if (keeps_gradients()) {
    cuda::GradientNorm<T> norm;
    norm.sums = squares_.data();
    norm.sum_count = squares_.size();
    norm.g = gradients_.data();
    norm.blocks = slots_.vector_blocks.data();
    norm.block_count = slots_.vector_blocks.size();
    norm.clip_norm = plan_.description.clip_norm.value_or(norm.clip_norm);
    norm.state = state;
    cuda::gradient_norm(norm, scratch, stream);
  }
  if (plan_.has_batch_norm() && whole) {
    CudaBackend<T> backend(plan_, parameters_, *workspace_, {}, stream);
    Pass pass;
    pass.mode = Mode::kTraining;
    backend.running_statistics(pass, parameters_.state.data(), parameters_.state.data(),
                               parameters_.batches.data(), state);
  } else if (plan_.has_batch_norm()) {
    cuda::copy_if_running(state, staged_state_.data(), parameters_.state.data(),
                          staged_state_.bytes(), stream);
    cuda::copy_if_running(state, staged_batches_.data(), parameters_.batches.data(),
                          staged_batches_.bytes(), stream);
  }
  cuda::OptimizerStep<T> step;
  step.optimizer = slots_.rules.optimizer();
  step.state = state;
  step.count = parameters_.layout.size;
  step.p = parameters_.values.data();
  step.g = gradients_.data();
  step.s0 = slot(0);
  step.s1 = slot(1);
  step.groups = slots_.groups();
  step.coefficients = coefficients_.data();
  if (average_.size() > 0) {
    step.average = average_.data();
    step.average_weights = average_weights_.data();
  }
  step.planes = parameters_.plane_arena();
  step.advances = true;
  step.rows = rows;
  cuda::optimizer_step(step, scratch, stream);
}

// Of an update in several parts, which no part can know.
template <class T>
void CudaEngine<T>::queue_weight(double weight, double scale, std::int64_t index) {
  static_assert(offsetof(cuda::StepState, gradient_scale) ==
                offsetof(cuda::StepState, weight) + sizeof(double));
  double* entry = update_weights_.data() + 2 * index;
  entry[0] = weight;
  entry[1] = scale;
  cuda::check(cudaMemcpyAsync(&state_.data()->weight, entry, 2 * sizeof(double),
                              cudaMemcpyHostToDevice, stream_),
              kOperation);
}

template <class T>
void CudaEngine<T>::queue_update(const Order& order, const Planned& update, std::int64_t index) {
  const std::size_t parts = update.parts.parts.size();
  const bool whole = parts == 1;
  if (!whole)
    queue_weight(update.weight, update.weight > 0.0 ? loss_scale(plan_, update.weight) : 0.0,
                 index);
  if (fit_->resident) {
    replay(shape_of(resident_minibatch(update, 0), update.rows), [&](cudaStream_t stream) {
      for (std::size_t p = 0; p < parts; ++p)
        queue_minibatch(resident_minibatch(update, p), stream);
      queue_finish(update.rows, whole, stream);
    });
    return;
  }
  for (std::size_t p = 0; p < parts; ++p) {
    const Minibatch minibatch = staged_minibatch(order, update, p);
    replay(shape_of(minibatch, whole ? update.rows : 0), [&](cudaStream_t stream) {
      queue_minibatch(minibatch, stream);
      if (whole) queue_finish(update.rows, whole, stream);
    });
    staging_->used(slot_, stream_);
  }
  if (whole) return;
  Shape finish;
  finish.rows = update.rows;
  replay(finish, [&](cudaStream_t stream) { queue_finish(update.rows, whole, stream); });
}

template <class T>
RunResult CudaEngine<T>::run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                             Cursor* cursor) {
  const cuda::DeviceScope scope(device_);
  const std::int64_t most = fit_->source.custom_loss ? 1 : updates;
  std::int64_t count = plan_run(*cursor, most);
  if (planned_[0].rows == 0) {
    cursor->position = planned_[0].parts.end;
    cursor->skipped_rows += planned_[0].parts.lone_rows;
    return {};
  }
  if (planned_[static_cast<std::size_t>(count - 1)].rows == 0) --count;  // for the next run
  count = weigh_updates(order, count, *cursor, interrupt);
  fill_tables(*cursor, count);
  upload_state(order, *cursor);
  if (fit_->source.custom_loss) return run_custom(order, interrupt, cursor);

  Question question(interrupt);
  bool stopped = false;
  std::int64_t queued = 0;
  std::int64_t done = 0;
  Clock::time_point last = Clock::now();
  const auto wait_for_one = [&] {
    const cuda::Event& event = *finished_[static_cast<std::size_t>(done % kMostQueued)];
    while (!event.done(kOperation)) {
      if ((stopped = stopped || question.stop())) return;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    ++done;
    const Clock::time_point now = Clock::now();
    const auto taken = std::max<Clock::duration>(now - last, std::chrono::microseconds(1));
    most_queued_ = std::clamp<std::int64_t>(kQueued / taken, 2, kMostQueued);
    last = now;
  };
  while (static_cast<std::int64_t>(finished_.size()) < kMostQueued)
    finished_.push_back(std::make_unique<cuda::Event>(kOperation));
  try {
    while (queued < count) {
      if ((stopped = stopped || question.stop())) break;
      queue_update(order, planned_[static_cast<std::size_t>(queued)], queued);
      const std::int64_t index = queued++;
      finished_[static_cast<std::size_t>(index % kMostQueued)]->record(stream_, kOperation);
      if (index % kLookEvery == kLookEvery - 1)
        cuda::check(cudaMemcpyAsync(host_status_.data(), &state_.data()->status, sizeof(int),
                                    cudaMemcpyDeviceToHost, stream_),
                    kOperation);
      while (!stopped && queued - done >= most_queued_) wait_for_one();
      if (*static_cast<const volatile int*>(host_status_.data()) != 0) break;
    }
    while (!stopped && done < queued) wait_for_one();
  } catch (...) {
    // What was queued before changes the model, and reads the tables until it is done.
    download_state();
    (void)count_updates(queued, cursor);
    throw;
  }
  download_state();
  return finish_run(order, queued, stopped, cursor);
}

// Sums of row weights where no kernel can know them before the update begins. Returns how many
// updates may run.
template <class T>
std::int64_t CudaEngine<T>::weigh_updates(const Order& order, std::int64_t count,
                                          const Cursor& cursor, const Interrupt& interrupt) {
  const bool needed = cursor.accumulate > 1 || plan_.has_weighted_batch_norm();
  const bool weighted = needed && fit_->weighted && !fit_->source.custom_loss;
  if (weighted && !fit_->host &&
      (fit_->source.data.y.on_device() || fit_->source.data.weights.on_device()))
    fit_->host.emplace(fit_->source.data, stream_);
  for (std::int64_t i = 0; i < count; ++i) {
    Planned& update = planned_[static_cast<std::size_t>(i)];
    update.weight = 0.0;
    double least = std::numeric_limits<double>::infinity();
    for (const Part& part : update.parts.parts) {
      const double weight =
          weighted ? weigh(order, part, interrupt) : static_cast<double>(part.rows);
      update.weight += weight;
      least = std::min(least, weight);
    }
    if (!plan_.has_weighted_batch_norm() || !(update.weight > 0.0) || least > 1.0) continue;
    if (i > 0) return i;
    check_total_weight(plan_, least, kOperation);
  }
  return count;
}

// From the state that has been read back to the cursor. Returns the first of the queued updates
// that was not passed.
template <class T>
std::int64_t CudaEngine<T>::count_updates(std::int64_t queued, Cursor* cursor) const {
  const cuda::StepState& state = host_state_[0];
  std::int64_t next = 0;
  while (next < queued && planned_[static_cast<std::size_t>(next)].begin +
                                  planned_[static_cast<std::size_t>(next)].rows <=
                              state.position) {
    const UpdateParts& parts = planned_[static_cast<std::size_t>(next++)].parts;
    cursor->position = parts.end;
    cursor->skipped_rows += parts.lone_rows;
  }
  cursor->skipped_rows += state.skipped_rows;
  for (std::int64_t row = 0; row < state.updates && average_.size() > 0; ++row)
    if (host_average_weights_[row] > 0.0) ++cursor->averaged;
  cursor->steps += state.updates;
  cursor->updates += state.updates;
  cursor->loss = state.run_loss;
  cursor->hits = state.run_hits;
  cursor->weight = state.run_weight;
  return next;
}

// From the state that has been read back to the cursor and the result.
template <class T>
RunResult CudaEngine<T>::finish_run(const Order& order, std::int64_t queued, bool stopped,
                                    Cursor* cursor) {
  const cuda::StepState state = host_state_[0];
  const std::int64_t next = count_updates(queued, cursor);
  RunResult result;
  result.updates = state.updates;
  if (state.updates > 0) {
    result.totals = {state.last_loss, state.last_hits, state.last_weight};
    result.lr = lr_[static_cast<std::size_t>(state.updates - 1)];
    if (keeps_gradients()) result.norm = std::sqrt(state.last_squares);
  }
  switch (state.status) {
    case cuda::StepStatus::kRunning:
      if (stopped) result.end = state.updates > 0 ? RunEnd::kInterrupted : RunEnd::kDiscarded;
      break;
    case cuda::StepStatus::kLossNotFinite:
      result.end = RunEnd::kLossNotFinite;
      result.loss = state.loss;
      result.layer = first_layer_not_finite(order, planned_[static_cast<std::size_t>(next)]);
      break;
    case cuda::StepStatus::kGradientNotFinite:
      result.end = RunEnd::kGradientNotFinite;
      result.layer = first_gradient_not_finite(order, planned_[static_cast<std::size_t>(next)]);
      break;
    case cuda::StepStatus::kElementsNotFinite:
      result.end = RunEnd::kElementsNotFinite;
      result.skipped_elements = state.skipped_elements;
      break;
    case cuda::StepStatus::kInvalidLabel:
      throw ValueError(concat("[data] expected labels in [0, ", plan_.out_features,
                              "), got one outside; y was changed while it was in use"));
  }
  return result;
}

// The passes of an update that failed, part by part: nothing is written to the model.
template <class T>
template <class After>
void CudaEngine<T>::run_again(const Order& order, const Planned& update, After&& after) {
  if (update.parts.parts.size() > 1)
    queue_weight(update.weight, loss_scale(plan_, update.weight), 0);
  for (std::size_t p = 0; p < update.parts.parts.size(); ++p) {
    queue_minibatch(
        fit_->resident ? resident_minibatch(update, p) : staged_minibatch(order, update, p),
        stream_);
    if (!fit_->resident) staging_->used(slot_, stream_);
    stream_.synchronize(kOperation);
    if (!after()) return;
  }
}

template <class T>
std::string CudaEngine<T>::first_layer_not_finite(const Order& order, const Planned& update) {
  std::string layer = "loss";
  run_again(order, update, [&] {
    const std::string found = layer_not_finite();
    if (!found.empty()) layer = found;
    return found.empty();
  });
  return layer;
}

// Of the workspace's last forward pass, or empty.
template <class T>
std::string CudaEngine<T>::layer_not_finite() const {
  for (const Node& node : plan_.nodes) {
    // Of a value that is dropped in the epilogue only the result is kept.
    const bool dropped = node.dropout >= 0 && CudaBackend<T>::fuses_dropout(node);
    const int buffer = dropped ? plan_.nodes[node.dropout].output : node.output;
    if (!all_finite(workspace_->value(buffer), stream_, kOperation)) return node.layer;
  }
  return {};
}

template <class T>
std::string CudaEngine<T>::first_gradient_not_finite(const Order& order, const Planned& update) {
  run_again(order, update, [] { return true; });
  return gradient_not_finite();
}

template <class T>
std::string CudaEngine<T>::gradient_not_finite() const {
  std::vector<T> gradients(static_cast<std::size_t>(gradients_.size()));
  cuda::download(gradients_.data(), gradients.data(), gradients_.size(), stream_, kOperation);
  for (const Node& node : plan_.nodes)
    for (const int tensor : {node.weight, node.bias, node.gamma, node.beta}) {
      if (tensor < 0 || slots_.rules.frozen(tensor)) continue;
      const CudaLayout::Place& place = parameters_.layout.tensors[static_cast<std::size_t>(tensor)];
      const auto begin = gradients.begin() + place.offset;
      if (!std::all_of(begin, begin + place.padded, [](T g) { return std::isfinite(g); }))
        return node.layer;
    }
  return "the gradient norm";
}

// One update with a loss of the host's: it waits in the middle of each part.
template <class T>
RunResult CudaEngine<T>::run_custom(const Order& order, const Interrupt& interrupt,
                                    Cursor* cursor) {
  RunResult result;
  if (interrupt && interrupt()) {
    result.end = RunEnd::kDiscarded;
    return result;
  }
  const Planned& update = planned_[0];
  const std::vector<Part>& parts = update.parts.parts;
  queue_weight(static_cast<double>(update.rows), 1.0, 0);
  LossTotals sum;
  std::vector<std::int64_t> row_index;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const Minibatch minibatch =
        fit_->resident ? resident_minibatch(update, p) : staged_minibatch(order, update, p);
    queue_gather(minibatch, stream_);
    CudaBackend<T> backend(plan_, parameters_, *workspace_, training_results(minibatch), stream_);
    Executor(backend).forward(training_pass(minibatch));
    row_index.resize(static_cast<std::size_t>(minibatch.rows));
    for (std::int64_t r = 0; r < minibatch.rows; ++r)
      row_index[static_cast<std::size_t>(r)] = order(parts[p].position + r);
    const double rows = static_cast<double>(minibatch.rows);
    const double value =
        call_custom_loss(plan_, *workspace_, plan_.output, row_index, fit_->source.custom_loss,
                         rows / static_cast<double>(update.rows), stream_);
    if (!std::isfinite(value)) {
      result.end = RunEnd::kLossNotFinite;
      result.loss = value;
      const std::string layer = layer_not_finite();
      result.layer = layer.empty() ? "loss" : layer;
      return result;
    }
    sum.loss += value * rows;
    queue_backward(backend, minibatch, stream_);
    if (!fit_->resident) staging_->used(slot_, stream_);
  }
  update_weights_[2] = sum.loss;
  cuda::check(cudaMemcpyAsync(&state_.data()->loss, &update_weights_[2], sizeof(double),
                              cudaMemcpyHostToDevice, stream_),
              kOperation);
  queue_finish(update.rows, parts.size() == 1, stream_);
  download_state();
  if (host_state_[0].status == cuda::StepStatus::kGradientNotFinite) {
    result.end = RunEnd::kGradientNotFinite;
    result.layer = gradient_not_finite();
    return result;
  }
  return finish_run(order, 1, false, cursor);
}

template <class T>
std::vector<std::int64_t> CudaEngine<T>::graph_nodes() const {
  std::vector<std::int64_t> nodes;
  for (const Step& step : steps_) nodes.push_back(static_cast<std::int64_t>(step.graph.nodes()));
  return nodes;
}

#define TW_INSTANTIATE(T)                                                                       \
  template void CudaEngine<T>::begin_fit(const FitSource&, std::int64_t, const Interrupt&);     \
  template RunResult CudaEngine<T>::run(const Order&, std::int64_t, const Interrupt&, Cursor*); \
  template void CudaEngine<T>::end_fit() noexcept;                                              \
  template std::size_t CudaEngine<T>::workspace_bytes(std::int64_t) const;                      \
  template void CudaEngine<T>::set_workspace(void*, std::size_t);                               \
  template std::vector<std::int64_t> CudaEngine<T>::graph_nodes() const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
