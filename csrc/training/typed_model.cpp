// Construction of a model and access to its values.
#include "training/typed_model.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "math/losses.h"
#include "network/initialize.h"
#include "ops/device_resolution.h"

namespace thalweg {
namespace {

TensorInfo info_of(const std::string& name, std::vector<std::int64_t> shape, std::int64_t offset) {
  TensorInfo info;
  info.name = name;
  info.size = 1;
  for (const std::int64_t extent : shape) info.size *= extent;
  info.shape = std::move(shape);
  info.offset = offset;
  return info;
}

template <class T>
std::unique_ptr<Model> make(const Description& description, int threads) {
  return std::make_unique<TypedModel<T>>(description, threads);
}

}  // namespace

int resolve_threads(int threads) {
  expect<ValueError>(threads >= 0 && threads <= ThreadPool::kMaxThreads,
                     "[model] expected threads in [0, ", int{ThreadPool::kMaxThreads}, "], got ",
                     threads);
  return threads > 0 ? threads : ThreadPool::default_threads();
}

std::unique_ptr<Model> Model::create(const Description& description, const std::string& device,
                                     int threads) {
  resolve_device(device);
  threads = resolve_threads(threads);
  return description.dtype == DType::kFloat64 ? make<double>(description, threads)
                                              : make<float>(description, threads);
}

template <class T>
TypedModel<T>::TypedModel(const Description& description, int threads)
    : plan_(compile(description)),
      threads_(threads),
      kernels_(cpu::kernels<T>()),
      parameters_(plan_),
      optimizer_(plan_, plan_.description.optimizer),
      updates_(list_updates(plan_)) {
  expect<ValueError>(plan_.description.loss.kind != LossDescription::Kind::kCrossEntropy ||
                         plan_.out_features >= 2,
                     "[model] expected at least 2 outputs for cross_entropy, got ",
                     plan_.out_features, "; use binary_cross_entropy for one output");
  for (const Tensor& tensor : plan_.tensors)
    tensors_.push_back(
        info_of(tensor.name,
                tensor.is_weight() ? std::vector{tensor.out, tensor.in} : std::vector{tensor.out},
                tensor.flat_offset));
  std::int64_t offset = 0;
  for (const BatchNormState& state : plan_.states)
    for (const char* name : {".running_mean", ".running_var"}) {
      state_tensors_.push_back(info_of(state.name + name, {state.width}, offset));
      offset += state.width;
    }
  for (const LayerOutput& layer : plan_.layers)
    layers_.push_back(
        {layer.name, layer.type, plan_.buffers[layer.buffer].width, layer.parameters});
  keeps_transposed_.assign(plan_.tensors.size(), false);
  for (const Node& node : plan_.nodes)
    if (node.weight >= 0) keeps_transposed_[node.weight] = plan_.buffers[node.input].needs_gradient;
  staged_state_ = Arena<T>(plan_.state_size);
  staged_batches_.assign(plan_.states.size(), 0);
  task_norms_ = Arena<double>(static_cast<std::int64_t>(updates_.size()));
  pool_.reserve(kPooledWorkspaces);
  if (plan_.description.averaging.kind != Averaging::Kind::kNone)
    average_ = Arena<T>(plan_.arena_size);
  reset();
}

template <class T>
std::unique_ptr<Model> TypedModel<T>::copy() const {
  auto other = std::make_unique<TypedModel<T>>(plan_.description, threads_);
  other->parameters_.copy_from(with_fresh_transposed());
  other->optimizer_.copy_from(optimizer_);
  std::copy(average_.begin(), average_.end(), other->average_.begin());
  other->averaged_ = averaged_;
  other->cursor_ = cursor_;
  other->custom_loss_ = custom_loss_;
  return other;
}

template <class T>
void TypedModel<T>::reset() {
  std::vector<T> flat(static_cast<std::size_t>(plan_.num_parameters));
  for (std::size_t i = 0; i < plan_.tensors.size(); ++i) {
    const Tensor& tensor = plan_.tensors[i];
    std::vector<double> values(static_cast<std::size_t>(tensor.size()));
    initialize(plan_, static_cast<int>(i), plan_.description.seed, values.data());
    std::transform(values.begin(), values.end(), flat.begin() + tensor.flat_offset,
                   [](double v) { return static_cast<T>(v); });
  }
  set_parameters(flat.data());
  parameters_.reset_state(plan_);
  optimizer_.reset();
  std::fill(average_.begin(), average_.end(), T(0));
  averaged_ = 0;
  cursor_ = {};
}

template <class T>
void TypedModel<T>::set_optimizer(const OptimizerDescription& optimizer) {
  Optimizer<T> replacement(plan_, optimizer);
  OptimizerDescription description = optimizer;
  plan_.description.optimizer = std::move(description);  // nothing can fail from here on
  optimizer_ = std::move(replacement);
  cursor_.updates = 0;
}

template <class T>
double TypedModel<T>::loss_scale(double weight) const {
  switch (plan_.description.loss.reduction) {
    case Reduction::kBatchMean:
      return 1.0 / weight;
    case Reduction::kElementMean:
      return 1.0 / (weight * static_cast<double>(plan_.out_features));
    case Reduction::kSum:
      break;
  }
  return 1.0;
}

template <class T>
bool TypedModel<T>::has_accuracy() const {
  const LossDescription& loss = plan_.description.loss;
  if (loss.kind == LossDescription::Kind::kCrossEntropy) return true;
  if (loss.kind == LossDescription::Kind::kCustom) return false;
  return dispatch_loss(loss.elementwise,
                       [](auto l) { return decltype(l)::target != TargetKind::real; });
}

template <class T>
Metrics TypedModel<T>::metrics_of(const LossTotals& totals) const {
  Metrics metrics;
  metrics.weight = totals.weight;
  metrics.loss = totals.loss * loss_scale(totals.weight);
  metrics.accuracy =
      has_accuracy() ? totals.hits / totals.weight : std::numeric_limits<double>::quiet_NaN();
  return metrics;
}

template <class T>
int TypedModel<T>::threads_for(std::int64_t rows, double passes) const {
  // A thread is worth waking for about 5 microseconds of work per phase.
  constexpr double kFlopsPerPhase = 5e5;
  const double flops = passes * plan_.flops_per_row * static_cast<double>(rows);
  const double useful = flops / (kFlopsPerPhase * std::max(1, plan_.phases));
  return static_cast<int>(std::clamp(useful, 1.0, static_cast<double>(threads_)));
}

template <class T>
const Parameters<T>& TypedModel<T>::with_fresh_transposed() const {
  const std::lock_guard lock(transposed_mutex_);
  if (transposed_stale_) {
    // The others are maintained by every step, and may be in use by another pure call.
    for (std::size_t i = 0; i < plan_.tensors.size(); ++i)
      if (plan_.tensors[i].is_weight() && !keeps_transposed_[i])
        parameters_.refresh_transposed(plan_.tensors[i]);
    transposed_stale_ = false;
  }
  return parameters_;
}

template <class T>
void TypedModel<T>::get_parameters(void* out) const {
  unpack_flat(plan_, parameters_.values.data(), static_cast<T*>(out));
}

template <class T>
void TypedModel<T>::set_parameters(const void* in) {
  parameters_.set_flat(plan_, static_cast<const T*>(in));
  transposed_stale_ = false;
}

template <class T>
void TypedModel<T>::get_theta(void* out) const {
  // Stored and current point are one until momentum moves them apart.
  if (cursor_.updates == 0 || !optimizer_looks_ahead(plan_.description.optimizer.optimizer))
    return get_parameters(out);
  Arena<T> theta(plan_.arena_size);
  optimizer_.theta(kernels_, cursor_.updates, cursor_.steps_per_epoch, parameters_.values.data(),
                   theta.data());
  unpack_flat(plan_, theta.data(), static_cast<T*>(out));
}

template <class T>
bool TypedModel<T>::get_average(void* out) const {
  if (plan_.description.averaging.kind == Averaging::Kind::kNone) return false;
  if (averaged_ == 0)
    get_theta(out);
  else
    unpack_flat(plan_, average_.data(), static_cast<T*>(out));
  return true;
}

template <class T>
std::vector<std::string> TypedModel<T>::slot_names() const {
  std::vector<std::string> names;
  for (int s = 0; s < optimizer_.slots(); ++s)
    names.emplace_back(optimizer_slot_name(plan_.description.optimizer.optimizer, s));
  return names;
}

template <class T>
void TypedModel<T>::get_slot(int slot, void* out) const {
  expect<ValueError>(slot >= 0 && slot < optimizer_.slots(), "[model] expected a slot in [0, ",
                     optimizer_.slots(), "), got ", slot);
  unpack_flat(plan_, optimizer_.slot(slot), static_cast<T*>(out));
}

template <class T>
void TypedModel<T>::get_state(void* out) const {
  T* to = static_cast<T*>(out);
  for (const BatchNormState& state : plan_.states) {
    to = std::copy_n(parameters_.running_mean(state), state.width, to);
    to = std::copy_n(parameters_.running_var(state), state.width, to);
  }
}

template <class T>
void TypedModel<T>::set_state(const void* in) {
  const T* from = static_cast<const T*>(in);
  for (const BatchNormState& state : plan_.states) {
    std::copy_n(from, state.width, parameters_.running_mean(state));
    from += state.width;
    std::copy_n(from, state.width, parameters_.running_var(state));
    from += state.width;
  }
}

template <class T>
void TypedModel<T>::set_batches_tracked(const std::vector<std::int64_t>& counts) {
  expect<ValueError>(counts.size() == plan_.states.size(), "[model] expected ", plan_.states.size(),
                     " batch counts, one per batch norm, got ", counts.size());
  parameters_.batches = counts;
}

template class TypedModel<float>;
template class TypedModel<double>;

}  // namespace thalweg
