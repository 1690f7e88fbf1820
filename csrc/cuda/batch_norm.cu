// Tiles and their order. A row block of a column quad belongs to kRowGroups threads: thread g sums
// rows g, g + kRowGroups, ... in T; the sums of the threads are added in double in the order of g,
// and the row blocks in kSlices runs, whose sums are added in their order. Nothing else enters the
// order of a sum, so that both paths, and tiles of any width, give the same bits.
#include <algorithm>

#include "core/error.h"
#include "cuda/batch_norm.h"
#include "cuda/block_reduction.h"
#include "cuda/device_matrix.h"
#include "cuda/launch_shape.h"
#include "cuda/probe.h"
#include "math/activations.h"
#include "math/batch_norm.h"

namespace thalweg::cuda {
namespace {

constexpr const char* kStatisticsOperation = "column_statistics";
constexpr const char* kForwardOperation = "batch_norm";
constexpr const char* kBackwardOperation = "batch_norm_backward";

constexpr int kThreads = 256;
// Blocks per multiprocessor of slabs and of the backward passes, whose threads keep many numbers.
template <class T>
constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 2 : 1;
constexpr int kRowGroups = 8;
constexpr int kRowsPerThread = static_cast<int>(kRowBlock) / kRowGroups;
constexpr int kSlices = 8;
// Column quads of a tile: narrow ones for few columns and for slabs.
constexpr int kWideLanes = 32;
constexpr int kNarrowLanes = 8;
constexpr int kSlabColumns = kNarrowLanes * kQuad;

// The place of a thread in a tile of kLanes quads of columns and kBlocks row blocks.
template <int kLanes>
struct Place {
  static constexpr int kColumns = kLanes * kQuad;
  static constexpr int kBlocks = kThreads / (kLanes * kRowGroups);

  int lane, group, block;

  TW_DEVICE Place()
      : lane(thread_index().x % kLanes),
        group(thread_index().x / kLanes % kRowGroups),
        block(thread_index().x / (kLanes * kRowGroups)) {}
};

// ---- Sums of a row block ------------------------------------------------------------------------

// The threads' two sums per column, [value][block][group][column].
template <class T>
using GroupSums = T[2 * kThreads * kQuad];

template <int kLanes, class T>
TW_DEVICE void store_group_sums(GroupSums<T>& sums, const Place<kLanes>& place, const Quad<T>& a,
                                const Quad<T>& b) {
  T* const to = sums + (place.block * kRowGroups + place.group) * Place<kLanes>::kColumns +
                place.lane * kQuad;
  store_quad(to, a);
  store_quad(to + kThreads * kQuad, b);
}

// f(block, column, sum, sum) for the row blocks and columns of the tile, after a barrier.
template <int kLanes, class T, class F>
TW_DEVICE void for_block_sums(const GroupSums<T>& sums, F&& f) {
  constexpr int kColumns = Place<kLanes>::kColumns;
  const int i = thread_index().x;
  if (i >= Place<kLanes>::kBlocks * kColumns) return;
  const int block = i / kColumns;
  const int column = i % kColumns;
  double a = 0.0;
  double b = 0.0;
  TW_UNROLL
  for (int group = 0; group < kRowGroups; ++group) {
    const int at = (block * kRowGroups + group) * kColumns + column;
    a += static_cast<double>(sums[at]);
    b += static_cast<double>(sums[kThreads * kQuad + at]);
  }
  f(block, column, a, b);
}

struct Pair {
  double a, b;
};

// Adds the pairs of all row blocks: pairs_of(column) gives a function of the row block, and
// finish(column, sum) receives the sums. `slices` is shared memory for kSlices pairs per column.
template <int kColumns, class PairsOf, class Finish>
TW_DEVICE void merge_blocks(std::int64_t row_blocks, double* slices, PairsOf&& pairs_of,
                            Finish&& finish) {
  constexpr int kTasks = kSlices * kColumns;
  const std::int64_t per_slice = ceil_div(row_blocks, kSlices);
  for (int task = thread_index().x; task < kTasks; task += kThreads) {
    const auto pair_at = pairs_of(task % kColumns);
    const std::int64_t begin = task / kColumns * per_slice;
    const std::int64_t end = begin + per_slice < row_blocks ? begin + per_slice : row_blocks;
    Pair sum{0.0, 0.0};
    for (std::int64_t block = begin; block < end; ++block) {
      const Pair pair = pair_at(block);
      sum.a += pair.a;
      sum.b += pair.b;
    }
    slices[task] = sum.a;
    slices[kTasks + task] = sum.b;
  }
  sync_block();
  for (int column = thread_index().x; column < kColumns; column += kThreads) {
    Pair sum{0.0, 0.0};
    for (int slice = 0; slice < kSlices; ++slice) {
      sum.a += slices[slice * kColumns + column];
      sum.b += slices[kTasks + slice * kColumns + column];
    }
    finish(column, sum);
  }
}

// ---- Statistics ---------------------------------------------------------------------------------

template <class T>
TW_DEVICE double block_weight(const RowWeights<T>& weights, std::int64_t block, std::int64_t rows) {
  if (weights.weights != nullptr) return weights.block_weights[block];
  const std::int64_t rest = rows - block * kRowBlock;
  return static_cast<double>(rest < kRowBlock ? rest : kRowBlock);
}

template <class T>
TW_DEVICE double total_weight(const RowWeights<T>& weights, std::int64_t rows) {
  return weights.weights != nullptr ? *weights.total : static_cast<double>(rows);
}

// Weighted sums of z - shift and its square over this thread's rows of a row block; keep(row, quad)
// sees the elements. The shift, the first row of the block, makes a large mean harmless.
template <class T, class Keep>
TW_DEVICE void shifted_sums(const Matrix<const T>& z, const RowWeights<T>& weights,
                            std::int64_t block, int group, std::int64_t column, Quad<T>& s1,
                            Quad<T>& s2, Keep&& keep) {
  const std::int64_t first = block * kRowBlock;
  Quad<T> x[kRowsPerThread];
  TW_UNROLL
  for (int i = 0; i < kRowsPerThread; ++i) {
    const std::int64_t row = first + i * kRowGroups + group;
    if (row < z.rows) x[i] = load_quad(z, row, column);
  }
  const Quad<T> shift = load_quad(z, first, column);
  s1 = s2 = {};
  TW_UNROLL
  for (int i = 0; i < kRowsPerThread; ++i) {
    const std::int64_t row = first + i * kRowGroups + group;
    if (row >= z.rows) continue;
    const T weight = weights.weights != nullptr ? weights.weights[row] : T(1);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T d = x[i][j] - shift[j];
      const T weighted = d * weight;
      s1[j] += weighted;
      s2[j] = madd(weighted, d, s2[j]);
    }
    keep(row, x[i]);
  }
}

// The pair of a row block with these moments, around `shift`.
TW_DEVICE Pair around(double shift, double weight, double mean, double m2) {
  // Deviations of rows without weight may be anything, NaN included.
  if (weight == 0.0) return {0.0, 0.0};
  const double d = mean - shift;
  return {weight * d, madd(weight * d, d, m2)};
}

template <class T>
TW_DEVICE void write_statistics(const BatchStatistics<T>& to, std::int64_t column,
                                std::int64_t width, const Moments& moments) {
  const bool inside = column < width;
  const double variance = inside ? biased_variance(moments) : 0.0;
  const double mean = inside ? moments.mean : 0.0;
  if (to.batch_mean != nullptr) to.batch_mean[column] = mean;
  if (to.batch_var != nullptr) to.batch_var[column] = variance;
  to.mean[column] = static_cast<T>(mean);
  to.inv_std[column] = inside ? static_cast<T>(inverse_deviation(variance, to.eps)) : T(0);
}

// Partial results of row block b and column c at [b * pitch + c] of each half.
TW_DEVICE double* second_half(double* partials, std::int64_t row_blocks, std::int64_t pitch) {
  return partials + row_blocks * pitch;
}

template <class T, int kLanes>
TW_KERNEL_BOUNDS(kThreads, 1)
void column_statistics_kernel(const Matrix<const T> z, const RowWeights<T> weights,
                              const BatchStatistics<T> statistics, double* partials,
                              unsigned* tickets, const int column_tiles) {
  constexpr int kColumns = Place<kLanes>::kColumns;
  constexpr int kBlocks = Place<kLanes>::kBlocks;
  TW_SHARED(GroupSums<T>, sums);
  TW_SHARED(double[2 * kSlices * kColumns], slices);
  const std::int64_t row_blocks = row_blocks_of(z.rows);
  double* const means = partials;
  double* const squares = second_half(partials, row_blocks, z.pitch);
  const int tile = block_index().x % column_tiles;
  const std::int64_t first_column = std::int64_t{tile} * kColumns;
  const std::int64_t first_block = std::int64_t{block_index().x / column_tiles} * kBlocks;

  const Place<kLanes> place;
  const std::int64_t column = first_column + place.lane * kQuad;
  Quad<T> s1{};
  Quad<T> s2{};
  if (column < z.pitch && first_block + place.block < row_blocks) {
    shifted_sums(z, weights, first_block + place.block, place.group, column, s1, s2,
                 [](std::int64_t, const Quad<T>&) {});
  }
  store_group_sums<kLanes, T>(sums, place, s1, s2);
  sync_block();
  for_block_sums<kLanes, T>(sums, [&](int b, int c, double sum, double sum_of_squares) {
    const std::int64_t block = first_block + b;
    if (block >= row_blocks || first_column + c >= z.pitch) return;
    const double shift =
        static_cast<double>(z.data[block * kRowBlock * z.pitch + first_column + c]);
    const Moments moments =
        shifted_moments(block_weight(weights, block, z.rows), 0.0, shift, sum, sum_of_squares);
    means[block * z.pitch + first_column + c] = moments.mean;
    squares[block * z.pitch + first_column + c] = moments.m2;
  });

  const auto row_tiles = static_cast<unsigned>(ceil_div(row_blocks, kBlocks));
  if (!is_last_block(tickets + tile, row_tiles)) return;
  const double total = total_weight(weights, z.rows);
  merge_blocks<kColumns>(
      row_blocks, slices,
      [&](int c) {
        // Columns beyond the pitch repeat the last one.
        const std::int64_t at = first_column + c < z.pitch ? first_column + c : z.pitch - 1;
        const double shift = means[at];
        return [&, at, shift](std::int64_t block) {
          return around(shift, block_weight(weights, block, z.rows), means[block * z.pitch + at],
                        squares[block * z.pitch + at]);
        };
      },
      [&](int c, const Pair& sum) {
        if (first_column + c >= z.pitch) return;
        write_statistics(statistics, first_column + c, z.width,
                         shifted_moments(total, 0.0, means[first_column + c], sum.a, sum.b));
      });
}

// ---- Forward ------------------------------------------------------------------------------------

// What a thread needs of its four columns.
template <class T>
struct Columns {
  Quad<T> mean, inv_std, gamma, beta;

  TW_DEVICE Columns(const T* means, const T* inv_stds, const T* gammas, const T* betas,
                    std::int64_t place, std::int64_t column)
      : mean(load_quad(means + place)),
        inv_std(load_quad(inv_stds + place)),
        gamma(load_quad(gammas + column)),
        beta(load_quad(betas + column)) {}
  TW_DEVICE T xhat(T z, int j) const { return normalize(z, mean[j], inv_std[j]); }
  TW_DEVICE T pre(T z, int j) const { return scale_shift(xhat(z, j), gamma[j], beta[j]); }
};

template <class Phi, class T>
TW_DEVICE void apply_quad(const BatchNormApply<T>& problem, const Columns<T>& columns,
                          std::int64_t row, std::int64_t column, Quad<T> x) {
  const T parameter = static_cast<T>(problem.activation.parameter);
  TW_UNROLL
  for (int j = 0; j < kQuad; ++j) x[j] = columns.pre(x[j], j);
  if (problem.pre.present()) store_quad(problem.pre, row, column, x);
  TW_UNROLL
  for (int j = 0; j < kQuad; ++j) x[j] = Phi::value(x[j], parameter);
  store_quad(problem.y, row, column, x);
}

// The tile of a block in a pass over elements: `lanes` column quads of kRowBlock rows. The last
// rows come first: the pass before has left them in the cache.
struct ApplyTile {
  std::int64_t column, row;  // of this thread's first quad
  int step;                  // to its next row

  TW_DEVICE ApplyTile(std::int64_t rows, int column_tiles, int lanes)
      : column((std::int64_t{block_index().x % column_tiles} * lanes + thread_index().x % lanes) *
               kQuad),
        row((row_blocks_of(rows) - 1 - block_index().x / column_tiles) * kRowBlock +
            thread_index().x / lanes),
        step(kThreads / lanes) {}
};

// use(row, load(row)) for the rows that this thread takes of its tile, two loads at a time.
template <class Load, class Use>
TW_DEVICE void for_tile_rows(const ApplyTile& tile, std::int64_t rows, Load&& load, Use&& use) {
  constexpr int kAtOnce = 2;
  const int count = static_cast<int>(kRowBlock) / tile.step;
  for (int begin = 0; begin < count; begin += kAtOnce) {
    decltype(load(std::int64_t{})) loaded[kAtOnce];
    TW_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t row = tile.row + (begin + i) * tile.step;
      if (row < rows) loaded[i] = load(row);
    }
    TW_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t row = tile.row + (begin + i) * tile.step;
      if (row < rows) use(row, loaded[i]);
    }
  }
}

template <class T, class Phi>
TW_KERNEL_BOUNDS(kThreads, 2)
void batch_norm_kernel(const BatchNormApply<T> problem, const int column_tiles, const int lanes) {
  const std::int64_t rows = problem.y.rows;
  const ApplyTile tile(rows, column_tiles, lanes);
  if (tile.column >= problem.y.pitch) return;
  const Columns<T> columns(problem.mean, problem.inv_std, problem.gamma, problem.beta, tile.column,
                           tile.column);
  for_tile_rows(
      tile, rows, [&](std::int64_t row) { return load_quad(problem.z, row, tile.column); },
      [&](std::int64_t row, const Quad<T>& z) {
        apply_quad<Phi>(problem, columns, row, tile.column, z);
      });
}

// ---- Slabs --------------------------------------------------------------------------------------

// The dynamic shared memory of a block that keeps `blocks` row blocks of `matrices` slabs.
template <class T>
struct Slab {
  T* elements;       // [matrices][blocks * kRowBlock][kSlabColumns]
  double* partials;  // [2][blocks][kSlabColumns], read by the whole cluster
  double* slices;    // [2][kSlices][kSlabColumns]
  GroupSums<T>* sums;
  T* results;  // [2][kSlabColumns]
  int blocks;

  TW_HD static std::size_t bytes(int row_blocks, int matrices) {
    const std::size_t slab = static_cast<std::size_t>(row_blocks) * kSlabColumns;
    return slab * kRowBlock * static_cast<std::size_t>(matrices) * sizeof(T) +
           2 * slab * sizeof(double) + 2 * kSlices * kSlabColumns * sizeof(double) +
           sizeof(GroupSums<T>) + 2 * kSlabColumns * sizeof(T);
  }

  TW_DEVICE Slab(unsigned char* memory, int row_blocks, int matrices) : blocks(row_blocks) {
    const int slab = row_blocks * kSlabColumns;
    elements = reinterpret_cast<T*>(memory);
    partials = reinterpret_cast<double*>(elements + matrices * slab * static_cast<int>(kRowBlock));
    slices = partials + 2 * slab;
    sums = reinterpret_cast<GroupSums<T>*>(slices + 2 * kSlices * kSlabColumns);
    results = reinterpret_cast<T*>(sums + 1);
  }
  // Of row `row` of the whole matrix.
  TW_DEVICE T* element(int matrix, std::int64_t row, int lane) const {
    const std::int64_t own = row - std::int64_t{cluster_rank()} * blocks * kRowBlock;
    return elements + ((matrix * blocks * kRowBlock) + own) * kSlabColumns + lane * kQuad;
  }
  TW_DEVICE double* partial(int half, int block, int column) const {
    return partials + (half * blocks + block) * kSlabColumns + column;
  }
  // The partial result of a row block of the whole matrix, wherever in the cluster it is.
  TW_DEVICE double remote_partial(int half, std::int64_t block, int column) const {
    const int rank = static_cast<int>(block / blocks);
    const int own = static_cast<int>(block) - rank * blocks;
    return *map_to_rank(partial(half, own, column), rank);
  }
};

// sum(block, row block) for this thread's place in the row blocks of this block, Place::kBlocks of
// them at a time, then reduce(own block, row block, column, sum, sum).
template <class T, class Sum, class Reduce>
TW_DEVICE void for_slab_blocks(const Slab<T>& slab, std::int64_t row_blocks, Sum&& sum,
                               Reduce&& reduce) {
  constexpr int kBlocks = Place<kNarrowLanes>::kBlocks;
  const Place<kNarrowLanes> place;
  const std::int64_t first = std::int64_t{cluster_rank()} * slab.blocks;
  for (int begin = 0; begin < slab.blocks; begin += kBlocks) {
    const int own = begin + place.block;
    Quad<T> a{};
    Quad<T> b{};
    if (own < slab.blocks && first + own < row_blocks) sum(place, first + own, a, b);
    store_group_sums<kNarrowLanes, T>(*slab.sums, place, a, b);
    sync_block();
    for_block_sums<kNarrowLanes, T>(*slab.sums, [&](int block, int column, double x, double y) {
      const int at = begin + block;
      if (at < slab.blocks && first + at < row_blocks) reduce(at, first + at, column, x, y);
    });
    sync_block();
  }
}

// f(row, lane) for this thread's elements of the slab.
template <class T, class F>
TW_DEVICE void for_slab_rows(const Slab<T>& slab, std::int64_t rows, F&& f) {
  const Place<kNarrowLanes> place;
  const std::int64_t first = std::int64_t{cluster_rank()} * slab.blocks * kRowBlock;
  for (int block = place.block; block < slab.blocks; block += Place<kNarrowLanes>::kBlocks) {
    TW_UNROLL
    for (int i = 0; i < kRowsPerThread; ++i) {
      const std::int64_t row = first + block * kRowBlock + i * kRowGroups + place.group;
      if (row < rows) f(row, place.lane);
    }
  }
}

template <class T, class Phi>
TW_KERNEL_BOUNDS(kThreads, kBlocksPerMultiprocessor<T>)
void batch_norm_slab_kernel(const BatchNormApply<T> problem, const RowWeights<T> weights,
                            const BatchStatistics<T> statistics, const int blocks) {
  const Slab<T> slab(dynamic_shared<unsigned char>(), blocks, 1);
  const Matrix<const T>& z = problem.z;
  const std::int64_t row_blocks = row_blocks_of(z.rows);
  const std::int64_t first_column = std::int64_t{block_index().x / cluster_size()} * kSlabColumns;
  const auto inside = [&](int c) { return first_column + c < z.pitch; };

  for_slab_blocks(
      slab, row_blocks,
      [&](const Place<kNarrowLanes>& place, std::int64_t block, Quad<T>& s1, Quad<T>& s2) {
        if (!inside(place.lane * kQuad)) return;
        shifted_sums(z, weights, block, place.group, first_column + place.lane * kQuad, s1, s2,
                     [&](std::int64_t row, const Quad<T>& x) {
                       store_quad(slab.element(0, row, place.lane), x);
                     });
      },
      [&](int own, std::int64_t block, int column, double sum, double sum_of_squares) {
        if (!inside(column)) return;
        const double shift =
            static_cast<double>(z.data[block * kRowBlock * z.pitch + first_column + column]);
        const Moments moments =
            shifted_moments(block_weight(weights, block, z.rows), 0.0, shift, sum, sum_of_squares);
        *slab.partial(0, own, column) = moments.mean;
        *slab.partial(1, own, column) = moments.m2;
      });
  sync_cluster();

  const double total = total_weight(weights, z.rows);
  merge_blocks<kSlabColumns>(
      row_blocks, slab.slices,
      [&](int c) {
        const int at = inside(c) ? c : 0;
        const double shift = slab.remote_partial(0, 0, at);
        return [&, at, shift](std::int64_t block) {
          return around(shift, block_weight(weights, block, z.rows),
                        slab.remote_partial(0, block, at), slab.remote_partial(1, block, at));
        };
      },
      [&](int c, const Pair& sum) {
        if (!inside(c)) return;
        const Moments moments =
            shifted_moments(total, 0.0, slab.remote_partial(0, 0, c), sum.a, sum.b);
        const double variance = biased_variance(moments);
        slab.results[c] = static_cast<T>(moments.mean);
        slab.results[kSlabColumns + c] =
            static_cast<T>(inverse_deviation(variance, statistics.eps));
        if (cluster_rank() == 0) write_statistics(statistics, first_column + c, z.width, moments);
      });
  arrive_cluster();  // the memory of the others is not read any more
  sync_block();
  const int lane = thread_index().x % kNarrowLanes;
  const std::int64_t column = first_column + lane * kQuad;
  if (inside(lane * kQuad)) {
    const Columns<T> columns(slab.results, slab.results + kSlabColumns, problem.gamma, problem.beta,
                             lane * kQuad, column);
    for_slab_rows(slab, z.rows, [&](std::int64_t row, int own_lane) {
      apply_quad<Phi>(problem, columns, row, column, load_quad(slab.element(0, row, own_lane)));
    });
  }
  wait_cluster();
}

// ---- Backward -----------------------------------------------------------------------------------

// dy phi'(z), the activation's argument computed again as the forward pass did.
template <class Phi, class T>
TW_DEVICE Quad<T> differentiated(const Columns<T>& columns, const Quad<T>& z, Quad<T> dy,
                                 T parameter) {
  if constexpr (!std::is_same_v<Phi, Identity>) {
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T pre = columns.pre(z[j], j);
      const T at =
          Phi::backward_needs == ActivationNeeds::output ? Phi::value(pre, parameter) : pre;
      dy[j] = dy[j] * Phi::derivative(at, parameter);
    }
  }
  return dy;
}

// Sums of g and g xhat over this thread's rows of a row block; keep(row, z, g) sees the elements.
template <class Phi, class T, class Keep>
TW_DEVICE void gradient_sums(const BatchNormBackward<T>& problem, const Columns<T>& columns,
                             std::int64_t block, int group, std::int64_t column, Quad<T>& sum_g,
                             Quad<T>& sum_g_xhat, Keep&& keep) {
  constexpr int kAtOnce = sizeof(T) == 4 ? 4 : 2;
  const T parameter = static_cast<T>(problem.activation.parameter);
  const std::int64_t first = block * kRowBlock + group;
  sum_g = sum_g_xhat = {};
  for (int begin = 0; begin < kRowsPerThread; begin += kAtOnce) {
    Quad<T> z[kAtOnce];
    Quad<T> dy[kAtOnce];
    TW_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t row = first + (begin + i) * kRowGroups;
      if (row >= problem.z.rows) continue;
      z[i] = load_quad(problem.z, row, column);
      dy[i] = load_quad(problem.dy, row, column);
    }
    TW_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int64_t row = first + (begin + i) * kRowGroups;
      if (row >= problem.z.rows) continue;
      const Quad<T> g = differentiated<Phi>(columns, z[i], dy[i], parameter);
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        sum_g[j] += g[j];
        sum_g_xhat[j] = madd(g[j], columns.xhat(z[i][j], j), sum_g_xhat[j]);
      }
      keep(row, z[i], g);
    }
  }
}

// The column's gradients from the sums over all rows.
template <class T>
TW_DEVICE void write_gradients(const BatchNormBackward<T>& problem, std::int64_t column,
                               const Pair& sum) {
  if (column >= problem.z.pitch) return;
  const bool inside = column < problem.z.width;
  const T dbeta = inside ? static_cast<T>(sum.a) : T(0);
  const T dgamma = inside ? static_cast<T>(sum.b) : T(0);
  T& beta = problem.dbeta[column];
  T& gamma = problem.dgamma[column];
  beta = problem.accumulate_parameters ? beta + dbeta : dbeta;
  gamma = problem.accumulate_parameters ? gamma + dgamma : dgamma;
}

// dz of one quad; the means of g and g xhat are not read for frozen statistics.
template <class T>
TW_DEVICE void store_gradient(const BatchNormBackward<T>& problem, const Columns<T>& columns,
                              const Quad<T>& mean_g, const Quad<T>& mean_g_xhat, std::int64_t row,
                              std::int64_t column, const Quad<T>& z, const Quad<T>& g) {
  const RowWeights<T>& weights = problem.weights;
  const T weight = problem.frozen ? T(0) : weights.weights != nullptr ? weights.weights[row] : T(1);
  Quad<T> dz{};
  if (problem.accumulate) dz = load_quad(problem.dz, row, column);
  TW_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const T value = problem.frozen
                        ? columns.gamma[j] * columns.inv_std[j] * g[j]
                        : normalize_backward(g[j], columns.xhat(z[j], j), weight, mean_g[j],
                                             mean_g_xhat[j], columns.gamma[j], columns.inv_std[j]);
    dz[j] = problem.accumulate ? dz[j] + value : value;
  }
  store_quad(problem.dz, row, column, dz);
}

template <class T, class Phi, int kLanes>
TW_KERNEL_BOUNDS(kThreads, kBlocksPerMultiprocessor<T>)
void backward_sums_kernel(const BatchNormBackward<T> problem, double* partials, T* means,
                          unsigned* tickets, const int column_tiles) {
  constexpr int kColumns = Place<kLanes>::kColumns;
  constexpr int kBlocks = Place<kLanes>::kBlocks;
  TW_SHARED(GroupSums<T>, sums);
  TW_SHARED(double[2 * kSlices * kColumns], slices);
  const Matrix<const T>& z = problem.z;
  const std::int64_t row_blocks = row_blocks_of(z.rows);
  double* const sums_g = partials;
  double* const sums_g_xhat = second_half(partials, row_blocks, z.pitch);
  const int tile = block_index().x % column_tiles;
  const std::int64_t first_column = std::int64_t{tile} * kColumns;
  const std::int64_t first_block = std::int64_t{block_index().x / column_tiles} * kBlocks;

  const Place<kLanes> place;
  const std::int64_t column = first_column + place.lane * kQuad;
  Quad<T> g{};
  Quad<T> g_xhat{};
  if (column < z.pitch && first_block + place.block < row_blocks) {
    const Columns<T> columns(problem.mean, problem.inv_std, problem.gamma, problem.beta, column,
                             column);
    gradient_sums<Phi>(problem, columns, first_block + place.block, place.group, column, g, g_xhat,
                       [](std::int64_t, const Quad<T>&, const Quad<T>&) {});
  }
  store_group_sums<kLanes, T>(sums, place, g, g_xhat);
  sync_block();
  for_block_sums<kLanes, T>(sums, [&](int b, int c, double sum_g, double sum_g_xhat) {
    const std::int64_t block = first_block + b;
    if (block >= row_blocks || first_column + c >= z.pitch) return;
    sums_g[block * z.pitch + first_column + c] = sum_g;
    sums_g_xhat[block * z.pitch + first_column + c] = sum_g_xhat;
  });

  const auto row_tiles = static_cast<unsigned>(ceil_div(row_blocks, kBlocks));
  if (!is_last_block(tickets + tile, row_tiles)) return;
  const double total = total_weight(problem.weights, z.rows);
  merge_blocks<kColumns>(
      row_blocks, slices,
      [&](int c) {
        const std::int64_t at = first_column + c < z.pitch ? first_column + c : z.pitch - 1;
        return [&, at](std::int64_t block) {
          return Pair{sums_g[block * z.pitch + at], sums_g_xhat[block * z.pitch + at]};
        };
      },
      [&](int c, const Pair& sum) {
        if (first_column + c >= z.pitch) return;
        write_gradients(problem, first_column + c, sum);
        means[first_column + c] = static_cast<T>(sum.a / total);
        means[z.pitch + first_column + c] = static_cast<T>(sum.b / total);
      });
}

template <class T>
struct QuadPair {
  Quad<T> z, dy;
};

template <class T, class Phi>
TW_KERNEL_BOUNDS(kThreads, kBlocksPerMultiprocessor<T>)
void batch_norm_backward_kernel(const BatchNormBackward<T> problem, const T* means,
                                const int column_tiles, const int lanes) {
  const std::int64_t rows = problem.dz.rows;
  const ApplyTile tile(rows, column_tiles, lanes);
  const std::int64_t column = tile.column;
  if (column >= problem.dz.pitch) return;
  const T parameter = static_cast<T>(problem.activation.parameter);
  const Columns<T> columns(problem.mean, problem.inv_std, problem.gamma, problem.beta, column,
                           column);
  const Quad<T> mean_g = load_quad(means + column);
  const Quad<T> mean_g_xhat = load_quad(means + problem.z.pitch + column);
  for_tile_rows(
      tile, rows,
      [&](std::int64_t row) {
        return QuadPair<T>{load_quad(problem.z, row, column), load_quad(problem.dy, row, column)};
      },
      [&](std::int64_t row, const QuadPair<T>& at) {
        const Quad<T> g = differentiated<Phi>(columns, at.z, at.dy, parameter);
        store_gradient(problem, columns, mean_g, mean_g_xhat, row, column, at.z, g);
      });
}

template <class T, class Phi>
TW_KERNEL_BOUNDS(kThreads, kBlocksPerMultiprocessor<T>)
void backward_slab_kernel(const BatchNormBackward<T> problem, const int blocks) {
  const Slab<T> slab(dynamic_shared<unsigned char>(), blocks, 2);
  const Matrix<const T>& z = problem.z;
  const std::int64_t row_blocks = row_blocks_of(z.rows);
  const std::int64_t first_column = std::int64_t{block_index().x / cluster_size()} * kSlabColumns;
  const int lane = thread_index().x % kNarrowLanes;
  const std::int64_t column = first_column + lane * kQuad;
  const bool inside = column < z.pitch;
  // Columns beyond the pitch read those of the first quad and store nothing.
  const std::int64_t safe_column = inside ? column : first_column;
  const Columns<T> columns(problem.mean, problem.inv_std, problem.gamma, problem.beta, safe_column,
                           safe_column);

  for_slab_blocks(
      slab, row_blocks,
      [&](const Place<kNarrowLanes>& place, std::int64_t block, Quad<T>& g, Quad<T>& g_xhat) {
        if (!inside) return;
        gradient_sums<Phi>(problem, columns, block, place.group, column, g, g_xhat,
                           [&](std::int64_t row, const Quad<T>& x, const Quad<T>& gradient) {
                             store_quad(slab.element(0, row, lane), x);
                             store_quad(slab.element(1, row, lane), gradient);
                           });
      },
      [&](int own, std::int64_t, int c, double sum_g, double sum_g_xhat) {
        *slab.partial(0, own, c) = sum_g;
        *slab.partial(1, own, c) = sum_g_xhat;
      });
  sync_cluster();

  const double total = total_weight(problem.weights, z.rows);
  merge_blocks<kSlabColumns>(
      row_blocks, slab.slices,
      [&](int c) {
        return [&, c](std::int64_t block) {
          return Pair{slab.remote_partial(0, block, c), slab.remote_partial(1, block, c)};
        };
      },
      [&](int c, const Pair& sum) {
        slab.results[c] = static_cast<T>(sum.a / total);
        slab.results[kSlabColumns + c] = static_cast<T>(sum.b / total);
        if (cluster_rank() == 0) write_gradients(problem, first_column + c, sum);
      });
  arrive_cluster();  // the memory of the others is not read any more
  sync_block();
  if (inside) {
    const Quad<T> mean_g = load_quad(slab.results + lane * kQuad);
    const Quad<T> mean_g_xhat = load_quad(slab.results + kSlabColumns + lane * kQuad);
    for_slab_rows(slab, z.rows, [&](std::int64_t row, int own_lane) {
      store_gradient(problem, columns, mean_g, mean_g_xhat, row, column,
                     load_quad(slab.element(0, row, own_lane)),
                     load_quad(slab.element(1, row, own_lane)));
    });
  }
  wait_cluster();
}

// ---- Running statistics -------------------------------------------------------------------------

template <class T>
struct RunningTable {
  RunningStatistics<T> layers[kRunningStatistics];
};

// A block per layer.
template <class T>
TW_KERNEL void running_statistics_kernel(TW_GRID_CONSTANT const RunningTable<T> table,
                                         const StepState* state) {
  if (state != nullptr && !updates_model(*state)) return;
  const RunningStatistics<T>& layer = table.layers[block_index().x];
  const std::int64_t batches = *layer.batches + 1;
  const double momentum =
      layer.momentum < 0.0 ? 1.0 / static_cast<double>(batches) : layer.momentum;
  const double total = layer.total_weight != nullptr ? *layer.total_weight : layer.rows;
  const double unbias = total / (total - 1.0);
  for (std::int64_t c = thread_index().x; c < layer.width; c += kThreads) {
    layer.mean[c] = static_cast<T>(
        running_average(static_cast<double>(layer.mean_in[c]), layer.batch_mean[c], momentum));
    layer.var[c] = static_cast<T>(running_average(static_cast<double>(layer.var_in[c]),
                                                  unbias * layer.batch_var[c], momentum));
  }
  sync_block();
  if (thread_index().x == 0) *layer.batches = batches;
}

template <class T>
struct FoldTable {
  BatchNormFold<T> layers[kBatchNormFolds];
};

// A row of blocks per layer.
template <class T>
TW_KERNEL void fold_batch_norm_kernel(TW_GRID_CONSTANT const FoldTable<T> table) {
  const BatchNormFold<T>& layer = table.layers[block_index().y];
  const std::int64_t pitch = pitch_of(layer.width);
  for (std::int64_t c = global_thread_index(); c < pitch; c += global_thread_count()) {
    const bool inside = c < layer.width;
    const double mean = inside ? static_cast<double>(layer.running_mean[c]) : 0.0;
    const double inv_std =
        inside ? inverse_deviation(static_cast<double>(layer.running_var[c]), layer.eps) : 0.0;
    if (layer.mean != nullptr) layer.mean[c] = static_cast<T>(mean);
    if (layer.inv_std != nullptr) layer.inv_std[c] = static_cast<T>(inv_std);
    if (layer.scale == nullptr) continue;
    const double scale = inside ? static_cast<double>(layer.gamma[c]) * inv_std : 0.0;
    const double bias = inside && layer.bias != nullptr ? static_cast<double>(layer.bias[c]) : 0.0;
    const double beta = inside ? static_cast<double>(layer.beta[c]) : 0.0;
    layer.scale[c] = static_cast<T>(scale);
    layer.shift[c] = static_cast<T>(beta + (bias - mean) * scale);
  }
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

namespace {

// f(integral constant, column tiles) with the lanes of the tiles for that pitch.
template <class F>
void with_lanes(std::int64_t pitch, F&& f) {
  const bool wide = pitch >= kWideLanes * kQuad;
  const std::int64_t tiles = ceil_div(pitch, (wide ? kWideLanes : kNarrowLanes) * kQuad);
  if (wide) {
    f(std::integral_constant<int, kWideLanes>{}, static_cast<int>(tiles));
  } else {
    f(std::integral_constant<int, kNarrowLanes>{}, static_cast<int>(tiles));
  }
}

// Sums take a ticket per column tile.
void expect_tickets(const Scratch& scratch, int column_tiles, const char* operation) {
  expect<InternalError>(column_tiles <= scratch.ticket_count, "[", operation, "] expected ",
                        column_tiles, " tickets, got ", scratch.ticket_count);
}

// Blocks that sum: tiles of Place::kBlocks row blocks.
template <int kLanes>
unsigned sum_blocks(std::int64_t rows, int column_tiles) {
  return static_cast<unsigned>(ceil_div(row_blocks_of(rows), Place<kLanes>::kBlocks) *
                               column_tiles);
}

// Partial results of row blocks, two per column.
std::size_t partial_bytes(std::int64_t rows, std::int64_t width) {
  return 2 * sizeof(double) * static_cast<std::size_t>(row_blocks_of(rows) * pitch_of(width));
}

// How a matrix is cut into slabs.
struct SlabShape {
  int cluster = 0;  // 0: a slab does not fit
  int blocks = 0;   // row blocks per block of the cluster
  std::size_t bytes = 0;
};

int attribute(cudaDeviceAttr which, const char* operation) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), operation);
  check(cudaDeviceGetAttribute(&value, which, device), operation);
  return value;
}

// A block takes at least kBlocks row blocks, which are one pass of its threads. Unless it is asked
// for, two blocks have to fit on a multiprocessor: one loads while the other stores.
template <class T>
SlabShape slab_shape(std::int64_t rows, int matrices, BatchNormPath path, const char* operation) {
  constexpr int kLargestCluster = 8;
  if (path == BatchNormPath::kTwoPasses) return {};
  const bool has_clusters = compiled_architecture(operation) >= 90;
  auto limit =
      static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, operation));
  if (path == BatchNormPath::kAutomatic) limit /= 2;
  const std::int64_t row_blocks = row_blocks_of(rows);
  SlabShape shape;
  for (int cluster = 1; cluster <= (has_clusters ? kLargestCluster : 1); cluster *= 2) {
    const std::int64_t blocks = ceil_div(row_blocks, cluster);
    if (blocks > 1024) continue;
    const std::size_t bytes = Slab<T>::bytes(static_cast<int>(blocks), matrices);
    if (bytes <= limit) shape = {cluster, static_cast<int>(blocks), bytes};
    if (shape.cluster > 0 && blocks <= Place<kNarrowLanes>::kBlocks) break;
  }
  return shape;
}

// Launches the slab kernel where it fits; otherwise answers false, or throws when it was asked for.
template <class T, class... Parameters>
bool launch_slab(void (*kernel)(Parameters...), const SlabShape& shape, std::int64_t pitch,
                 BatchNormPath path, const char* operation, cudaStream_t stream,
                 std::type_identity_t<Parameters>... arguments) {
  if (shape.cluster > 0) {
    const auto slabs = static_cast<unsigned>(ceil_div(pitch, kSlabColumns));
    const LaunchConfig config{.operation = operation,
                              .grid = slabs * static_cast<unsigned>(shape.cluster),
                              .block = kThreads,
                              .dynamic_shared = shape.bytes,
                              .stream = stream,
                              .cluster = shape.cluster};
    if (shape.cluster == 1 || max_resident_blocks(kernel, config) > 0) {
      launch(kernel, config, arguments...);
      return true;
    }
  }
  expect<DeviceError>(path != BatchNormPath::kSlab, "[", operation,
                      "] expected a slab of columns to fit into shared memory, got too many rows; "
                      "use the automatic path");
  return false;
}

}  // namespace

std::size_t column_statistics_scratch_bytes(std::int64_t rows, std::int64_t width) {
  return partial_bytes(rows, width);
}

template <class T>
void column_statistics(const Matrix<const T>& z, const RowWeights<T>& weights,
                       const BatchStatistics<T>& statistics, const Scratch& scratch,
                       cudaStream_t stream) {
  with_lanes(z.pitch, [&](auto lanes, int column_tiles) {
    expect_tickets(scratch, column_tiles, kStatisticsOperation);
    constexpr int kLanes = decltype(lanes)::value;
    launch(column_statistics_kernel<T, kLanes>,
           {.operation = kStatisticsOperation,
            .grid = sum_blocks<kLanes>(z.rows, column_tiles),
            .block = kThreads,
            .stream = stream},
           z, weights, statistics, static_cast<double*>(scratch.memory), scratch.tickets,
           column_tiles);
  });
}

template <class T>
void batch_norm(const BatchNormApply<T>& problem, cudaStream_t stream) {
  dispatch_activation(problem.activation.id, [&](auto phi) {
    with_lanes(problem.y.pitch, [&](auto lanes, int column_tiles) {
      launch(batch_norm_kernel<T, decltype(phi)>,
             {.operation = kForwardOperation,
              .grid = static_cast<unsigned>(row_blocks_of(problem.y.rows) * column_tiles),
              .block = kThreads,
              .stream = stream},
             problem, column_tiles, lanes);
    });
  });
}

template <class T>
void batch_norm_forward(const BatchNormApply<T>& problem, const RowWeights<T>& weights,
                        const BatchStatistics<T>& statistics, const Scratch& scratch,
                        cudaStream_t stream, BatchNormPath path) {
  const SlabShape shape = slab_shape<T>(problem.z.rows, 1, path, kForwardOperation);
  const bool launched = dispatch_activation(problem.activation.id, [&](auto phi) {
    return launch_slab<T>(batch_norm_slab_kernel<T, decltype(phi)>, shape, problem.z.pitch, path,
                          kForwardOperation, stream, problem, weights, statistics, shape.blocks);
  });
  if (launched) return;
  column_statistics(problem.z, weights, statistics, scratch, stream);
  BatchNormApply<T> apply = problem;
  apply.mean = statistics.mean;
  apply.inv_std = statistics.inv_std;
  batch_norm(apply, stream);
}

std::size_t batch_norm_backward_scratch_bytes(std::int64_t rows, std::int64_t width) {
  return partial_bytes(rows, width) +
         2 * sizeof(double) * static_cast<std::size_t>(pitch_of(width));
}

template <class T>
void batch_norm_backward(const BatchNormBackward<T>& problem, const Scratch& scratch,
                         cudaStream_t stream, BatchNormPath path) {
  const Matrix<const T>& z = problem.z;
  if (!problem.dz.present()) path = BatchNormPath::kTwoPasses;
  const SlabShape shape = slab_shape<T>(z.rows, 2, path, kBackwardOperation);
  auto* const partials = static_cast<double*>(scratch.memory);
  T* const means = reinterpret_cast<T*>(partials + 2 * row_blocks_of(z.rows) * z.pitch);
  dispatch_activation(problem.activation.id, [&](auto phi) {
    using Phi = decltype(phi);
    if (launch_slab<T>(backward_slab_kernel<T, Phi>, shape, z.pitch, path, kBackwardOperation,
                       stream, problem, shape.blocks)) {
      return;
    }
    with_lanes(z.pitch, [&](auto lanes, int column_tiles) {
      expect_tickets(scratch, column_tiles, kBackwardOperation);
      constexpr int kLanes = decltype(lanes)::value;
      LaunchConfig config{.operation = kBackwardOperation,
                          .grid = sum_blocks<kLanes>(z.rows, column_tiles),
                          .block = kThreads,
                          .stream = stream};
      launch(backward_sums_kernel<T, Phi, kLanes>, config, problem, partials, means,
             scratch.tickets, column_tiles);
      if (!problem.dz.present()) return;
      config.grid = static_cast<unsigned>(row_blocks_of(z.rows) * column_tiles);
      launch(batch_norm_backward_kernel<T, Phi>, config, problem, means, column_tiles, kLanes);
    });
  });
}

template <class T>
void update_running_statistics(const RunningStatistics<T>* layers, int count,
                               const StepState* state, cudaStream_t stream) {
  RunningTable<T> table{};
  std::copy_n(layers, count, table.layers);
  launch(running_statistics_kernel<T>,
         {.operation = "running_statistics",
          .grid = static_cast<unsigned>(count),
          .block = kThreads,
          .stream = stream},
         table, state);
}

template <class T>
void fold_batch_norm(const BatchNormFold<T>* layers, int count, cudaStream_t stream) {
  FoldTable<T> table{};
  std::copy_n(layers, count, table.layers);
  std::int64_t widest = 1;
  for (int i = 0; i < count; ++i) widest = std::max(widest, layers[i].width);
  launch(fold_batch_norm_kernel<T>,
         {.operation = "fold_batch_norm",
          .grid =
              dim3(static_cast<unsigned>(ceil_div(widest, kThreads)), static_cast<unsigned>(count)),
          .block = kThreads,
          .stream = stream},
         table);
}

#define TW_INSTANTIATE(T)                                                                      \
  template void column_statistics(const Matrix<const T>&, const RowWeights<T>&,                \
                                  const BatchStatistics<T>&, const Scratch&, cudaStream_t);    \
  template void batch_norm(const BatchNormApply<T>&, cudaStream_t);                            \
  template void batch_norm_forward(const BatchNormApply<T>&, const RowWeights<T>&,             \
                                   const BatchStatistics<T>&, const Scratch&, cudaStream_t,    \
                                   BatchNormPath);                                             \
  template void batch_norm_backward(const BatchNormBackward<T>&, const Scratch&, cudaStream_t, \
                                    BatchNormPath);                                            \
  template void update_running_statistics(const RunningStatistics<T>*, int, const StepState*,  \
                                          cudaStream_t);                                       \
  template void fold_batch_norm(const BatchNormFold<T>*, int, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
