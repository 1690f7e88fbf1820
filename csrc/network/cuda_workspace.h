// The device memory that one pass over a plan needs: values and gradients of all buffers,
// batch-norm vectors, labels and targets, the loss, and what reductions borrow. Built for a number
// of rows; smaller batches use it too, at the same addresses. One per concurrent call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/batch_norm.h"
#include "cuda/loss.h"
#include "cuda/resources.h"
#include "cuda/scratch.h"
#include "network/cuda_parameters.h"

namespace thalweg {

template <class T>
class CudaWorkspace {
 public:
  // At least `scratch_bytes` are for scratch. All memory comes out of the region, if there is one;
  // one that only counts leaves a workspace of sizes.
  CudaWorkspace(const Plan& plan, const CudaParameters<T>& parameters, std::int64_t capacity,
                bool gradients, std::size_t scratch_bytes = 0, cuda::Region* region = nullptr);

  std::int64_t capacity() const { return capacity_; }
  bool has_gradients() const { return has_gradients_; }
  std::int64_t rows() const { return rows_; }
  void set_rows(std::int64_t rows) { rows_ = rows; }

  cuda::Matrix<T> value(int buffer) const { return values_.matrix(buffer, rows_); }
  cuda::Matrix<T> gradient(int buffer) const { return gradients_.matrix(buffer, rows_); }
  cuda::Matrix<T> targets() const {
    return {.data = targets_.data(),
            .rows = rows_,
            .width = out_features_,
            .pitch = cuda::pitch_of(out_features_)};
  }

  // One bit per element of a buffer, as cuda/gemm.h says, or null where value(buffer) itself tells
  // the derivative of the activation behind it.
  std::uint32_t* signs(int buffer) const {
    return sign_offset_[buffer] < 0 ? nullptr : signs_.data() + sign_offset_[buffer];
  }

  // Per batch norm, [padded] each: what normalizes, and its form that a dense layer folds in.
  T* mean(int state) const { return vectors_.data() + vector_offset_[state]; }
  T* inv_std(int state) const { return mean(state) + padded_[state]; }
  T* scale(int state) const { return mean(state) + 2 * padded_[state]; }
  T* shift(int state) const { return mean(state) + 3 * padded_[state]; }
  // Gradients of gamma and beta when nobody wants them.
  T* unwanted(int which) const { return unwanted_.data() + which * (unwanted_.size() / 2); }
  // Statistics of the batch.
  double* batch_mean(int state) const { return statistics_.data() + vector_offset_[state] / 2; }
  double* batch_var(int state) const { return batch_mean(state) + padded_[state]; }  // biased

  // For weighted batch norm: row_weights and their sums.
  cuda::RowWeights<T> batch_norm_weights() const {
    return {row_weights.data(), block_weights.data(), total_weight.data()};
  }

  cuda::Scratch scratch() const { return {tickets_.data(), scratch_.data(), tickets_.size()}; }
  std::size_t scratch_bytes() const { return scratch_.bytes(); }
  // For operations beside the passes. Moves the memory: before graphs are captured.
  void reserve_scratch(std::size_t bytes);

  cuda::DeviceArray<T> row_weights;          // [capacity]
  cuda::DeviceArray<double> block_weights;   // [row blocks]
  cuda::DeviceArray<double> total_weight;    // [1]
  cuda::DeviceArray<std::int64_t> labels;    // [capacity]
  cuda::DeviceArray<cuda::LossSums> losses;  // [1], of a pure pass

 private:
  // One matrix per buffer in one piece of memory, the bfloat16 planes in another one.
  class Buffers {
   public:
    Buffers() = default;
    // Buffers of the same holder lie in the same place. Those with has_planes have planes.
    Buffers(const Plan& plan, const std::vector<int>& holder, const std::vector<bool>& has_planes,
            int planes, std::int64_t capacity, cuda::Region* region);
    void round(int buffer) { matrices_[buffer].rounded = true; }
    cuda::Matrix<T> matrix(int buffer, std::int64_t rows) const {
      cuda::Matrix<T> matrix = matrices_[buffer];
      matrix.rows = rows;
      return matrix;
    }

   private:
    cuda::DeviceArray<T> data_;
    cuda::DeviceArray<std::uint16_t> planes_;
    std::vector<cuda::Matrix<T>> matrices_;
  };

  std::int64_t capacity_;
  bool has_gradients_;
  std::int64_t rows_;
  std::int64_t out_features_;
  Buffers values_;
  Buffers gradients_;
  std::vector<std::int64_t> sign_offset_;
  cuda::DeviceArray<std::uint32_t> signs_;
  std::vector<std::int64_t> vector_offset_;
  std::vector<std::int64_t> padded_;
  cuda::DeviceArray<T> vectors_;
  cuda::DeviceArray<T> unwanted_;
  cuda::DeviceArray<double> statistics_;
  cuda::DeviceArray<T> targets_;
  cuda::DeviceArray<unsigned> tickets_;
  cuda::DeviceArray<std::byte> scratch_;
};

}  // namespace thalweg
