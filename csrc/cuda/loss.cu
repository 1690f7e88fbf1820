#include <algorithm>

#include "cuda/block_reduction.h"
#include "cuda/device_matrix.h"
#include "cuda/launch_shape.h"
#include "cuda/loss.h"
#include "cuda/quad_loop.h"
#include "math/loss/cross_entropy.h"
#include "math/losses.h"

namespace thalweg::cuda {
namespace {

constexpr const char* kCrossEntropyOperation = "softmax_cross_entropy";
constexpr const char* kElementwiseOperation = "elementwise_loss";
constexpr const char* kSoftmaxOperation = "softmax";

constexpr int kThreads = 256;
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 4 : 2;
// Softmax gives kLanes neighbouring lanes of a warp a row, 2, 8 or 32 of them; at most this many
// rows a block, then: the loss of a row, in double, is the work of one thread.
constexpr int kMostRows = 128;
// Sums of exponentials are taken in T over this many quads, beyond that in double.
constexpr int kQuadsPerPart = 8;
// Elementwise losses are summed by tiles of whole rows.
constexpr std::int64_t kTileQuads = 1024;
constexpr std::int64_t kMostTileRows = 256;

// ---- Kernels ------------------------------------------------------------------------------------

template <class T>
TW_DEVICE double weight_of(const Loss<T>& problem, std::int64_t row) {
  return problem.row_weights != nullptr ? static_cast<double>(problem.row_weights[row]) : 1.0;
}

template <class T>
TW_DEVICE double scale_of(const Loss<T>& problem) {
  return problem.gradient_scale_at != nullptr ? *problem.gradient_scale_at : problem.gradient_scale;
}

// f(column, values) for the quads of a row that this lane takes, kQuadsPerPart at a time: after
// each part `flush()`. All lanes make as many calls of `flush`.
template <int kLanes, class T, class F, class Flush>
TW_DEVICE void for_row_parts(const Matrix<const T>& matrix, std::int64_t row, int lane, F&& f,
                             Flush&& flush) {
  const std::int64_t quads = quads_of(matrix);
  for (std::int64_t part = 0; part < quads; part += kQuadsPerPart * kLanes) {
    TW_UNROLL
    for (int u = 0; u < kQuadsPerPart; ++u) {
      const std::int64_t quad = part + u * kLanes + lane;
      if (quad < quads) f(quad * kQuad, load_quad(matrix, row, quad * kQuad));
    }
    flush();
  }
}

template <int kLanes, class T, class F>
TW_DEVICE void for_row(const Matrix<const T>& matrix, std::int64_t row, int lane, F&& f) {
  const std::int64_t quads = quads_of(matrix);
  for (std::int64_t quad = lane; quad < quads; quad += kLanes) {
    f(quad * kQuad, load_quad(matrix, row, quad * kQuad));
  }
}

template <int kLanes>
TW_DEVICE double sum_lanes(double value) {
  TW_UNROLL
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value += shuffle_xor(value, distance);
  }
  return value;
}

// The first maximum of a row, or its first NaN.
template <class T>
struct Maximum {
  T value;
  int column;
};

template <class T>
TW_DEVICE bool precedes(const Maximum<T>& a, const Maximum<T>& b) {
  const bool a_nan = a.value != a.value;
  const bool b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.column < b.column;
}

template <int kLanes, class T>
TW_DEVICE Maximum<T> row_maximum_of(const Matrix<const T>& z, std::int64_t row, int lane) {
  constexpr int kNoColumn = 0x7fffffff;
  Maximum<T> best{-FloatFormat<T>::infinity, kNoColumn};
  for_row<kLanes>(z, row, lane, [&](std::int64_t column, const Quad<T>& values) {
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const Maximum<T> other{values[j], static_cast<int>(column) + j};
      if (other.column < z.width && precedes(other, best)) best = other;
    }
  });
  TW_UNROLL
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const Maximum<T> other{shuffle_xor(best.value, distance), shuffle_xor(best.column, distance)};
    if (precedes(other, best)) best = other;
  }
  return best;
}

// Sums over a row of exp(z_j - maximum) but for the label, and of z_j - maximum.
template <class T>
struct RowSums {
  double others;
  double shifted;
};

template <int kLanes, class T>
TW_DEVICE RowSums<T> row_sums_of(const Matrix<const T>& z, std::int64_t row, int lane, T maximum,
                                 std::int64_t label) {
  RowSums<T> sums{0.0, 0.0};
  T others = T(0);
  T shifted = T(0);
  for_row_parts<kLanes>(
      z, row, lane,
      [&](std::int64_t column, const Quad<T>& values) {
        TW_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          const T e = cross_entropy::shifted_exponential(values[j], maximum);
          const bool counts = column + j < z.width;
          others += counts && column + j != label ? e : T(0);
          shifted += counts ? values[j] - maximum : T(0);
        }
      },
      [&] {
        sums.others += static_cast<double>(others);
        sums.shifted += static_cast<double>(shifted);
        others = shifted = T(0);
      });
  return {sum_lanes<kLanes>(sums.others), sum_lanes<kLanes>(sums.shifted)};
}

// What a row leaves behind for its loss.
struct RowResult {
  double others;
  double shifted;
  double label_exponential;
  double label_shifted;
  int hit;
};

template <class T, int kLanes>
TW_DEVICE RowResult label_row(const Loss<T>& problem, std::int64_t row, int lane, double scale) {
  const Matrix<const T>& z = problem.outputs;
  const std::int64_t label = problem.labels[row];
  const Maximum<T> maximum = row_maximum_of<kLanes>(z, row, lane);
  const T at_label = z.data[row * z.pitch + label];
  const T exponential = cross_entropy::shifted_exponential(at_label, maximum.value);
  const RowSums<T> sums = row_sums_of<kLanes>(z, row, lane, maximum.value, label);
  if (problem.gradient.present()) {
    const double smoothing = problem.label_smoothing;
    const auto classes = static_cast<double>(z.width);
    const T label_target = static_cast<T>(cross_entropy::smoothed_target(true, smoothing, classes));
    const T other_target =
        static_cast<T>(cross_entropy::smoothed_target(false, smoothing, classes));
    const T factor = static_cast<T>(scale * weight_of(problem, row));
    const T inverse = static_cast<T>(1.0 / (sums.others + static_cast<double>(exponential)));
    const T label_gradient =
        smoothing == 0.0
            ? cross_entropy::label_gradient_at_label(static_cast<T>(sums.others), inverse)
            : cross_entropy::label_gradient(exponential, inverse, label_target);
    for_row<kLanes>(z, row, lane, [&](std::int64_t column, const Quad<T>& values) {
      Quad<T> gradient;
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const T e = cross_entropy::shifted_exponential(values[j], maximum.value);
        gradient[j] = factor * (column + j == label
                                    ? label_gradient
                                    : cross_entropy::label_gradient(e, inverse, other_target));
      }
      store_quad(problem.gradient, row, column, gradient);
    });
  }
  return {sums.others, sums.shifted, static_cast<double>(exponential),
          static_cast<double>(at_label - maximum.value), maximum.column == label ? 1 : 0};
}

template <class T>
TW_DEVICE double label_loss_of(const Loss<T>& problem, const RowResult& row) {
  const double loss =
      cross_entropy::label_loss(row.others, row.label_exponential, row.label_shifted);
  if (problem.label_smoothing == 0.0) return loss;
  return cross_entropy::label_loss_smoothed(loss, problem.label_smoothing,
                                            log(row.others + row.label_exponential), row.shifted,
                                            static_cast<double>(problem.outputs.width));
}

// Against a row of target probabilities: the loss stands in `others`.
template <class T, int kLanes>
TW_DEVICE RowResult probability_row(const Loss<T>& problem, std::int64_t row, int lane,
                                    double scale) {
  const Matrix<const T>& z = problem.outputs;
  const T keep = static_cast<T>(1.0 - problem.label_smoothing);
  const T uniform = static_cast<T>(problem.label_smoothing / static_cast<double>(z.width));
  const Maximum<T> maximum = row_maximum_of<kLanes>(z, row, lane);
  const Maximum<T> target_maximum = row_maximum_of<kLanes>(problem.targets, row, lane);
  const RowSums<T> sums = row_sums_of<kLanes>(z, row, lane, maximum.value, -1);
  const T log_sum = static_cast<T>(log(sums.others));
  double loss = 0.0;
  double target_sum = 0.0;
  T loss_part = T(0);
  T target_part = T(0);
  for_row_parts<kLanes>(
      z, row, lane,
      [&](std::int64_t column, const Quad<T>& values) {
        const Quad<T> targets = load_quad(problem.targets, row, column);
        TW_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          const T target = madd(keep, targets[j], uniform);
          const bool counts = column + j < z.width;
          loss_part +=
              counts ? cross_entropy::probability_term(target, log_sum, values[j] - maximum.value)
                     : T(0);
          target_part += counts ? target : T(0);
        }
      },
      [&] {
        loss += static_cast<double>(loss_part);
        target_sum += static_cast<double>(target_part);
        loss_part = target_part = T(0);
      });
  loss = sum_lanes<kLanes>(loss);
  target_sum = sum_lanes<kLanes>(target_sum);
  if (problem.gradient.present()) {
    const T factor = static_cast<T>(scale * weight_of(problem, row));
    const T inverse = static_cast<T>(1.0 / sums.others);
    const T total = static_cast<T>(target_sum);
    for_row<kLanes>(z, row, lane, [&](std::int64_t column, const Quad<T>& values) {
      const Quad<T> targets = load_quad(problem.targets, row, column);
      Quad<T> gradient;
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const T e = cross_entropy::shifted_exponential(values[j], maximum.value);
        gradient[j] = factor * cross_entropy::probability_gradient(
                                   e, inverse, madd(keep, targets[j], uniform), total);
      }
      store_quad(problem.gradient, row, column, gradient);
    });
  }
  return {loss, 0.0, 0.0, 0.0, maximum.column == target_maximum.column ? 1 : 0};
}

// Sums of loss, hits and weights, in that order.
using Sums = double[3];

// The block's sums become partials[block]; the last block adds all of them and hands them over.
template <class T>
TW_DEVICE void finish_loss(const Loss<T>& problem, Sums& sums, double hit_scale, double* partials,
                           unsigned* ticket) {
  const int blocks = grid_size().x;
  block_sums<kThreads>(sums);
  if (thread_index().x == 0) {
    for (int v = 0; v < 3; ++v) partials[block_index().x * 3 + v] = sums[v];
  }
  if (!is_last_block(ticket, static_cast<unsigned>(blocks))) return;
  Sums total = {0.0, 0.0, 0.0};
  for (int block = thread_index().x; block < blocks; block += kThreads) {
    TW_UNROLL
    for (int v = 0; v < 3; ++v) total[v] += partials[block * 3 + v];
  }
  block_sums<kThreads>(total);
  if (thread_index().x != 0) return;
  total[1] *= hit_scale;
  if (problem.sums != nullptr) {
    LossSums& to = *problem.sums;
    to = problem.accumulate ? LossSums{to.loss + total[0], to.hits + total[1], to.weight + total[2]}
                            : LossSums{total[0], total[1], total[2]};
  }
  if (problem.state != nullptr) {
    StepState& state = *problem.state;
    state.loss = problem.accumulate ? state.loss + total[0] : total[0];
    state.hits = problem.accumulate ? state.hits + total[1] : total[1];
    if (updates_model(state) && !is_finite(state.loss)) state.status = StepStatus::kLossNotFinite;
  }
}

template <class T, int kLanes, bool kLabels>
TW_KERNEL_BOUNDS(kThreads, kBlocks<T>)
void cross_entropy_kernel(const Loss<T> problem, const int block_rows, double* partials,
                          unsigned* ticket) {
  TW_SHARED(RowResult[kMostRows], results);
  const std::int64_t rows = problem.outputs.rows;
  const std::int64_t first = static_cast<std::int64_t>(block_index().x) * block_rows;
  const double scale = scale_of(problem);
  const int lane = thread_index().x % kLanes;
  for (int r = thread_index().x / kLanes; r < block_rows; r += kThreads / kLanes) {
    // All lanes of a warp take part in its exchanges: rows that are not there repeat the last one.
    const std::int64_t row = first + r < rows ? first + r : rows - 1;
    const RowResult result = kLabels ? label_row<T, kLanes>(problem, row, lane, scale)
                                     : probability_row<T, kLanes>(problem, row, lane, scale);
    if (lane == 0) results[r] = result;
  }
  sync_block();
  Sums sums = {0.0, 0.0, 0.0};
  const std::int64_t row = first + thread_index().x;
  if (thread_index().x < block_rows && row < rows) {
    const RowResult& result = results[thread_index().x];
    const double weight = weight_of(problem, row);
    sums[0] = weight * (kLabels ? label_loss_of(problem, result) : result.others);
    sums[1] = result.hit != 0 ? weight : 0.0;
    sums[2] = weight;
  }
  finish_loss(problem, sums, 1.0, partials, ticket);
}

template <class T, class Rule>
TW_KERNEL_BOUNDS(kThreads, kBlocks<T>)
void elementwise_loss_kernel(const Loss<T> problem, const std::int64_t tile_rows, double* partials,
                             unsigned* ticket) {
  const Matrix<const T>& z = problem.outputs;
  const T parameter = static_cast<T>(problem.parameter);
  const double scale = scale_of(problem);
  const std::int64_t first = block_index().x * tile_rows;
  const std::int64_t rows = z.rows - first < tile_rows ? z.rows - first : tile_rows;
  const std::int64_t quads = quads_of(z);
  Sums sums = {0.0, 0.0, 0.0};
  for (std::int64_t i = thread_index().x; i < rows * quads; i += kThreads) {
    const std::int64_t r = i / quads;
    const std::int64_t row = first + r;
    const std::int64_t column = (i - r * quads) * kQuad;
    const double weight = weight_of(problem, row);
    const T factor = static_cast<T>(scale * weight);
    const Quad<T> outputs = load_quad(z, row, column);
    const Quad<T> targets = load_quad(problem.targets, row, column);
    Quad<T> gradient;
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      gradient[j] = factor * Rule::gradient(outputs[j], targets[j], parameter);
      if (column + j >= z.width) continue;
      const T value = Rule::value(outputs[j], targets[j], parameter);
      sums[0] = sums[0] + weight * static_cast<double>(value);
      sums[1] += agrees<Rule::target>(outputs[j], targets[j]) ? weight : 0.0;
    }
    if (problem.gradient.present()) store_quad(problem.gradient, row, column, gradient);
  }
  if (thread_index().x < rows) sums[2] = weight_of(problem, first + thread_index().x);
  finish_loss(problem, sums, 1.0 / static_cast<double>(z.width), partials, ticket);
}

template <class T, int kLanes>
TW_KERNEL_BOUNDS(kThreads, kBlocks<T>)
void softmax_kernel(const Matrix<const T> logits, const Matrix<T> probabilities) {
  const int lane = thread_index().x % kLanes;
  const std::int64_t row = global_thread_index() / kLanes;
  // All lanes of a warp take part in its exchanges: rows that are not there have no columns.
  Matrix<const T> from = logits;
  if (row >= logits.rows) from.pitch = 0;
  const T maximum = row_maximum_of<kLanes>(from, row, lane).value;
  const RowSums<T> sums = row_sums_of<kLanes>(from, row, lane, maximum, -1);
  const T inverse = static_cast<T>(1.0 / sums.others);
  for_row<kLanes>(from, row, lane, [&](std::int64_t column, Quad<T> values) {
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      values[j] = cross_entropy::shifted_exponential(values[j], maximum) * inverse;
    }
    store_quad(probabilities, row, column, values);
  });
}

// a . (z' - sum a z') sum(y), a = softmax(z).
template <class T, int kLanes>
TW_KERNEL_BOUNDS(kThreads, kBlocks<T>)
void cross_entropy_tangent_kernel(const LossTangent<T> problem) {
  const int lane = thread_index().x % kLanes;
  const std::int64_t row = global_thread_index() / kLanes;
  // All lanes of a warp take part in its exchanges: rows that are not there have no columns.
  Matrix<const T> z = problem.outputs;
  if (row >= z.rows) z.pitch = 0;
  const std::int64_t width = problem.outputs.width;
  const T maximum = row_maximum_of<kLanes>(z, row, lane).value;
  double sum = 0.0;
  double tangent_sum = 0.0;
  double target_sum = 0.0;
  T sum_part = T(0);
  T tangent_part = T(0);
  T target_part = T(0);
  for_row_parts<kLanes>(
      z, row, lane,
      [&](std::int64_t column, const Quad<T>& values) {
        const Quad<T> tangent = load_quad(problem.output_tangent, row, column);
        Quad<T> targets{};
        if (problem.targets.present()) targets = load_quad(problem.targets, row, column);
        TW_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          if (column + j >= width) continue;
          const T e = cross_entropy::shifted_exponential(values[j], maximum);
          sum_part += e;
          tangent_part = madd(e, tangent[j], tangent_part);
          target_part += targets[j];
        }
      },
      [&] {
        sum += static_cast<double>(sum_part);
        tangent_sum += static_cast<double>(tangent_part);
        target_sum += static_cast<double>(target_part);
        sum_part = tangent_part = target_part = T(0);
      });
  sum = sum_lanes<kLanes>(sum);
  tangent_sum = sum_lanes<kLanes>(tangent_sum);
  target_sum = sum_lanes<kLanes>(target_sum);
  if (row >= problem.outputs.rows) return;
  const double total = problem.targets.present() ? madd(1.0 - problem.label_smoothing, target_sum,
                                                        problem.label_smoothing)
                                                 : 1.0;
  const double weight =
      problem.row_weights != nullptr ? static_cast<double>(problem.row_weights[row]) : 1.0;
  const T factor = static_cast<T>(problem.gradient_scale * weight * total);
  const T inverse = static_cast<T>(1.0 / sum);
  const T centre = static_cast<T>(tangent_sum / sum);
  for_row<kLanes>(z, row, lane, [&](std::int64_t column, const Quad<T>& values) {
    const Quad<T> tangent = load_quad(problem.output_tangent, row, column);
    Quad<T> out;
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T probability = cross_entropy::shifted_exponential(values[j], maximum) * inverse;
      out[j] = cross_entropy::gradient_tangent(probability, tangent[j], centre, factor);
    }
    store_quad(problem.gradient_tangent, row, column, out);
  });
}

template <class T, class Rule>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void elementwise_loss_tangent_kernel(const LossTangent<T> problem) {
  const T parameter = static_cast<T>(problem.parameter);
  for_quads(problem.gradient_tangent, [&](std::int64_t row, std::int64_t column) {
    const double weight =
        problem.row_weights != nullptr ? static_cast<double>(problem.row_weights[row]) : 1.0;
    const T factor = static_cast<T>(problem.gradient_scale * weight);
    const Quad<T> outputs = load_quad(problem.outputs, row, column);
    const Quad<T> targets = load_quad(problem.targets, row, column);
    const Quad<T> tangent = load_quad(problem.output_tangent, row, column);
    Quad<T> out;
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j)
      out[j] = factor * Rule::second_derivative(outputs[j], targets[j], parameter) * tangent[j];
    store_quad(problem.gradient_tangent, row, column, out);
  });
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

namespace {

// f(integral constant) with the lanes that a row of this width gets.
template <class F>
void with_lanes(std::int64_t pitch, F&& f) {
  const std::int64_t quads = pitch / kQuad;
  if (quads <= 2) return f(std::integral_constant<int, 2>{});
  if (quads <= 8) return f(std::integral_constant<int, 8>{});
  return f(std::integral_constant<int, 32>{});
}

// Rows per block: as many as its lanes take at once, and more of them, so that more of its threads
// have a loss to compute, where the batch still fills a device.
int block_rows_of(std::int64_t rows, int lanes) {
  constexpr std::int64_t kLargeBatch = 8192;
  const int at_once = kThreads / lanes;
  return rows < kLargeBatch ? at_once : std::max(at_once, static_cast<int>(kRowBlock));
}

std::int64_t tile_rows_of(std::int64_t pitch) {
  return std::clamp<std::int64_t>(kTileQuads / (pitch / kQuad), 1, kMostTileRows);
}

}  // namespace

// One row per block at the least.
std::size_t loss_scratch_bytes(std::int64_t rows) {
  return 3 * sizeof(double) * static_cast<std::size_t>(rows);
}

template <class T>
void softmax_cross_entropy(const Loss<T>& problem, const Scratch& scratch, cudaStream_t stream) {
  with_lanes(problem.outputs.pitch, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const int block_rows = block_rows_of(problem.outputs.rows, kLanes);
    launch(problem.labels != nullptr ? cross_entropy_kernel<T, kLanes, true>
                                     : cross_entropy_kernel<T, kLanes, false>,
           {.operation = kCrossEntropyOperation,
            .grid = static_cast<unsigned>(ceil_div(problem.outputs.rows, block_rows)),
            .block = kThreads,
            .stream = stream},
           problem, block_rows, static_cast<double*>(scratch.memory), scratch.tickets);
  });
}

template <class T>
void elementwise_loss(int loss_id, const Loss<T>& problem, const Scratch& scratch,
                      cudaStream_t stream) {
  const std::int64_t tile_rows = tile_rows_of(problem.outputs.pitch);
  dispatch_loss(loss_id, [&](auto rule) {
    launch(elementwise_loss_kernel<T, decltype(rule)>,
           {.operation = kElementwiseOperation,
            .grid = static_cast<unsigned>(ceil_div(problem.outputs.rows, tile_rows)),
            .block = kThreads,
            .stream = stream},
           problem, tile_rows, static_cast<double*>(scratch.memory), scratch.tickets);
  });
}

template <class T>
void softmax(const Matrix<const T>& logits, const Matrix<T>& probabilities, cudaStream_t stream) {
  with_lanes(logits.pitch, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(softmax_kernel<T, kLanes>,
           {.operation = kSoftmaxOperation,
            .grid = static_cast<unsigned>(ceil_div(logits.rows, kThreads / kLanes)),
            .block = kThreads,
            .stream = stream},
           logits, probabilities);
  });
}

template <class T>
void softmax_cross_entropy_tangent(const LossTangent<T>& problem, cudaStream_t stream) {
  with_lanes(problem.outputs.pitch, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    launch(cross_entropy_tangent_kernel<T, kLanes>,
           {.operation = "softmax_cross_entropy_tangent",
            .grid = static_cast<unsigned>(ceil_div(problem.outputs.rows, kThreads / kLanes)),
            .block = kThreads,
            .stream = stream},
           problem);
  });
}

template <class T>
void elementwise_loss_tangent(int loss_id, const LossTangent<T>& problem, cudaStream_t stream) {
  dispatch_loss(loss_id, [&](auto rule) {
    launch(elementwise_loss_tangent_kernel<T, decltype(rule)>,
           elementwise("elementwise_loss_tangent", problem.gradient_tangent.size(), stream),
           problem);
  });
}

#define TW_INSTANTIATE(T)                                                            \
  template void softmax_cross_entropy(const Loss<T>&, const Scratch&, cudaStream_t); \
  template void elementwise_loss(int, const Loss<T>&, const Scratch&, cudaStream_t); \
  template void softmax_cross_entropy_tangent(const LossTangent<T>&, cudaStream_t);  \
  template void elementwise_loss_tangent(int, const LossTangent<T>&, cudaStream_t);  \
  template void softmax(const Matrix<const T>&, const Matrix<T>&, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
