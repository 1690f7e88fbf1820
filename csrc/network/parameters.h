// The values of a plan's parameters: the flat arena, the transposed weight copies that dgrad reads
// (for matmul_precision "medium" weights and copies as pairs of bfloat16 numbers instead), and
// batch norm's running statistics; conversion from and to the canonical flat vector.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/arena.h"
#include "core/cache_lines.h"
#include "core/pack.h"
#include "cpu/kernels.h"
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

// Whether the dense layers multiply numbers rounded to bfloat16.
template <class T>
bool multiplies_bfloat16(const Plan& plan) {
  return std::is_same_v<T, float> && plan.description.matmul_precision == MatmulPrecision::kMedium;
}

// f(weight, in panel, out panel) for all tiles of all weights.
template <class F>
void for_each_tile(const Plan& plan, F&& f) {
  for (const Tensor& tensor : plan.tensors) {
    if (!tensor.is_weight()) continue;
    for (std::int64_t k = 0; k < panels_of(tensor.in); ++k)
      for (std::int64_t o = 0; o < panels_of(tensor.out); ++o) f(tensor, k, o);
  }
}

template <class T>
struct Parameters {
  Arena<T> values;
  Arena<T> transposed;  // empty for medium
  // Of weights, [16, 32] per tile: rounded values of two inputs, of two outputs. Empty unless
  // medium.
  Arena<BfloatPair> pairs;
  Arena<BfloatPair> transposed_pairs;
  Arena<T> state;                     // running mean and variance, as BatchNormState says
  std::vector<std::int64_t> batches;  // num_batches_tracked, per batch norm

  explicit Parameters(const Plan& plan)
      : values(plan.arena_size),
        transposed(multiplies_bfloat16<T>(plan) ? 0 : plan.transposed_size),
        pairs(multiplies_bfloat16<T>(plan) ? plan.transposed_size / 2 : 0),
        transposed_pairs(pairs.size()),
        state(plan.state_size),
        batches(plan.states.size(), 0) {
    reset_state(plan);
  }

  void reset_state(const Plan& plan) {
    std::fill(state.begin(), state.end(), T(0));
    for (const BatchNormState& bn : plan.states) std::fill_n(running_var(bn), bn.width, T(1));
    std::fill(batches.begin(), batches.end(), 0);
  }

  T* running_mean(const BatchNormState& bn) { return state.data() + bn.offset; }
  T* running_var(const BatchNormState& bn) { return state.data() + bn.offset + bn.padded; }
  const T* running_mean(const BatchNormState& bn) const { return state.data() + bn.offset; }
  const T* running_var(const BatchNormState& bn) const {
    return state.data() + bn.offset + bn.padded;
  }

  // From the values of one tile of a weight: what the forward pass reads instead of them, if
  // anything, and what the backward pass reads.
  void refresh_copies(const cpu::Kernels<T>& kernels, const Tensor& weight, std::int64_t in_panel,
                      std::int64_t out_panel, bool forward, bool backward) {
    const std::int64_t at = (out_panel * panels_of(weight.in) + in_panel) * kTile;
    const std::int64_t to =
        weight.transposed_offset + (in_panel * panels_of(weight.out) + out_panel) * kTile;
    const T* const tile = values.data() + weight.offset + at;
    if constexpr (std::is_same_v<T, float>) {
      if (pairs.size() > 0)
        return kernels.pair_tile(
            tile, forward ? pairs.data() + (weight.transposed_offset + at) / 2 : nullptr,
            backward ? transposed_pairs.data() + to / 2 : nullptr);
    }
    if (!backward) return;
    // The rows of the copy past the width stay zero.
    const std::int64_t columns = std::min(kPanel, weight.out - out_panel * kPanel);
    kernels.transpose_tile(tile, kPanel, columns, transposed.data() + to);
  }

  // Before a tile and its copies are written, while other threads keep away from them.
  void claim(const Tensor& weight, std::int64_t in_panel, std::int64_t out_panel,
             bool with_transposed) {
    const std::int64_t at = (out_panel * panels_of(weight.in) + in_panel) * kTile;
    const std::int64_t to =
        weight.transposed_offset + (in_panel * panels_of(weight.out) + out_panel) * kTile;
    claim_lines(values.data() + weight.offset + at, kTile);
    if (pairs.size() == 0) {
      if (with_transposed) claim_lines(transposed.data() + to, kTile);
      return;
    }
    claim_lines(pairs.data() + (weight.transposed_offset + at) / 2, kTile / 2);
    if (with_transposed) claim_lines(transposed_pairs.data() + to / 2, kTile / 2);
  }

  void set_flat(const Plan& plan, const T* flat) {
    pack_flat(plan, flat, values.data());
    const cpu::Kernels<T>& kernels = cpu::kernels<T>();
    for_each_tile(plan, [&](const Tensor& weight, std::int64_t in_panel, std::int64_t out_panel) {
      refresh_copies(kernels, weight, in_panel, out_panel, true, true);
    });
  }
};

}  // namespace thalweg
