// What follows the main loop of a product, the same for the SIMT units and the tensor cores: the
// block's tile of sums comes slab by slab (up to kRowBlock rows) through shared memory, and every
// thread of the block takes part.
#pragma once

#include "cuda/device_dropout.h"
#include "cuda/device_matrix.h"
#include "cuda/gemm_plan.h"
#include "math/activations.h"
#include "math/batch_norm.h"
#include "math/loss/cross_entropy.h"

namespace thalweg::cuda {

// A slab of sums in shared memory. The padding keeps the fragments of mma.sync, which are written
// in pairs of columns over eight rows, in different banks.
template <class T, int tile_rows, int tile_columns, int threads>
struct Slab {
  static constexpr int kRows = tile_rows < kRowBlock ? tile_rows : static_cast<int>(kRowBlock);
  static constexpr int kSlabs = tile_rows / kRows;  // of a tile
  static constexpr int kColumns = tile_columns;
  static constexpr int kPitch = tile_columns + 8;
  static constexpr int kThreads = threads;
  static constexpr int kQuads = tile_columns / kQuad;  // per row
  static constexpr int kRounds = kRows * kQuads / threads;
  static constexpr int kBytes = kRows * kPitch * static_cast<int>(sizeof(T));
  static_assert(kRounds * threads == kRows * kQuads);

  T* data;

  TW_DEVICE T* row(int r) const { return data + r * kPitch; }
};

// Where a slab lies in the result.
struct SlabPlace {
  std::int64_t row;  // first
  int rows;          // that exist; may be 0 or less
  int column;        // first
  int row_block;
};

// f(row in the slab, column in the slab) for the quads of this thread; all threads make as many
// calls.
template <class S, class F>
TW_DEVICE void for_slab_quads(const F& f) {
  TW_NO_UNROLL
  for (int round = 0; round < S::kRounds; ++round) {
    const int index = round * S::kThreads + thread_index().x;
    f(index / S::kQuads, index % S::kQuads * kQuad);
  }
}

// ---- Merging ------------------------------------------------------------------------------------

// Whether this block is the last of `arrivals` to get here. Orders memory: the last one sees what
// all wrote before.
TW_DEVICE bool arrives_last(unsigned* ticket, int arrivals) {
  // The whole block has written.
  sync_block();
  const unsigned last = static_cast<unsigned>(arrivals) - 1;
  const bool mine = thread_index().x == 0 && take_ticket(ticket, last) == last;
  return sync_block_any(mine);
}

TW_DEVICE int at_most_int(int x, int highest) { return x < highest ? x : highest; }

// Merges the row blocks of a column of tiles once all are there. The block has written those of its
// tile, which begins at `row_block`; merge.blocks(column, first, last, group) makes a group of row
// blocks [first, last), merge.finish(column) the result from the groups.
template <class Merge>
TW_DEVICE void merge_row_blocks(const RowMerge& plan, int tile_n, int row_block, int tile_blocks,
                                int first_column, int columns, const Merge& merge) {
  unsigned* const tickets = plan.tickets + tile_n * tickets_of_merge(plan.group_count);
  const int group = row_block / plan.blocks_per_group;
  const int first = group * plan.blocks_per_group;
  const int last = at_most_int(first + plan.blocks_per_group, plan.block_count);
  if (!arrives_last(tickets + group, (last - first + tile_blocks - 1) / tile_blocks)) return;
  for (int c = thread_index().x; c < columns; c += block_size().x) {
    merge.blocks(first_column + c, first, last, group);
  }
  if (plan.group_count > 1 && !arrives_last(tickets + plan.group_count, plan.group_count)) return;
  for (int c = thread_index().x; c < columns; c += block_size().x) merge.finish(first_column + c);
}

// One sum per column; finish(column, sum).
template <class Finish>
struct SumMerge {
  const RowMerge& plan;
  const Finish& write;

  TW_DEVICE static double sum(const double* items, std::int64_t pitch, int first, int last) {
    double total = 0.0;
    for (int i = first; i < last; ++i) total += items[i * pitch];
    return total;
  }
  TW_DEVICE void blocks(int column, int first, int last, int group) const {
    plan.groups[group * plan.pitch + column] = sum(plan.blocks + column, plan.pitch, first, last);
  }
  TW_DEVICE void finish(int column) const {
    write(column, sum(plan.groups + column, plan.pitch, 0, plan.group_count));
  }
};

// Mean and sum of squared deviations per column, and in a group its weight.
template <class T>
struct MomentMerge {
  const RowMerge& plan;
  const RowWeights<T>& weights;
  const BatchStatistics<T>& statistics;
  std::int64_t rows;
  std::int64_t width;

  TW_DEVICE static void add(Moments& total, const Moments& next) {
    if (next.weight > 0.0) total = merge_moments(total, next);
  }
  TW_DEVICE double block_weight(int block) const {
    if (weights.weights) return weights.block_weights[block];
    const std::int64_t left = rows - block * kRowBlock;
    return static_cast<double>(left < kRowBlock ? left : kRowBlock);
  }
  TW_DEVICE void blocks(int column, int first, int last, int group) const {
    Moments total{0.0, 0.0, 0.0, 0.0};
    for (int b = first; b < last; ++b) {
      const double* const item = plan.blocks + 2 * b * plan.pitch + column;
      add(total, {block_weight(b), 0.0, item[0], item[plan.pitch]});
    }
    double* const to = plan.groups + 3 * group * plan.pitch + column;
    to[0] = total.mean;
    to[plan.pitch] = total.m2;
    to[2 * plan.pitch] = total.weight;
  }
  TW_DEVICE void finish(int column) const {
    Moments total{0.0, 0.0, 0.0, 0.0};
    for (int g = 0; g < plan.group_count; ++g) {
      const double* const item = plan.groups + 3 * g * plan.pitch + column;
      add(total, {item[2 * plan.pitch], 0.0, item[0], item[plan.pitch]});
    }
    total.weight = weights.weights ? *weights.total : static_cast<double>(rows);
    const bool inside = column < width;
    const double variance = inside ? biased_variance(total) : 0.0;
    const double mean = inside ? total.mean : 0.0;
    if (statistics.batch_mean) statistics.batch_mean[column] = mean;
    if (statistics.batch_var) statistics.batch_var[column] = variance;
    if (statistics.mean) statistics.mean[column] = static_cast<T>(mean);
    if (statistics.inv_std) {
      statistics.inv_std[column] =
          inside ? static_cast<T>(inverse_deviation(variance, statistics.eps)) : T(0);
    }
  }
};

// ---- Parts of the epilogues ---------------------------------------------------------------------

template <class T>
TW_DEVICE Quad<T> activate(const Activation& phi, Quad<T> z) {
  const T a = static_cast<T>(phi.parameter);
  dispatch_activation(phi.id, [&](auto activation) {
    TW_UNROLL
    for (int i = 0; i < kQuad; ++i) z[i] = decltype(activation)::value(z[i], a);
  });
  return z;
}

// x * phi'(at)
template <class T>
TW_DEVICE Quad<T> differentiate(const Activation& phi, Quad<T> x, const Quad<T>& at) {
  const T a = static_cast<T>(phi.parameter);
  dispatch_activation(phi.id, [&](auto activation) {
    TW_UNROLL
    for (int i = 0; i < kQuad; ++i) x[i] *= decltype(activation)::derivative(at[i], a);
  });
  return x;
}

template <class T>
TW_DEVICE Quad<T> multiply(Quad<T> x, const Quad<T>& factor) {
  TW_UNROLL
  for (int i = 0; i < kQuad; ++i) x[i] *= factor[i];
  return x;
}

template <class T>
TW_DEVICE Quad<T> sum(Quad<T> x, const Quad<T>& y) {
  TW_UNROLL
  for (int i = 0; i < kQuad; ++i) x[i] += y[i];
  return x;
}

// The words of a row are put together by the lanes that hold its quads: all lanes call.
template <class S, class T>
TW_DEVICE void store_signs(std::uint32_t* signs, std::int64_t width, std::int64_t row, int column,
                           bool inside, const Quad<T>& y) {
  constexpr int kLanes = S::kQuads < 8 ? S::kQuads : 8;  // per word
  std::uint32_t word = 0;
  TW_UNROLL
  for (int i = 0; i < kQuad; ++i) word |= std::uint32_t{y[i] > T(0)} << i;
  word <<= column % 32;
  TW_UNROLL
  for (int distance = 1; distance < kLanes; distance *= 2) word |= shuffle_xor(word, distance);
  if (inside && column % 32 == 0 && column < width) {
    signs[row * sign_words(width) + column / 32] = word;
  }
}

// Statistics of a column over the rows of a slab, in two passes around its first row and around
// its mean, as the CPU does.
template <class S, class T>
TW_DEVICE Moments column_moments(const T* column, int rows, const T* weights, double weight) {
  T shift = column[0];
  Moments moments{};
  TW_NO_UNROLL
  for (int pass = 0; pass < 2; ++pass) {
    T s1 = T(0);
    T s2 = T(0);
    for (int r = 0; r < rows; ++r) {
      const T deviation = column[r * S::kPitch] - shift;
      const T weighted = weights ? deviation * weights[r] : deviation;
      s1 += weighted;
      s2 = madd(weighted, deviation, s2);
    }
    moments = shifted_moments(weight, 0.0, shift, s1, s2);
    shift = static_cast<T>(moments.mean);
  }
  return moments;
}

// Column sums over the rows of a slab become its row block's item.
template <class S, class T>
TW_DEVICE void store_column_sums(const RowMerge& plan, S slab, const SlabPlace& place,
                                 std::int64_t pitch) {
  const int c = thread_index().x;
  if (c >= S::kColumns || place.column + c >= pitch || place.rows <= 0) return;
  const T* const column = slab.data + c;
  T even = T(0);
  T odd = T(0);
  for (int r = 0; r + 1 < place.rows; r += 2) {
    even += column[r * S::kPitch];
    odd += column[(r + 1) * S::kPitch];
  }
  if (place.rows % 2 != 0) even += column[(place.rows - 1) * S::kPitch];
  plan.blocks[place.row_block * plan.pitch + place.column + c] = static_cast<double>(even + odd);
}

// sums (+)= the merged column sums of a tile.
template <class S, class T>
TW_DEVICE void merge_column_sums(const RowMerge& plan, int tile_n, int row_block, T* sums,
                                 std::int64_t width, bool accumulate) {
  const int first = tile_n * S::kColumns;
  const auto left = static_cast<int>(pitch_of(width)) - first;
  const auto write = [&](int column, double total) {
    const double before = accumulate ? static_cast<double>(sums[column]) : 0.0;
    sums[column] = column < width ? static_cast<T>(before + total) : T(0);
  };
  merge_row_blocks(plan, tile_n, row_block, S::kSlabs, first, at_most_int(S::kColumns, left),
                   SumMerge<decltype(write)>{plan, write});
}

// ---- Softmax cross-entropy of a slab that holds whole rows of logits ----------------------------

template <class T>
struct RowMaximum {
  T value;
  int column;
};

// The larger one, the first of equal ones; NaN is larger than all.
template <class T>
TW_DEVICE RowMaximum<T> larger(const RowMaximum<T>& a, const RowMaximum<T>& b) {
  const bool a_nan = a.value != a.value;
  const bool b_nan = b.value != b.value;
  const bool same = (a_nan && b_nan) || a.value == b.value;
  const bool take_a = same ? a.column <= b.column : a_nan || (!b_nan && a.value > b.value);
  return take_a ? a : b;
}

// Turns the slab into the gradient and adds the rows' loss, hits and weights. kLanes threads per
// row; the sums of a row are of at most 32 elements per thread, in double across threads.
template <class S, class T>
TW_DEVICE void cross_entropy_of_slab(const ForwardTask<T>& task, S slab, const SlabPlace& place) {
  constexpr int kLanes = S::kThreads / S::kRows;
  constexpr int kValues = 3;  // loss, hit, weight
  static_assert(kLanes >= 2 && S::kColumns <= 32 * kLanes);
  TW_SHARED(double[S::kRows * kValues], row_values);
  const Loss<T>& loss = task.problem.loss;
  const auto classes = static_cast<int>(task.problem.weight.rows);
  const int r = thread_index().x / kLanes;
  const int lane = thread_index().x % kLanes;
  const bool exists = place.rows > r;
  T* const z = slab.row(r);

  RowMaximum<T> maximum{-FloatFormat<T>::infinity, lane};
  for (int c = lane; c < classes; c += kLanes) maximum = larger(maximum, {z[c], c});
  TW_UNROLL
  for (int distance = 1; distance < kLanes; distance *= 2) {
    maximum = larger(maximum,
                     {shuffle_xor(maximum.value, distance), shuffle_xor(maximum.column, distance)});
  }

  const std::int64_t label = exists ? loss.labels[place.row + r] : -1;
  T others = T(0);
  T at_label = T(0);
  T shifted_label = T(0);
  T shifted_sum = T(0);
  for (int c = lane; c < classes; c += kLanes) {
    const T shifted = z[c] - maximum.value;
    const T e = cross_entropy::shifted_exponential(z[c], maximum.value);
    const bool is_label = c == label;
    others += select(is_label, T(0), e);
    at_label += select(is_label, e, T(0));
    shifted_label += select(is_label, shifted, T(0));
    shifted_sum += shifted;
    z[c] = e;
  }
  double sums[4] = {static_cast<double>(others), static_cast<double>(at_label),
                    static_cast<double>(shifted_label), static_cast<double>(shifted_sum)};
  TW_UNROLL
  for (int i = 0; i < 4; ++i) {
    TW_UNROLL
    for (int distance = 1; distance < kLanes; distance *= 2) {
      sums[i] += shuffle_xor(sums[i], distance);
    }
  }

  const double smoothing = loss.label_smoothing;
  const auto class_count = static_cast<double>(classes);
  const double weight =
      exists ? (loss.row_weights ? static_cast<double>(loss.row_weights[place.row + r]) : 1.0)
             : 0.0;
  if (lane == 0) {
    double value = cross_entropy::label_loss(sums[0], sums[1], sums[2]);
    if (smoothing != 0.0) {
      value = cross_entropy::label_loss_smoothed(value, smoothing, log(sums[0] + sums[1]), sums[3],
                                                 class_count);
    }
    row_values[r] = exists ? weight * value : 0.0;
    row_values[S::kRows + r] = exists && maximum.column == label ? weight : 0.0;
    row_values[2 * S::kRows + r] = weight;
  }

  const double scale = loss.gradient_scale_at ? *loss.gradient_scale_at : loss.gradient_scale;
  const T factor = static_cast<T>(scale * weight);
  const T inverse_sum = static_cast<T>(1.0 / (sums[0] + sums[1]));
  const T label_target =
      static_cast<T>(cross_entropy::smoothed_target(true, smoothing, class_count));
  const T other_target =
      static_cast<T>(cross_entropy::smoothed_target(false, smoothing, class_count));
  for (int c = lane; c < classes; c += kLanes) {
    T gradient = cross_entropy::label_gradient(z[c], inverse_sum,
                                               select(c == label, label_target, other_target));
    if (c == label && smoothing == 0.0) {
      gradient = cross_entropy::label_gradient_at_label(static_cast<T>(sums[0]), inverse_sum);
    }
    z[c] = factor * gradient;
  }

  sync_block();
  const int value = thread_index().x;
  if (value < kValues && place.rows > 0) {
    double total = 0.0;
    for (int i = 0; i < S::kRows; ++i) total += row_values[value * S::kRows + i];
    task.loss.blocks[place.row_block * task.loss.pitch + value] = total;
  }
  if (loss.gradient.present()) {
    for_slab_quads<S>([&](int row, int column) {
      if (row >= place.rows || column >= loss.gradient.pitch) return;
      const Quad<T> stored =
          store_quad(loss.gradient, place.row + row, column, load_quad(slab.row(row) + column));
      store_quad(slab.row(row) + column, stored);
    });
  }
  if (task.problem.loss_bias_gradient) {
    sync_block();
    store_column_sums<S, T>(task.bias, slab, place, task.bias.pitch);
  }
}

// The sums of the whole batch: to the state of training, which they may fail, or to the caller.
template <class S, class T>
TW_DEVICE void merge_losses(const ForwardTask<T>& task, int row_block) {
  const Loss<T>& loss = task.problem.loss;
  const auto write = [&](int value, double total) {
    if (loss.accumulate) {
      if (loss.state && value < 2) total += value == 0 ? loss.state->loss : loss.state->hits;
      if (loss.sums) {
        total += value == 0 ? loss.sums->loss : value == 1 ? loss.sums->hits : loss.sums->weight;
      }
    }
    if (loss.state) {
      if (value == 0) {
        loss.state->loss = total;
        if (updates_model(*loss.state) && !is_finite(total)) {
          loss.state->status = StepStatus::kLossNotFinite;
        }
      }
      if (value == 1) loss.state->hits = total;
    }
    if (loss.sums) {
      if (value == 0) loss.sums->loss = total;
      if (value == 1) loss.sums->hits = total;
      if (value == 2) loss.sums->weight = total;
    }
  };
  merge_row_blocks(task.loss, 0, row_block, S::kSlabs, 0, 3,
                   SumMerge<decltype(write)>{task.loss, write});
}

// ---- The three epilogues ------------------------------------------------------------------------

// A slab of X W^T.
template <class S, class T>
TW_DEVICE void finish_slab(const ForwardTask<T>& task, S slab, const SlabPlace& place) {
  const DenseForward<T>& p = task.problem;
  const std::int64_t width = p.weight.rows;
  const bool goes_on = p.takes_statistics || p.takes_loss;
  for_slab_quads<S>([&](int r, int c) {
    const std::int64_t row = place.row + r;
    const int column = place.column + c;
    const bool inside = r < place.rows && column < width;
    const bool writes = r < place.rows && column < p.y.pitch;
    Quad<T> z = load_quad(slab.row(r) + c);
    if (p.scale && inside) z = multiply(z, load_quad(p.scale + column));
    if (p.shift && inside) z = sum(z, load_quad(p.shift + column));
    if (p.accumulate && writes) z = sum(z, load_quad(p.y, row, column));
    if (p.pre.present() && r < place.rows && column < p.pre.pitch) {
      z = store_quad(p.pre, row, column, z);
    }
    Quad<T> y = activate(p.activation, z);
    if (p.drops) y = multiply(y, dropout_factors<T>(p.dropout, width, row, column));
    if (writes) y = store_quad(p.y, row, column, y);
    if (p.signs) {
      TW_UNROLL
      for (int i = 0; i < kQuad; ++i) y[i] = column + i < width ? y[i] : T(0);
      store_signs<S>(p.signs, width, row, column, inside, y);
    }
    if (goes_on) store_quad(slab.row(r) + c, y);
  });
  if (!goes_on) return;
  sync_block();
  if (p.takes_statistics) {
    const int c = thread_index().x;
    if (c < S::kColumns && place.column + c < task.statistics.pitch && place.rows > 0) {
      const T* const weights = p.row_weights.weights ? p.row_weights.weights + place.row : nullptr;
      const double weight =
          weights ? p.row_weights.block_weights[place.row_block] : static_cast<double>(place.rows);
      const Moments moments = column_moments<S>(slab.data + c, place.rows, weights, weight);
      double* const item =
          task.statistics.blocks + 2 * place.row_block * task.statistics.pitch + place.column + c;
      item[0] = moments.mean;
      item[task.statistics.pitch] = moments.m2;
    }
  }
  if (p.takes_loss) cross_entropy_of_slab(task, slab, place);
}

template <class S, class T>
TW_DEVICE void finish_tile(const ForwardTask<T>& task, int tile_n, int row_block) {
  const DenseForward<T>& p = task.problem;
  if (p.takes_statistics) {
    const MomentMerge<T> merge{task.statistics, p.row_weights, p.statistics, p.x.rows,
                               p.weight.rows};
    const int first = tile_n * S::kColumns;
    const auto left = static_cast<int>(task.statistics.pitch) - first;
    merge_row_blocks(task.statistics, tile_n, row_block, S::kSlabs, first,
                     at_most_int(S::kColumns, left), merge);
  }
  if (p.takes_loss) {
    if (p.loss_bias_gradient) {
      merge_column_sums<S>(task.bias, tile_n, row_block, p.loss_bias_gradient, p.weight.rows,
                           p.accumulate_bias);
    }
    merge_losses<S>(task, row_block);
  }
}

// A slab of dY W.
template <class S, class T>
TW_DEVICE void finish_slab(const InputGradientTask<T>& task, S slab, const SlabPlace& place) {
  const DenseInputGradient<T>& p = task.problem;
  const std::int64_t width = p.dx.width;
  for_slab_quads<S>([&](int r, int c) {
    const std::int64_t row = place.row + r;
    const int column = place.column + c;
    if (r >= place.rows || column >= p.dx.pitch) return;
    Quad<T> x = load_quad(slab.row(r) + c);
    if (p.accumulate) x = sum(x, load_quad(p.dx, row, column));
    if (p.drops) x = multiply(x, dropout_factors<T>(p.dropout, width, row, column));
    if (p.signs && column < width) {
      const std::uint32_t bits = p.signs[row * sign_words(width) + column / 32] >> (column % 32);
      TW_UNROLL
      for (int i = 0; i < kQuad; ++i) {
        x[i] *= static_cast<T>((bits >> i & 1u) != 0 ? p.if_positive : p.otherwise);
      }
    } else if (p.at.present()) {
      x = differentiate(p.derivative, x, load_quad(p.at, row, column));
    }
    x = store_quad(p.dx, row, column, x);
    if (p.bias_gradient) store_quad(slab.row(r) + c, x);
  });
  if (!p.bias_gradient) return;
  sync_block();
  store_column_sums<S, T>(task.bias, slab, place, task.bias.pitch);
}

template <class S, class T>
TW_DEVICE void finish_tile(const InputGradientTask<T>& task, int tile_n, int row_block) {
  const DenseInputGradient<T>& p = task.problem;
  if (!p.bias_gradient) return;
  merge_column_sums<S>(task.bias, tile_n, row_block, p.bias_gradient, p.dx.width,
                       p.accumulate_bias);
}

// The sum over the block, in thread 0, in an order that the number of threads fixes.
template <int threads>
TW_DEVICE double sum_of_block(double value) {
  constexpr int kWarps = threads / kWarpThreads;
  TW_SHARED(double[kWarps], partial);
  TW_UNROLL
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value += shuffle_xor(value, distance);
  }
  sync_block();
  if (lane_index() == 0) partial[warp_index()] = value;
  sync_block();
  double total = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) total += partial[warp];
  return total;
}

// Of the weight gradient, what one block writes: a tile of dW, or of its part of the batch.
template <class S, class T>
struct WeightGradientTile {
  const WeightGradientTask<T>& task;
  int tile;
  int row;     // first of dW
  int column;  // first of dW
  int part;    // of the batch
  double squares = 0.0;

  TW_DEVICE std::int64_t offset(int index, int slab, int r, int c) const {
    constexpr int kTile = S::kRows * S::kSlabs * S::kColumns;
    const std::int64_t first = (static_cast<std::int64_t>(index) * task.tiling.count() + tile);
    return first * kTile + (slab * S::kRows + r) * S::kColumns + c;
  }

  TW_DEVICE void write(int r, int c, Quad<T> x) {
    const Matrix<T>& dw = task.problem.dw;
    if (row + r >= dw.rows || column + c >= dw.pitch) return;
    if (task.problem.accumulate) x = sum(load_quad(dw, row + r, column + c), x);
    x = store_quad(dw, row + r, column + c, x);
    TW_UNROLL
    for (int i = 0; i < kQuad; ++i) {
      squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
  }

  TW_DEVICE void finish_slab(S slab, int index) {
    for_slab_quads<S>([&](int r, int c) {
      const Quad<T> x = load_quad(slab.row(r) + c);
      if (task.split.count == 1) {
        write(index * S::kRows + r, c, x);
      } else {
        store_quad(task.parts + offset(part, index, r, c), x);
      }
    });
  }

  // f(slab, row, column, sum of the items [first, last) of `from`) for all quads of the tile.
  template <class F>
  TW_DEVICE void merge(const T* from, int first, int last, const F& f) const {
    TW_NO_UNROLL
    for (int slab = 0; slab < S::kSlabs; ++slab) {
      for_slab_quads<S>([&](int r, int c) {
        Quad<T> total = load_quad(from + offset(first, slab, r, c));
        for (int i = first + 1; i < last; ++i) {
          total = sum(total, load_quad(from + offset(i, slab, r, c)));
        }
        f(slab, r, c, total);
      });
    }
  }

  TW_DEVICE void finish_tile() {
    const BatchSplit& split = task.split;
    if (split.count > 1) {
      unsigned* const tickets = task.tickets + tile * tickets_of_merge(split.group_count);
      const int group = part / split.per_group;
      const int first = group * split.per_group;
      const int last = at_most_int(first + split.per_group, split.count);
      if (!arrives_last(tickets + group, last - first)) return;
      merge(task.parts, first, last, [&](int slab, int r, int c, const Quad<T>& x) {
        store_quad(task.groups + offset(group, slab, r, c), x);
      });
      if (split.group_count > 1 && !arrives_last(tickets + split.group_count, split.group_count)) {
        return;
      }
      merge(task.groups, 0, split.group_count,
            [&](int slab, int r, int c, const Quad<T>& x) { write(slab * S::kRows + r, c, x); });
    }
    if (!task.squares) return;
    const int tiles = task.tiling.count();
    const double own = sum_of_block<S::kThreads>(squares);
    if (thread_index().x == 0) task.squares[tile] = own;
    if (!arrives_last(task.squares_ticket, tiles)) return;
    double total = 0.0;
    for (int i = thread_index().x; i < tiles; i += S::kThreads) total += task.squares[i];
    total = sum_of_block<S::kThreads>(total);
    if (thread_index().x == 0) *task.problem.squares = total;
  }
};

// ---- From the main loop to the result -----------------------------------------------------------

// Which tile a block owns. Blocks that run at the same time share rows and columns.
struct TileIndex {
  int m;
  int n;
};
TW_DEVICE TileIndex tile_of_block(const Tiling& tiling) {
  constexpr int kBand = 8;
  const int index = block_index().x;
  const int first = index / (kBand * tiling.count_n) * kBand;
  const int height = at_most_int(kBand, tiling.count_m - first);
  const int inside = index - first * tiling.count_n;
  return {first + inside % height, inside / height};
}

// write_slab(slab, s) copies the sums of slab s of the tile into shared memory, for which the main
// loop has no use any more; finish(s) takes them from there.
template <class S, class Write, class Finish>
TW_DEVICE void for_slabs(S slab, const Write& write_slab, const Finish& finish) {
  TW_NO_UNROLL
  for (int s = 0; s < S::kSlabs; ++s) {
    // Nobody reads what lies there.
    sync_block();
    write_slab(slab, s);
    // The slab is complete.
    sync_block();
    finish(s);
  }
}

// The epilogue of a tile of a product with so many rows.
template <class S, class Task, class Write>
TW_DEVICE void finish(const Task& task, const TileIndex& tile, std::int64_t rows, S slab,
                      const Write& write_slab) {
  for_slabs(slab, write_slab, [&](int s) {
    const int row_block = tile.m * S::kSlabs + s;
    const std::int64_t row = row_block * kRowBlock;
    const std::int64_t left = rows - row;
    finish_slab<S>(task, slab,
                   {.row = row,
                    .rows = static_cast<int>(left < S::kRows ? left : S::kRows),
                    .column = tile.n * S::kColumns,
                    .row_block = row_block});
  });
  finish_tile<S>(task, tile.n, tile.m * S::kSlabs);
}

template <class S, class T, class Write>
TW_DEVICE void finish(const WeightGradientTask<T>& task, const TileIndex& tile, std::int64_t,
                      S slab, const Write& write_slab) {
  WeightGradientTile<S, T> result{.task = task,
                                  .tile = tile.m * task.tiling.count_n + tile.n,
                                  .row = tile.m * task.tiling.rows,
                                  .column = tile.n * S::kColumns,
                                  .part = block_index().y};
  for_slabs(slab, write_slab, [&](int s) { result.finish_slab(slab, s); });
  result.finish_tile();
}

}  // namespace thalweg::cuda
