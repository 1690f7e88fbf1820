// Batch normalization: column statistics by row blocks, their merge, and the passes that apply
// them.
//
// Within a block the statistics are taken in two passes, the second around the mean of the first
// (corrected two-pass algorithm; Chan, Golub, LeVeque 1983): nothing cancels when the mean is
// large.
#include "math/batch_norm.h"

#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/activations.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Sums over the rows of a block, per column: s1 of w (z - shift), s2 of w (z - shift)^2.
template <class T>
void shifted_sums(const T* z, const T* row_weights, std::int64_t rows, const T* shift, T* s1,
                  T* s2) {
  for (std::int64_t column = 0; column < kPanel; column += Vec<T>::kLanes) {
    const Vec<T> around = Vec<T>::load(shift + column);
    Vec<T> sums[2];
    const auto deviation = [&](std::int64_t r) TW_ALWAYS_INLINE {
      return Vec<T>::load(z + r * kPanel + column) - around;
    };
    if (row_weights) {
      sum_rows(
          rows,
          [&](std::int64_t r, Vec<T>(&sum)[2]) TW_ALWAYS_INLINE {
            const Vec<T> d = deviation(r);
            const Vec<T> weighted = d * Vec<T>::set1(row_weights[r]);
            sum[0] = sum[0] + weighted;
            sum[1] = madd(weighted, d, sum[1]);
          },
          sums);
    } else {
      sum_rows(
          rows,
          [&](std::int64_t r, Vec<T>(&sum)[2]) TW_ALWAYS_INLINE {
            const Vec<T> d = deviation(r);
            sum[0] = sum[0] + d;
            sum[1] = madd(d, d, sum[1]);
          },
          sums);
    }
    sums[0].store(s1 + column);
    sums[1].store(s2 + column);
  }
}

}  // namespace

template <class T>
void block_statistics(const T* z, const T* row_weights, std::int64_t rows, std::int64_t lanes,
                      BlockStatistics& statistics) {
  double weight = static_cast<double>(rows);
  if (row_weights) {
    weight = 0.0;
    for (std::int64_t r = 0; r < rows; ++r) weight += static_cast<double>(row_weights[r]);
  }
  T shift[kPanel];
  T s1[kPanel];
  T s2[kPanel];
  for (std::int64_t j = 0; j < kPanel; ++j) shift[j] = z[j];
  shifted_sums(z, row_weights, rows, shift, s1, s2);
  for (std::int64_t j = 0; j < kPanel; ++j) {
    shift[j] = static_cast<T>(shifted_moments(weight, 0.0, shift[j], s1[j], s2[j]).mean);
  }
  shifted_sums(z, row_weights, rows, shift, s1, s2);
  for (std::int64_t j = 0; j < kPanel; ++j) {
    const Moments moments = shifted_moments(weight, 0.0, shift[j], s1[j], s2[j]);
    statistics.mean[j] = j < lanes ? moments.mean : 0.0;
    statistics.m2[j] = j < lanes ? moments.m2 : 0.0;
  }
}

template <class T>
void column_statistics(Panels<const T> z, const T* row_weights, BlockStatistics* statistics,
                       Range blocks, Range panels) {
  for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = row_block(block, z.rows);
    const T* const weights = row_weights ? row_weights + rows.begin : nullptr;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      block_statistics(z.row(p, rows.begin), weights, rows.size(), z.lanes(p),
                       statistics[block * z.panels() + p]);
    }
  }
}

template <class T>
void merge_statistics(const BlockStatistics* statistics, const double* block_weights,
                      std::int64_t blocks, std::int64_t panels, std::int64_t panel, double* mean,
                      double* m2) {
  for (std::int64_t j = 0; j < kPanel; ++j) mean[j] = m2[j] = 0.0;
  double total = 0.0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const double weight = block_weights[block];
    if (weight == 0.0) continue;
    const BlockStatistics& part = statistics[block * panels + panel];
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < kPanel; ++j) {
      const Moments merged =
          merge_moments({total, 0.0, mean[j], m2[j]}, {weight, 0.0, part.mean[j], part.m2[j]});
      mean[j] = merged.mean;
      m2[j] = merged.m2;
    }
    total += weight;
  }
}

template <class T>
void batch_norm(const BatchNormApply<T>& problem, Range rows, Range panels) {
  for (std::int64_t begin = rows.begin; begin < rows.end; begin += kRowBlock) {
    const std::int64_t count = rows.end - begin < kRowBlock ? rows.end - begin : kRowBlock;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      const T* const z = problem.z.row(p, begin);
      T* const y = problem.y.row(p, begin);
      const std::int64_t lanes = problem.y.lanes(p);
      const T* const mean = problem.mean + p * kPanel;
      const T* const inv_std = problem.inv_std + p * kPanel;
      const T* const gamma = problem.gamma + p * kPanel;
      const T* const beta = problem.beta + p * kPanel;
      const auto normalized = [=](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE {
        return scale_shift(normalize(z[r * kPanel + j], mean[j], inv_std[j]), gamma[j], beta[j]);
      };
      T* const out = problem.pre ? problem.pre + (y - problem.y.data) : y;
      if (!problem.pre && problem.activation.id == kActivationRelu) {
        transform_columns(y, count, lanes, [=](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE {
          return Relu::value(normalized(r, j), T(0));
        });
        continue;
      }
      transform_columns(out, count, lanes, normalized);
      if (out != y || problem.activation.id != kActivationIdentity) {
        activate_block<T>(problem.activation, out, y, count, lanes);
      }
    }
  }
}

template <class T>
void batch_norm_backward_sums(const BatchNormBackwardSums<T>& problem, Range blocks, Range panels) {
  constexpr int kLanes = Vec<T>::kLanes;
  for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = row_block(block, problem.z.rows);
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      T* const g = problem.dy.row(p, rows.begin);
      const std::int64_t lanes = problem.dy.lanes(p);
      if (problem.activation.id != kActivationIdentity) {
        const T* const at = problem.derivative_at + (g - problem.dy.data);
        differentiate_block<T>(problem.activation, g, at, g, false, rows.size(), lanes);
      }
      const T* const z = problem.z.row(p, rows.begin);
      BlockSums& sums = problem.sums[block * problem.dy.panels() + p];
      T s1[kPanel];
      T s2[kPanel];
      for (std::int64_t column = 0; column < kPanel; column += kLanes) {
        const Vec<T> mean = Vec<T>::load(problem.mean + p * kPanel + column);
        const Vec<T> inv_std = Vec<T>::load(problem.inv_std + p * kPanel + column);
        Vec<T> total[2];
        sum_rows(
            rows.size(),
            [&](std::int64_t r, Vec<T>(&sum)[2]) TW_ALWAYS_INLINE {
              const Vec<T> gradient = Vec<T>::load(g + r * kPanel + column);
              const Vec<T> xhat = (Vec<T>::load(z + r * kPanel + column) - mean) * inv_std;
              sum[0] = sum[0] + gradient;
              sum[1] = madd(gradient, xhat, sum[1]);
            },
            total);
        total[0].store(s1 + column);
        total[1].store(s2 + column);
      }
      for (std::int64_t j = 0; j < kPanel; ++j) {
        sums.g[j] = j < lanes ? static_cast<double>(s1[j]) : 0.0;
        sums.g_xhat[j] = j < lanes ? static_cast<double>(s2[j]) : 0.0;
      }
    }
  }
}

template <class T>
void batch_norm_backward(const BatchNormBackwardApply<T>& problem, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const T* const z = problem.z.row(p, rows.begin);
    const T* const g = problem.g.row(p, rows.begin);
    T* const dz = problem.dz.row(p, rows.begin);
    const std::int64_t lanes = problem.dz.lanes(p);
    const T* const mean = problem.mean + p * kPanel;
    const T* const inv_std = problem.inv_std + p * kPanel;
    const T* const gamma = problem.gamma + p * kPanel;
    const auto pass = [&](auto&& value) {
      if (problem.accumulate) {
        transform_columns(dz, rows.size(), lanes,
                          [=](std::int64_t r, std::int64_t j)
                              TW_ALWAYS_INLINE { return dz[r * kPanel + j] + value(r, j); });
      } else {
        transform_columns(dz, rows.size(), lanes, value);
      }
    };
    if (!problem.mean_g) {
      pass([=](std::int64_t r, std::int64_t j)
               TW_ALWAYS_INLINE { return gamma[j] * inv_std[j] * g[r * kPanel + j]; });
      continue;
    }
    const T* const mean_g = problem.mean_g + p * kPanel;
    const T* const mean_g_xhat = problem.mean_g_xhat + p * kPanel;
    const auto backward = [=](std::int64_t r, std::int64_t j, T weight) TW_ALWAYS_INLINE {
      return normalize_backward(g[r * kPanel + j],
                                normalize(z[r * kPanel + j], mean[j], inv_std[j]), weight,
                                mean_g[j], mean_g_xhat[j], gamma[j], inv_std[j]);
    };
    if (problem.row_weights) {
      const T* const weights = problem.row_weights + rows.begin;
      pass([=](std::int64_t r, std::int64_t j)
               TW_ALWAYS_INLINE { return backward(r, j, weights[r]); });
    } else {
      pass([=](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE { return backward(r, j, T(1)); });
    }
  }
}

#define TW_INSTANTIATE(T)                                                                     \
  template void block_statistics(const T*, const T*, std::int64_t, std::int64_t,              \
                                 BlockStatistics&);                                           \
  template void column_statistics(Panels<const T>, const T*, BlockStatistics*, Range, Range); \
  template void merge_statistics<T>(const BlockStatistics*, const double*, std::int64_t,      \
                                    std::int64_t, std::int64_t, double*, double*);            \
  template void batch_norm(const BatchNormApply<T>&, Range, Range);                           \
  template void batch_norm_backward_sums(const BatchNormBackwardSums<T>&, Range, Range);      \
  template void batch_norm_backward(const BatchNormBackwardApply<T>&, Range, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
