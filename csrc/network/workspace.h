// The memory one pass over a plan needs: values and gradients of all buffers, batch-norm scratch,
// the loss. Built for a number of rows; smaller batches use it too. One per concurrent call.
#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "cpu/kernels.h"
#include "network/plan.h"

namespace thalweg {

template <class T>
class Workspace {
 public:
  Workspace(const Plan& plan, std::int64_t capacity, bool gradients);

  std::int64_t capacity() const { return capacity_; }
  bool has_gradients() const { return gradients_; }
  std::int64_t rows() const { return rows_; }
  void set_rows(std::int64_t rows) { rows_ = rows; }

  Panels<T> value(int buffer) {
    return {values_.data() + value_offset_[buffer] * capacity_, rows_, width_[buffer]};
  }
  Panels<T> gradient(int buffer) {
    return {gradient_values_.data() + gradient_offset_[buffer] * capacity_, rows_, width_[buffer]};
  }

  // Where the rounded values of factors of products are kept; absent for other buffers and unless
  // matmul_precision is "medium".
  cpu::BfloatPanels value_pairs(int buffer) {
    cpu::BfloatPanels pairs = columns(value_pairs_[buffer]);
    if (pairs.columns && gradients_) pairs.transposed = chunks(value_pairs_[buffer]);
    return pairs;
  }
  cpu::BfloatPanels gradient_pairs(int buffer) {
    cpu::BfloatPanels pairs = columns(gradient_pairs_[buffer]);
    if (pairs.columns) pairs.rows = chunks(gradient_pairs_[buffer]);
    return pairs;
  }

  // Per batch norm, [padded] each.
  T* mean(int state) { return statistics_.data() + statistics_offset_[state]; }
  T* inv_std(int state) { return mean(state) + padded_[state]; }
  T* mean_g(int state) { return mean(state) + 2 * padded_[state]; }
  T* mean_g_xhat(int state) { return mean(state) + 3 * padded_[state]; }
  // Inference folded into the dense layer: y = phi(product * scale + shift).
  T* fold_scale(int state) { return mean(state) + 2 * padded_[state]; }
  T* fold_shift(int state) { return mean(state) + 3 * padded_[state]; }
  // Statistics of the batch, staged until the step commits.
  double* batch_mean(int state) { return batch_statistics_.data() + statistics_offset_[state]; }
  double* batch_var(int state) { return batch_mean(state) + padded_[state]; }  // biased

  T* vector_gradients() { return vector_gradients_.data(); }

  Arena<cpu::BlockStatistics> block_statistics;  // [row_blocks][panels], reused by every batch norm
  Arena<cpu::BlockSums> block_sums;
  Arena<double> block_rows;          // rows per row block
  Arena<double> block_weights;       // sum of row weights per row block
  Arena<cpu::PartLoss> part_losses;  // per block of kRowPart rows
  Arena<T> row_weights;
  Arena<std::int64_t> labels;
  Arena<std::int64_t> row_index;
  Arena<T> targets;  // panels [capacity, out]

 private:
  void place_pairs(const Plan& plan);
  cpu::BfloatPanels columns(std::int64_t offset) {
    if (offset < 0) return {};
    return {.columns = column_pairs_.data() + offset * capacity_};
  }
  BfloatPair* chunks(std::int64_t offset) {
    return row_pairs_.data() + offset * round_up(capacity_, kPanel);
  }

  std::int64_t capacity_;
  bool gradients_;
  std::int64_t rows_ = 0;
  std::vector<std::int64_t> width_;
  std::vector<std::int64_t> value_offset_;  // in elements per row
  std::vector<std::int64_t> gradient_offset_;
  std::vector<std::int64_t> statistics_offset_;
  std::vector<std::int64_t> padded_;
  // In pairs per row; -1: none.
  std::vector<std::int64_t> value_pairs_;
  std::vector<std::int64_t> gradient_pairs_;
  Arena<BfloatPair> column_pairs_;
  Arena<BfloatPair> row_pairs_;
  Arena<T> values_;
  Arena<T> gradient_values_;
  Arena<T> statistics_;
  Arena<double> batch_statistics_;
  Arena<T> vector_gradients_;
};

}  // namespace thalweg
