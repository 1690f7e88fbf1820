// The kernels of one instruction set, as table.cpp collects them, and the block helpers that they
// share. Included only by the files that are compiled once per instruction set.
#pragma once

#include "cpu/kernels.h"
#include "math/host_device.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

// ---- kernels (documented in kernels.h)

void permute(const PermutationKeys& keys, std::uint64_t first, std::int64_t count,
             std::int64_t* indices);
template <class T>
void gather(const ArrayView& x, const std::int64_t* index, std::int64_t first, Range rows,
            Panels<T> out);
template <class T>
void scatter(Panels<const T> in, Range rows, T* out, std::int64_t leading);
template <class T>
bool all_finite(const ArrayView& x, Range rows);

template <class T>
void gemm(const Gemm<T>& problem, Range rows, Range panels);
template <class T>
void wgrad_tile(const T* x, std::int64_t x_lanes, const T* dy, std::int64_t dy_lanes,
                std::int64_t rows, bool accumulate, T* tile);
void wgrad_tile_bfloat16(const BfloatPair* x, std::int64_t x_lanes, const BfloatPair* dy,
                         std::int64_t dy_lanes, std::int64_t rows, bool accumulate, float* tile);
void pair_tile(const float* tile, BfloatPair* pairs, BfloatPair* transposed);
void round_to_bfloat16(const BfloatPanels& out, Panels<float> x, Range rows, Range panels);
template <class T>
void transpose_tile(const T* tile, std::int64_t rows, std::int64_t columns, T* transposed);
template <class T>
void column_sum(const T* panel, std::int64_t rows, std::int64_t lanes, bool accumulate, T* out);

template <class T>
void activation(Panels<const T> z, Panels<T> y, Activation phi, Range rows, Range panels);
template <class T>
void activation_backward(Panels<const T> dy, const T* at, Panels<T> dz, Activation phi,
                         bool accumulate, Range rows, Range panels);
template <class T>
void dropout(Panels<const T> x, Panels<T> y, const Dropout& problem, bool accumulate, Range rows,
             Range panels);
template <class T>
void add(Panels<const T> a, Panels<const T> b, Panels<T> out, Range rows, Range panels);
template <class T>
void accumulate(Panels<const T> x, Panels<T> out, Range rows, Range panels);
template <class T>
void copy(Panels<const T> x, Panels<T> out, Range rows, Range panels);
template <class T>
void maxout(Panels<const T> z, Panels<T> y, std::int64_t pieces, Range rows);
template <class T>
void maxout_backward(Panels<const T> z, Panels<const T> dy, Panels<T> dz, std::int64_t pieces,
                     Range rows);

template <class T>
void column_statistics(Panels<const T> z, const T* row_weights, BlockStatistics* statistics,
                       Range blocks, Range panels);
template <class T>
void merge_statistics(const BlockStatistics* statistics, const double* block_weights,
                      std::int64_t blocks, std::int64_t panels, std::int64_t panel, double* mean,
                      double* m2);
template <class T>
void batch_norm(const BatchNormApply<T>& problem, Range rows, Range panels);
template <class T>
void batch_norm_backward_sums(const BatchNormBackwardSums<T>& problem, Range blocks, Range panels);
template <class T>
void batch_norm_backward(const BatchNormBackwardApply<T>& problem, Range rows, Range panels);

template <class T>
void softmax_cross_entropy(const Loss<T>& problem, Range rows);
template <class T>
void elementwise_loss(int loss_id, const Loss<T>& problem, Range rows);
template <class T>
void softmax(Panels<const T> logits, Panels<T> probabilities, Range rows);

template <class T>
void activation_backward_tangent(const ActivationBackwardTangent<T>& problem, Range rows,
                                 Range panels);
template <class T>
void maxout_tangent(Panels<const T> z, Panels<const T> z_tangent, Panels<T> y_tangent,
                    std::int64_t pieces, Range rows);
template <class T>
void batch_norm_tangent_sums(const BatchNormPoint<T>& point, const T* row_weights, BlockSums* sums,
                             Range blocks, Range panels);
template <class T>
void batch_norm_tangent(const BatchNormTangent<T>& problem, Range rows, Range panels);
template <class T>
void batch_norm_backward_tangent_sums(const BatchNormBackwardTangent<T>& problem, BlockSums* sums,
                                      Range blocks, Range panels);
template <class T>
void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>& problem, Range rows,
                                 Range panels);
template <class T>
void softmax_cross_entropy_tangent(const LossTangent<T>& problem, Range blocks);
template <class T>
void elementwise_loss_tangent(int loss_id, const LossTangent<T>& problem, Range blocks);

template <class T>
std::int64_t optimizer_step(int optimizer_id, const OptimizerStep<T>& step);
template <class T>
void optimizer_theta(int optimizer_id, const OptimizerStep<T>& step, T* theta);
template <class T>
void average(T* average, const T* p, double weight, std::int64_t count);
template <class T>
double sum_of_squares(const T* x, std::int64_t count);
template <class T>
void scale(T* x, double factor, std::int64_t count);
template <class T>
void axpy(double a, const T* x, T* y, std::int64_t count);
template <class T>
bool finite(const T* x, std::int64_t count);

// ---- shared blocks: `rows` rows of one panel with `lanes` valid columns

// y = phi(z), zero in the other lanes; y may be z.
template <class T>
void activate_block(Activation phi, const T* z, T* y, std::int64_t rows, std::int64_t lanes);
// dz (+)= dy * phi'(at), zero in the other lanes; dz may be dy.
template <class T>
void differentiate_block(Activation phi, const T* dy, const T* at, T* dz, bool accumulate,
                         std::int64_t rows, std::int64_t lanes);
// Weighted by row_weights[0..rows) unless null; zero in the other lanes.
template <class T>
void block_statistics(const T* z, const T* row_weights, std::int64_t rows, std::int64_t lanes,
                      BlockStatistics& statistics);

}  // namespace TW_ISA
}  // namespace thalweg::cpu
