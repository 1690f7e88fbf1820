// Matrix products in the three forms of a dense layer.
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {
namespace {

// c[M, N] = a[M, K] b, where b is a [K, N] view.
template <class T>
void gemm_forward(const ArrayView& a, const ArrayView& b, T* c, int threads) {
  Matrix<T> left(a.rows, a.cols), right = right_operand<T>(b.rows, b.cols), result(a.rows, b.cols);
  cpu::Gemm<T> problem;
  problem.a = left.panels;
  problem.b = right.panels.data;
  problem.c = result.panels;
  run(threads, [&](Team& team) {
    load(team, a, left.panels);
    load(team, b, right.panels);
    multiply(team, problem);
    store<T>(team, result.panels, c);
  });
}

template <class T>
void gemm_wgrad(const ArrayView& a, const ArrayView& b, T* c, int threads) {
  Matrix<T> left(a.rows, a.cols), right(b.rows, b.cols);
  run(threads, [&](Team& team) {
    load(team, a, left.panels);
    load(team, b, right.panels);
    multiply_transposed<T>(team, left.panels, right.panels, c);
  });
}

}  // namespace

template <class T>
void gemm(GemmForm form, const ArrayView& a, const ArrayView& b, T* c, int threads) {
  expect_matrix("gemm", "a", a);
  expect_matrix("gemm", "b", b);
  switch (form) {
    case GemmForm::kForward:
      expect_cols("gemm", "b", b, "a.shape[1]", a.cols);
      return gemm_forward(a, transposed(b), c, threads);
    case GemmForm::kDgrad:
      expect_rows("gemm", "b", b, "a.shape[1]", a.cols);
      return gemm_forward(a, b, c, threads);
    case GemmForm::kWgrad:
      expect_rows("gemm", "b", b, "a.shape[0]", a.rows);
      return gemm_wgrad(a, b, c, threads);
  }
}

template void gemm<float>(GemmForm, const ArrayView&, const ArrayView&, float*, int);
template void gemm<double>(GemmForm, const ArrayView&, const ArrayView&, double*, int);

}  // namespace thalweg::ops
