// The primitives of the tangents' walk on a GPU: those of the values, and a second workspace and
// second parameters that hold the tangents. Their rules are CudaBackend's.
#pragma once

#include <cstdint>

#include "cuda/batch_norm_tangent.h"
#include "network/cuda_backend.h"
#include "network/tangent_executor.h"

namespace thalweg {

template <class T>
class CudaTangentBackend : public CudaBackend<T> {
 public:
  using Element = T;
  using Matrix = typename CudaBackend<T>::Matrix;
  using Weight = typename CudaBackend<T>::Weight;
  using Vector = typename CudaBackend<T>::Vector;

  // `direction` and `tangents`: of the parameters, and of what is in `workspace`. `gradients`: an
  // arena with the gradients of batch norm's gamma and beta, from the backward pass over the
  // values. `product`: the arena that TangentExecutor::gradients() is given; backward() writes into
  // it already.
  CudaTangentBackend(const Plan& plan, const CudaParameters<T>& parameters,
                     const CudaParameters<T>& direction, CudaWorkspace<T>& workspace,
                     CudaWorkspace<T>& tangents, T* gradients, T* product, cudaStream_t stream)
      : CudaBackend<T>(plan, parameters, workspace, {.gradients = gradients}, stream),
        direction_(direction),
        tangents_(tangents),
        product_(product) {}

  // What passes of up to that many rows need of scratch memory, besides CudaBackend's.
  static std::size_t scratch_bytes(const Plan& plan, std::int64_t rows);

  Matrix value_tangent(int buffer) const { return tangents_.value(buffer); }
  Matrix gradient_tangent(int buffer) const { return tangents_.gradient(buffer); }
  Vector vector_tangent(int tensor) const { return direction_.vector(tensor); }
  Weight weight_tangent(int tensor) const { return direction_.weight(plan_, tensor); }

  void dense_tangent(const DenseTangent<CudaTangentBackend>& problem);
  void batch_norm_tangent(const Pass& pass, const BatchNormTangent<CudaTangentBackend>& problem);
  void maxout_tangent(const Matrix& z, const Matrix& z_tangent, const Matrix& y_tangent,
                      std::int64_t pieces);
  void loss_tangent(const LossRequest& request, const Matrix& outputs, const Matrix& output_tangent,
                    const Matrix& gradient_tangent);
  void activation_backward_tangent(const Matrix& dy, const Matrix& dy_tangent, const Matrix& at,
                                   const Matrix& z_tangent, const Matrix& dz_tangent,
                                   const Activation& phi, bool accumulate);
  void dense_input_gradient_tangent(const DenseInputGradientTangent<CudaTangentBackend>& problem);
  void batch_norm_backward_tangent(const Pass& pass,
                                   const BatchNormBackwardTangent<CudaTangentBackend>& problem);

  void weight_gradient_tangent(const WeightGradientTangent<CudaTangentBackend>& problem, T* arena);
  void bias_gradient_tangent(int tensor, const Matrix& dy_tangent, T* arena);
  // batch_norm_backward_tangent() has written it.
  void norm_gradient_tangent(int, T*) {}

 private:
  T* product_of(int tensor) const {
    return product_ + parameters_.layout.tensors[static_cast<std::size_t>(tensor)].offset;
  }
  // What batch norm normalizes by, and its tangents.
  cuda::BatchNormPoint<T> point(const Pass& pass, int state, const Matrix& z,
                                const Matrix& z_tangent) const;

  using CudaBackend<T>::parameters_;
  using CudaBackend<T>::plan_;
  using CudaBackend<T>::stream_;
  using CudaBackend<T>::workspace_;

  const CudaParameters<T>& direction_;
  CudaWorkspace<T>& tangents_;
  T* product_;
};

extern template class TangentExecutor<CudaTangentBackend<float>>;
extern template class TangentExecutor<CudaTangentBackend<double>>;

}  // namespace thalweg
