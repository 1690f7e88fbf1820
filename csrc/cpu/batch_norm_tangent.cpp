// Tangents of batch norm's forward and backward pass: sums by row blocks, and the passes that apply
// them. xhat and its tangent are recomputed from z, which costs less than reading them back.
#include <type_traits>

#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/batch_norm.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// xhat and its tangent in panel p, rows from `row` on.
template <class T>
struct Normalized {
  const T* z;
  const T* q;
  const T* mean;
  const T* inv_std;
  const T* mean_q;
  const T* mean_q_xhat;

  Normalized(const BatchNormPoint<T>& point, std::int64_t p, std::int64_t row)
      : z(point.z.row(p, row)),
        q(point.z_tangent.row(p, row)),
        mean(point.mean + p * kPanel),
        inv_std(point.inv_std + p * kPanel),
        mean_q(point.mean_tangent ? point.mean_tangent + p * kPanel : nullptr),
        mean_q_xhat(point.mean_tangent ? point.std_tangent + p * kPanel : nullptr) {}

  TW_INLINE T value(std::int64_t r, std::int64_t j) const {
    return normalize(z[r * kPanel + j], mean[j], inv_std[j]);
  }
  template <bool kFrozen>
  TW_INLINE T tangent(std::int64_t r, std::int64_t j, T xhat) const {
    const T zero = T(0);
    return normalize_tangent(q[r * kPanel + j], xhat, kFrozen ? zero : mean_q[j],
                             kFrozen ? zero : mean_q_xhat[j], inv_std[j]);
  }
};

// term(r, j, a, b) adds row r of column j to the two sums of that column.
template <class T, class Term>
TW_INLINE void sum_block(std::int64_t rows, std::int64_t lanes, BlockSums& sums, Term&& term) {
  T a[kPanel] = {};
  T b[kPanel] = {};
  for (std::int64_t r = 0; r < rows; ++r) {
    TW_INDEPENDENT
    for (std::int64_t j = 0; j < kPanel; ++j) term(r, j, a[j], b[j]);
  }
  for (std::int64_t j = 0; j < kPanel; ++j) {
    sums.g[j] = j < lanes ? static_cast<double>(a[j]) : 0.0;
    sums.g_xhat[j] = j < lanes ? static_cast<double>(b[j]) : 0.0;
  }
}

template <bool kFrozen, class T>
void sum_gradient_tangents(const BatchNormBackwardTangent<T>& problem, BlockSums* sums,
                           Range blocks, Range panels) {
  for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = row_block(block, problem.g.rows);
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      const Normalized<T> x(problem.point, p, rows.begin);
      const T* const g = problem.g.row(p, rows.begin);
      const T* const g_tangent = problem.g_tangent.row(p, rows.begin);
      sum_block<T>(rows.size(), problem.g.lanes(p), sums[block * problem.g.panels() + p],
                   [=](std::int64_t r, std::int64_t j, T& a, T& b) TW_ALWAYS_INLINE {
                     const std::int64_t i = r * kPanel + j;
                     const T xhat = x.value(r, j);
                     a += g_tangent[i];
                     b = madd(g_tangent[i], xhat,
                              madd(g[i], x.template tangent<kFrozen>(r, j, xhat), b));
                   });
    }
  }
}

}  // namespace

template <class T>
void batch_norm_tangent_sums(const BatchNormPoint<T>& point, const T* row_weights, BlockSums* sums,
                             Range blocks, Range panels) {
  for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
    const Range rows = row_block(block, point.z.rows);
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      const Normalized<T> x(point, p, rows.begin);
      BlockSums& out = sums[block * point.z.panels() + p];
      const auto sum = [&](auto&& weight) {
        sum_block<T>(rows.size(), point.z.lanes(p), out,
                     [=](std::int64_t r, std::int64_t j, T& a, T& b) TW_ALWAYS_INLINE {
                       const T weighted = weight(r) * x.q[r * kPanel + j];
                       a += weighted;
                       b = madd(weighted, x.value(r, j), b);
                     });
      };
      if (row_weights) {
        const T* const weights = row_weights + rows.begin;
        sum([=](std::int64_t r) TW_ALWAYS_INLINE { return weights[r]; });
      } else {
        sum([](std::int64_t) TW_ALWAYS_INLINE { return T(1); });
      }
    }
  }
}

template <class T>
void batch_norm_tangent(const BatchNormTangent<T>& problem, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const Normalized<T> x(problem.point, p, rows.begin);
    const T* const gamma = problem.gamma + p * kPanel;
    const T* const gamma_tangent = problem.gamma_tangent + p * kPanel;
    const T* const beta_tangent = problem.beta_tangent + p * kPanel;
    T* const y = problem.y_tangent.row(p, rows.begin);
    const auto apply = [&](auto frozen) {
      transform_columns(y, rows.size(), problem.y_tangent.lanes(p),
                        [=](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE {
                          const T xhat = x.value(r, j);
                          return scale_shift_tangent(
                              xhat, x.template tangent<decltype(frozen)::value>(r, j, xhat),
                              gamma[j], gamma_tangent[j], beta_tangent[j]);
                        });
    };
    if (x.mean_q) {
      apply(std::false_type{});
    } else {
      apply(std::true_type{});
    }
  }
}

template <class T>
void batch_norm_backward_tangent_sums(const BatchNormBackwardTangent<T>& problem, BlockSums* sums,
                                      Range blocks, Range panels) {
  if (problem.point.mean_tangent) {
    sum_gradient_tangents<false>(problem, sums, blocks, panels);
  } else {
    sum_gradient_tangents<true>(problem, sums, blocks, panels);
  }
}

template <class T>
void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>& problem, Range rows,
                                 Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const Normalized<T> x(problem.point, p, rows.begin);
    const T* const g = problem.g.row(p, rows.begin);
    const T* const g_tangent = problem.g_tangent.row(p, rows.begin);
    T* const out = problem.dz_tangent.row(p, rows.begin);
    const std::int64_t lanes = problem.dz_tangent.lanes(p);
    T scale[kPanel];
    T slope[kPanel];
    for (std::int64_t j = 0; j < kPanel; ++j) {
      const T gamma = problem.gamma[p * kPanel + j];
      scale[j] = gamma * x.inv_std[j];
      slope[j] = scale_tangent(gamma, problem.gamma_tangent[p * kPanel + j], x.inv_std[j],
                               x.mean_q ? x.mean_q_xhat[j] : T(0));
    }
    const auto pass = [&](auto&& value) {
      if (problem.accumulate) {
        transform_columns(out, rows.size(), lanes,
                          [=](std::int64_t r, std::int64_t j)
                              TW_ALWAYS_INLINE { return out[r * kPanel + j] + value(r, j); });
      } else {
        transform_columns(out, rows.size(), lanes, value);
      }
    };
    if (!x.mean_q) {
      pass([=](std::int64_t r, std::int64_t j) TW_ALWAYS_INLINE {
        const std::int64_t i = r * kPanel + j;
        return madd(slope[j], g[i], scale[j] * g_tangent[i]);
      });
      continue;
    }
    const T* const mean_g = problem.mean_g + p * kPanel;
    const T* const mean_g_xhat = problem.mean_g_xhat + p * kPanel;
    const T* const mean_g_tangent = problem.mean_g_tangent + p * kPanel;
    const T* const mean_g_xhat_tangent = problem.mean_g_xhat_tangent + p * kPanel;
    const auto backward = [=](std::int64_t r, std::int64_t j, T weight) TW_ALWAYS_INLINE {
      const std::int64_t i = r * kPanel + j;
      const T xhat = x.value(r, j);
      return normalize_backward_tangent(
          g[i], g_tangent[i], xhat, x.template tangent<false>(r, j, xhat), weight, mean_g[j],
          mean_g_xhat[j], mean_g_tangent[j], mean_g_xhat_tangent[j], scale[j], slope[j]);
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

#define TW_INSTANTIATE(T)                                                                        \
  template void batch_norm_tangent_sums(const BatchNormPoint<T>&, const T*, BlockSums*, Range,   \
                                        Range);                                                  \
  template void batch_norm_tangent(const BatchNormTangent<T>&, Range, Range);                    \
  template void batch_norm_backward_tangent_sums(const BatchNormBackwardTangent<T>&, BlockSums*, \
                                                 Range, Range);                                  \
  template void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>&, Range, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
