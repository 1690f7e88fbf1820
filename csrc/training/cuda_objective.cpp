// The passes of an objective on a GPU.
#include "training/cuda_objective.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/arena_operations.h"
#include "cuda/gather.h"
#include "training/cuda_exchange.h"
#include "training/cuda_rows.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "objective";

}  // namespace

template <class T>
CudaObjective<T>::Place::Place(const Plan& plan, const CudaParameters<T>& parameters,
                               std::int64_t rows)
    : workspace(plan, parameters, rows, true) {
  workspace.reserve_scratch(std::max(cuda::gather_targets_scratch_bytes(rows),
                                     CudaTangentBackend<T>::scratch_bytes(plan, rows)));
}

template <class T>
CudaObjective<T>::CudaObjective(const Model& model, const Data& data,
                                const ObjectiveOptions& options, const Interrupt& interrupt)
    : TypedObjective<T>(model, data, options, interrupt),
      device_(model.exchange()->device()),
      stream_(kOperation),
      finished_(kOperation),
      parameters_(plan_, CudaPrecision::choose(plan_.description, kOperation), stream_),
      product_(parameters_.layout.size, kOperation),
      state_(1, kOperation) {
  static_cast<const CudaExchange*>(model.exchange())->join(data_, stream_);
  this->take_state(model);
}

template <class T>
CudaObjective<T>::~CudaObjective() {
  try {
    const cuda::DeviceScope scope(device_);
    (void)cudaStreamSynchronize(stream_);
  } catch (const Error&) {
    // The device is gone, and so is its memory.
  }
}

// ---- values in and out --------------------------------------------------------------------------

template <class T>
void CudaObjective<T>::load_state(const T* flat) {
  const cuda::DeviceScope scope(device_);
  parameters_.set_state(plan_, flat, stream_);
}

template <class T>
void CudaObjective<T>::upload_vector(const double* flat, CudaParameters<T>& parameters) {
  std::vector<T>& values = host(plan_.num_parameters);
  std::transform(flat, flat + plan_.num_parameters, values.begin(),
                 [](double x) { return static_cast<T>(x); });
  parameters.set_flat(plan_, values.data(), stream_);
}

template <class T>
void CudaObjective<T>::load_point(const char*, const double* theta) {
  const cuda::DeviceScope scope(device_);
  upload_vector(theta, parameters_);
}

template <class T>
void CudaObjective<T>::load_direction(const char*, const double* v) {
  const cuda::DeviceScope scope(device_);
  reserve_walk();
  upload_vector(v, *direction_);
}

template <class T>
void CudaObjective<T>::reserve_walk() {
  if (tangents_) return;
  const std::int64_t rows = this->chunk_rows_;
  auto direction = std::make_unique<CudaParameters<T>>(walk_plan_, parameters_.precision, stream_);
  auto values = std::make_unique<Place>(walk_plan_, parameters_, rows);
  gradients_ = cuda::DeviceArray<T>(parameters_.layout.size, kOperation);
  rows_ = cuda::DeviceArray<T>(element_count(rows, plan_.out_features), kOperation);
  tangents_ = std::make_unique<CudaWorkspace<T>>(walk_plan_, parameters_, rows, true);
  direction_ = std::move(direction);
  values_ = std::move(values);
}

template <class T>
void CudaObjective<T>::fill(const char* operation, const Chunk& chunk, bool keep, Place& place) {
  place.workspace.set_rows(chunk.rows);
  if (place.filled && keep) return;
  place.filled = false;
  Data part = slice(data_, chunk.first, chunk.rows);
  const bool staged = device_bytes(part, chunk.rows) > 0;
  const int slot = static_cast<int>(chunk.first / this->chunk_rows_ % CudaStaging::kSlots);
  if (staged) {
    if (!staging_) staging_.emplace(data_, this->chunk_rows_);
    staging_->fill(
        slot, part, chunk.rows, [](std::int64_t r) { return r; }, this->threads_, this->interrupt_,
        stream_);
    part = staging_->view(slot, part, chunk.rows);
  }
  const bool weighted = this->batch_statistics() && plan_.has_weighted_batch_norm();
  cuda::StepState state;  // where an invalid label is noted
  cuda::upload(&state, state_.data(), 1, stream_, operation);
  queue_rows(plan_, part, this->targets_, 0, weighted, state_.data(), place.workspace, stream_);
  if (staged) staging_->used(slot, stream_);
  cuda::download(state_.data(), &state, 1, stream_, operation);
  expect<ValueError>(state.status != cuda::StepStatus::kInvalidLabel,
                     "[data] expected labels in [0, ", plan_.out_features,
                     "), got one outside; y was changed while it was in use");
  place.filled = keep;
  if (keep) staging_.reset();
}

template <class T>
template <class Queue>
void CudaObjective<T>::replay(const Chunk& chunk, Work work, Queue&& queue) {
  if (!chunk.only()) return queue();
  std::optional<cuda::Graph>& graph = graphs_[work];
  if (!graph) graph.emplace(stream_, kOperation, queue);
  graph->launch(stream_, kOperation);
}

template <class T>
void CudaObjective<T>::finish(const char* operation) {
  finished_.record(stream_, operation);
  if (!wait_for(finished_, this->interrupt_, operation))
    throw Interrupted(concat("[", operation, "] interrupted"));
}

template <class T>
void CudaObjective<T>::deliver(const Chunk& chunk, double* out) {
  const std::int64_t size = parameters_.layout.size;
  const std::int64_t count = plan_.num_parameters;
  if (chunk.only()) {
    std::vector<T>& values = host(count);
    download_flat<T>(plan_, parameters_.layout, product_.data(), values.data(), stream_);
    std::copy(values.begin(), values.end(), out);
    return;
  }
  if (rest_.size() == 0) {
    sums_ = cuda::DeviceArray<double>(size, kOperation);
    rest_ = cuda::DeviceArray<double>(size, kOperation);
  }
  cuda::add_compensated(product_.data(), sums_.data(), rest_.data(), size, chunk.begins, stream_);
  if (!chunk.ends) return;
  std::vector<double> rest(static_cast<std::size_t>(count));
  download_flat<double>(plan_, parameters_.layout, sums_.data(), out, stream_);
  download_flat<double>(plan_, parameters_.layout, rest_.data(), rest.data(), stream_);
  for (std::int64_t i = 0; i < count; ++i) out[i] += rest[static_cast<std::size_t>(i)];
}

// ---- value and gradient -------------------------------------------------------------------------

template <class T>
double CudaObjective<T>::evaluate_chunk(const char* operation, const Chunk& chunk,
                                        double* gradient) {
  const cuda::DeviceScope scope(device_);
  if (!plain_) plain_ = std::make_unique<Place>(plan_, parameters_, this->chunk_rows_);
  fill(operation, chunk, chunk.only(), *plain_);
  CudaWorkspace<T>& workspace = plain_->workspace;
  const Pass pass = this->pass_of(chunk);
  CudaResults<T> results;
  if (gradient) results.gradients = product_.data();
  CudaBackend<T> backend(plan_, parameters_, workspace, results, stream_);
  Executor<CudaBackend<T>> executor(backend);
  const auto back = [&] {
    if (!gradient) return;
    executor.backward(pass);
    executor.gradients(product_.data(), false, [](int) { return true; });
  };
  cuda::LossSums sums{};
  if (this->custom()) {
    executor.forward(pass);
    std::vector<std::int64_t> row_index;
    for (std::int64_t r = 0; r < chunk.rows; ++r) row_index.push_back(r);
    finish(operation);
    sums.loss = call_custom_loss(plan_, workspace, plan_.output, row_index,
                                 this->options_.custom_loss, 1.0, stream_);
    back();
    finish(operation);
  } else {
    const LossRequest loss = this->request(gradient ? this->scale_ : 0.0);
    replay(chunk, gradient ? kGradient : kValue, [&] {
      executor.forward(pass, &loss);
      executor.loss(pass, loss, nullptr);
      back();
    });
    finish(operation);
    cuda::download(workspace.losses.data(), &sums, 1, stream_, operation);
  }
  if (gradient) deliver(chunk, gradient);
  return sums.loss;
}

// ---- products -----------------------------------------------------------------------------------

template <class T>
class CudaObjective<T>::Walk {
 public:
  explicit Walk(CudaObjective& objective)
      : backend(objective.walk_plan_, objective.parameters_, *objective.direction_,
                objective.values_->workspace, *objective.tangents_, objective.gradients_.data(),
                objective.product_.data(), objective.stream_),
        values(backend),
        tangents(backend) {}

  CudaTangentBackend<T> backend;
  Executor<CudaBackend<T>> values;
  TangentExecutor<CudaTangentBackend<T>> tangents;
};

template <class T>
void CudaObjective<T>::queue_values(const char* operation, const Chunk& chunk,
                                    const Passes& passes) {
  values_->workspace.set_rows(chunk.rows);
  tangents_->set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const LossRequest loss = this->request(this->scale_);
  Walk walk(*this);
  if (passes.forward) {
    fill(operation, chunk, chunk.only(), *values_);
    replay(chunk, kForward, [&] { walk.values.forward(pass); });
  }
  if (passes.backward)
    replay(chunk, kBackward, [&] {
      walk.values.loss(pass, loss, nullptr);
      walk.values.backward(pass);
    });
}

template <class T>
void CudaObjective<T>::multiply_chunk(const char* operation, const Chunk& chunk,
                                      Curvature curvature, const Passes& passes, double* out) {
  const cuda::DeviceScope scope(device_);
  queue_values(operation, chunk, passes);
  const Pass pass = this->pass_of(chunk);
  const LossRequest loss = this->request(this->scale_);
  replay(chunk, curvature == Curvature::kHessian ? kHessian : kGaussNewton, [&] {
    Walk walk(*this);
    walk.tangents.forward(pass);
    walk.tangents.loss(loss);
    walk.tangents.backward(pass, curvature);
    walk.tangents.gradients(curvature, product_.data());
  });
  finish(operation);
  deliver(chunk, out);
}

template <class T>
void CudaObjective<T>::jacobian_chunk(const char* operation, const Chunk& chunk,
                                      const Passes& passes, double* out) {
  const cuda::DeviceScope scope(device_);
  queue_values(operation, chunk, {passes.forward, false});
  const Pass pass = this->pass_of(chunk);
  replay(chunk, kAhead, [&] { Walk(*this).tangents.forward(pass); });
  finish(operation);
  std::vector<T>& values = host(chunk.rows * plan_.out_features);
  queue_download(tangents_->value(walk_plan_.output), values.data(), stream_, operation);
  stream_.synchronize(operation);
  std::copy(values.begin(), values.end(), out);
}

template <class T>
void CudaObjective<T>::transposed_chunk(const char* operation, const Chunk& chunk,
                                        const Passes& passes, const double* u, double* out) {
  const cuda::DeviceScope scope(device_);
  reserve_walk();
  queue_values(operation, chunk, {passes.forward, false});
  const Pass pass = this->pass_of(chunk);
  const std::int64_t width = plan_.out_features;
  std::vector<T>& values = host(chunk.rows * width);
  std::transform(u, u + chunk.rows * width, values.begin(),
                 [](double x) { return static_cast<T>(x); });
  cuda::upload(values.data(), rows_.data(), chunk.rows * width, stream_, operation);
  replay(chunk, kBack, [&] {
    Walk walk(*this);
    cuda::pack<T>(rows_.data(), width, tangents_->gradient(walk_plan_.output), stream_);
    walk.tangents.backward(pass, Curvature::kGaussNewton);
    walk.tangents.gradients(Curvature::kGaussNewton, product_.data());
  });
  finish(operation);
  deliver(chunk, out);
}

// In the order in which a product computes them; of the last chunk.
template <class T>
std::string CudaObjective<T>::first_not_finite() {
  const cuda::DeviceScope scope(device_);
  const auto bad = [&](const cuda::Matrix<T>& values) {
    return !all_finite(values, stream_, kOperation);
  };
  const std::vector<Node>& nodes = walk_plan_.nodes;
  CudaWorkspace<T>* const passes[] = {&values_->workspace, tangents_.get()};
  for (CudaWorkspace<T>* pass : passes)
    for (const Node& node : nodes)
      if (bad(pass->value(node.output))) return node.layer;
  for (CudaWorkspace<T>* pass : passes)
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node)
      if (bad(pass->gradient(node->output))) return "the gradient of " + node->layer;
  return "the products with gradients";
}

// The factors are far fewer numbers than their products, which end in host memory.
template <class T>
void CudaObjective<T>::factor_chunk(const char* operation, const Chunk& chunk,
                                    RowFactors* factors) {
  const cuda::DeviceScope scope(device_);
  reserve_walk();
  fill(operation, chunk, false, *values_);
  const Pass pass = this->pass_of(chunk);
  Walk walk(*this);
  walk.values.forward(pass);
  walk.values.loss(pass, this->row_request(), nullptr);
  walk.values.backward(pass);
  finish(operation);
  const CudaWorkspace<T>& workspace = values_->workspace;
  for (std::size_t b = 0; b < walk_plan_.buffers.size(); ++b) {
    const int buffer = static_cast<int>(b);
    if (std::vector<T>& to = factors->values[b]; !to.empty())
      queue_download(workspace.value(buffer), to.data(), stream_, operation);
    if (std::vector<T>& to = factors->gradients[b]; !to.empty())
      queue_download(workspace.gradient(buffer), to.data(), stream_, operation);
  }
  for (std::size_t s = 0; s < walk_plan_.states.size(); ++s) {
    const int state = static_cast<int>(s);
    const std::int64_t width = walk_plan_.states[s].width;
    cuda::download(workspace.mean(state), factors->mean[s].data(), width, stream_, operation);
    cuda::download(workspace.inv_std(state), factors->inv_std[s].data(), width, stream_, operation);
  }
  stream_.synchronize(operation);
}

template class CudaObjective<float>;
template class CudaObjective<double>;

}  // namespace thalweg
