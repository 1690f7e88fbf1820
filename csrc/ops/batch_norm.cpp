// Batch normalization of the columns of x by the statistics of the batch or by given ones, and its
// gradient (Ioffe, Szegedy 2015).
#include <cmath>

#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"
#include "ops/row_weights.h"

namespace thalweg::ops {
namespace {

// Statistics and affine parameters, one value per column, padded to whole panels.
template <class T>
struct Columns {
  explicit Columns(std::int64_t width)
      : mean(round_up(width, kPanel)), var(mean.size()), inv_std(mean.size()), gamma(mean.size()) {}

  Arena<T> mean, var, inv_std, gamma;
};

// `gamma` or `beta`: absent means the neutral value.
template <class T>
Arena<T> affine(std::string_view op, std::string_view name, const ArrayView& values,
                std::int64_t width, T neutral) {
  if (values.present()) {
    expect_vector(op, name, values, "x.shape[1]", width);
    return load_vector<T>(values);
  }
  Arena<T> filled(round_up(width, kPanel));
  std::fill_n(filled.data(), width, neutral);
  return filled;
}

void expect_batch(std::string_view op, const ArrayView& x, double eps) {
  expect_matrix(op, "x", x);
  expect<ValueError>(x.rows >= 2, "[", op, "] expected at least 2 rows for batch statistics, got ",
                     x.rows, "; batch_norm_inference takes one row");
  expect_in(op, "eps", eps, 0.0, 1e6);
}

// Collective: the statistics of z into `columns`.
template <class T>
void batch_statistics(Team& team, Panels<const T> z, const RowWeights<T>& weights, double eps,
                      cpu::BlockStatistics* partial, Columns<T>& columns) {
  const std::int64_t panels = z.panels();
  for_each_tile(team, z.rows, panels, [&](Range block, Range panel) {
    cpu::kernels<T>().column_statistics(z, weights.data(), partial, block, panel);
  });
  team.for_each(panels, [&](std::int64_t p) {
    double mean[kPanel], m2[kPanel];
    cpu::kernels<T>().merge_statistics(partial, weights.blocks.data(), row_blocks_of(z.rows),
                                       panels, p, mean, m2);
    for (std::int64_t lane = 0; lane < z.lanes(p); ++lane) {
      const std::int64_t column = p * kPanel + lane;
      const double var = m2[lane] / weights.total;
      columns.mean[column] = static_cast<T>(mean[lane]);
      columns.var[column] = static_cast<T>(var);
      columns.inv_std[column] = static_cast<T>(1.0 / std::sqrt(var + eps));
    }
  });
}

template <class T>
void normalize(Team& team, const cpu::BatchNormApply<T>& problem) {
  for_each_row_block(team, problem.z.rows, [&](Range rows) {
    cpu::kernels<T>().batch_norm(problem, rows, {0, problem.z.panels()});
  });
}

template <class T>
void copy_out(const Arena<T>& columns, std::int64_t width, T* out) {
  if (out) std::copy_n(columns.data(), width, out);
}

}  // namespace

template <class T>
void batch_norm(const ArrayView& x, const ArrayView& gamma, const ArrayView& beta,
                const ArrayView& weights, double eps, T* y, T* mean, T* var, int threads) {
  expect_batch("batch_norm", x, eps);
  Columns<T> columns(x.cols);
  columns.gamma = affine<T>("batch_norm", "gamma", gamma, x.cols, 1);
  const Arena<T> shift = affine<T>("batch_norm", "beta", beta, x.cols, 0);
  const RowWeights<T> row_weights("batch_norm", weights, x.rows);

  Matrix<T> z(x.rows, x.cols);
  Arena<cpu::BlockStatistics> partial(row_blocks_of(x.rows) * z.panels.panels());
  cpu::BatchNormApply<T> problem;
  problem.z = z.panels;
  problem.y = z.panels;
  problem.mean = columns.mean.data();
  problem.inv_std = columns.inv_std.data();
  problem.gamma = columns.gamma.data();
  problem.beta = shift.data();
  run(threads, [&](Team& team) {
    load(team, x, z.panels);
    batch_statistics<T>(team, z.panels, row_weights, eps, partial.data(), columns);
    normalize(team, problem);
    store<T>(team, z.panels, y);
  });
  copy_out(columns.mean, x.cols, mean);
  copy_out(columns.var, x.cols, var);
}

template <class T>
void batch_norm_inference(const ArrayView& x, const ArrayView& gamma, const ArrayView& beta,
                          const ArrayView& mean, const ArrayView& var, double eps, T* y,
                          int threads) {
  constexpr std::string_view op = "batch_norm_inference";
  expect_matrix(op, "x", x);
  expect_in(op, "eps", eps, 0.0, 1e6);
  expect_vector(op, "mean", mean, "x.shape[1]", x.cols);
  expect_vector(op, "var", var, "x.shape[1]", x.cols);
  const Arena<T> scale = affine<T>(op, "gamma", gamma, x.cols, 1);
  const Arena<T> shift = affine<T>(op, "beta", beta, x.cols, 0);
  const Arena<T> center = load_vector<T>(mean);
  Arena<T> inv_std = load_vector<T>(var);
  for (T& value : inv_std)
    value = static_cast<T>(1.0 / std::sqrt(static_cast<double>(value) + eps));

  Matrix<T> z(x.rows, x.cols);
  cpu::BatchNormApply<T> problem;
  problem.z = z.panels;
  problem.y = z.panels;
  problem.mean = center.data();
  problem.inv_std = inv_std.data();
  problem.gamma = scale.data();
  problem.beta = shift.data();
  run(threads, [&](Team& team) {
    load(team, x, z.panels);
    normalize(team, problem);
    store<T>(team, z.panels, y);
  });
}

template <class T>
void batch_norm_backward(const ArrayView& x, const ArrayView& gamma, const ArrayView& weights,
                         const ArrayView& dy, double eps, T* dx, T* dgamma, T* dbeta, int threads) {
  constexpr std::string_view op = "batch_norm_backward";
  expect_batch(op, x, eps);
  expect_matrix(op, "dy", dy);
  expect_same_shape(op, "dy", dy, "x", x);
  Columns<T> columns(x.cols);
  columns.gamma = affine<T>(op, "gamma", gamma, x.cols, 1);
  const RowWeights<T> row_weights(op, weights, x.rows);

  Matrix<T> z(x.rows, x.cols), g(x.rows, x.cols);
  const std::int64_t blocks = row_blocks_of(x.rows), panels = z.panels.panels();
  Arena<cpu::BlockStatistics> partial(blocks * panels);
  Arena<cpu::BlockSums> partial_sums(blocks * panels);
  Arena<T> sum_g(panels * kPanel), sum_g_xhat(panels * kPanel);
  Arena<T> mean_g(panels * kPanel), mean_g_xhat(panels * kPanel);
  cpu::BatchNormBackwardSums<T> sums;
  sums.z = z.panels;
  sums.mean = columns.mean.data();
  sums.inv_std = columns.inv_std.data();
  sums.dy = g.panels;
  sums.sums = partial_sums.data();
  cpu::BatchNormBackwardApply<T> apply;
  apply.z = z.panels;
  apply.mean = columns.mean.data();
  apply.inv_std = columns.inv_std.data();
  apply.gamma = columns.gamma.data();
  apply.mean_g = mean_g.data();
  apply.mean_g_xhat = mean_g_xhat.data();
  apply.row_weights = row_weights.data();
  apply.g = g.panels;
  apply.dz = g.panels;

  run(threads, [&](Team& team) {
    load(team, x, z.panels);
    load(team, dy, g.panels);
    batch_statistics<T>(team, z.panels, row_weights, eps, partial.data(), columns);
    for_each_tile(team, x.rows, panels, [&](Range block, Range panel) {
      cpu::kernels<T>().batch_norm_backward_sums(sums, block, panel);
    });
    team.for_each(x.cols, [&](std::int64_t column) {
      const std::int64_t p = column / kPanel, lane = column % kPanel;
      double total_g = 0.0, total_g_xhat = 0.0;
      for (std::int64_t block = 0; block < blocks; ++block) {
        total_g += partial_sums[block * panels + p].g[lane];
        total_g_xhat += partial_sums[block * panels + p].g_xhat[lane];
      }
      sum_g[column] = static_cast<T>(total_g);
      sum_g_xhat[column] = static_cast<T>(total_g_xhat);
      mean_g[column] = static_cast<T>(total_g / row_weights.total);
      mean_g_xhat[column] = static_cast<T>(total_g_xhat / row_weights.total);
    });
    if (dx) {
      for_each_row_block(team, x.rows, [&](Range rows) {
        cpu::kernels<T>().batch_norm_backward(apply, rows, {0, panels});
      });
      store<T>(team, g.panels, dx);
    }
  });
  copy_out(sum_g_xhat, x.cols, dgamma);
  copy_out(sum_g, x.cols, dbeta);
}

template void batch_norm<float>(const ArrayView&, const ArrayView&, const ArrayView&,
                                const ArrayView&, double, float*, float*, float*, int);
template void batch_norm<double>(const ArrayView&, const ArrayView&, const ArrayView&,
                                 const ArrayView&, double, double*, double*, double*, int);
template void batch_norm_inference<float>(const ArrayView&, const ArrayView&, const ArrayView&,
                                          const ArrayView&, const ArrayView&, double, float*, int);
template void batch_norm_inference<double>(const ArrayView&, const ArrayView&, const ArrayView&,
                                           const ArrayView&, const ArrayView&, double, double*,
                                           int);
template void batch_norm_backward<float>(const ArrayView&, const ArrayView&, const ArrayView&,
                                         const ArrayView&, double, float*, float*, float*, int);
template void batch_norm_backward<double>(const ArrayView&, const ArrayView&, const ArrayView&,
                                          const ArrayView&, double, double*, double*, double*, int);

}  // namespace thalweg::ops
