// The matrix products of a dense layer, X [batch, in], W [out, in], Y [batch, out]:
//
//   dense_forward          Y = X W^T, with everything up to the activation, the batch-norm
//                          statistics or the loss done on the tile that a block holds
//   dense_input_gradient   dX = dY W, multiplied by phi' of the layer that made X
//   dense_weight_gradient  dW = dY^T X, the batch split over blocks
//
// On the SIMT units (float, double) or, from sm_80 on, on the tensor cores, which read the bfloat16
// planes of both operands (cuda/matrix.h); those must have planes_of(precision) of them.
//
// Every result is the same from run to run and whatever the number of multiprocessors: a sum over
// rows is taken per row block of kRowBlock rows, and blocks are merged in a fixed order by the last
// one to arrive. A row of Y depends on that row of X alone, whatever the batch.
//
// Absent matrices and null pointers leave their part out. Vectors of a width have at least
// pitch_of(width) elements, and those that a launch writes are zero beyond the width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/batch_norm.h"
#include "cuda/dropout.h"
#include "cuda/loss.h"
#include "cuda/matrix.h"
#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "math/activation_kind.h"

namespace thalweg::cuda {

// One bit per element of a matrix, in words of 32 columns: word i of a row holds columns 32 i to
// 32 i + 31, the lowest bit first, zeros beyond the width.
TW_HD constexpr std::int64_t sign_words(std::int64_t width) { return ceil_div(width, 32); }

// Rows x columns of the result that a block of threads owns.
enum class TileShape : int {
  kAutomatic,
  kLarge,   // 128 x 128; float only
  kSmall,   // 64 x 64
  kNarrow,  // forward: 128 x 16; weight gradient: 16 x 128
};

// The most outputs that dense_forward takes the loss of: one column of tiles.
template <class T>
inline constexpr std::int64_t kFusedClasses = sizeof(T) == 4 ? 128 : 64;

// z = (X W^T) * scale + shift [+ Y]; y = phi(z); Y = dropout(y).
template <class T>
struct DenseForward {
  Precision precision = Precision::kSimt;
  Matrix<const T> x;         // [rows, in]
  Matrix<const T> weight;    // [out, in]
  Matrix<T> y;               // [rows, out]; may be absent under a loss
  const T* scale = nullptr;  // [out]
  const T* shift = nullptr;  // [out]: the bias
  bool accumulate = false;   // add what Y holds
  Activation activation{};
  Matrix<T> pre;  // z
  // Of the elements of Y, whether they are positive: [rows][sign_words(out)].
  std::uint32_t* signs = nullptr;
  bool drops = false;
  Dropout dropout;

  // Batch-norm statistics of the values stored in Y.
  bool takes_statistics = false;
  RowWeights<T> row_weights;
  BatchStatistics<T> statistics;

  // Softmax cross-entropy of Y against labels; the outputs and targets of `loss` are not used.
  bool takes_loss = false;
  Loss<T> loss;
  T* loss_bias_gradient = nullptr;  // [out] (+)= column sums of the loss's gradient
  bool accumulate_bias = false;

  TileShape tile = TileShape::kAutomatic;

  Scratch scratch;
};

// dX = (dY W [+ dX]) * dropout * phi'(at). Instead of `at`, where phi' has one value for a positive
// output and another one otherwise, `signs` as DenseForward writes them: those two values then
// stand for dropout and phi' together.
template <class T>
struct DenseInputGradient {
  Precision precision = Precision::kSimt;
  Matrix<const T> dy;      // [rows, out]
  Matrix<const T> weight;  // [out, in]
  Matrix<T> dx;            // [rows, in]
  bool accumulate = false;
  bool drops = false;
  Dropout dropout;
  Activation derivative{};
  Matrix<const T> at;  // [rows, in]: y or z, as phi declares; absent for the identity
  const std::uint32_t* signs = nullptr;
  double if_positive = 1.0;
  double otherwise = 0.0;
  T* bias_gradient = nullptr;  // [in] (+)= column sums of dX
  bool accumulate_bias = false;
  TileShape tile = TileShape::kAutomatic;
  Scratch scratch;
};

// dW (+)= dY^T X.
template <class T>
struct DenseWeightGradient {
  Precision precision = Precision::kSimt;
  Matrix<const T> dy;  // [rows, out]
  Matrix<const T> x;   // [rows, in]
  Matrix<T> dw;        // [out, in]
  bool accumulate = false;
  double* squares = nullptr;  // of the elements of dW, their sum
  TileShape tile = TileShape::kAutomatic;
  int parts = 0;  // of the batch; 0: automatic
  Scratch scratch;
};

// sums (+)= column sums of x: a bias gradient that no product has taken along.
template <class T>
struct ColumnSums {
  Matrix<const T> x;
  T* sums = nullptr;
  bool accumulate = false;
  Scratch scratch;
};

// Bytes of `scratch.memory` of such a problem. They depend on its shapes and precision and on which
// parts it has, but not on addresses, and with fewer rows they are not more.
template <class T>
std::size_t scratch_bytes(const DenseForward<T>& problem);
template <class T>
std::size_t scratch_bytes(const DenseInputGradient<T>& problem);
template <class T>
std::size_t scratch_bytes(const DenseWeightGradient<T>& problem);
template <class T>
std::size_t scratch_bytes(const ColumnSums<T>& problem);

template <class T>
void dense_forward(const DenseForward<T>& problem, cudaStream_t stream);
template <class T>
void dense_input_gradient(const DenseInputGradient<T>& problem, cudaStream_t stream);
template <class T>
void dense_weight_gradient(const DenseWeightGradient<T>& problem, cudaStream_t stream);
template <class T>
void column_sums(const ColumnSums<T>& problem, cudaStream_t stream);

// The planes of a matrix from its values, which are rounded first if the matrix says so.
void split_planes(const Matrix<float>& matrix, cudaStream_t stream);

}  // namespace thalweg::cuda
