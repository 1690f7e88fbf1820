// Parameter groups, coefficients and the dispatch of the fused step.
#include "training/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "training/schedule.h"

namespace thalweg {

bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

template <class T>
Optimizer<T>::Optimizer(const Plan& plan, const OptimizerDescription& description)
    : plan_(&plan), description_(description), group_of_block_(plan.arena_size / kGroupBlock) {
  for (int s = 0; s < slots(); ++s) slots_[s] = Arena<T>(plan.arena_size);
  const std::size_t count = description.groups.size() + 1;  // group 0 is everything else
  expect<ValueError>(count <= 256, "[optimizer] expected at most 255 parameter groups, got ",
                     count - 1);
  groups_.resize(count);
  frozen_ = std::make_unique<bool[]>(count);
  coefficients_.resize(count * kMaxCoefficients);
  for (std::size_t g = 1; g < count; ++g) {
    const ParameterGroup& group = description.groups[g - 1];
    groups_[g] = {group.lr_scale, group.weight_decay};
    frozen_[g] = group.frozen;
    bool matched = false;
    for (const Tensor& tensor : plan.tensors) {
      if (!matches(group.match, tensor.name)) continue;
      matched = true;
      std::uint8_t* blocks = group_of_block_.data() + tensor.offset / kGroupBlock;
      if (blocks[0] == 0)
        std::fill_n(blocks, tensor.padded / kGroupBlock, static_cast<std::uint8_t>(g));
    }
    expect<ValueError>(matched,
                       "[optimizer] expected a group pattern that matches a parameter, got '",
                       group.match, "'; parameters are named like ",
                       plan.tensors.empty() ? "layers.0.weight" : plan.tensors[0].name);
  }
}

template <class T>
void Optimizer<T>::reset() {
  for (int s = 0; s < slots(); ++s) std::fill(slots_[s].begin(), slots_[s].end(), T(0));
}

template <class T>
void Optimizer<T>::copy_from(const Optimizer& other) {
  for (int s = 0; s < slots(); ++s)
    std::copy(other.slots_[s].begin(), other.slots_[s].end(), slots_[s].begin());
}

template <class T>
void Optimizer<T>::fill_coefficients(std::int64_t t, double steps_per_epoch, double* coefficients,
                                     double* lr) const {
  const HyperTable table = optimizer_hyper(description_.optimizer);
  const int decay = optimizer_hyper_index(description_.optimizer, "weight_decay");
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    std::array<double, kMaxHyperParameters> now{}, next{};
    for (int h = 0; h < table.count; ++h) {
      now[h] = evaluate(description_.hyper[h], t - 1, steps_per_epoch);
      next[h] = evaluate(description_.hyper[h], t, steps_per_epoch);
    }
    if (g == 0) *lr = now[0];
    now[0] *= groups_[g].lr_scale;
    next[0] *= groups_[g].lr_scale;
    if (groups_[g].weight_decay) now[decay] = next[decay] = *groups_[g].weight_decay;
    optimizer_coefficients(description_.optimizer, now.data(), next.data(), t,
                           coefficients + g * kMaxCoefficients);
  }
}

template <class T>
double Optimizer<T>::prepare(std::int64_t t, double steps_per_epoch) {
  double lr = 0.0;
  fill_coefficients(t, steps_per_epoch, coefficients_.data(), &lr);
  return lr;
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
  return kernels.optimizer_step(description_.optimizer, step);
}

template <class T>
void Optimizer<T>::average(const cpu::Kernels<T>& kernels, const T* parameters, T* average,
                           double weight, std::int64_t offset, std::int64_t count) const {
  if (!optimizer_looks_ahead(description_.optimizer)) {
    kernels.average(average + offset, parameters + offset, weight, count);
    return;
  }
  alignas(64) T theta[kTile];
  for (std::int64_t done = 0; done < count; done += kTile) {
    const std::int64_t part = std::min(kTile, count - done);
    kernels.optimizer_theta(description_.optimizer,
                            range(parameters, offset + done, part, coefficients_.data()), theta);
    kernels.average(average + offset + done, theta, weight, part);
  }
}

template <class T>
void Optimizer<T>::theta(const cpu::Kernels<T>& kernels, std::int64_t t, double steps_per_epoch,
                         const T* parameters, T* theta) const {
  std::vector<double> coefficients(coefficients_.size());
  double lr = 0.0;
  fill_coefficients(std::max<std::int64_t>(t, 1), steps_per_epoch, coefficients.data(), &lr);
  kernels.optimizer_theta(description_.optimizer,
                          range(parameters, 0, plan_->arena_size, coefficients.data()), theta);
}

template class Optimizer<float>;
template class Optimizer<double>;

}  // namespace thalweg
