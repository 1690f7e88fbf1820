// Slots, and the dispatch of the fused step.
#include "training/optimizer.h"

#include <algorithm>

namespace thalweg {

template <class T>
Optimizer<T>::Optimizer(const Plan& plan, const OptimizerDescription& description)
    : size_(plan.arena_size),
      rules_(plan, description),
      group_of_block_(plan.arena_size / kGroupBlock),
      frozen_(std::make_unique<bool[]>(static_cast<std::size_t>(rules_.groups()))),
      coefficients_(static_cast<std::size_t>(rules_.groups()) * kMaxCoefficients) {
  for (int s = 0; s < slots(); ++s) slots_[s] = Arena<T>(size_);
  for (int g = 0; g < rules_.groups(); ++g) frozen_[g] = rules_.group_frozen(g);
  for (std::size_t t = 0; t < plan.tensors.size(); ++t) {
    const Tensor& tensor = plan.tensors[t];
    std::fill_n(group_of_block_.data() + tensor.offset / kGroupBlock, tensor.padded / kGroupBlock,
                rules_.group_of(static_cast<int>(t)));
  }
}

template <class T>
void Optimizer<T>::reset() {
  for (int s = 0; s < slots(); ++s) std::fill(slots_[s].begin(), slots_[s].end(), T(0));
}

template <class T>
double Optimizer<T>::prepare(std::int64_t t, double steps_per_epoch) {
  return rules_.coefficients(t, steps_per_epoch, coefficients_.data());
}

// The kernels' view of a range. It is mutable for `step`; the other kernels only read it.
template <class T>
cpu::OptimizerStep<T> Optimizer<T>::range(const T* parameters, std::int64_t offset,
                                          std::int64_t count, const double* coefficients) const {
  cpu::OptimizerStep<T> step;
  step.p = const_cast<T*>(parameters) + offset;
  if (slots() > 0) step.s0 = const_cast<T*>(slots_[0].data()) + offset;
  if (slots() > 1) step.s1 = const_cast<T*>(slots_[1].data()) + offset;
  step.groups = group_of_block_.data() + offset / kGroupBlock;
  step.coefficients = coefficients;
  step.frozen = frozen_.get();
  step.count = count;
  return step;
}

template <class T>
std::int64_t Optimizer<T>::step(const cpu::Kernels<T>& kernels, T* parameters, const T* gradient,
                                std::int64_t offset, std::int64_t count) {
  cpu::OptimizerStep<T> step = range(parameters, offset, count, coefficients_.data());
  step.g = gradient;
  return kernels.optimizer_step(rules_.optimizer(), step);
}

template <class T>
void Optimizer<T>::average(const cpu::Kernels<T>& kernels, const T* parameters, T* average,
                           double weight, std::int64_t offset, std::int64_t count) const {
  if (!optimizer_looks_ahead(rules_.optimizer())) {
    kernels.average(average + offset, parameters + offset, weight, count);
    return;
  }
  alignas(64) T theta[kTile];
  for (std::int64_t done = 0; done < count; done += kTile) {
    const std::int64_t part = std::min(kTile, count - done);
    kernels.optimizer_theta(rules_.optimizer(),
                            range(parameters, offset + done, part, coefficients_.data()), theta);
    kernels.average(average + offset + done, theta, weight, part);
  }
}

template <class T>
void Optimizer<T>::theta(const cpu::Kernels<T>& kernels, std::int64_t t, double steps_per_epoch,
                         const T* parameters, T* theta) const {
  std::vector<double> coefficients(coefficients_.size());
  rules_.coefficients(std::max<std::int64_t>(t, 1), steps_per_epoch, coefficients.data());
  kernels.optimizer_theta(rules_.optimizer(), range(parameters, 0, size_, coefficients.data()),
                          theta);
}

template class Optimizer<float>;
template class Optimizer<double>;

}  // namespace thalweg
