// Inverted dropout with a counter-based mask (Srivastava et al. 2014). The mask depends on (seed,
// step, stream, row, column) alone, so that the same call on a gradient is the backward pass.
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {

template <class T>
void dropout(const ArrayView& x, double p, std::uint64_t seed, std::uint64_t step,
             std::uint32_t stream, std::int64_t first_row, T* y, int threads) {
  expect_matrix("dropout", "x", x);
  expect<ValueError>(p >= 0.0 && p < 1.0, "[dropout] expected p in [0, 1), got ", p);
  expect<ValueError>(first_row >= 0, "[dropout] expected first_row >= 0, got ", first_row);
  expect<ValueError>(stream < 1u << 16, "[dropout] expected stream < 65536, got ", stream);
  cpu::Dropout mask;
  mask.seed = seed;
  mask.step = step;
  mask.stream = stream;
  mask.threshold = static_cast<std::uint32_t>(p * 0x1p32);
  mask.scale = 1.0 / (1.0 - p);
  mask.first_row = first_row;

  Matrix<T> values(x.rows, x.cols);
  run(threads, [&](Team& team) {
    load(team, x, values.panels);
    for_each_row_block(team, x.rows, [&](Range rows) {
      cpu::kernels<T>().dropout(values.panels, values.panels, mask, false, rows,
                                {0, values.panels.panels()});
    });
    store<T>(team, values.panels, y);
  });
}

template void dropout<float>(const ArrayView&, double, std::uint64_t, std::uint64_t, std::uint32_t,
                             std::int64_t, float*, int);
template void dropout<double>(const ArrayView&, double, std::uint64_t, std::uint64_t, std::uint32_t,
                              std::int64_t, double*, int);

}  // namespace thalweg::ops
