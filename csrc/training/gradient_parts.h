// Owns the parts of a gradient that threads make which keep to rows of their own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/layout.h"
#include "cpu/kernels.h"
#include "network/plan.h"

namespace thalweg {

// The sum over rows of a gradient is a tree (kGradientRows). Where its upper levels cut the rows
// into as many nearly equal parts as there are threads, each thread can make all of its part's
// layers and its part of every gradient, and the parts add up to the same bits as without.
template <class T>
class GradientParts {
 public:
  explicit GradientParts(const Plan& plan) : size_(plan.arena_size) {
    for (const Node& node : plan.nodes)
      if (node.weight >= 0)
        exchanged_ += plan.tensors[node.weight].in + plan.tensors[node.weight].out;
  }

  // The rows that a thread keeps to; none where threads had better share each phase. Sharing lets
  // half of all activations and their gradients cross from thread to thread, keeping to one's rows
  // the parts of the gradients and the updated weights.
  Range rows_of(std::int64_t rows, int rank, int threads) const {
    const std::int64_t shared = exchanged_ * rows;
    const bool worth = shared >= kWorth * size_ && threads * size_ <= kMemory * shared;
    if (threads == 1 || !worth || !even({0, rows}, threads)) return {};
    Range own{0, rows};
    for (int half = threads / 2; half > 0; half /= 2)
      own = rank & half ? second_half(own) : first_half(own);
    return own;
  }

  // For as many threads as would keep to their rows. Throws bad_alloc.
  void reserve(std::int64_t rows, int threads) {
    if (rows_of(rows, 0, threads).size() > 0 && parts_.size() < threads * size_)
      parts_ = Arena<T>(threads * size_);
  }
  bool has(int threads) const { return parts_.size() >= threads * size_; }

  // The part of one thread, in the plan's layout.
  T* part(int rank) { return parts_.data() + rank * size_; }

  // to[0 .. count) = the sum of the parts of some threads, at an offset of the layout.
  void add_up(const cpu::Kernels<T>& kernels, Range ranks, std::int64_t offset, std::int64_t count,
              T* to) {
    if (ranks.size() == 1) {
      std::copy_n(part(static_cast<int>(ranks.begin)) + offset, count, to);
      return;
    }
    const std::int64_t middle = ranks.begin + ranks.size() / 2;
    add_up(kernels, {ranks.begin, middle}, offset, count, to);
    alignas(64) T sum[kTile];
    for (std::int64_t at = 0; at < count; at += kTile) {
      const std::int64_t some = std::min(kTile, count - at);
      const T* second = sum;
      if (ranks.end - middle == 1)
        second = part(static_cast<int>(middle)) + offset + at;
      else
        add_up(kernels, {middle, ranks.end}, offset + at, some, sum);
      kernels.axpy(1.0, second, to + at, some);
    }
  }

 private:
  // Numbers exchanged by sharing phases per parameter. At 2 as many cross either way, at 4 the
  // memory for the parts costs as much as is saved.
  static constexpr std::int64_t kWorth = 6;
  // The parts of all threads take at most so many times the memory of the activations.
  static constexpr std::int64_t kMemory = 2;

  static bool even(Range rows, int threads) {
    if (threads == 1) return true;
    if (threads % 2 != 0 || rows.size() <= kGradientRows) return false;
    const Range first = first_half(rows);
    const Range second = second_half(rows);
    return 8 * (first.size() - second.size()) <= rows.size() && even(first, threads / 2) &&
           even(second, threads / 2);
  }

  std::int64_t size_;
  std::int64_t exchanged_ = 0;  // activations and their gradients per row
  Arena<T> parts_;
};

}  // namespace thalweg
