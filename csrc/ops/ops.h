// Stateless, checked operations on row-major arrays: one function per operation, dispatched by
// device. Outputs are contiguous row-major arrays of T owned by the caller. All arguments are
// checked before anything is written. Explicit instantiations: float and double.
#pragma once

#include <cstdint>
#include <string>

#include "core/array_view.h"
#include "core/export.h"

namespace thalweg::ops {

enum class GemmForm { kForward, kDgrad, kWgrad };

// kForward: C[M,N] = A[M,K] B[N,K]^T;  kDgrad: C[M,N] = A[M,K] B[K,N];  kWgrad: C[M,N] = A[K,M]^T
// B[K,N]
template <class T>
TW_INTERNAL_API void gemm(GemmForm form, const ArrayView& a, const ArrayView& b, T* c, int threads);

// y[B,O] = phi(x[B,I] weight[O,I]^T + bias[O]); bias may be absent.
template <class T>
TW_INTERNAL_API void dense(const ArrayView& x, const ArrayView& weight, const ArrayView& bias,
                           const std::string& activation, double parameter, T* y, int threads);
// Any of dx, dweight, dbias may be null.
template <class T>
TW_INTERNAL_API void dense_backward(const ArrayView& x, const ArrayView& weight,
                                    const ArrayView& dy, T* dx, T* dweight, T* dbias, int threads);

// Training: batch statistics; mean, var (biased) and their running updates are written when not
// null.
template <class T>
TW_INTERNAL_API void batch_norm(const ArrayView& x, const ArrayView& gamma, const ArrayView& beta,
                                const ArrayView& weights, double eps, T* y, T* mean, T* var,
                                int threads);
// Evaluation with the given mean and variance.
template <class T>
TW_INTERNAL_API void batch_norm_inference(const ArrayView& x, const ArrayView& gamma,
                                          const ArrayView& beta, const ArrayView& mean,
                                          const ArrayView& var, double eps, T* y, int threads);
template <class T>
TW_INTERNAL_API void batch_norm_backward(const ArrayView& x, const ArrayView& gamma,
                                         const ArrayView& weights, const ArrayView& dy, double eps,
                                         T* dx, T* dgamma, T* dbeta, int threads);

template <class T>
TW_INTERNAL_API void activation(const std::string& name, double parameter, const ArrayView& z, T* y,
                                int threads);
template <class T>
TW_INTERNAL_API void activation_backward(const std::string& name, double parameter,
                                         const ArrayView& z, const ArrayView& dy, T* dz,
                                         int threads);

template <class T>
TW_INTERNAL_API void dropout(const ArrayView& x, double p, std::uint64_t seed, std::uint64_t step,
                             std::uint32_t stream, std::int64_t first_row, T* y, int threads);

template <class T>
TW_INTERNAL_API void maxout(const ArrayView& z, std::int64_t pieces, T* y, int threads);
template <class T>
TW_INTERNAL_API void maxout_backward(const ArrayView& z, const ArrayView& dy, std::int64_t pieces,
                                     T* dz, int threads);

template <class T>
TW_INTERNAL_API void softmax(const ArrayView& logits, T* probabilities, int threads);

// The weighted mean over rows (cross-entropy) or the named reduction ("batch_mean", "sum",
// "element_mean"); gradient of that value, may be null. Labels out of range: ValueError.
template <class T>
TW_INTERNAL_API double softmax_cross_entropy(const ArrayView& logits, const ArrayView& target,
                                             const ArrayView& weights, double label_smoothing,
                                             T* gradient, int threads);
template <class T>
TW_INTERNAL_API double elementwise_loss(const std::string& name, double parameter,
                                        const std::string& reduction, const ArrayView& output,
                                        const ArrayView& target, const ArrayView& weights,
                                        T* gradient, int threads);

// One update of flat contiguous vectors in place. hyper and next_hyper in the order of the
// optimizer's table; t counts this update from 1. Slots the optimizer does not have are null.
template <class T>
TW_INTERNAL_API void optimizer_step(const std::string& name, const double* hyper,
                                    const double* next_hyper, std::int64_t t, T* p, const T* g,
                                    T* s0, T* s1, std::int64_t count, int threads);

// Scales g in place to norm <= clip; returns the norm before, in double.
template <class T>
TW_INTERNAL_API double clip_by_global_norm(T* g, std::int64_t count, double clip, int threads);

}  // namespace thalweg::ops
