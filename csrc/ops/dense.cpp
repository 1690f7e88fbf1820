// y = phi(x W^T + b) and its gradients.
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {

template <class T>
void dense(const ArrayView& x, const ArrayView& weight, const ArrayView& bias,
           const std::string& activation, double parameter, T* y, int threads) {
  expect_matrix("dense", "x", x);
  expect_matrix("dense", "weight", weight);
  expect_cols("dense", "weight", weight, "x.shape[1]", x.cols);
  if (bias.present()) expect_vector("dense", "bias", bias, "weight.shape[0]", weight.rows);
  const cpu::Activation phi{find_activation("dense", activation, parameter), parameter};

  Matrix<T> input(x.rows, x.cols), output(x.rows, weight.rows);
  Matrix<T> tiles = right_operand<T>(weight.cols, weight.rows);
  Arena<T> shift;
  if (bias.present()) shift = load_vector<T>(bias);
  cpu::Gemm<T> problem;
  problem.a = input.panels;
  problem.b = tiles.panels.data;
  problem.c = output.panels;
  problem.shift = shift.data();
  problem.activation = phi;
  run(threads, [&](Team& team) {
    load(team, x, input.panels);
    load(team, transposed(weight), tiles.panels);
    multiply(team, problem);
    store<T>(team, output.panels, y);
  });
}

template <class T>
void dense_backward(const ArrayView& x, const ArrayView& weight, const ArrayView& dy, T* dx,
                    T* dweight, T* dbias, int threads) {
  expect_matrix("dense_backward", "x", x);
  expect_matrix("dense_backward", "weight", weight);
  expect_matrix("dense_backward", "dy", dy);
  expect_cols("dense_backward", "weight", weight, "x.shape[1]", x.cols);
  expect_rows("dense_backward", "dy", dy, "x.shape[0]", x.rows);
  expect_cols("dense_backward", "dy", dy, "weight.shape[0]", weight.rows);

  Matrix<T> input(x.rows, dweight ? x.cols : 0), delta(dy.rows, dy.cols);
  Matrix<T> tiles = right_operand<T>(weight.rows, dx ? weight.cols : 0);
  Matrix<T> input_gradient(x.rows, dx ? x.cols : 0);
  Arena<T> sums(round_up(dy.cols, kPanel));
  cpu::Gemm<T> problem;
  problem.a = delta.panels;
  problem.b = tiles.panels.data;
  problem.c = input_gradient.panels;
  run(threads, [&](Team& team) {
    load(team, dy, delta.panels);
    if (dx) {
      load(team, weight, tiles.panels);
      multiply(team, problem);
      store<T>(team, input_gradient.panels, dx);
    }
    if (dweight) {
      load(team, x, input.panels);
      multiply_transposed<T>(team, delta.panels, input.panels, dweight);
    }
    if (dbias) {
      team.for_each(delta.panels.panels(), [&](std::int64_t p) {
        cpu::kernels<T>().column_sum(delta.panels.panel(p), delta.panels.rows,
                                     delta.panels.lanes(p), false, sums.data() + p * kPanel);
      });
    }
  });
  if (dbias) std::copy_n(sums.data(), dy.cols, dbias);
}

template void dense<float>(const ArrayView&, const ArrayView&, const ArrayView&, const std::string&,
                           double, float*, int);
template void dense<double>(const ArrayView&, const ArrayView&, const ArrayView&,
                            const std::string&, double, double*, int);
template void dense_backward<float>(const ArrayView&, const ArrayView&, const ArrayView&, float*,
                                    float*, float*, int);
template void dense_backward<double>(const ArrayView&, const ArrayView&, const ArrayView&, double*,
                                     double*, double*, int);

}  // namespace thalweg::ops
