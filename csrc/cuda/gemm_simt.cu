// Products on the SIMT units, float and double: a pipeline of cp.async stages in shared memory, and
// a block of C in the registers of each thread. Accumulators are added into others at least every
// kPromote of k.
#include "cuda/gemm_epilogue.h"
#include "cuda/gemm_operands.h"
#include "cuda/gemm_plan.h"

namespace thalweg::cuda {
namespace {

// How a block of threads shares a tile of C: threads_m x threads_n threads, lanes_n of a warp side
// by side.
template <int m, int n, int threads_m, int threads_n, int lanes_n>
struct Tile {
  static constexpr int kM = m;
  static constexpr int kN = n;
  static constexpr int kThreadsM = threads_m;
  static constexpr int kThreadsN = threads_n;
  static constexpr int kThreads = threads_m * threads_n;
  static constexpr int kOwnM = m / threads_m;  // of a thread
  static constexpr int kOwnN = n / threads_n;

  // The position of this thread.
  TW_DEVICE static int thread_m() {
    constexpr int kWarpsN = threads_n / lanes_n;
    return warp_index() / kWarpsN * (kWarpThreads / lanes_n) + lane_index() / lanes_n;
  }
  TW_DEVICE static int thread_n() {
    constexpr int kWarpsN = threads_n / lanes_n;
    return warp_index() % kWarpsN * lanes_n + lane_index() % lanes_n;
  }
};
using LargeTile = Tile<128, 128, 16, 16, 8>;
using SmallTile = Tile<64, 64, 16, 16, 8>;
using NarrowTile = Tile<128, 16, 32, 4, 4>;  // few outputs
using FlatTile = Tile<16, 128, 4, 32, 8>;    // their weight gradient

constexpr int kStages = 3;
constexpr int kStageBytes = 64;  // of a row with k along it

template <class Task, class Tile>
struct Loop {
  using P = Product<Task>;
  using T = typename P::Element;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kK = kStageBytes / static_cast<int>(sizeof(T));  // of a stage
  static constexpr int kPromoteStages = static_cast<int>(kPromote) / kK;
  using CopyA = TileCopy<T, P::kMajorA, Tile::kM, kK, Padded>;
  using CopyB = TileCopy<T, P::kMajorB, Tile::kN, kK, Padded>;
  static constexpr int kBytesA = CopyA::Layout::kBytes;
  static constexpr int kBytes = kBytesA + CopyB::Layout::kBytes;  // of a stage
  using S = Slab<T, Tile::kM, Tile::kN, Tile::kThreads>;
  static constexpr int kSharedBytes = kStages * kBytes > S::kBytes ? kStages * kBytes : S::kBytes;
};

// Row i of the own rows of a tile (or column) that `threads` threads share: with k along the rows
// of memory, neighbouring threads have neighbouring rows; otherwise, neighbouring vectors.
template <Major major, int threads, int vector>
TW_DEVICE int own_index(int thread, int i) {
  if constexpr (major == Major::kAlongRows) {
    return i * threads + thread;
  } else {
    return (i / vector * threads + thread) * vector + i % vector;
  }
}

// Own rows x `vector` of k, from position k of the stage.
template <class Copy, Major major, int own, int threads, int vector, class T>
TW_DEVICE void load_fragment(T (&fragment)[own][vector], const T* stage, int thread, int k) {
  using Layout = typename Copy::Layout;
  const char* const tile = reinterpret_cast<const char*>(stage);
  const auto unit = [&](int row, int column) {
    return load_vector<vector>(
        reinterpret_cast<const T*>(tile + Layout::offset(row, column / vector)));
  };
  if constexpr (major == Major::kAlongRows) {
    TW_UNROLL
    for (int i = 0; i < own; ++i) {
      const auto part = unit(own_index<major, threads, vector>(thread, i), k);
      TW_UNROLL
      for (int j = 0; j < vector; ++j) fragment[i][j] = part[j];
    }
  } else {
    TW_UNROLL
    for (int j = 0; j < vector; ++j) {
      TW_UNROLL
      for (int i = 0; i < own; i += vector) {
        const auto part = unit(k + j, own_index<major, threads, vector>(thread, i));
        TW_UNROLL
        for (int l = 0; l < vector; ++l) fragment[i + l][j] = part[l];
      }
    }
  }
}

template <class T, int m, int n>
TW_DEVICE void promote(T (&total)[m][n], T (&sum)[m][n]) {
  TW_UNROLL
  for (int i = 0; i < m; ++i) {
    TW_UNROLL
    for (int j = 0; j < n; ++j) {
      total[i][j] += sum[i][j];
      sum[i][j] = T(0);
    }
  }
}

template <class Task, class Tile>
TW_KERNEL_BOUNDS(Tile::kThreads, 1)
void simt_kernel(TW_GRID_CONSTANT const Task task) {
  using L = Loop<Task, Tile>;
  using P = typename L::P;
  using T = typename L::T;
  using S = typename L::S;
  constexpr int kOwnM = Tile::kOwnM;
  constexpr int kOwnN = Tile::kOwnN;
  const TileIndex tile = tile_of_block(task.tiling);
  const std::int64_t first_k = P::first_k(task);
  const std::int64_t last_k = P::last_k(task);
  const auto steps = static_cast<int>((last_k - first_k + L::kK - 1) / L::kK);
  const int thread_m = Tile::thread_m();
  const int thread_n = Tile::thread_n();

  T* const shared = dynamic_shared<T>();
  const SharedAddress stages(shared);
  typename L::CopyA copy_a(operand_of<T>(P::a(task)), static_cast<std::int64_t>(tile.m) * Tile::kM,
                           first_k, last_k);
  typename L::CopyB copy_b(operand_of<T>(P::b(task)), static_cast<std::int64_t>(tile.n) * Tile::kN,
                           first_k, last_k);
  const auto load_stage = [&](int step) {
    if (step < steps) {
      const SharedAddress stage = stages + step % kStages * L::kBytes;
      copy_a.template copy_and_advance<Tile::kThreads, 1>(stage);
      copy_b.template copy_and_advance<Tile::kThreads, 1>(stage + L::kBytesA);
    }
    commit_copies();  // an empty group keeps the count of groups
  };

  T total[kOwnM][kOwnN] = {};
  T sum[kOwnM][kOwnN] = {};
  for (int step = 0; step < kStages - 1; ++step) load_stage(step);
  TW_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    // All copies of this step have arrived, and everybody has read the stage that is loaded next.
    sync_block();
    load_stage(step + kStages - 1);
    constexpr int kElements = L::kBytes / static_cast<int>(sizeof(T));
    const T* const stage = shared + step % kStages * kElements;
    TW_UNROLL
    for (int k = 0; k < L::kK; k += L::kVector) {
      T a[kOwnM][L::kVector];
      T b[kOwnN][L::kVector];
      load_fragment<typename L::CopyA, P::kMajorA, kOwnM, Tile::kThreadsM>(a, stage, thread_m, k);
      load_fragment<typename L::CopyB, P::kMajorB, kOwnN, Tile::kThreadsN>(
          b, stage + L::kBytesA / static_cast<int>(sizeof(T)), thread_n, k);
      TW_UNROLL
      for (int l = 0; l < L::kVector; ++l) {
        TW_UNROLL
        for (int i = 0; i < kOwnM; ++i) {
          TW_UNROLL
          for (int j = 0; j < kOwnN; ++j) sum[i][j] = madd(a[i][l], b[j][l], sum[i][j]);
        }
      }
    }
    if ((step + 1) % L::kPromoteStages == 0) promote(total, sum);
  }
  promote(total, sum);
  wait_copies<0>();

  const auto write_slab = [&](S slab, int s) {
    TW_UNROLL
    for (int i = 0; i < kOwnM; ++i) {
      const int row = own_index<P::kMajorA, Tile::kThreadsM, L::kVector>(thread_m, i);
      if (row / S::kRows != s) continue;
      TW_UNROLL
      for (int j = 0; j < kOwnN; ++j) {
        slab.row(row % S::kRows)[own_index<P::kMajorB, Tile::kThreadsN, L::kVector>(thread_n, j)] =
            total[i][j];
      }
    }
  };
  finish<S>(task, tile, P::a(task).rows, S{shared}, write_slab);
}

template <class Tile, class Task>
void launch_tile(const Task& task, unsigned parts, cudaStream_t stream) {
  expect_tile<Tile>(task);
  launch(simt_kernel<Task, Tile>,
         {.operation = "dense",
          .grid = dim3(static_cast<unsigned>(task.tiling.count()), parts),
          .block = dim3(Tile::kThreads),
          .dynamic_shared = Loop<Task, Tile>::kSharedBytes,
          .stream = stream},
         task);
}

// Narrow is the tile of few outputs, void where there is none.
template <class T, class Narrow, class Task>
void launch_shape(const Task& task, unsigned parts, cudaStream_t stream) {
  if constexpr (!std::is_void_v<Narrow>) {
    if (task.tiling.shape == TileShape::kNarrow) return launch_tile<Narrow>(task, parts, stream);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (task.tiling.shape == TileShape::kLarge) return launch_tile<LargeTile>(task, parts, stream);
  }
  launch_tile<SmallTile>(task, parts, stream);
}

}  // namespace

template <>
void launch_simt(const ForwardTask<float>& task, cudaStream_t stream) {
  launch_shape<float, NarrowTile>(task, 1, stream);
}
template <>
void launch_simt(const ForwardTask<double>& task, cudaStream_t stream) {
  launch_shape<double, NarrowTile>(task, 1, stream);
}
template <>
void launch_simt(const InputGradientTask<float>& task, cudaStream_t stream) {
  launch_shape<float, void>(task, 1, stream);
}
template <>
void launch_simt(const InputGradientTask<double>& task, cudaStream_t stream) {
  launch_shape<double, void>(task, 1, stream);
}
template <>
void launch_simt(const WeightGradientTask<float>& task, cudaStream_t stream) {
  launch_shape<float, FlatTile>(task, static_cast<unsigned>(task.split.count), stream);
}
template <>
void launch_simt(const WeightGradientTask<double>& task, cudaStream_t stream) {
  launch_shape<double, FlatTile>(task, static_cast<unsigned>(task.split.count), stream);
}

}  // namespace thalweg::cuda
