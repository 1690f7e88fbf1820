// The tangents of a plan's nodes, by kernels over the parts of the matrices.
#include "network/cpu_tangent_backend.h"

#include <algorithm>

#include "cpu/weight_gradient.h"
#include "network/cpu_phases.h"

namespace thalweg {

template <class T>
void CpuTangentBackend<T>::dense_tangent(const DenseTangent<CpuTangentBackend>& problem) {
  cpu::Gemm<T> gemm;
  gemm.a = problem.x;
  gemm.b = problem.weight_tangent.values;
  gemm.c = problem.y_tangent;
  gemm.shift = problem.bias_tangent;
  multiply(team_, kernels_, gemm);
  if (!problem.x_tangent.present()) return;
  gemm.a = problem.x_tangent;
  gemm.b = problem.weight.values;
  gemm.shift = nullptr;
  gemm.accumulate = true;
  multiply(team_, kernels_, gemm);
}

template <class T>
cpu::BatchNormPoint<T> CpuTangentBackend<T>::point(const Pass& pass, int state, const Matrix& z,
                                                   const Matrix& z_tangent) const {
  cpu::BatchNormPoint<T> point;
  point.z = z;
  point.z_tangent = z_tangent;
  point.mean = workspace_.mean(state);
  point.inv_std = workspace_.inv_std(state);
  if (pass.mode == Mode::kTraining) {
    point.mean_tangent = tangents_.mean(state);
    point.std_tangent = tangents_.inv_std(state);
  }
  return point;
}

template <class T>
void CpuTangentBackend<T>::merge_sums(std::int64_t rows, std::int64_t width, double total, T* first,
                                      T* second, T* first_mean, T* second_mean) {
  const std::int64_t panels = panels_of(width);
  team_.for_each(panels, [&](std::int64_t panel) {
    for (std::int64_t j = 0; j < kPanel; ++j) {
      double a = 0.0;
      double b = 0.0;
      for (std::int64_t block = 0; block < row_blocks_of(rows); ++block) {
        const cpu::BlockSums& part = tangents_.block_sums[block * panels + panel];
        a += part.g[j];
        b += part.g_xhat[j];
      }
      const std::int64_t c = panel * kPanel + j;
      if (first) first[c] = static_cast<T>(a);
      if (second) second[c] = static_cast<T>(b);
      if (first_mean) first_mean[c] = static_cast<T>(a / total);
      if (second_mean) second_mean[c] = static_cast<T>(b / total);
    }
  });
}

template <class T>
void CpuTangentBackend<T>::batch_norm_tangent(const Pass& pass,
                                              const BatchNormTangent<CpuTangentBackend>& problem) {
  const Matrix& z = problem.z;
  cpu::BatchNormTangent<T> apply;
  apply.point = point(pass, problem.state, z, problem.z_tangent);
  if (pass.mode == Mode::kTraining) {
    const bool weighted = plan_.states[problem.state].weighted;
    const T* weights = weighted ? workspace_.row_weights.data() : nullptr;
    grid(team_, z.rows, kRowBlock, z.panels(), kChunkUnits, [&](Range blocks, Range panels) {
      kernels_.batch_norm_tangent_sums(apply.point, weights, tangents_.block_sums.data(), blocks,
                                       panels);
    });
    merge_sums(z.rows, z.width, weighted ? pass.total_weight : static_cast<double>(z.rows), nullptr,
               nullptr, tangents_.mean(problem.state), tangents_.inv_std(problem.state));
  }
  apply.gamma = problem.gamma;
  apply.gamma_tangent = problem.gamma_tangent;
  apply.beta_tangent = problem.beta_tangent;
  apply.y_tangent = problem.y_tangent;
  grid(team_, apply.y_tangent,
       [&](Range rows, Range panels) { kernels_.batch_norm_tangent(apply, rows, panels); });
}

template <class T>
void CpuTangentBackend<T>::maxout_tangent(const Matrix& z, const Matrix& z_tangent,
                                          const Matrix& y_tangent, std::int64_t pieces) {
  team_.for_each(row_blocks_of(z.rows), [&](std::int64_t block) {
    kernels_.maxout_tangent(z, z_tangent, y_tangent, pieces, row_block(block, z.rows));
  });
}

template <class T>
void CpuTangentBackend<T>::loss_tangent(const LossRequest& request, const Matrix& outputs,
                                        const Matrix& output_tangent,
                                        const Matrix& gradient_tangent) {
  const LossDescription& description = plan_.description.loss;
  cpu::LossTangent<T> problem;
  problem.outputs = outputs;
  problem.output_tangent = output_tangent;
  if (request.dense_targets)
    problem.targets = {workspace_.targets.data(), workspace_.rows(), plan_.out_features};
  if (request.weighted) problem.row_weights = workspace_.row_weights.data();
  problem.label_smoothing = description.label_smoothing;
  problem.parameter = description.parameter;
  problem.gradient_scale = request.gradient_scale;
  problem.gradient_tangent = gradient_tangent;
  team_.for_each(row_blocks_of(outputs.rows), [&](std::int64_t block) {
    if (description.kind == LossDescription::Kind::kCrossEntropy)
      kernels_.softmax_cross_entropy_tangent(problem, {block, block + 1});
    else
      kernels_.elementwise_loss_tangent(description.elementwise, problem, {block, block + 1});
  });
}

template <class T>
void CpuTangentBackend<T>::activation_backward_tangent(const Matrix& dy, const Matrix& dy_tangent,
                                                       const Matrix& at, const Matrix& z_tangent,
                                                       const Matrix& dz_tangent,
                                                       const cpu::Activation& activation,
                                                       bool accumulate) {
  cpu::ActivationBackwardTangent<T> problem;
  problem.dy = dy;
  problem.dy_tangent = dy_tangent;
  problem.at = at.data;
  problem.z_tangent = z_tangent.data;
  problem.activation = activation;
  problem.dz_tangent = dz_tangent;
  problem.accumulate = accumulate;
  grid(team_, dz_tangent, [&](Range rows, Range panels) {
    kernels_.activation_backward_tangent(problem, rows, panels);
  });
}

template <class T>
void CpuTangentBackend<T>::dense_input_gradient_tangent(
    const DenseInputGradientTangent<CpuTangentBackend>& problem) {
  cpu::Gemm<T> gemm;
  gemm.a = problem.dy_tangent;
  gemm.b = problem.weight.transposed;
  gemm.c = problem.dx_tangent;
  gemm.accumulate = problem.accumulate;
  multiply(team_, kernels_, gemm);
  if (!problem.dy.present()) return;
  gemm.a = problem.dy;
  gemm.b = problem.weight_tangent.transposed;
  gemm.accumulate = true;
  multiply(team_, kernels_, gemm);
}

template <class T>
void CpuTangentBackend<T>::batch_norm_backward_tangent(
    const Pass& pass, const BatchNormBackwardTangent<CpuTangentBackend>& problem) {
  const int state = problem.state;
  const Matrix& z = problem.z;
  const bool batch = pass.mode == Mode::kTraining;
  const bool weighted = batch && plan_.states[state].weighted;
  const double total = weighted ? pass.total_weight : static_cast<double>(z.rows);
  const T* row_weights = weighted ? workspace_.row_weights.data() : nullptr;
  T* const mean_g_tangent = tangents_.mean_g(state);
  T* const mean_g_xhat_tangent = tangents_.mean_g_xhat(state);
  const auto merge = [&] {
    merge_sums(z.rows, z.width, total, tangent_vector(problem.beta), tangent_vector(problem.gamma),
               mean_g_tangent, mean_g_xhat_tangent);
  };

  if (!problem.dy.present()) {
    // The Jacobian of batch norm is the same map for gradients and for their tangents.
    cpu::BatchNormBackwardSums<T> sums;
    sums.z = z;
    sums.mean = workspace_.mean(state);
    sums.inv_std = workspace_.inv_std(state);
    sums.dy = problem.dy_tangent;
    sums.sums = tangents_.block_sums.data();
    grid(team_, z.rows, kRowBlock, z.panels(), kChunkUnits, [&](Range blocks, Range panels) {
      kernels_.batch_norm_backward_sums(sums, blocks, panels);
    });
    merge();
    if (!problem.dz_tangent.present()) return;
    cpu::BatchNormBackwardApply<T> apply;
    apply.z = z;
    apply.mean = sums.mean;
    apply.inv_std = sums.inv_std;
    apply.gamma = this->vector(problem.gamma);
    if (batch) {
      apply.mean_g = mean_g_tangent;
      apply.mean_g_xhat = mean_g_xhat_tangent;
    }
    apply.row_weights = row_weights;
    apply.g = problem.dy_tangent;
    apply.dz = problem.dz_tangent;
    apply.accumulate = problem.accumulate;
    grid(team_, apply.dz,
         [&](Range rows, Range panels) { kernels_.batch_norm_backward(apply, rows, panels); });
    return;
  }

  cpu::BatchNormBackwardTangent<T> tangent;
  tangent.point = point(pass, state, z, problem.z_tangent);
  tangent.gamma = this->vector(problem.gamma);
  tangent.gamma_tangent = vector_tangent(problem.gamma);
  tangent.row_weights = row_weights;
  tangent.g = problem.dy;
  tangent.g_tangent = problem.dy_tangent;
  grid(team_, z.rows, kRowBlock, z.panels(), kChunkUnits, [&](Range blocks, Range panels) {
    kernels_.batch_norm_backward_tangent_sums(tangent, tangents_.block_sums.data(), blocks, panels);
  });
  merge();
  if (!problem.dz_tangent.present()) return;
  if (batch) {
    tangent.mean_g = workspace_.mean_g(state);
    tangent.mean_g_xhat = workspace_.mean_g_xhat(state);
    tangent.mean_g_tangent = mean_g_tangent;
    tangent.mean_g_xhat_tangent = mean_g_xhat_tangent;
  }
  tangent.dz_tangent = problem.dz_tangent;
  tangent.accumulate = problem.accumulate;
  grid(team_, tangent.dz_tangent, [&](Range rows, Range panels) {
    kernels_.batch_norm_backward_tangent(tangent, rows, panels);
  });
}

template <class T>
void CpuTangentBackend<T>::weight_gradient_tangent(
    const WeightGradientTangent<CpuTangentBackend>& problem, T* arena) {
  const Matrix& x = problem.x;
  const Matrix& dy = problem.dy_tangent;
  const auto multiply = [&](const Matrix& left, const Matrix& right, bool add) {
    cpu::weight_gradient(
        kernels_, x.rows, x.panels(), update_share(team_, problem.tensor, x.panels() * dy.panels()),
        add, arena + plan_.tensors[problem.tensor].offset, [&] { return team_.stop_requested(); },
        [&](Range rows, std::int64_t k, std::int64_t o, bool add_rows, T* tile) {
          kernels_.wgrad_tile(left.row(k, rows.begin), left.lanes(k), right.row(o, rows.begin),
                              right.lanes(o), rows.size(), add_rows, tile);
        });
  };
  multiply(x, dy, false);
  if (problem.x_tangent.present()) multiply(problem.x_tangent, problem.dy, true);
}

template <class T>
void CpuTangentBackend<T>::bias_gradient_tangent(int tensor, const Matrix& dy_tangent, T* arena) {
  const Tensor& place = plan_.tensors[tensor];
  if (update_share(team_, tensor, 1).size() == 0 || team_.stop_requested()) return;
  T* to = arena + place.offset;
  for (std::int64_t p = 0; p < dy_tangent.panels(); ++p)
    kernels_.column_sum(dy_tangent.panel(p), dy_tangent.rows, dy_tangent.lanes(p), false,
                        to + p * kPanel);
}

template <class T>
void CpuTangentBackend<T>::norm_gradient_tangent(int tensor, T* arena) {
  const Tensor& place = plan_.tensors[tensor];
  if (update_share(team_, tensor, 1).size() > 0)
    std::copy_n(tangent_vector(tensor), place.padded, arena + place.offset);
}

template class CpuTangentBackend<float>;
template class CpuTangentBackend<double>;
template class TangentExecutor<CpuTangentBackend<float>>;
template class TangentExecutor<CpuTangentBackend<double>>;

}  // namespace thalweg
