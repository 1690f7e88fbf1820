// The optimizer of a model on the CPU: slot arenas, averaging, and the fused step over any range of
// the flat arena.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "cpu/kernels.h"
#include "network/parameters.h"
#include "network/plan.h"
#include "training/optimizer_rules.h"

namespace thalweg {

template <class T>
class Optimizer {
 public:
  Optimizer(const Plan& plan, const OptimizerDescription& description);

  int slots() const { return rules_.slots(); }
  T* slot(int index) { return slots_[index].data(); }
  const T* slot(int index) const { return slots_[index].data(); }
  void reset();

  // Coefficients of update t (from 1), for all groups; returns the learning rate of group 0.
  double prepare(std::int64_t t, double steps_per_epoch);

  // One update of the arena's elements [offset, offset + count), both multiples of 256. `gradient`
  // points at the first of them. Returns how many elements were skipped for a non-finite gradient.
  std::int64_t step(const cpu::Kernels<T>& kernels, T* parameters, const T* gradient,
                    std::int64_t offset, std::int64_t count);

  // average += weight (theta - average) over the same elements, after their step.
  void average(const cpu::Kernels<T>& kernels, const T* parameters, T* average, double weight,
               std::int64_t offset, std::int64_t count) const;

  bool frozen(int tensor) const { return rules_.frozen(tensor); }

  // theta of the look-ahead methods after update t, from an arena of stored parameters.
  void theta(const cpu::Kernels<T>& kernels, std::int64_t t, double steps_per_epoch,
             const T* parameters, T* theta) const;

 private:
  cpu::OptimizerStep<T> range(const T* parameters, std::int64_t offset, std::int64_t count,
                              const double* coefficients) const;

  std::int64_t size_;  // of the arena
  OptimizerRules rules_;
  std::array<Arena<T>, kMaxSlots> slots_;
  Arena<std::uint8_t> group_of_block_;
  std::unique_ptr<bool[]> frozen_;
  std::vector<double> coefficients_;
};

}  // namespace thalweg
