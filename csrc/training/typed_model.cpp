// Construction of a model and access to its values.
#include "training/typed_model.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/error.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "network/initialize.h"
#include "ops/device_resolution.h"
#if defined(TW_WITH_CUDA)
#include "cuda/resources.h"
#endif

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

}  // namespace

int resolve_threads(int threads) {
  expect<ValueError>(threads >= 0 && threads <= ThreadPool::kMaxThreads,
                     "[model] expected threads in [0, ", int{ThreadPool::kMaxThreads}, "], got ",
                     threads);
  return threads > 0 ? threads : ThreadPool::default_threads();
}

std::unique_ptr<Model> Model::create(const Description& description, const std::string& device,
                                     int threads, void* stream) {
  const std::string resolved = resolve_device(device);
  threads = resolve_threads(threads);
  if (description.dtype == DType::kFloat64)
    return std::make_unique<TypedModel<double>>(description, resolved, threads, stream);
  return std::make_unique<TypedModel<float>>(description, resolved, threads, stream);
}

template <class T>
TypedModel<T>::TypedModel(const Description& description, const std::string& device, int threads,
                          void* stream)
    : plan_(compile(description)), threads_(threads), stream_(stream) {
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
  engine_ = make_engine<T>(device, plan_, threads_, stream_);
  reset();
}

template <class T>
void TypedModel<T>::make_method() {
  method_.reset();
  if (plan_.description.optimizer.method)
    method_ = std::make_unique<MethodUpdates<T>>(*this, plan_, *engine_);
}

template <class T>
std::vector<std::pair<std::string, std::int64_t>> TypedModel<T>::fallbacks() const {
  if (!method_) return {};
  return method_->fallbacks();
}

template <class T>
std::unique_ptr<Model> TypedModel<T>::copy() const {
#if defined(TW_WITH_CUDA)
  // An engine lives on the GPU that is current when it is made.
  std::optional<cuda::DeviceScope> scope;
  if (engine_->exchange() != nullptr) scope.emplace(engine_->exchange()->device());
#endif
  auto other = std::make_unique<TypedModel<T>>(plan_.description, device(), threads_, stream_);
  Snapshot snapshot;
  take(&snapshot);
  other->put(snapshot);
  std::vector<T>& values = snapshot.parameters;
  const auto slots = static_cast<int>(slot_names().size());
  for (int s = 0; s < slots; ++s) {
    engine_->get_slot(s, values.data());
    other->engine_->set_slot(s, values.data());
  }
  if (averages()) {
    engine_->get_average(values.data());
    other->engine_->set_average(values.data());
  }
  if (method_) other->method_->set_state(method_->state());
  other->cursor_ = cursor_;
  other->custom_loss_ = custom_loss_;
  return other;
}

template <class T>
const DeviceExchange& TypedModel<T>::required_exchange() const {
  expect<DeviceError>(exchange() != nullptr,
                      "[workspace] expected a model on device \"cuda\", got one on the CPU");
  return *exchange();
}

template <class T>
std::size_t TypedModel<T>::workspace_bytes(std::int64_t batch_size) const {
  (void)required_exchange();
  expect<ValueError>(batch_size >= 1, "[workspace] expected batch_size >= 1, got ", batch_size);
  return engine_->workspace_bytes(batch_size);
}

template <class T>
void TypedModel<T>::set_workspace(void* memory, std::size_t bytes) {
  constexpr std::uintptr_t kAlignment = 256;
  const DeviceExchange& device = required_exchange();
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  expect<ValueError>(address % kAlignment == 0,
                     "[workspace] expected an address that is a multiple ", "of ", int{kAlignment},
                     ", got one with the remainder ", static_cast<int>(address % kAlignment));
  if (memory != nullptr) {
    expect<DeviceError>(device.memory_of(memory) != Memory::kHost,
                        "[workspace] expected memory of the GPU, got host memory");
    ArrayView view;
    view.data = memory;
    view.dtype = DType::kUInt8;
    view.rows = static_cast<std::int64_t>(bytes);
    device.check_place(view, "workspace", "memory");
  }
  engine_->set_workspace(memory, bytes);
}

template <class T>
void TypedModel<T>::reset() {
  std::vector<T> parameters = flat();
  for (std::size_t i = 0; i < plan_.tensors.size(); ++i) {
    const Tensor& tensor = plan_.tensors[i];
    std::vector<double> values(static_cast<std::size_t>(tensor.size()));
    initialize(plan_, static_cast<int>(i), plan_.description.seed, values.data());
    std::transform(values.begin(), values.end(), parameters.begin() + tensor.flat_offset,
                   [](double v) { return static_cast<T>(v); });
  }
  std::vector<T> state = flat_state();
  T* to = state.data();
  for (const BatchNormState& bn : plan_.states) {
    to = std::fill_n(to, bn.width, T(0));
    to = std::fill_n(to, bn.width, T(1));
  }
  set_parameters(parameters.data());
  set_state(state.data());
  engine_->set_batches(std::vector<std::int64_t>(plan_.states.size(), 0));
  engine_->reset_optimizer();
  make_method();
  cursor_ = {};
}

template <class T>
void TypedModel<T>::set_optimizer(const OptimizerDescription& optimizer) {
  OptimizerDescription description = optimizer;
  engine_->set_optimizer(optimizer);
  plan_.description.optimizer = std::move(description);
  cursor_.updates = 0;
  make_method();
}

template <class T>
void TypedModel<T>::take(Snapshot* snapshot) const {
  snapshot->parameters.resize(static_cast<std::size_t>(num_parameters()));
  snapshot->state.resize(flat_state().size());
  get_parameters(snapshot->parameters.data());
  get_state(snapshot->state.data());
  snapshot->batches = engine_->batches();
}

template <class T>
void TypedModel<T>::put(const Snapshot& snapshot) {
  set_parameters(snapshot.parameters.data());
  set_state(snapshot.state.data());
  engine_->set_batches(snapshot.batches);
}

template <class T>
std::vector<T> TypedModel<T>::flat_state() const {
  std::int64_t size = 0;
  for (const TensorInfo& tensor : state_tensors_) size += tensor.size;
  return std::vector<T>(static_cast<std::size_t>(size));
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
  metrics.loss = totals.loss * loss_scale(plan_, totals.weight);
  metrics.accuracy =
      has_accuracy() ? totals.hits / totals.weight : std::numeric_limits<double>::quiet_NaN();
  return metrics;
}

template <class T>
void TypedModel<T>::get_theta(void* out) const {
  // Stored and current point are one until momentum moves them apart.
  if (cursor_.updates == 0 || !optimizer_looks_ahead(plan_.description.optimizer.optimizer))
    return get_parameters(out);
  engine_->get_theta(cursor_.updates, cursor_.steps_per_epoch, static_cast<T*>(out));
}

template <class T>
bool TypedModel<T>::get_average(void* out) const {
  if (!averages()) return false;
  if (cursor_.averaged == 0)
    get_theta(out);
  else
    engine_->get_average(static_cast<T*>(out));
  return true;
}

template <class T>
std::vector<std::string> TypedModel<T>::slot_names() const {
  const int optimizer = plan_.description.optimizer.optimizer;
  std::vector<std::string> names;
  for (int s = 0; s < optimizer_slots(optimizer); ++s)
    names.emplace_back(optimizer_slot_name(optimizer, s));
  return names;
}

template <class T>
void TypedModel<T>::get_slot(int slot, void* out) const {
  const int slots = optimizer_slots(plan_.description.optimizer.optimizer);
  expect<ValueError>(slot >= 0 && slot < slots, "[model] expected a slot in [0, ", slots, "), got ",
                     slot);
  engine_->get_slot(slot, static_cast<T*>(out));
}

template <class T>
void TypedModel<T>::set_batches_tracked(const std::vector<std::int64_t>& counts) {
  expect<ValueError>(counts.size() == plan_.states.size(), "[model] expected ", plan_.states.size(),
                     " batch counts, one per batch norm, got ", counts.size());
  engine_->set_batches(counts);
}

template class TypedModel<float>;
template class TypedModel<double>;

}  // namespace thalweg
