// Launchers of the matrix products: how a problem is cut, where its scratch memory lies. Also the
// column sums and the planes of a matrix on their own.
#include <algorithm>

#include "core/error.h"
#include "cuda/gemm.h"
#include "cuda/gemm_epilogue.h"
#include "cuda/gemm_operands.h"
#include "cuda/gemm_plan.h"

namespace thalweg::cuda {
namespace {

// Blocks that fill a large GPU; more of them hide each other's waits.
constexpr std::int64_t kFullGrid = 128;
constexpr int kNarrowOutputs = 16;
// Row blocks and parts of the batch that one block merges, where tickets allow.
constexpr std::int64_t kMergedBlocks = 32;
constexpr std::int64_t kMergedParts = 8;
constexpr std::int64_t kMaxParts = 64;
constexpr std::int64_t kMinPartRows = 256;

// Column sums on their own: a block takes a row block of so many columns, a thread four of them.
constexpr int kSumColumns = 128;
constexpr int kSumThreads = 256;
constexpr int kSplitThreads = 256;

// ---- Kernels ------------------------------------------------------------------------------------

template <class T>
struct ColumnSumsTask {
  ColumnSums<T> problem;
  RowMerge merge;
};

template <class T>
TW_KERNEL_BOUNDS(kSumThreads, 2)
void column_sums_kernel(TW_GRID_CONSTANT const ColumnSumsTask<T> task) {
  constexpr int kQuads = kSumColumns / kQuad;
  constexpr int kLanes = kSumThreads / kQuads;  // rows at the same time
  TW_SHARED(T[kLanes * kSumColumns], partial);
  const Matrix<const T>& x = task.problem.x;
  const auto tiles_n = static_cast<int>((x.pitch + kSumColumns - 1) / kSumColumns);
  const int tile_n = block_index().x % tiles_n;
  const int row_block = block_index().x / tiles_n;
  const int first_column = tile_n * kSumColumns;
  const std::int64_t row = row_block * kRowBlock;
  const std::int64_t rows = x.rows - row < kRowBlock ? x.rows - row : kRowBlock;

  const int lane = thread_index().x / kQuads;
  const int column = thread_index().x % kQuads * kQuad;
  Quad<T> own = {};
  if (first_column + column < x.pitch) {
    for (std::int64_t r = lane; r < rows; r += kLanes) {
      own = sum(own, load_quad(x, row + r, first_column + column));
    }
  }
  store_quad(partial + lane * kSumColumns + column, own);
  sync_block();
  const int c = thread_index().x;
  if (c < kSumColumns && first_column + c < task.merge.pitch) {
    T total = partial[c];
    for (int i = 1; i < kLanes; ++i) total += partial[i * kSumColumns + c];
    task.merge.blocks[row_block * task.merge.pitch + first_column + c] = static_cast<double>(total);
  }
  using S = Slab<T, static_cast<int>(kRowBlock), kSumColumns, kSumThreads>;
  merge_column_sums<S>(task.merge, tile_n, row_block, task.problem.sums, x.width,
                       task.problem.accumulate);
}

TW_KERNEL_BOUNDS(kSplitThreads, 4)
void split_planes_kernel(const Matrix<float> matrix) {
  const std::int64_t quads = quads_of(matrix);
  for (std::int64_t i = global_thread_index(); i < matrix.rows * quads;
       i += global_thread_count()) {
    const std::int64_t row = i / quads;
    const std::int64_t column = i % quads * kQuad;
    store_quad(matrix, row, column, load_quad(matrix, row, column));
  }
}

// ---- Scratch memory -----------------------------------------------------------------------------

// Gives parts of scratch memory, or counts them when there is none yet.
class Cursor {
 public:
  Cursor() = default;
  explicit Cursor(const Scratch& scratch) : base_(scratch.memory), tickets_(scratch.tickets) {}

  template <class T>
  T* take(std::int64_t count) {
    char* const at = base_ ? static_cast<char*>(base_) + bytes_ : nullptr;
    bytes_ += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(T)), 16));
    return reinterpret_cast<T*>(at);
  }
  unsigned* take_tickets(std::int64_t count) {
    unsigned* const at = tickets_ ? tickets_ + taken_ : nullptr;
    taken_ += count;
    return at;
  }
  std::int64_t tickets_taken() const { return taken_; }
  std::int64_t tickets_left() const { return kTickets - taken_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* base_ = nullptr;
  unsigned* tickets_ = nullptr;
  std::size_t bytes_ = 0;
  std::int64_t taken_ = 0;
};

// `items` doubles per row block and column, and `group_items` per group and column. Room for the
// most groups that fewer rows may have, too.
RowMerge plan_merge(Cursor& cursor, std::int64_t rows, std::int64_t pitch, int items,
                    int group_items, std::int64_t tiles_n, std::int64_t tickets) {
  RowMerge merge;
  const std::int64_t blocks = row_blocks_of(rows);
  const std::int64_t most_groups = std::max<std::int64_t>(tickets / tiles_n - 1, 1);
  // Even, so that a tile of two row blocks lies in one group.
  const std::int64_t per_group =
      std::max(kMergedBlocks, round_up(ceil_div(blocks, most_groups), 2));
  merge.pitch = pitch;
  merge.block_count = static_cast<int>(blocks);
  merge.blocks_per_group = static_cast<int>(per_group);
  merge.group_count = static_cast<int>(ceil_div(blocks, per_group));
  merge.blocks = cursor.take<double>(blocks * items * pitch);
  merge.groups = cursor.take<double>(ceil_div(blocks, kMergedBlocks) * group_items * pitch);
  merge.tickets = cursor.take_tickets(tiles_n * tickets_of_merge(merge.group_count));
  return merge;
}

// ---- Tiles --------------------------------------------------------------------------------------

Tiling cut(TileShape shape, std::int64_t rows, std::int64_t columns, bool weight_gradient = false) {
  Tiling tiling{.shape = shape, .rows = 64, .columns = 64};
  if (shape == TileShape::kLarge) tiling.rows = tiling.columns = 128;
  if (shape == TileShape::kNarrow) {
    tiling.rows = weight_gradient ? kNarrowOutputs : 128;
    tiling.columns = weight_gradient ? 128 : kNarrowOutputs;
  }
  tiling.count_m = static_cast<int>(ceil_div(rows, tiling.rows));
  tiling.count_n = static_cast<int>(ceil_div(columns, tiling.columns));
  return tiling;
}

// Large tiles when they fill the GPU, small ones otherwise.
template <class T>
TileShape choose_square(std::int64_t rows, std::int64_t columns, std::int64_t parts = 1) {
  const bool fills = ceil_div(rows, 128) * ceil_div(columns, 128) * parts >= kFullGrid;
  return std::is_same_v<T, float> && fills ? TileShape::kLarge : TileShape::kSmall;
}

template <class T>
Tiling tiling_of(const DenseForward<T>& p) {
  const std::int64_t rows = p.x.rows;
  const std::int64_t columns = std::max(pitch_of(p.weight.rows), p.y.pitch);
  TileShape shape = p.tile;
  if (shape == TileShape::kAutomatic) {
    if (columns <= kNarrowOutputs) {
      shape = TileShape::kNarrow;
    } else if (p.takes_loss && columns > 64) {
      shape = TileShape::kLarge;  // a tile holds whole rows
    } else {
      shape = choose_square<T>(rows, columns);
    }
  }
  return cut(shape, rows, columns);
}

template <class T>
Tiling tiling_of(const DenseInputGradient<T>& p) {
  TileShape shape = p.tile;
  if (shape == TileShape::kAutomatic) shape = choose_square<T>(p.dx.rows, p.dx.pitch);
  return cut(shape, p.dx.rows, p.dx.pitch);
}

template <class T>
Tiling tiling_of(const DenseWeightGradient<T>& p, std::int64_t most_parts) {
  TileShape shape = p.tile;
  if (shape == TileShape::kAutomatic) {
    if (p.dw.rows <= kNarrowOutputs) {
      shape = TileShape::kNarrow;
    } else if (p.dw.rows <= 64 || p.dw.pitch <= 64) {
      shape = TileShape::kSmall;
    } else {
      shape = choose_square<T>(p.dw.rows, p.dw.pitch, most_parts);
    }
  }
  return cut(shape, p.dw.rows, p.dw.pitch, true);
}

// ---- Tasks --------------------------------------------------------------------------------------

template <class T>
ForwardTask<T> plan(const DenseForward<T>& p, Cursor& cursor) {
  ForwardTask<T> task{
      .problem = p, .tiling = tiling_of(p), .statistics = {}, .loss = {}, .bias = {}};
  const std::int64_t rows = p.x.rows;
  const std::int64_t pitch = pitch_of(p.weight.rows);
  constexpr std::int64_t kLossTickets = kTickets / 8;
  if (p.takes_loss) {
    task.loss = plan_merge(cursor, rows, 4, 1, 1, 1, kLossTickets);
    if (p.loss_bias_gradient) {
      task.bias = plan_merge(cursor, rows, pitch, 1, 1, 1, kLossTickets);
    }
  }
  if (p.takes_statistics) {
    task.statistics =
        plan_merge(cursor, rows, pitch, 2, 3, task.tiling.count_n, cursor.tickets_left());
  }
  return task;
}

template <class T>
InputGradientTask<T> plan(const DenseInputGradient<T>& p, Cursor& cursor) {
  InputGradientTask<T> task{.problem = p, .tiling = tiling_of(p), .bias = {}};
  if (p.bias_gradient) {
    task.bias =
        plan_merge(cursor, p.dx.rows, pitch_of(p.dx.width), 1, 1, task.tiling.count_n, kTickets);
  }
  return task;
}

template <class T>
WeightGradientTask<T> plan(const DenseWeightGradient<T>& p, Cursor& cursor) {
  const std::int64_t rows = p.x.rows;
  const std::int64_t most = std::clamp<std::int64_t>(rows / kMinPartRows, 1, kMaxParts);
  WeightGradientTask<T> task;
  task.problem = p;
  task.tiling = tiling_of(p, most);
  const std::int64_t tiles = task.tiling.count();
  const std::int64_t parts =
      p.parts > 0 ? p.parts : std::clamp<std::int64_t>(kFullGrid / tiles, 1, most);
  BatchSplit& split = task.split;
  split.rows = std::max(round_up(ceil_div(rows, parts), kRowBlock), kRowBlock);
  split.count = static_cast<int>(std::max<std::int64_t>(ceil_div(rows, split.rows), 1));
  split.per_group = static_cast<int>(kMergedParts);
  split.group_count = static_cast<int>(ceil_div(split.count, split.per_group));
  // Rounding may leave fewer parts than fewer rows have, and large tiles are fewer than small ones:
  // room for all.
  const std::int64_t tile = tiles * task.tiling.rows * task.tiling.columns;
  if (parts > 1) {
    task.parts = cursor.take<T>(parts * tile);
    task.groups = cursor.take<T>(ceil_div(parts, kMergedParts) * tile);
    task.tickets = cursor.take_tickets(tiles * tickets_of_merge(split.group_count));
  }
  if (p.squares) {
    const Tiling small = cut(TileShape::kSmall, p.dw.rows, p.dw.pitch, true);
    task.squares = cursor.take<double>(std::max<std::int64_t>(tiles, small.count()));
    task.squares_ticket = cursor.take_tickets(1);
  }
  return task;
}

template <class T>
RowMerge plan(const ColumnSums<T>& p, Cursor& cursor) {
  return plan_merge(cursor, p.x.rows, pitch_of(p.x.width), 1, 1, ceil_div(p.x.pitch, kSumColumns),
                    kTickets);
}

// ---- Launches -----------------------------------------------------------------------------------

// What follows guards against mistakes of the back end: no input of a user gets here unchecked.
void expect(bool condition, const char* what) {
  if (!condition) throw InternalError(concat("[dense] expected ", what));
}

template <class T>
void expect_operand(const Matrix<const T>& matrix, Precision precision) {
  expect(matrix.present() && matrix.pitch % kPitch == 0 && matrix.pitch >= matrix.width,
         "operands with padded rows");
  expect(precision == Precision::kSimt || matrix.plane_count >= planes_of(precision),
         "operands with the planes of their precision");
}

template <class Problem>
std::size_t count_bytes(const Problem& problem) {
  Cursor cursor;
  (void)plan(problem, cursor);
  return cursor.bytes();
}

template <class Problem>
auto place(const Problem& problem) {
  Cursor cursor(problem.scratch);
  auto task = plan(problem, cursor);
  expect(cursor.tickets_taken() <= problem.scratch.ticket_count, "tickets for all tiles");
  expect(cursor.bytes() == 0 || problem.scratch.memory, "scratch memory");
  return task;
}

template <class Task>
void launch_product(const Task& task, cudaStream_t stream) {
  if constexpr (std::is_same_v<typename Product<Task>::Element, float>) {
    if (task.problem.precision != Precision::kSimt) return launch_mma(task, stream);
  }
  launch_simt(task, stream);
}

}  // namespace

template <class T>
std::size_t scratch_bytes(const DenseForward<T>& problem) {
  return count_bytes(problem);
}
template <class T>
std::size_t scratch_bytes(const DenseInputGradient<T>& problem) {
  return count_bytes(problem);
}
template <class T>
std::size_t scratch_bytes(const DenseWeightGradient<T>& problem) {
  return count_bytes(problem);
}
template <class T>
std::size_t scratch_bytes(const ColumnSums<T>& problem) {
  return count_bytes(problem);
}

template <class T>
void dense_forward(const DenseForward<T>& problem, cudaStream_t stream) {
  expect_operand(problem.x, problem.precision);
  expect_operand(problem.weight, problem.precision);
  expect(problem.x.rows > 0 && problem.x.width == problem.weight.width, "matching shapes");
  const auto task = place(problem);
  expect(!problem.takes_loss || task.tiling.count_n == 1, "outputs that fit into one tile");
  expect(!problem.signs || task.tiling.count_n == 1 || task.tiling.columns % 32 == 0,
         "tiles of whole words of signs");
  launch_product(task, stream);
}

template <class T>
void dense_input_gradient(const DenseInputGradient<T>& problem, cudaStream_t stream) {
  expect_operand(problem.dy, problem.precision);
  expect_operand(problem.weight, problem.precision);
  expect(problem.dy.rows > 0 && problem.dy.rows == problem.dx.rows &&
             problem.dy.width == problem.weight.rows && problem.dx.width == problem.weight.width,
         "matching shapes");
  launch_product(place(problem), stream);
}

template <class T>
void dense_weight_gradient(const DenseWeightGradient<T>& problem, cudaStream_t stream) {
  expect_operand(problem.dy, problem.precision);
  expect_operand(problem.x, problem.precision);
  expect(problem.dy.rows == problem.x.rows && problem.dy.width == problem.dw.rows &&
             problem.x.width == problem.dw.width,
         "matching shapes");
  launch_product(place(problem), stream);
}

template <class T>
void column_sums(const ColumnSums<T>& problem, cudaStream_t stream) {
  const std::int64_t blocks =
      row_blocks_of(problem.x.rows) * ceil_div(problem.x.pitch, kSumColumns);
  launch(column_sums_kernel<T>,
         {.operation = "column_sums",
          .grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kSumThreads),
          .stream = stream},
         ColumnSumsTask<T>{problem, place(problem)});
}

void split_planes(const Matrix<float>& matrix, cudaStream_t stream) {
  constexpr std::int64_t kMostBlocks = 1024;
  const std::int64_t quads = matrix.rows * matrix.pitch / kQuad;
  if (quads == 0) return;
  launch(
      split_planes_kernel,
      {.operation = "split_planes",
       .grid = dim3(static_cast<unsigned>(std::min(ceil_div(quads, kSplitThreads), kMostBlocks))),
       .block = dim3(kSplitThreads),
       .stream = stream},
      matrix);
}

#define TW_INSTANTIATE(T)                                                           \
  template std::size_t scratch_bytes(const DenseForward<T>&);                       \
  template std::size_t scratch_bytes(const DenseInputGradient<T>&);                 \
  template std::size_t scratch_bytes(const DenseWeightGradient<T>&);                \
  template std::size_t scratch_bytes(const ColumnSums<T>&);                         \
  template void dense_forward(const DenseForward<T>&, cudaStream_t);                \
  template void dense_input_gradient(const DenseInputGradient<T>&, cudaStream_t);   \
  template void dense_weight_gradient(const DenseWeightGradient<T>&, cudaStream_t); \
  template void column_sums(const ColumnSums<T>&, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
