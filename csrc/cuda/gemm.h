// The matrix products of a dense layer, X [batch, in], W [out, in], Y [batch, out]:
//
//   dense_forward          Y = X W^T, with everything up to the activation, the batch-norm
//                          statistics or the loss done on the tile that a block holds
//   dense_input_gradient   dX = dY W, multiplied by phi' of the layer that made X
//   dense_weight_gradient  dW = dY^T X, the batch split over blocks
//
// On the SIMT units (float, double) or, from sm_80 on, on the tensor cores, which read the
// bfloat16 planes of both operands (cuda/matrix.h).
//
// Every result is the same from run to run and for any number of multiprocessors: a sum over rows
// is taken per row block of kRowBlock rows, and blocks are merged in a fixed order by the last one
// to arrive. A row of Y depends on that row of X alone, whatever the batch.
//
// Launchers allocate nothing and wait for nothing. A problem is a plain struct of device pointers;
// null pointers and matrices without data leave the part out. Matrices have 16-byte aligned rows
// and zeros from the width to the pitch; what is written keeps to that, vectors of a width
// included: they are written up to pitch_of(width).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/fused.h"
#include "cuda/matrix.h"
#include "cuda/runtime.h"

namespace thalweg::cuda {

// Scratch memory of a launch. Launches that follow each other on a stream may share it.
struct GemmScratch {
  void* data = nullptr;          // 16-byte aligned, any contents
  unsigned* counters = nullptr;  // zero before the first launch, and again after every launch
};

struct GemmScratchSize {
  std::size_t bytes = 0;
  std::size_t counters = 0;  // elements
};

// Batch-norm statistics of the values stored in Y, over all rows. With weights, those of the
// weighted rows.
template <class T>
struct ColumnStatistics {
  bool active = false;
  const T* row_weights = nullptr;  // [rows] or null for ones
  double epsilon = 0.0;
  T* mean = nullptr;                 // [out] each
  T* inverse_std = nullptr;          // 1 / sqrt(variance + epsilon)
  double* batch_mean = nullptr;      // or null; for the running estimates
  double* batch_variance = nullptr;  // or null; biased
};

// Softmax cross-entropy of Y, the logits, against labels (math/loss/cross_entropy.h). The outputs
// must fit into one tile: at most kFusedClasses.
template <class T>
struct FusedLoss {
  bool active = false;
  const std::int64_t* labels = nullptr;  // [rows]; one that no class has gives no hit
  const T* row_weights = nullptr;        // [rows] or null for ones
  double label_smoothing = 0.0;
  const double* gradient_scale = nullptr;  // in device memory; multiplies w dloss/dlogits
  Matrix<T> gradient;                      // [rows, out]
  T* bias_gradient = nullptr;              // [out]: column sums of the gradient
  bool accumulate_bias = false;            // add them to what is there
  double* loss = nullptr;                  // sum of weight * loss over all rows, or null
  double* hits = nullptr;                  // sum of weight * hit, or null
  double* weight = nullptr;                // sum of weights, or null
  bool accumulate = false;                 // add the sums to what is there
};

template <class T>
inline constexpr std::int64_t kFusedClasses = 128;
template <>
inline constexpr std::int64_t kFusedClasses<double> = 64;

// z = (X W^T) * scale + shift; Y = dropout(phi(z)).
template <class T>
struct DenseForward {
  Precision precision = Precision::kSimt;
  Matrix<const T> x;         // [rows, in]
  Matrix<const T> weight;    // [out, in]
  Matrix<T> y;               // [rows, out]; may be left out when the loss is fused
  const T* scale = nullptr;  // [pitch_of(out)] or null
  const T* shift = nullptr;  // [pitch_of(out)] or null: the bias
  Activation activation;
  Matrix<T> pre;                   // z
  std::uint32_t* signs = nullptr;  // [rows][sign_words(out)]: bit j of word i of a row is set where
                                   // element 32 i + j was positive after phi and was not dropped
  Dropout dropout;
  ColumnStatistics<T> statistics;
  FusedLoss<T> loss;
  GemmScratch scratch;
};

TW_HD constexpr std::int64_t sign_words(std::int64_t width) { return ceil_div(width, 32); }

// dX = (dY W [+ dX]) * dropout * phi'(at), or * (bit of `signs` ? if_positive : otherwise).
template <class T>
struct DenseInputGradient {
  Precision precision = Precision::kSimt;
  Matrix<const T> dy;      // [rows, out]
  Matrix<const T> weight;  // [out, in]
  Matrix<T> dx;            // [rows, in]
  bool accumulate = false;
  Dropout dropout;
  Activation derivative;
  Matrix<const T> at;                    // [rows, in]: y or z, as phi declares
  const std::uint32_t* signs = nullptr;  // as DenseForward writes them, instead of `at`
  double if_positive = 1.0;
  double otherwise = 0.0;
  T* bias_gradient = nullptr;    // [in]: column sums of dX
  bool accumulate_bias = false;  // add them to what is there
  GemmScratch scratch;
};

template <class T>
struct DenseWeightGradient {
  Precision precision = Precision::kSimt;
  Matrix<const T> dy;  // [rows, out]
  Matrix<const T> x;   // [rows, in]
  Matrix<T> dw;        // [out, in]
  bool accumulate = false;
  double* squares = nullptr;  // sum of squares of the elements of dW, or null
  GemmScratch scratch;
};

// What `scratch` of such a problem must hold. Depends on shapes, precision and on which parts are
// active, not on pointers.
template <class T>
GemmScratchSize gemm_scratch_size(const DenseForward<T>& problem);
template <class T>
GemmScratchSize gemm_scratch_size(const DenseInputGradient<T>& problem);
template <class T>
GemmScratchSize gemm_scratch_size(const DenseWeightGradient<T>& problem);

template <class T>
void dense_forward(const DenseForward<T>& problem, cudaStream_t stream);
template <class T>
void dense_input_gradient(const DenseInputGradient<T>& problem, cudaStream_t stream);
template <class T>
void dense_weight_gradient(const DenseWeightGradient<T>& problem, cudaStream_t stream);

// Column sums of a matrix, a bias gradient that no product has taken along.
template <class T>
struct ColumnSums {
  Matrix<const T> x;
  T* sums = nullptr;  // [width]
  bool accumulate = false;
  GemmScratch scratch;
};
template <class T>
GemmScratchSize gemm_scratch_size(const ColumnSums<T>& problem);
template <class T>
void column_sums(const ColumnSums<T>& problem, cudaStream_t stream);

// Fills the planes of a matrix from its values, which it first rounds if the matrix says so.
void split_planes(Matrix<float> matrix, cudaStream_t stream);

}  // namespace thalweg::cuda
