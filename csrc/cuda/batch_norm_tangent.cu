// Sums over rows: a block of kSumThreads adds up one row block of kSumColumns columns, thread group
// g its rows g, g + kRowGroups, ... in T, the groups in order in double; another launch adds the
// row blocks in order. xhat and its tangent are computed again from z where they are needed.
#include "cuda/batch_norm_tangent.h"
#include "cuda/device_matrix.h"
#include "cuda/quad_loop.h"
#include "math/batch_norm.h"

namespace thalweg::cuda {
namespace {

constexpr const char* kOperation = "batch_norm_tangent";
constexpr const char* kBackwardOperation = "batch_norm_backward_tangent";

constexpr int kSumThreads = 256;
constexpr int kRowGroups = 8;
constexpr int kLanes = kSumThreads / kRowGroups;  // quads of columns
constexpr int kSumColumns = kLanes * kQuad;
constexpr int kMergeThreads = 128;

// ---- Kernels ------------------------------------------------------------------------------------

// xhat and its tangent in a quad of a row.
template <class T>
struct NormalizedQuad {
  Quad<T> value, tangent;

  TW_DEVICE NormalizedQuad(const BatchNormPoint<T>& point, std::int64_t row, std::int64_t column) {
    const Quad<T> z = load_quad(point.z, row, column);
    const Quad<T> q = load_quad(point.z_tangent, row, column);
    const Quad<T> mean = load_quad(point.mean + column);
    const Quad<T> inv_std = load_quad(point.inv_std + column);
    Quad<T> mean_q{};
    Quad<T> mean_q_xhat{};
    if (!point.frozen) {
      mean_q = load_quad<T>(point.mean_tangent + column);
      mean_q_xhat = load_quad<T>(point.std_tangent + column);
    }
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      value[j] = normalize(z[j], mean[j], inv_std[j]);
      tangent[j] = normalize_tangent(q[j], value[j], mean_q[j], mean_q_xhat[j], inv_std[j]);
    }
  }
};

// What is summed over the rows: two terms per element.
template <class T>
struct InputTerms {
  BatchNormPoint<T> point;
  const T* weights;

  TW_DEVICE void add(std::int64_t row, std::int64_t column, Quad<T>& a, Quad<T>& b) const {
    const Quad<T> z = load_quad(point.z, row, column);
    const Quad<T> q = load_quad(point.z_tangent, row, column);
    const Quad<T> mean = load_quad(point.mean + column);
    const Quad<T> inv_std = load_quad(point.inv_std + column);
    const T weight = weights != nullptr ? weights[row] : T(1);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T weighted = weight * q[j];
      a[j] += weighted;
      b[j] = madd(weighted, normalize(z[j], mean[j], inv_std[j]), b[j]);
    }
  }
};

template <class T>
struct GradientTerms {
  BatchNormPoint<T> point;
  Matrix<const T> g;
  Matrix<const T> g_tangent;

  TW_DEVICE void add(std::int64_t row, std::int64_t column, Quad<T>& a, Quad<T>& b) const {
    const NormalizedQuad<T> x(point, row, column);
    const Quad<T> gradient = load_quad(g, row, column);
    const Quad<T> tangent = load_quad(g_tangent, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      a[j] += tangent[j];
      b[j] = madd(tangent[j], x.value[j], madd(gradient[j], x.tangent[j], b[j]));
    }
  }
};

// Sums of row block b and column c to partials[b * pitch + c] of each half.
template <class T, class Terms>
TW_KERNEL_BOUNDS(kSumThreads, 2)
void tangent_sums_kernel(const Terms terms, const std::int64_t rows, const std::int64_t pitch,
                         const int column_tiles, double* partials) {
  TW_SHARED(T[2 * kRowGroups * kSumColumns], sums);
  const std::int64_t block = block_index().x / column_tiles;
  const std::int64_t first_column = std::int64_t{block_index().x % column_tiles} * kSumColumns;
  const int lane = thread_index().x % kLanes;
  const int group = thread_index().x / kLanes;
  const std::int64_t column = first_column + lane * kQuad;
  const std::int64_t end = (block + 1) * kRowBlock < rows ? (block + 1) * kRowBlock : rows;
  Quad<T> a{};
  Quad<T> b{};
  if (column < pitch) {
    for (std::int64_t row = block * kRowBlock + group; row < end; row += kRowGroups)
      terms.add(row, column, a, b);
  }
  T* const to = sums + group * kSumColumns + lane * kQuad;
  store_quad(to, a);
  store_quad(to + kRowGroups * kSumColumns, b);
  sync_block();
  const int half = thread_index().x / kSumColumns;
  const int c = thread_index().x % kSumColumns;
  if (first_column + c >= pitch) return;
  double total = 0.0;
  for (int i = 0; i < kRowGroups; ++i)
    total += static_cast<double>(sums[(half * kRowGroups + i) * kSumColumns + c]);
  partials[(half * row_blocks_of(rows) + block) * pitch + first_column + c] = total;
}

// What becomes of the two sums of a column; null: not wanted.
template <class T>
struct MergedSums {
  T* first = nullptr;
  T* second = nullptr;
  T* first_mean = nullptr;
  T* second_mean = nullptr;
};

template <class T>
TW_KERNEL_BOUNDS(kMergeThreads, 1)
void merge_tangent_sums_kernel(const double* partials, const std::int64_t rows,
                               const std::int64_t width, const std::int64_t pitch,
                               const double* total_weight, const MergedSums<T> to) {
  const std::int64_t column = global_thread_index();
  if (column >= pitch) return;
  const std::int64_t blocks = row_blocks_of(rows);
  double a = 0.0;
  double b = 0.0;
  for (std::int64_t block = 0; block < blocks && column < width; ++block) {
    a += partials[block * pitch + column];
    b += partials[(blocks + block) * pitch + column];
  }
  const double total = total_weight != nullptr ? *total_weight : static_cast<double>(rows);
  if (to.first != nullptr) to.first[column] = static_cast<T>(a);
  if (to.second != nullptr) to.second[column] = static_cast<T>(b);
  if (to.first_mean != nullptr) to.first_mean[column] = static_cast<T>(a / total);
  if (to.second_mean != nullptr) to.second_mean[column] = static_cast<T>(b / total);
}

template <class T>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void batch_norm_tangent_kernel(const BatchNormTangent<T> problem) {
  for_quads(problem.y_tangent, [&](std::int64_t row, std::int64_t column) {
    const NormalizedQuad<T> x(problem.point, row, column);
    const Quad<T> gamma = load_quad(problem.gamma + column);
    const Quad<T> gamma_tangent = load_quad(problem.gamma_tangent + column);
    const Quad<T> beta_tangent = load_quad(problem.beta_tangent + column);
    Quad<T> out;
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j)
      out[j] = scale_shift_tangent(x.value[j], x.tangent[j], gamma[j], gamma_tangent[j],
                                   beta_tangent[j]);
    store_quad(problem.y_tangent, row, column, out);
  });
}

template <class T>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void batch_norm_backward_tangent_kernel(const BatchNormBackwardTangent<T> problem) {
  const BatchNormPoint<T>& point = problem.point;
  const bool weighted = problem.weights.weights != nullptr;
  const double total = weighted ? *problem.weights.total : static_cast<double>(point.z.rows);
  const T share = static_cast<T>(1.0 / total);
  for_quads(problem.dz_tangent, [&](std::int64_t row, std::int64_t column) {
    const NormalizedQuad<T> x(point, row, column);
    const Quad<T> g = load_quad(problem.g, row, column);
    const Quad<T> g_tangent = load_quad(problem.g_tangent, row, column);
    const Quad<T> inv_std = load_quad(point.inv_std + column);
    const Quad<T> gamma = load_quad(problem.gamma + column);
    const Quad<T> gamma_tangent = load_quad(problem.gamma_tangent + column);
    // Sums that nothing flows through are left out.
    Quad<T> std_tangent{};
    Quad<T> sum_g{};
    Quad<T> sum_g_xhat{};
    Quad<T> sum_g_tangent{};
    Quad<T> sum_g_xhat_tangent{};
    if (!point.frozen) {
      std_tangent = load_quad<T>(point.std_tangent + column);
      sum_g = load_quad(problem.dbeta + column);
      sum_g_xhat = load_quad(problem.dgamma + column);
      sum_g_tangent = load_quad<T>(problem.dbeta_tangent + column);
      sum_g_xhat_tangent = load_quad<T>(problem.dgamma_tangent + column);
    }
    Quad<T> out{};
    if (problem.accumulate) out = load_quad(problem.dz_tangent, row, column);
    const T weight = weighted ? problem.weights.weights[row] : T(1);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T tangent = normalize_backward_tangent(
          g[j], g_tangent[j], x.value[j], x.tangent[j], weight, sum_g[j] * share,
          sum_g_xhat[j] * share, sum_g_tangent[j] * share, sum_g_xhat_tangent[j] * share,
          gamma[j] * inv_std[j],
          scale_tangent(gamma[j], gamma_tangent[j], inv_std[j], std_tangent[j]));
      out[j] = problem.accumulate ? out[j] + tangent : tangent;
    }
    store_quad(problem.dz_tangent, row, column, out);
  });
}

// ---- Launchers ----------------------------------------------------------------------------------

template <class T, class Terms>
void sum_rows(const char* operation, const Terms& terms, const Matrix<const T>& z,
              const RowWeights<T>& weights, double* partials, const MergedSums<T>& to,
              cudaStream_t stream) {
  const auto tiles = static_cast<int>(ceil_div(z.pitch, kSumColumns));
  launch(tangent_sums_kernel<T, Terms>,
         {.operation = operation,
          .grid = static_cast<unsigned>(row_blocks_of(z.rows) * tiles),
          .block = kSumThreads,
          .stream = stream},
         terms, z.rows, z.pitch, tiles, partials);
  launch(merge_tangent_sums_kernel<T>,
         {.operation = operation,
          .grid = static_cast<unsigned>(ceil_div(z.pitch, kMergeThreads)),
          .block = kMergeThreads,
          .stream = stream},
         partials, z.rows, z.width, z.pitch, weights.weights != nullptr ? weights.total : nullptr,
         to);
}

}  // namespace

std::size_t batch_norm_tangent_scratch_bytes(std::int64_t rows, std::int64_t width) {
  return 2 * sizeof(double) * static_cast<std::size_t>(row_blocks_of(rows) * pitch_of(width));
}

template <class T>
void batch_norm_tangent(const BatchNormTangent<T>& problem, double* partials, cudaStream_t stream) {
  const BatchNormPoint<T>& point = problem.point;
  if (!point.frozen) {
    MergedSums<T> to;
    to.first_mean = point.mean_tangent;
    to.second_mean = point.std_tangent;
    sum_rows<T>(kOperation, InputTerms<T>{point, problem.weights.weights}, point.z, problem.weights,
                partials, to, stream);
  }
  launch(batch_norm_tangent_kernel<T>, elementwise(kOperation, problem.y_tangent.size(), stream),
         problem);
}

template <class T>
void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>& problem, double* partials,
                                 cudaStream_t stream) {
  MergedSums<T> to;
  to.first = problem.dbeta_tangent;
  to.second = problem.dgamma_tangent;
  sum_rows<T>(kBackwardOperation, GradientTerms<T>{problem.point, problem.g, problem.g_tangent},
              problem.point.z, problem.weights, partials, to, stream);
  if (!problem.dz_tangent.present()) return;
  launch(batch_norm_backward_tangent_kernel<T>,
         elementwise(kBackwardOperation, problem.dz_tangent.size(), stream), problem);
}

#define TW_INSTANTIATE(T)                                                                \
  template void batch_norm_tangent(const BatchNormTangent<T>&, double*, cudaStream_t);   \
  template void batch_norm_backward_tangent(const BatchNormBackwardTangent<T>&, double*, \
                                            cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
