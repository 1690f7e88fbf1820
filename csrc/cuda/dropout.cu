#include "cuda/device_dropout.h"
#include "cuda/dropout.h"
#include "cuda/quad_loop.h"

namespace thalweg::cuda {
namespace {

// ---- Kernels ------------------------------------------------------------------------------------

template <class T>
TW_KERNEL void dropout_kernel(const Matrix<const T> x, const Matrix<T> y, const Dropout problem,
                              const bool accumulate) {
  for_quads(y, [&](std::int64_t row, std::int64_t column) {
    const Quad<T> from = load_quad(x, row, column);
    Quad<T> to{};
    if (accumulate) to = load_quad(y, row, column);
    const Quad<T> factors = dropout_factors<T>(problem, y.width, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T kept = from[j] * factors[j];
      to[j] = accumulate ? to[j] + kept : kept;
    }
    store_quad(y, row, column, to);
  });
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

template <class T>
void dropout(const Matrix<const T>& x, const Matrix<T>& y, const Dropout& dropout, bool accumulate,
             cudaStream_t stream) {
  launch(dropout_kernel<T>, elementwise("dropout", y.size(), stream), x, y, dropout, accumulate);
}

template void dropout(const Matrix<const float>&, const Matrix<float>&, const Dropout&, bool,
                      cudaStream_t);
template void dropout(const Matrix<const double>&, const Matrix<double>&, const Dropout&, bool,
                      cudaStream_t);

}  // namespace thalweg::cuda
