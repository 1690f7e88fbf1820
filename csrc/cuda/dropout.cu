#include "cuda/dropout.h"
#include "cuda/quad_loop.h"
#include "math/philox.h"

namespace thalweg::cuda {
namespace {

// ---- Kernels ------------------------------------------------------------------------------------

// The words of four elements from `element` on. They lie in two blocks where the rows of the matrix
// are no multiples of four; shifts instead of an index keep them in registers.
TW_DEVICE PhiloxBlock random_words(const Dropout& problem, std::uint64_t step,
                                   std::uint64_t element) {
  const auto stream = static_cast<std::uint16_t>(problem.stream);
  PhiloxBlock words = philox(problem.seed, stream, step, element / 4);
  const int offset = static_cast<int>(element % 4);
  if (offset == 0) return words;
  const PhiloxBlock next = philox(problem.seed, stream, step, element / 4 + 1);
  std::uint32_t all[8];
  TW_UNROLL
  for (int j = 0; j < 4; ++j) {
    all[j] = words.word[j];
    all[4 + j] = next.word[j];
  }
  TW_UNROLL
  for (int j = 0; j < 7; ++j) all[j] = (offset & 1) != 0 ? all[j + 1] : all[j];
  TW_UNROLL
  for (int j = 0; j < 4; ++j) words.word[j] = (offset & 2) != 0 ? all[j + 2] : all[j];
  return words;
}

template <class T>
TW_KERNEL void dropout_kernel(const Matrix<const T> x, const Matrix<T> y, const Dropout problem,
                              const bool accumulate) {
  const std::uint64_t step =
      problem.state != nullptr ? static_cast<std::uint64_t>(problem.state->steps) : problem.step;
  const T scale = static_cast<T>(problem.scale);
  for_quads(y, [&](std::int64_t row, std::int64_t column) {
    const Quad<T> from = load_quad(x, row, column);
    Quad<T> to{};
    if (accumulate) to = load_quad(y, row, column);
    const std::int64_t element = (problem.first_row + row) * y.width + column;
    const PhiloxBlock words = random_words(problem, step, static_cast<std::uint64_t>(element));
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      // A product, not a selection: NaN stays visible.
      const T kept = from[j] * (words.word[j] >= problem.threshold ? scale : T(0));
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
