// The values of a model on a GPU.
#include "training/cuda_engine.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "model";

template <class T>
void clear(const cuda::DeviceArray<T>& array, cudaStream_t stream) {
  if (array.size() > 0)
    cuda::check(cudaMemsetAsync(array.data(), 0, array.bytes(), stream), kOperation);
}

}  // namespace

template <class T>
CudaEngine<T>::Slots::Slots(const Plan& plan, const CudaLayout& layout,
                            const OptimizerDescription& description, cudaStream_t stream)
    : rules(plan, description),
      group_of_block(layout.size / kGroupBlock, kOperation),
      frozen(rules.groups(), kOperation) {
  for (int s = 0; s < rules.slots(); ++s)
    values[static_cast<std::size_t>(s)] = cuda::DeviceArray<T>(layout.size, kOperation);
  std::vector<std::uint8_t> groups(static_cast<std::size_t>(group_of_block.size()), 0);
  for (std::size_t t = 0; t < plan.tensors.size(); ++t)
    std::fill_n(groups.data() + layout.tensors[t].offset / kGroupBlock,
                layout.tensors[t].padded / kGroupBlock, rules.group_of(static_cast<int>(t)));
  cuda::upload(groups.data(), group_of_block.data(), group_of_block.size(), stream, kOperation);
  std::vector<std::uint8_t> still;
  for (int g = 0; g < rules.groups(); ++g) still.push_back(rules.group_frozen(g) ? 1 : 0);
  cuda::upload(still.data(), frozen.data(), frozen.size(), stream, kOperation);
  std::vector<std::int32_t> blocks;
  for (std::size_t t = 0; t < plan.tensors.size(); ++t) {
    if (plan.tensors[t].is_weight() || rules.frozen(static_cast<int>(t))) continue;
    const std::int64_t first = layout.tensors[t].offset / kGroupBlock;
    for (std::int64_t b = 0; b < layout.tensors[t].padded / kGroupBlock; ++b)
      blocks.push_back(static_cast<std::int32_t>(first + b));
  }
  vector_blocks =
      cuda::DeviceArray<std::int32_t>(static_cast<std::int64_t>(blocks.size()), kOperation);
  cuda::upload(blocks.data(), vector_blocks.data(), vector_blocks.size(), stream, kOperation);
}

template <class T>
CudaEngine<T>::CudaEngine(const Plan& plan, int threads, cudaStream_t stream)
    : plan_(plan),
      threads_(threads),
      device_(cuda::current_device(kOperation)),
      stream_(kOperation, stream),
      capture_(kOperation),
      exchange_(device_, stream),
      parameters_(plan, CudaPrecision::choose(plan.description, kOperation), stream_),
      slots_(plan, parameters_.layout, plan.description.optimizer, stream_),
      state_(1, kOperation),
      host_state_(1, kOperation),
      host_status_(1, kOperation),
      idle_lanes_(device_, [this] { return release_lanes(); }) {
  const std::int64_t size = parameters_.layout.size;
  if (plan_.description.averaging.kind != Averaging::Kind::kNone) {
    average_ = cuda::DeviceArray<T>(size, kOperation);
    average_weights_ = cuda::DeviceArray<double>(kRunUpdates, kOperation);
    host_average_weights_ = cuda::PinnedArray<double>(kRunUpdates, kOperation);
  }
  if (keeps_gradients())
    squares_ =
        cuda::DeviceArray<double>(static_cast<std::int64_t>(plan.tensors.size()), kOperation);
  lr_.resize(kRunUpdates);
  update_weights_ = cuda::PinnedArray<double>(2 * kRunUpdates, kOperation);
  const std::lock_guard lock(pool_mutex_);  // others may be looking for idle lanes
  pool_.reserve(kPooledLanes);
}

template <class T>
CudaEngine<T>::~CudaEngine() {
  try {
    const cuda::DeviceScope scope(device_);
    (void)cudaStreamSynchronize(stream_);
  } catch (const Error&) {
    // The device is gone, and so is its memory.
  }
}

template <class T>
void CudaEngine<T>::get_parameters(T* flat) const {
  const cuda::DeviceScope scope(device_);
  parameters_.get_flat(plan_, flat, stream_);
}

template <class T>
void CudaEngine<T>::set_parameters(const T* flat) {
  const cuda::DeviceScope scope(device_);
  if (exchange_.memory_of(flat) == Memory::kCuda) exchange_.join(stream_);
  parameters_.set_flat(plan_, flat, stream_);
}

template <class T>
void CudaEngine<T>::get_theta(std::int64_t updates, double steps_per_epoch, T* flat) const {
  const cuda::DeviceScope scope(device_);
  const OptimizerRules& rules = slots_.rules;
  std::vector<double> values(static_cast<std::size_t>(rules.groups() * kMaxCoefficients));
  rules.coefficients(std::max<std::int64_t>(updates, 1), steps_per_epoch, values.data());
  const cuda::DeviceArray<double> coefficients(static_cast<std::int64_t>(values.size()),
                                               kOperation);
  cuda::upload(values.data(), coefficients.data(), coefficients.size(), stream_, kOperation);
  const cuda::DeviceArray<T> theta(parameters_.layout.size, kOperation);
  cuda::OptimizerTheta<T> problem;
  problem.optimizer = rules.optimizer();
  problem.count = theta.size();
  problem.p = parameters_.values.data();
  problem.s0 = slot(0);
  problem.s1 = slot(1);
  problem.groups = slots_.groups();
  problem.coefficients = coefficients.data();
  problem.theta = theta.data();
  cuda::optimizer_theta(problem, stream_);
  download_flat<T>(plan_, parameters_.layout, theta.data(), flat, stream_);
}

template <class T>
void CudaEngine<T>::get_slot(int index, T* flat) const {
  const cuda::DeviceScope scope(device_);
  download_flat<T>(plan_, parameters_.layout, slot(index), flat, stream_);
}

template <class T>
void CudaEngine<T>::set_slot(int index, const T* flat) {
  const cuda::DeviceScope scope(device_);
  upload_flat(plan_, parameters_.layout, flat, slot(index), stream_);
}

template <class T>
void CudaEngine<T>::get_average(T* flat) const {
  const cuda::DeviceScope scope(device_);
  download_flat<T>(plan_, parameters_.layout, average_.data(), flat, stream_);
}

template <class T>
void CudaEngine<T>::set_average(const T* flat) {
  const cuda::DeviceScope scope(device_);
  upload_flat(plan_, parameters_.layout, flat, average_.data(), stream_);
}

template <class T>
void CudaEngine<T>::get_state(T* flat) const {
  const cuda::DeviceScope scope(device_);
  parameters_.get_state(plan_, flat, stream_);
}

template <class T>
void CudaEngine<T>::set_state(const T* flat) {
  const cuda::DeviceScope scope(device_);
  parameters_.set_state(plan_, flat, stream_);
}

template <class T>
std::vector<std::int64_t> CudaEngine<T>::batches() const {
  const cuda::DeviceScope scope(device_);
  return parameters_.get_batches(plan_, stream_);
}

template <class T>
void CudaEngine<T>::set_batches(const std::vector<std::int64_t>& counts) {
  const cuda::DeviceScope scope(device_);
  parameters_.set_batches(counts, stream_);
}

template <class T>
void CudaEngine<T>::reset_optimizer() {
  const cuda::DeviceScope scope(device_);
  for (const cuda::DeviceArray<T>& values : slots_.values) clear(values, stream_);
  clear(average_, stream_);
  stream_.synchronize(kOperation);
}

template <class T>
void CudaEngine<T>::set_optimizer(const OptimizerDescription& optimizer) {
  const cuda::DeviceScope scope(device_);
  slots_ = Slots(plan_, parameters_.layout, optimizer, stream_);
  clear(squares_, stream_);
  stream_.synchronize(kOperation);
  coefficients_ = {};  // for another number of groups
  steps_.clear();
}

template class CudaEngine<float>;
template class CudaEngine<double>;

template <class T>
std::unique_ptr<Engine<T>> make_cuda_engine(const Plan& plan, int threads, void* stream) {
  const auto handle = static_cast<cudaStream_t>(stream);
  expect<ValueError>(handle != cudaStreamLegacy && handle != cudaStreamPerThread,
                     "[model] expected a stream made by cudaStreamCreate, got a default stream, "
                     "which cannot be captured in a graph; NULL is a stream of the model's own");
  return std::make_unique<CudaEngine<T>>(plan, threads, handle);
}
template std::unique_ptr<Engine<float>> make_cuda_engine(const Plan&, int, void*);
template std::unique_ptr<Engine<double>> make_cuda_engine(const Plan&, int, void*);

}  // namespace thalweg
