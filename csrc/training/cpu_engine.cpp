// The values of a model on the CPU.
#include "training/cpu_engine.h"

#include <algorithm>

namespace thalweg {

template <class T>
CpuEngine<T>::CpuEngine(const Plan& plan, int threads)
    : plan_(plan),
      threads_(threads),
      kernels_(cpu::kernels<T>()),
      parameters_(plan),
      optimizer_(plan, plan.description.optimizer),
      gradient_parts_(plan),
      updates_(list_updates(plan)),
      keeps_transposed_(plan.tensors.size(), false),
      task_norms_(static_cast<std::int64_t>(updates_.size())),
      staged_state_(plan.state_size),
      staged_batches_(plan.states.size(), 0) {
  for (const Node& node : plan_.nodes)
    if (node.weight >= 0) keeps_transposed_[node.weight] = plan_.buffers[node.input].needs_gradient;
  if (plan_.description.averaging.kind != Averaging::Kind::kNone)
    average_ = Arena<T>(plan_.arena_size);
  pool_.reserve(kPooledWorkspaces);
}

template <class T>
const Parameters<T>& CpuEngine<T>::with_fresh_transposed() const {
  const std::lock_guard lock(transposed_mutex_);
  if (transposed_stale_) {
    // The others are maintained by every step, and may be in use by another pure call.
    for_each_tile(plan_, [&](const Tensor& weight, std::int64_t in_panel, std::int64_t out_panel) {
      if (!keeps_transposed_[static_cast<std::size_t>(&weight - plan_.tensors.data())])
        parameters_.refresh_copies(kernels_, weight, in_panel, out_panel, false, true);
    });
    transposed_stale_ = false;
  }
  return parameters_;
}

template <class T>
void CpuEngine<T>::get_parameters(T* flat) const {
  unpack_flat(plan_, parameters_.values.data(), flat);
}

template <class T>
void CpuEngine<T>::set_parameters(const T* flat) {
  parameters_.set_flat(plan_, flat);
  transposed_stale_ = false;
}

template <class T>
void CpuEngine<T>::get_theta(std::int64_t updates, double steps_per_epoch, T* flat) const {
  Arena<T> theta(plan_.arena_size);
  optimizer_.theta(kernels_, updates, steps_per_epoch, parameters_.values.data(), theta.data());
  unpack_flat(plan_, theta.data(), flat);
}

template <class T>
void CpuEngine<T>::get_slot(int slot, T* flat) const {
  unpack_flat(plan_, optimizer_.slot(slot), flat);
}

template <class T>
void CpuEngine<T>::set_slot(int slot, const T* flat) {
  pack_flat(plan_, flat, optimizer_.slot(slot));
}

template <class T>
void CpuEngine<T>::get_average(T* flat) const {
  unpack_flat(plan_, average_.data(), flat);
}

template <class T>
void CpuEngine<T>::set_average(const T* flat) {
  pack_flat(plan_, flat, average_.data());
}

template <class T>
void CpuEngine<T>::get_state(T* flat) const {
  for (const BatchNormState& state : plan_.states) {
    flat = std::copy_n(parameters_.running_mean(state), state.width, flat);
    flat = std::copy_n(parameters_.running_var(state), state.width, flat);
  }
}

template <class T>
void CpuEngine<T>::set_state(const T* flat) {
  for (const BatchNormState& state : plan_.states) {
    std::copy_n(flat, state.width, parameters_.running_mean(state));
    flat += state.width;
    std::copy_n(flat, state.width, parameters_.running_var(state));
    flat += state.width;
  }
}

template <class T>
void CpuEngine<T>::reset_optimizer() {
  optimizer_.reset();
  std::fill(average_.begin(), average_.end(), T(0));
}

template <class T>
void CpuEngine<T>::set_optimizer(const OptimizerDescription& optimizer) {
  optimizer_ = Optimizer<T>(plan_, optimizer);
}

template class CpuEngine<float>;
template class CpuEngine<double>;

}  // namespace thalweg
