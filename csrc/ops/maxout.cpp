// y[r, u] = max over q of z[r, u pieces + q] (Goodfellow et al. 2013); the gradient goes to the
// first maximum.
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {
namespace {

void expect_pieces(std::string_view op, const ArrayView& z, std::int64_t pieces) {
  expect_matrix(op, "z", z);
  expect<ValueError>(pieces >= 1, "[", op, "] expected pieces >= 1, got ", pieces);
  expect<ValueError>(z.cols % pieces == 0, "[", op, "] expected z.shape[1] divisible by pieces (",
                     pieces, "), got ", shape_text(z));
}

}  // namespace

template <class T>
void maxout(const ArrayView& z, std::int64_t pieces, T* y, int threads) {
  expect_pieces("maxout", z, pieces);
  Matrix<T> input(z.rows, z.cols), output(z.rows, z.cols / pieces);
  run(threads, [&](Team& team) {
    load(team, z, input.panels);
    for_each_row_block(team, z.rows, [&](Range rows) {
      cpu::kernels<T>().maxout(input.panels, output.panels, pieces, rows);
    });
    store<T>(team, output.panels, y);
  });
}

template <class T>
void maxout_backward(const ArrayView& z, const ArrayView& dy, std::int64_t pieces, T* dz,
                     int threads) {
  expect_pieces("maxout_backward", z, pieces);
  expect_matrix("maxout_backward", "dy", dy);
  expect_rows("maxout_backward", "dy", dy, "z.shape[0]", z.rows);
  expect_cols("maxout_backward", "dy", dy, "z.shape[1] / pieces", z.cols / pieces);
  Matrix<T> input(z.rows, z.cols), gradient(dy.rows, dy.cols), result(z.rows, z.cols);
  run(threads, [&](Team& team) {
    load(team, z, input.panels);
    load(team, dy, gradient.panels);
    for_each_row_block(team, z.rows, [&](Range rows) {
      cpu::kernels<T>().maxout_backward(input.panels, gradient.panels, result.panels, pieces, rows);
    });
    store<T>(team, result.panels, dz);
  });
}

template void maxout<float>(const ArrayView&, std::int64_t, float*, int);
template void maxout<double>(const ArrayView&, std::int64_t, double*, int);
template void maxout_backward<float>(const ArrayView&, const ArrayView&, std::int64_t, float*, int);
template void maxout_backward<double>(const ArrayView&, const ArrayView&, std::int64_t, double*,
                                      int);

}  // namespace thalweg::ops
