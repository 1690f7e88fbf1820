// The CPU kernels: one table of functions per instruction set and element type.
//
// Kernels are single-threaded, allocate nothing, throw nothing and work on the part of a problem
// that the caller names (rows, panels, elements); callers spread the parts over a Team. All
// matrices are in panels (core/layout.h). Every kernel writes zeros in the lanes past the width,
// whatever its inputs hold. Activations, losses and optimizers are named by their position in the
// lists of math/.
#pragma once

#include <cstdint>

#include "core/array_view.h"
#include "core/export.h"
#include "core/layout.h"
#include "core/processor.h"
#include "math/activation_kind.h"
#include "math/bfloat16.h"
#include "math/permutation_keys.h"

namespace thalweg::cpu {

using thalweg::Activation;

// Partial column statistics of one row block: mean and sum of squared deviations, in double.
struct BlockStatistics {
  double mean[kPanel];
  double m2[kPanel];
};

// Partial column sums of one row block in batch norm's backward pass.
struct BlockSums {
  double g[kPanel];       // sum of g = dy * phi'
  double g_xhat[kPanel];  // sum of g * xhat
};

// The rounded values of a matrix in panels, as pairs for products. Absent unless they are wanted,
// but for `columns`. `columns` can be read for 31 rows beyond its end.
struct BfloatPanels {
  BfloatPair* columns = nullptr;  // [rows, 16] per panel: pairs of columns
  BfloatPair* rows = nullptr;     // per panel and chunk of 32 rows [16, 32]: pairs of rows
  BfloatPair* transposed =
      nullptr;  // per panel and chunk of 32 rows [32, 16]: the same, transposed
};

// C = phi((A B) * scale + shift), or C (+)= A B, then optionally C *= phi'(at).
template <class T>
struct Gemm {
  Panels<const T> a;     // [rows, depth]
  const T* b = nullptr;  // panels_of(c.width) panels of [32 * panels_of(depth), 32]
  // float only: the factors as pairs of bfloat16 numbers along the depth, instead of the values of
  // a and b: BfloatPanels::columns, and panels of [16 * panels_of(depth), 32].
  const BfloatPair* a_pairs = nullptr;
  const BfloatPair* b_pairs = nullptr;
  Panels<T> c;               // [rows, width]
  bool accumulate = false;   // add to what C holds (no scale, shift or activation then)
  const T* scale = nullptr;  // [padded width] or null
  const T* shift = nullptr;  // [padded width] or null: the bias
  Activation activation{};   // applied to C
  T* pre = nullptr;  // where to keep z, the value before the activation (panels like c), or null
  BlockStatistics* statistics = nullptr;  // [row_blocks][panels] of the values stored in C, or null
  const T* row_weights = nullptr;         // for weighted statistics, or null
  bool has_derivative = false;            // multiply the finished C by phi'(derivative_at)
  Activation derivative{};
  const T* derivative_at = nullptr;  // panels like c: z or y as phi declares
};

// y = phi(gamma * (z - mean) * inv_std + beta)
template <class T>
struct BatchNormApply {
  Panels<const T> z;
  Panels<T> y;  // may be z itself when neither `pre` nor the backward pass needs z
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  const T* gamma = nullptr;
  const T* beta = nullptr;
  Activation activation{};
  T* pre = nullptr;  // value before the activation, panels like y, or null
};

// g = dy * phi'(at) is written over dy; partial sums go to `sums`.
template <class T>
struct BatchNormBackwardSums {
  Panels<const T> z;
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  Panels<T> dy;
  Activation activation{};
  const T* derivative_at = nullptr;  // panels like dy; may be null for the identity
  BlockSums* sums = nullptr;         // [row_blocks][panels]
};

// dz (+)= gamma * inv_std * (g - w (mean_g + xhat * mean_g_xhat)); w = row weight or 1
template <class T>
struct BatchNormBackwardApply {
  Panels<const T> z;
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  const T* gamma = nullptr;
  const T* mean_g = nullptr;       // sum of g / total weight; null for frozen statistics
  const T* mean_g_xhat = nullptr;  // sum of g xhat / total weight; null for frozen statistics
  const T* row_weights = nullptr;
  Panels<const T> g;
  Panels<T> dz;  // may be g itself
  bool accumulate = false;
};

// ---- tangents: how a value of the passes above changes along a direction. The tangent of x is
// called x_tangent; Pearlmutter 1994 writes R{x}.

// dz_tangent (+)= dy_tangent * phi'(at) + dy * phi''(at) * z_tangent
template <class T>
struct ActivationBackwardTangent {
  Panels<const T> dy;
  Panels<const T> dy_tangent;
  const T* at = nullptr;         // panels like dy: z or y as phi declares
  const T* z_tangent = nullptr;  // panels like dy
  Activation activation{};
  Panels<T> dz_tangent;  // may be dy_tangent itself
  bool accumulate = false;
};

// The input of a batch norm with its tangent. Frozen statistics are constants: both means are null.
template <class T>
struct BatchNormPoint {
  Panels<const T> z;
  Panels<const T> z_tangent;
  const T* mean = nullptr;
  const T* inv_std = nullptr;
  const T* mean_tangent = nullptr;  // sum of w z_tangent / W
  const T* std_tangent = nullptr;   // sum of w z_tangent xhat / W
};

// y_tangent = gamma_tangent * xhat + gamma * xhat_tangent + beta_tangent
template <class T>
struct BatchNormTangent {
  BatchNormPoint<T> point;
  const T* gamma = nullptr;
  const T* gamma_tangent = nullptr;
  const T* beta_tangent = nullptr;
  Panels<T> y_tangent;
};

// The tangent of BatchNormBackwardApply; g as there.
template <class T>
struct BatchNormBackwardTangent {
  BatchNormPoint<T> point;
  const T* gamma = nullptr;
  const T* gamma_tangent = nullptr;
  const T* mean_g = nullptr;  // these four are null for frozen statistics
  const T* mean_g_xhat = nullptr;
  const T* mean_g_tangent = nullptr;       // sum of g_tangent / W
  const T* mean_g_xhat_tangent = nullptr;  // sum of (g xhat)_tangent / W
  const T* row_weights = nullptr;
  Panels<const T> g;
  Panels<const T> g_tangent;
  Panels<T> dz_tangent;  // may be g_tangent itself
  bool accumulate = false;
};

struct Dropout {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint32_t stream = 0;
  std::uint32_t threshold = 0;  // keep an element when its 32 random bits are >= threshold
  double scale = 1.0;           // 1 / (1 - p)
  std::int64_t first_row = 0;   // row 0 of the matrix in the global minibatch
};

// Per kRowPart rows: the sum over its rows of weight * loss, of weight * hit, and of
// weights.
struct PartLoss {
  double loss = 0.0;
  double hits = 0.0;
  double weight = 0.0;
};

// gradient = gradient_scale * w_i * d(loss_i)/d(output)
template <class T>
struct Loss {
  Panels<const T> outputs;
  const std::int64_t* labels = nullptr;  // [rows], already checked; or
  Panels<const T> targets{};             // dense targets (probabilities or values)
  const T* row_weights = nullptr;        // [rows] or null for ones
  double label_smoothing = 0.0;          // cross-entropy only
  double parameter = 0.0;                // huber: delta
  double gradient_scale = 1.0;
  Panels<T> gradient{};       // data null: value only
  PartLoss* parts = nullptr;  // [row_parts_of(rows)]
};

// gradient_tangent = gradient_scale * w_i * (d^2(loss_i)/d(output)^2) output_tangent
template <class T>
struct LossTangent {
  Panels<const T> outputs;
  Panels<const T> output_tangent;
  Panels<const T> targets{};       // data null: integer labels, which the product does not need
  const T* row_weights = nullptr;  // [rows] or null for ones
  double label_smoothing = 0.0;
  double parameter = 0.0;
  double gradient_scale = 1.0;
  Panels<T> gradient_tangent;
};

template <class T>
struct OptimizerStep {
  T* p = nullptr;  // all pointers at the first element of the range
  const T* g = nullptr;
  T* s0 = nullptr;  // null when the optimizer has no such slot
  T* s1 = nullptr;
  const std::uint8_t* groups = nullptr;  // one byte per 256 elements, from the first element
  const double* coefficients = nullptr;  // [groups][kMaxCoefficients] of math/optimizer_kind.h
  const bool* frozen = nullptr;          // [groups]
  std::int64_t count = 0;                // a multiple of 32; of 256 where groups change
};

template <class T>
struct Kernels {
  const char* name;

  // ---- data movement
  // indices[i] = the permutation's value at first + i.
  void (*permute)(const PermutationKeys& keys, std::uint64_t first, std::int64_t count,
                  std::int64_t* indices);
  // out[r] = x[index[r]] (or x[first + r] when index is null), cast to T.
  void (*gather)(const ArrayView& x, const std::int64_t* index, std::int64_t first, Range rows,
                 Panels<T> out);
  // Row-major out[r * leading + c] = in(r, c).
  void (*scatter)(Panels<const T> in, Range rows, T* out, std::int64_t leading);
  bool (*all_finite)(const ArrayView& x, Range rows);

  // ---- dense: forward with B = weight panels, dgrad with B = transposed panels
  void (*gemm)(const Gemm<T>& problem, Range rows, Range panels);  // rows begin at a row block
  // tile[i][j] (+)= sum over rows of x[r][i] * dy[r][j]; x and dy at the first row of a panel. The
  // sum is the tree that kGradientRows tells of; so is that of column_sum.
  // A tile that is added to is zero past its lanes.
  void (*wgrad_tile)(const T* x, std::int64_t x_lanes, const T* dy, std::int64_t dy_lanes,
                     std::int64_t rows, bool accumulate, T* tile);
  // Of so many rows and columns of the tile, rounded up to whole vectors.
  void (*transpose_tile)(const T* tile, std::int64_t rows, std::int64_t columns, T* transposed);
  // ---- products of bfloat16 numbers with sums in float32
  // tile[i][j] (+)= sum over rows; x is a panel of BfloatPanels::transposed, dy one of ::rows.
  void (*wgrad_tile_bfloat16)(const BfloatPair* x, std::int64_t x_lanes, const BfloatPair* dy,
                              std::int64_t dy_lanes, std::int64_t rows, bool accumulate,
                              float* tile);
  // pairs[i / 2][j] = tile[i][j] and tile[i + 1][j], rounded; transposed[j / 2][i] = tile[i][j] and
  // tile[i][j + 1]. Either may be null.
  void (*pair_tile)(const float* tile, BfloatPair* pairs, BfloatPair* transposed);
  // Rounds the values of x and writes them as pairs. Rows begin at a row block.
  void (*round_to_bfloat16)(const BfloatPanels& out, Panels<float> x, Range rows, Range panels);
  // out[j] (+)= sum over rows of panel[r][j].
  void (*column_sum)(const T* panel, std::int64_t rows, std::int64_t lanes, bool accumulate,
                     T* out);

  // ---- elementwise
  void (*activation)(Panels<const T> z, Panels<T> y, Activation activation, Range rows,
                     Range panels);
  // dz (+)= dy * phi'(at); dz may be dy.
  void (*activation_backward)(Panels<const T> dy, const T* at, Panels<T> dz, Activation activation,
                              bool accumulate, Range rows, Range panels);
  // y (+)= mask * scale * x: the forward and the backward pass.
  void (*dropout)(Panels<const T> x, Panels<T> y, const Dropout& dropout, bool accumulate,
                  Range rows, Range panels);
  void (*add)(Panels<const T> a, Panels<const T> b, Panels<T> out, Range rows, Range panels);
  void (*accumulate)(Panels<const T> x, Panels<T> out, Range rows, Range panels);  // out += x
  void (*copy)(Panels<const T> x, Panels<T> out, Range rows, Range panels);
  // y[r, u] = max over q of z[r, u * pieces + q]; the gradient goes to the first maximum.
  void (*maxout)(Panels<const T> z, Panels<T> y, std::int64_t pieces, Range rows);
  void (*maxout_backward)(Panels<const T> z, Panels<const T> dy, Panels<T> dz, std::int64_t pieces,
                          Range rows);

  // ---- batch norm
  void (*column_statistics)(Panels<const T> z, const T* row_weights, BlockStatistics* statistics,
                            Range blocks, Range panels);
  // Merge the blocks of one panel in order (Chan). block_weights: rows or weights per block.
  void (*merge_statistics)(const BlockStatistics* statistics, const double* block_weights,
                           std::int64_t blocks, std::int64_t panels, std::int64_t panel,
                           double* mean /*[32]*/, double* m2 /*[32]*/);
  void (*batch_norm)(const BatchNormApply<T>& problem, Range rows, Range panels);
  void (*batch_norm_backward_sums)(const BatchNormBackwardSums<T>& problem, Range blocks,
                                   Range panels);
  void (*batch_norm_backward)(const BatchNormBackwardApply<T>& problem, Range rows, Range panels);

  // ---- tangents
  void (*activation_backward_tangent)(const ActivationBackwardTangent<T>& problem, Range rows,
                                      Range panels);
  // y_tangent takes the element of z_tangent at the place of z's maximum.
  void (*maxout_tangent)(Panels<const T> z, Panels<const T> z_tangent, Panels<T> y_tangent,
                         std::int64_t pieces, Range rows);
  // Sums of w z_tangent and of w z_tangent xhat.
  void (*batch_norm_tangent_sums)(const BatchNormPoint<T>& point, const T* row_weights,
                                  BlockSums* sums, Range blocks, Range panels);
  void (*batch_norm_tangent)(const BatchNormTangent<T>& problem, Range rows, Range panels);
  // Sums of g_tangent and of g_tangent xhat + g xhat_tangent.
  void (*batch_norm_backward_tangent_sums)(const BatchNormBackwardTangent<T>& problem,
                                           BlockSums* sums, Range blocks, Range panels);
  void (*batch_norm_backward_tangent)(const BatchNormBackwardTangent<T>& problem, Range rows,
                                      Range panels);
  void (*softmax_cross_entropy_tangent)(const LossTangent<T>& problem, Range blocks);
  void (*elementwise_loss_tangent)(int loss_id, const LossTangent<T>& problem, Range blocks);

  // ---- losses, by row block
  void (*softmax_cross_entropy)(const Loss<T>& problem, Range rows);
  void (*elementwise_loss)(int loss_id, const Loss<T>& problem, Range rows);
  void (*softmax)(Panels<const T> logits, Panels<T> probabilities, Range rows);

  // ---- flat arenas
  // Elements whose gradient is not finite are left as they are; returns how many.
  std::int64_t (*optimizer_step)(int optimizer_id, const OptimizerStep<T>& step);
  // The look-ahead methods' theta from the stored p; a copy for the others.
  void (*optimizer_theta)(int optimizer_id, const OptimizerStep<T>& step, T* theta);
  void (*average)(T* average, const T* p, double weight,
                  std::int64_t count);  // += weight (p - average)
  double (*sum_of_squares)(const T* x, std::int64_t count);
  void (*scale)(T* x, double factor, std::int64_t count);
  void (*axpy)(double a, const T* x, T* y, std::int64_t count);  // y += a x
  bool (*finite)(const T* x, std::int64_t count);
};

// The table of the selected instruction set (core/processor.h); chosen once.
template <class T>
const Kernels<T>& kernels();
template <class T>
TW_INTERNAL_API const Kernels<T>& kernels(InstructionSet isa);

}  // namespace thalweg::cpu
