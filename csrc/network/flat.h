// The part of a canonical flat vector that belongs to one update task, to and from an arena of the
// plan's layout: what pack_flat and unpack_flat do to a whole vector, for threads that share it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layout.h"
#include "network/plan.h"

namespace thalweg {

// The 32 x 32 elements of a weight that a task covers.
struct TaskTile {
  const Tensor& tensor;
  std::int64_t first_out, outs;  // valid rows
  std::int64_t first_in, ins;    // valid columns
  std::int64_t offset;           // of the tile in the arena
  std::int64_t transposed;       // of its transposed copy

  TaskTile(const Plan& plan, const UpdateTask& task)
      : tensor(plan.tensors[task.tensor]),
        first_out(task.out_panel * kPanel),
        outs(std::min(kPanel, tensor.out - first_out)),
        first_in(task.in_panel * kPanel),
        ins(std::min(kPanel, tensor.in - first_in)),
        offset(tensor.offset + (task.out_panel * panels_of(tensor.in) + task.in_panel) * kTile),
        transposed(tensor.transposed_offset +
                   (task.in_panel * panels_of(tensor.out) + task.out_panel) * kTile) {}

  std::int64_t flat(std::int64_t o) const {
    return tensor.flat_offset + (first_out + o) * tensor.in + first_in;
  }
};

// Lanes past the width keep the zeros that an arena begins with.
template <class T, class Source>
void pack_task(const Plan& plan, const UpdateTask& task, const Source* flat, T* values,
               T* transposed) {
  const Tensor& tensor = plan.tensors[task.tensor];
  if (!tensor.is_weight()) {
    std::transform(flat + tensor.flat_offset, flat + tensor.flat_offset + tensor.out,
                   values + tensor.offset, [](Source x) { return static_cast<T>(x); });
    return;
  }
  const TaskTile tile(plan, task);
  for (std::int64_t o = 0; o < tile.outs; ++o) {
    const Source* from = flat + tile.flat(o);
    for (std::int64_t i = 0; i < tile.ins; ++i) {
      const T element = static_cast<T>(from[i]);
      values[tile.offset + i * kPanel + o] = element;
      transposed[tile.transposed + o * kPanel + i] = element;
    }
  }
}

template <class T, class Target>
void unpack_task(const Plan& plan, const UpdateTask& task, const T* arena, Target* flat) {
  const Tensor& tensor = plan.tensors[task.tensor];
  if (!tensor.is_weight()) {
    std::transform(arena + tensor.offset, arena + tensor.offset + tensor.out,
                   flat + tensor.flat_offset, [](T x) { return static_cast<Target>(x); });
    return;
  }
  const TaskTile tile(plan, task);
  for (std::int64_t o = 0; o < tile.outs; ++o) {
    Target* to = flat + tile.flat(o);
    for (std::int64_t i = 0; i < tile.ins; ++i)
      to[i] = static_cast<Target>(arena[tile.offset + i * kPanel + o]);
  }
}

}  // namespace thalweg
