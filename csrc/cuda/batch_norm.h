// Batch normalization: column statistics by row blocks and their merge, the forward and backward
// passes, running statistics, and their form for the evaluation network.
//
// Vectors per column have at least `pitch` elements; those that a launch writes are zero beyond the
// width. The row blocks' partial results are merged in index order in double.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "cuda/step_state.h"
#include "math/activation_kind.h"

namespace thalweg::cuda {

// The rows that statistics are taken over, and their weights.
template <class T>
struct RowWeights {
  const T* weights = nullptr;             // [rows]; null: ones, and then the others are not read
  const double* block_weights = nullptr;  // [row_blocks_of(rows)] sums of them
  const double* total = nullptr;          // sum of all
};

// What statistics become.
template <class T>
struct BatchStatistics {
  double eps = 0.0;
  double* batch_mean = nullptr;
  double* batch_var = nullptr;  // biased
  T* mean = nullptr;            // what normalizes
  T* inv_std = nullptr;
};

// Statistics of a matrix that no product has taken along.
std::size_t column_statistics_scratch_bytes(std::int64_t rows, std::int64_t width);
template <class T>
void column_statistics(const Matrix<const T>& z, const RowWeights<T>& weights,
                       const BatchStatistics<T>& statistics, const Scratch& scratch,
                       cudaStream_t stream);

// y = phi(gamma * (z - mean) * inv_std + beta)
template <class T>
struct BatchNormApply {
  Matrix<const T> z;
  Matrix<T> y;  // may be z itself when nothing else needs z
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  const T* gamma = nullptr;
  const T* beta = nullptr;
  Activation activation{};
  Matrix<T> pre{};  // the value before the activation; absent: not wanted
};
template <class T>
void batch_norm(const BatchNormApply<T>& problem, cudaStream_t stream);

// A slab of columns may fit into the shared memory of a cluster of blocks: then one launch reads
// every element once, where there are two passes otherwise.
enum class BatchNormPath {
  kAutomatic,  // the slab when it fits
  kTwoPasses,
  kSlab,  // DeviceError when it does not fit
};

// column_statistics(), then batch_norm() with their mean and inv_std; the same bits on both paths.
template <class T>
void batch_norm_forward(const BatchNormApply<T>& problem, const RowWeights<T>& weights,
                        const BatchStatistics<T>& statistics, const Scratch& scratch,
                        cudaStream_t stream, BatchNormPath path = BatchNormPath::kAutomatic);

// With g = dy * phi' and xhat = (z - mean) * inv_std:
//   dbeta (+)= sum g, dgamma (+)= sum g xhat,
//   dz (+)= gamma * inv_std * (g - w (mean_g + xhat * mean_g_xhat)), the means being those sums
// divided by the total weight. phi' is evaluated again from z: neither y nor its `pre` is read.
template <class T>
struct BatchNormBackward {
  Matrix<const T> z;
  Matrix<const T> dy;
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  const T* gamma = nullptr;
  const T* beta = nullptr;
  Activation activation{};  // the identity when dy has been multiplied by phi' already
  RowWeights<T> weights{};
  bool frozen = false;  // running statistics: nothing flows through them
  T* dgamma = nullptr;
  T* dbeta = nullptr;
  bool accumulate_parameters = false;
  Matrix<T> dz{};  // absent: the sums alone; may be dy
  bool accumulate = false;
};
std::size_t batch_norm_backward_scratch_bytes(std::int64_t rows, std::int64_t width);
template <class T>
void batch_norm_backward(const BatchNormBackward<T>& problem, const Scratch& scratch,
                         cudaStream_t stream, BatchNormPath path = BatchNormPath::kAutomatic);

// Running statistics after one more training batch; var is unbiased.
template <class T>
struct RunningStatistics {
  std::int64_t width = 0;
  const double* batch_mean = nullptr;
  const double* batch_var = nullptr;  // biased
  double rows = 0.0;                  // of the batch, unless
  const double* total_weight = nullptr;
  double momentum = 0.0;  // weight of the new batch; negative: the average of all batches
  const T* mean_in = nullptr;
  const T* var_in = nullptr;
  T* mean = nullptr;  // may be mean_in
  T* var = nullptr;
  std::int64_t* batches = nullptr;  // how many were seen; incremented
};
// One launch for up to kRunningStatistics layers. With `state`, only when the step updates the
// model (updates_model() of cuda/step_state.h).
inline constexpr int kRunningStatistics = 24;
template <class T>
void update_running_statistics(const RunningStatistics<T>* layers, int count,
                               const StepState* state, cudaStream_t stream);

// Running statistics for the evaluation network: mean and inv_std for batch_norm(), and scale and
// shift of a dense layer (x W' * scale + shift) with batch norm and its own bias folded in. Outputs
// may be null.
template <class T>
struct BatchNormFold {
  std::int64_t width = 0;
  double eps = 0.0;
  const T* running_mean = nullptr;
  const T* running_var = nullptr;
  const T* gamma = nullptr;
  const T* beta = nullptr;
  const T* bias = nullptr;  // of the dense layer, or null
  T* mean = nullptr;
  T* inv_std = nullptr;
  T* scale = nullptr;
  T* shift = nullptr;
};
// One launch for up to kBatchNormFolds layers.
inline constexpr int kBatchNormFolds = 24;
template <class T>
void fold_batch_norm(const BatchNormFold<T>* layers, int count, cudaStream_t stream);

}  // namespace thalweg::cuda
