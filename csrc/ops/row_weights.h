// Sample weights of an operation: checked, cast, and summed by row block.
#pragma once

#include <cmath>
#include <vector>

#include "ops/arguments.h"
#include "ops/region.h"

namespace thalweg::ops {

// Without weights every row counts one and `values` stays empty, so that data() is null.
template <class T>
struct RowWeights {
  RowWeights(std::string_view op, const ArrayView& weights, std::int64_t rows) {
    blocks.resize(static_cast<std::size_t>(row_blocks_of(rows)));
    if (weights.present()) {
      expect_vector(op, "weights", weights, "the number of rows", rows);
      values = load_vector<T>(weights);
    }
    for (std::int64_t block = 0; block < row_blocks_of(rows); ++block) {
      const Range range = row_block(block, rows);
      double& sum = blocks[static_cast<std::size_t>(block)];
      for (std::int64_t r = range.begin; r < range.end; ++r) sum += checked_weight(op, r);
      total += sum;
    }
    expect<ValueError>(rows == 0 || total > 0.0, "[", op,
                       "] expected weights with a positive sum, got ", total);
  }

  const T* data() const { return values.data(); }

  Arena<T> values;
  std::vector<double> blocks;
  double total = 0.0;

 private:
  double checked_weight(std::string_view op, std::int64_t row) const {
    if (values.size() == 0) return 1.0;
    const double weight = values[row];
    expect<ValueError>(std::isfinite(weight) && weight >= 0.0, "[", op,
                       "] expected finite weights >= 0, got ", weight, " in row ", row);
    return weight;
  }
};

}  // namespace thalweg::ops
