// The table of this instruction set's kernels.
#include "cpu/operations.h"

#define TW_TEXT(x) TW_TEXT_OF(x)
#define TW_TEXT_OF(x) #x

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

template <class T>
constexpr Kernels<T> kTable{
    .name = TW_TEXT(TW_ISA),
    .permute = &permute,
    .gather = &gather<T>,
    .scatter = &scatter<T>,
    .all_finite = &all_finite<T>,
    .gemm = &gemm<T>,
    .wgrad_tile = &wgrad_tile<T>,
    .transpose_tile = &transpose_tile<T>,
    .wgrad_tile_bfloat16 = &wgrad_tile_bfloat16,
    .pair_tile = &pair_tile,
    .round_to_bfloat16 = &round_to_bfloat16,
    .column_sum = &column_sum<T>,
    .activation = &activation<T>,
    .activation_backward = &activation_backward<T>,
    .dropout = &dropout<T>,
    .add = &add<T>,
    .accumulate = &accumulate<T>,
    .copy = &copy<T>,
    .maxout = &maxout<T>,
    .maxout_backward = &maxout_backward<T>,
    .column_statistics = &column_statistics<T>,
    .merge_statistics = &merge_statistics<T>,
    .batch_norm = &batch_norm<T>,
    .batch_norm_backward_sums = &batch_norm_backward_sums<T>,
    .batch_norm_backward = &batch_norm_backward<T>,
    .activation_backward_tangent = &activation_backward_tangent<T>,
    .maxout_tangent = &maxout_tangent<T>,
    .batch_norm_tangent_sums = &batch_norm_tangent_sums<T>,
    .batch_norm_tangent = &batch_norm_tangent<T>,
    .batch_norm_backward_tangent_sums = &batch_norm_backward_tangent_sums<T>,
    .batch_norm_backward_tangent = &batch_norm_backward_tangent<T>,
    .softmax_cross_entropy_tangent = &softmax_cross_entropy_tangent<T>,
    .elementwise_loss_tangent = &elementwise_loss_tangent<T>,
    .softmax_cross_entropy = &softmax_cross_entropy<T>,
    .elementwise_loss = &elementwise_loss<T>,
    .softmax = &softmax<T>,
    .optimizer_step = &optimizer_step<T>,
    .optimizer_theta = &optimizer_theta<T>,
    .average = &average<T>,
    .sum_of_squares = &sum_of_squares<T>,
    .scale = &scale<T>,
    .axpy = &axpy<T>,
    .finite = &finite<T>,
};

}  // namespace

const Kernels<float>& float_kernels() { return kTable<float>; }
const Kernels<double>& double_kernels() { return kTable<double>; }

}  // namespace TW_ISA
}  // namespace thalweg::cpu
