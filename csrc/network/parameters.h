// The values of a plan's parameters: the flat arena, the transposed weight copies that dgrad reads,
// and batch norm's running statistics; conversion from and to the canonical flat vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "core/pack.h"
#include "network/plan.h"

namespace thalweg {

// Canonical flat vector <-> an arena of the plan's layout (parameters, gradients, slots, averages).
template <class T>
void pack_flat(const Plan& plan, const T* flat, T* arena) {
  for (const Tensor& tensor : plan.tensors) {
    if (tensor.is_weight())
      pack_weight(flat + tensor.flat_offset, tensor.out, tensor.in, arena + tensor.offset);
    else
      pack_vector(flat + tensor.flat_offset, tensor.out, arena + tensor.offset);
  }
}

template <class T>
void unpack_flat(const Plan& plan, const T* arena, T* flat) {
  for (const Tensor& tensor : plan.tensors) {
    if (tensor.is_weight())
      unpack_weight(arena + tensor.offset, tensor.out, tensor.in, flat + tensor.flat_offset);
    else
      unpack_vector(arena + tensor.offset, tensor.out, flat + tensor.flat_offset);
  }
}

template <class T>
struct Parameters {
  Arena<T> values;
  Arena<T> transposed;
  Arena<T> state;                     // running mean and variance, as BatchNormState says
  std::vector<std::int64_t> batches;  // num_batches_tracked, per batch norm

  explicit Parameters(const Plan& plan)
      : values(plan.arena_size),
        transposed(plan.transposed_size),
        state(plan.state_size),
        batches(plan.states.size(), 0) {
    reset_state(plan);
  }

  void reset_state(const Plan& plan) {
    std::fill(state.begin(), state.end(), T(0));
    for (const BatchNormState& bn : plan.states) std::fill_n(running_var(bn), bn.width, T(1));
    std::fill(batches.begin(), batches.end(), 0);
  }

  void copy_from(const Parameters& other) {
    std::copy(other.values.begin(), other.values.end(), values.begin());
    std::copy(other.transposed.begin(), other.transposed.end(), transposed.begin());
    std::copy(other.state.begin(), other.state.end(), state.begin());
    batches = other.batches;
  }

  T* running_mean(const BatchNormState& bn) { return state.data() + bn.offset; }
  T* running_var(const BatchNormState& bn) { return state.data() + bn.offset + bn.padded; }
  const T* running_mean(const BatchNormState& bn) const { return state.data() + bn.offset; }
  const T* running_var(const BatchNormState& bn) const {
    return state.data() + bn.offset + bn.padded;
  }

  void refresh_transposed(const Tensor& weight) {
    transpose_weight(values.data() + weight.offset, weight.out, weight.in,
                     transposed.data() + weight.transposed_offset);
  }

  void set_flat(const Plan& plan, const T* flat) {
    pack_flat(plan, flat, values.data());
    for (const Tensor& tensor : plan.tensors)
      if (tensor.is_weight()) refresh_transposed(tensor);
  }
};

}  // namespace thalweg
