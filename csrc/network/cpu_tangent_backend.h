// The primitives of the tangents' walk on the CPU: those of the values, and a second workspace and
// second parameters that hold the tangents.
#pragma once

#include <cstdint>

#include "network/cpu_backend.h"
#include "network/tangent_executor.h"

namespace thalweg {

template <class T>
class CpuTangentBackend : public CpuBackend<T> {
 public:
  using Element = T;
  using Matrix = typename CpuBackend<T>::Matrix;
  using Weight = typename CpuBackend<T>::Weight;
  using Vector = typename CpuBackend<T>::Vector;

  // `direction` and `tangents`: of the parameters, and of what is in `workspace`.
  CpuTangentBackend(const Plan& plan, const Parameters<T>& parameters,
                    const Parameters<T>& direction, Workspace<T>& workspace, Workspace<T>& tangents,
                    const cpu::Kernels<T>& kernels, Team& team)
      : CpuBackend<T>(plan, parameters, workspace, kernels, team),
        direction_(direction),
        tangents_(tangents) {}

  Matrix value_tangent(int buffer) const { return {tangents_.value(buffer)}; }
  Matrix gradient_tangent(int buffer) const { return {tangents_.gradient(buffer)}; }
  Vector vector_tangent(int tensor) const {
    return direction_.values.data() + plan_.tensors[tensor].offset;
  }
  Weight weight_tangent(int tensor) const {
    return {vector_tangent(tensor),
            direction_.transposed.data() + plan_.tensors[tensor].transposed_offset};
  }

  void dense_tangent(const DenseTangent<CpuTangentBackend>& problem);
  void batch_norm_tangent(const Pass& pass, const BatchNormTangent<CpuTangentBackend>& problem);
  void maxout_tangent(const Matrix& z, const Matrix& z_tangent, const Matrix& y_tangent,
                      std::int64_t pieces);
  void loss_tangent(const LossRequest& request, const Matrix& outputs, const Matrix& output_tangent,
                    const Matrix& gradient_tangent);
  void activation_backward_tangent(const Matrix& dy, const Matrix& dy_tangent, const Matrix& at,
                                   const Matrix& z_tangent, const Matrix& dz_tangent,
                                   const cpu::Activation& activation, bool accumulate);
  void dense_input_gradient_tangent(const DenseInputGradientTangent<CpuTangentBackend>& problem);
  void batch_norm_backward_tangent(const Pass& pass,
                                   const BatchNormBackwardTangent<CpuTangentBackend>& problem);

  // As the gradients of CpuBackend.
  void weight_gradient_tangent(const WeightGradientTangent<CpuTangentBackend>& problem, T* arena);
  void bias_gradient_tangent(int tensor, const Matrix& dy_tangent, T* arena);
  void norm_gradient_tangent(int tensor, T* arena);

 private:
  T* tangent_vector(int tensor) const {
    return tangents_.vector_gradients() + plan_.tensors[tensor].vector_offset;
  }
  // What batch norm normalizes by; constants unless the statistics are the batch's.
  cpu::BatchNormPoint<T> point(const Pass& pass, int state, const Matrix& z,
                               const Matrix& z_tangent) const;
  // The tangent workspace's block sums over the rows, by panel: to the two vectors, and divided by
  // `total` to the two means; each may be null.
  void merge_sums(std::int64_t rows, std::int64_t width, double total, T* first, T* second,
                  T* first_mean, T* second_mean);

  using CpuBackend<T>::kernels_;
  using CpuBackend<T>::plan_;
  using CpuBackend<T>::team_;
  using CpuBackend<T>::workspace_;

  const Parameters<T>& direction_;
  Workspace<T>& tangents_;
};

extern template class TangentExecutor<CpuTangentBackend<float>>;
extern template class TangentExecutor<CpuTangentBackend<double>>;

}  // namespace thalweg
