// The tangents of a plan's nodes: problems for the kernels of csrc/cuda.
#include "network/cuda_tangent_backend.h"

#include <algorithm>

#include "cuda/activation.h"
#include "cuda/batch_norm.h"
#include "cuda/batch_norm_tangent.h"
#include "cuda/gemm.h"
#include "cuda/loss.h"
#include "cuda/maxout.h"

namespace thalweg {

template <class T>
std::size_t CudaTangentBackend<T>::scratch_bytes(const Plan& plan, std::int64_t rows) {
  std::size_t most = 0;
  for (const BatchNormState& state : plan.states)
    most = std::max(most, cuda::batch_norm_tangent_scratch_bytes(rows, state.width));
  return most;
}

template <class T>
void CudaTangentBackend<T>::dense_tangent(const DenseTangent<CudaTangentBackend>& problem) {
  const auto multiply = [&](const Matrix& x, const Weight& weight, Vector shift, bool accumulate) {
    cuda::DenseForward<T> product;
    product.precision = static_cast<cuda::Precision>(weight.plane_count);
    product.x = x;
    product.weight = weight;
    product.y = problem.y_tangent;
    product.shift = shift;
    product.accumulate = accumulate;
    this->run(cuda::scratch_bytes(product), [&](const cuda::Scratch& scratch) {
      product.scratch = scratch;
      cuda::dense_forward(product, stream_);
    });
  };
  multiply(problem.x, problem.weight_tangent, problem.bias_tangent, false);
  if (problem.x_tangent.present()) multiply(problem.x_tangent, problem.weight, nullptr, true);
}

template <class T>
cuda::BatchNormPoint<T> CudaTangentBackend<T>::point(const Pass& pass, int state, const Matrix& z,
                                                     const Matrix& z_tangent) const {
  cuda::BatchNormPoint<T> point;
  point.z = z;
  point.z_tangent = z_tangent;
  point.mean = workspace_.mean(state);
  point.inv_std = workspace_.inv_std(state);
  point.frozen = pass.mode != Mode::kTraining;
  point.mean_tangent = tangents_.mean(state);
  point.std_tangent = tangents_.inv_std(state);
  return point;
}

template <class T>
void CudaTangentBackend<T>::batch_norm_tangent(
    const Pass& pass, const BatchNormTangent<CudaTangentBackend>& problem) {
  cuda::BatchNormTangent<T> tangent;
  tangent.point = point(pass, problem.state, problem.z, problem.z_tangent);
  if (!tangent.point.frozen) tangent.weights = this->row_weights(problem.state);
  tangent.gamma = problem.gamma;
  tangent.gamma_tangent = problem.gamma_tangent;
  tangent.beta_tangent = problem.beta_tangent;
  tangent.y_tangent = problem.y_tangent;
  this->run(cuda::batch_norm_tangent_scratch_bytes(problem.z.rows, problem.z.width),
            [&](const cuda::Scratch& scratch) {
              cuda::batch_norm_tangent(tangent, static_cast<double*>(scratch.memory), stream_);
            });
}

template <class T>
void CudaTangentBackend<T>::maxout_tangent(const Matrix& z, const Matrix& z_tangent,
                                           const Matrix& y_tangent, std::int64_t pieces) {
  this->run(0, [&](const cuda::Scratch&) {
    cuda::maxout_tangent<T>(z, z_tangent, y_tangent, pieces, stream_);
  });
}

template <class T>
void CudaTangentBackend<T>::loss_tangent(const LossRequest& request, const Matrix& outputs,
                                         const Matrix& output_tangent,
                                         const Matrix& gradient_tangent) {
  const LossDescription& description = plan_.description.loss;
  cuda::LossTangent<T> problem;
  problem.outputs = outputs;
  problem.output_tangent = output_tangent;
  if (request.dense_targets) problem.targets = workspace_.targets();
  if (request.weighted) problem.row_weights = workspace_.row_weights.data();
  problem.label_smoothing = description.label_smoothing;
  problem.parameter = description.parameter;
  problem.gradient_scale = request.gradient_scale;
  problem.gradient_tangent = gradient_tangent;
  this->run(0, [&](const cuda::Scratch&) {
    if (description.kind == LossDescription::Kind::kCrossEntropy)
      cuda::softmax_cross_entropy_tangent(problem, stream_);
    else
      cuda::elementwise_loss_tangent(description.elementwise, problem, stream_);
  });
}

template <class T>
void CudaTangentBackend<T>::activation_backward_tangent(const Matrix& dy, const Matrix& dy_tangent,
                                                        const Matrix& at, const Matrix& z_tangent,
                                                        const Matrix& dz_tangent,
                                                        const Activation& phi, bool accumulate) {
  cuda::ActivationBackwardTangent<T> problem;
  problem.dy = dy;
  problem.dy_tangent = dy_tangent;
  problem.at = at;
  problem.z_tangent = z_tangent;
  problem.activation = phi;
  problem.dz_tangent = dz_tangent;
  problem.accumulate = accumulate;
  this->run(0, [&](const cuda::Scratch&) { cuda::activation_backward_tangent(problem, stream_); });
}

template <class T>
void CudaTangentBackend<T>::dense_input_gradient_tangent(
    const DenseInputGradientTangent<CudaTangentBackend>& problem) {
  const auto multiply = [&](const Matrix& dy, const Weight& weight, bool accumulate) {
    cuda::DenseInputGradient<T> product;
    product.precision = static_cast<cuda::Precision>(weight.plane_count);
    product.dy = dy;
    product.weight = weight;
    product.dx = problem.dx_tangent;
    product.accumulate = accumulate;
    this->run(cuda::scratch_bytes(product), [&](const cuda::Scratch& scratch) {
      product.scratch = scratch;
      cuda::dense_input_gradient(product, stream_);
    });
  };
  multiply(problem.dy_tangent, problem.weight, problem.accumulate);
  if (problem.dy.present()) multiply(problem.dy, problem.weight_tangent, true);
}

template <class T>
void CudaTangentBackend<T>::batch_norm_backward_tangent(
    const Pass& pass, const BatchNormBackwardTangent<CudaTangentBackend>& problem) {
  const int state = problem.state;
  const Matrix& z = problem.z;
  const bool frozen = pass.mode != Mode::kTraining;
  const cuda::RowWeights<T> weights = frozen ? cuda::RowWeights<T>{} : this->row_weights(state);
  if (!problem.dy.present()) {
    // The Jacobian of batch norm is the same map for gradients and for their tangents.
    cuda::BatchNormBackward<T> backward;
    backward.z = z;
    backward.dy = problem.dy_tangent;
    backward.mean = workspace_.mean(state);
    backward.inv_std = workspace_.inv_std(state);
    backward.gamma = this->vector(problem.gamma);
    backward.beta = this->vector(problem.beta);
    backward.weights = weights;
    backward.frozen = frozen;
    backward.dgamma = product_of(problem.gamma);
    backward.dbeta = product_of(problem.beta);
    backward.dz = problem.dz_tangent;
    backward.accumulate = problem.accumulate;
    this->run(cuda::batch_norm_backward_scratch_bytes(z.rows, z.width),
              [&](const cuda::Scratch& scratch) {
                cuda::batch_norm_backward(backward, scratch, stream_);
              });
    return;
  }
  cuda::BatchNormBackwardTangent<T> tangent;
  tangent.point = point(pass, state, z, problem.z_tangent);
  tangent.weights = weights;
  tangent.gamma = this->vector(problem.gamma);
  tangent.gamma_tangent = vector_tangent(problem.gamma);
  tangent.dgamma = this->gradient_of(problem.gamma);
  tangent.dbeta = this->gradient_of(problem.beta);
  tangent.g = problem.dy;
  tangent.g_tangent = problem.dy_tangent;
  tangent.dgamma_tangent = product_of(problem.gamma);
  tangent.dbeta_tangent = product_of(problem.beta);
  tangent.dz_tangent = problem.dz_tangent;
  tangent.accumulate = problem.accumulate;
  this->run(
      cuda::batch_norm_tangent_scratch_bytes(z.rows, z.width), [&](const cuda::Scratch& scratch) {
        cuda::batch_norm_backward_tangent(tangent, static_cast<double*>(scratch.memory), stream_);
      });
}

template <class T>
void CudaTangentBackend<T>::weight_gradient_tangent(
    const WeightGradientTangent<CudaTangentBackend>& problem, T* arena) {
  this->weight_gradient(problem.tensor, problem.x, problem.dy_tangent, false, arena);
  if (problem.x_tangent.present())
    this->weight_gradient(problem.tensor, problem.x_tangent, problem.dy, true, arena);
}

template <class T>
void CudaTangentBackend<T>::bias_gradient_tangent(int tensor, const Matrix& dy_tangent, T* arena) {
  this->sum_columns(dy_tangent, false, arena + parameters_.layout.tensors[tensor].offset);
}

template class CudaTangentBackend<float>;
template class CudaTangentBackend<double>;
template class TangentExecutor<CudaTangentBackend<float>>;
template class TangentExecutor<CudaTangentBackend<double>>;

}  // namespace thalweg
