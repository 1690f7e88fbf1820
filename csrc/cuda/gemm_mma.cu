// Products on the tensor cores: tiles of bfloat16 planes come through a pipeline of cp.async stages
// in shared memory; ldmatrix and mma.sync multiply them. sm_80 and newer.
//
// With several planes a sum takes the small products first. A tensor core truncates when it adds,
// so the accumulators are added into others, in float32 with rounding, after every kDepth of k: 256
// for one plane, where the inputs' rounding is the larger error, and 16 for three, whose result has
// to be as good as float32.
#include "cuda/gemm_epilogue.h"
#include "cuda/gemm_operands.h"
#include "cuda/gemm_plan.h"

namespace thalweg::cuda {
namespace {

// How a block of threads shares a tile of C: warps_m x warps_n warps.
template <int m, int n, int warps_m, int warps_n>
struct Tile {
  static constexpr int kM = m;
  static constexpr int kN = n;
  static constexpr int kWarpM = m / warps_m;
  static constexpr int kWarpN = n / warps_n;
  static constexpr int kWarpsN = warps_n;
  static constexpr int kThreads = kWarpThreads * warps_m * warps_n;
  static constexpr int kBlocksM = kWarpM / 16;  // of m16n8
  static constexpr int kBlocksN = kWarpN / 8;
};
using LargeTile = Tile<128, 128, 4, 2>;
using SmallTile = Tile<64, 64, 2, 2>;
using NarrowTile = Tile<128, 16, 4, 1>;  // few outputs
using FlatTile = Tile<16, 128, 1, 4>;    // their weight gradient

template <int planes>
struct Depth {
  static constexpr int kK = planes == 1 ? 64 : 32;  // of a stage
  static constexpr int kStages = planes == 3 ? 2 : 3;
  static constexpr int kPromoteStages = planes == 1 ? static_cast<int>(kPromote) / kK : 1;
};

template <class Task, class Tile, int planes>
struct Loop {
  using P = Product<Task>;
  using D = Depth<planes>;
  using CopyA = TileCopy<std::uint16_t, P::kMajorA, Tile::kM, D::kK, Swizzled>;
  using CopyB = TileCopy<std::uint16_t, P::kMajorB, Tile::kN, D::kK, Swizzled>;
  static constexpr int kBytesA = planes * CopyA::Layout::kBytes;
  static constexpr int kStageBytes = kBytesA + planes * CopyB::Layout::kBytes;
  using S = Slab<float, Tile::kM, Tile::kN, Tile::kThreads>;
  static constexpr int kPipelineBytes = D::kStages * kStageBytes;
  static constexpr int kSharedBytes = kPipelineBytes > S::kBytes ? kPipelineBytes : S::kBytes;
  static constexpr int kPairsN = Tile::kBlocksN / 2;  // one ldmatrix brings two blocks of B
};

// Four 8x8 matrices that are a 16 x 16 block of A: rows from m, columns from k of the tile.
template <class Layout, Major major>
TW_DEVICE void load_a(std::uint32_t (&a)[4], SharedAddress tile, int m, int k) {
  const int lane = lane_index();
  if constexpr (major == Major::kAlongRows) {
    load_matrices(a, tile + Layout::offset(m + lane % 16, k / 8 + lane / 16));
  } else {
    const int row = k + lane / 16 * 8 + lane % 8;
    load_matrices<true>(a, tile + Layout::offset(row, m / 8 + lane / 8 % 2));
  }
}

// The same of B: 16 columns from n, two registers for each eight of them.
template <class Layout, Major major>
TW_DEVICE void load_b(std::uint32_t (&b)[4], SharedAddress tile, int n, int k) {
  const int lane = lane_index();
  if constexpr (major == Major::kAlongRows) {
    const int row = n + lane / 16 * 8 + lane % 8;
    load_matrices(b, tile + Layout::offset(row, k / 8 + lane / 8 % 2));
  } else {
    const int row = k + lane / 8 % 2 * 8 + lane % 8;
    load_matrices<true>(b, tile + Layout::offset(row, n / 8 + lane / 16));
  }
}

template <class Tile>
struct Accumulators {
  float values[Tile::kBlocksM][Tile::kBlocksN][4];
};

// total += sum; sum = 0
template <class Tile>
TW_DEVICE void promote(Accumulators<Tile>& total, Accumulators<Tile>& sum) {
  TW_UNROLL
  for (int i = 0; i < Tile::kBlocksM; ++i) {
    TW_UNROLL
    for (int j = 0; j < Tile::kBlocksN; ++j) {
      TW_UNROLL
      for (int e = 0; e < 4; ++e) {
        total.values[i][j][e] += sum.values[i][j][e];
        sum.values[i][j][e] = 0.0f;
      }
    }
  }
}

// sum += the products of sixteen k of a stage.
template <class L, class Tile, int planes>
TW_DEVICE void multiply_step(Accumulators<Tile>& sum, SharedAddress a, SharedAddress b, int k) {
  using LayoutA = typename L::CopyA::Layout;
  using LayoutB = typename L::CopyB::Layout;
  const int warp_m = warp_index() / Tile::kWarpsN * Tile::kWarpM;
  const int warp_n = warp_index() % Tile::kWarpsN * Tile::kWarpN;
  std::uint32_t fragment_a[planes][Tile::kBlocksM][4];
  TW_UNROLL
  for (int p = 0; p < planes; ++p) {
    TW_UNROLL
    for (int i = 0; i < Tile::kBlocksM; ++i) {
      load_a<LayoutA, L::P::kMajorA>(fragment_a[p][i], a + p * LayoutA::kBytes, warp_m + i * 16, k);
    }
  }
  TW_UNROLL
  for (int plane_b = planes - 1; plane_b >= 0; --plane_b) {
    std::uint32_t fragment_b[L::kPairsN][4];
    TW_UNROLL
    for (int j = 0; j < L::kPairsN; ++j) {
      load_b<LayoutB, L::P::kMajorB>(fragment_b[j], b + plane_b * LayoutB::kBytes, warp_n + j * 16,
                                     k);
    }
    TW_UNROLL
    for (int plane_a = planes - 1 - plane_b; plane_a >= 0; --plane_a) {
      TW_UNROLL
      for (int i = 0; i < Tile::kBlocksM; ++i) {
        TW_UNROLL
        for (int j = 0; j < Tile::kBlocksN; ++j) {
          const std::uint32_t pair[2] = {fragment_b[j / 2][j % 2 * 2],
                                         fragment_b[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16_bf16(sum.values[i][j], fragment_a[plane_a][i], pair);
        }
      }
    }
  }
}

// Stage after stage goes into `sum`, and from there into `total`.
template <class L, class Tile, int planes>
TW_DEVICE void multiply_stage(Accumulators<Tile>& total, Accumulators<Tile>& sum, int step,
                              SharedAddress a, SharedAddress b) {
  if constexpr (planes == 3) {
    // Unrolled, it needs more registers than there are.
    TW_NO_UNROLL
    for (int k = 0; k < L::D::kK; k += 16) {
      multiply_step<L, Tile, planes>(sum, a, b, k);
      promote(total, sum);
    }
  } else {
    TW_UNROLL
    for (int k = 0; k < L::D::kK; k += 16) multiply_step<L, Tile, planes>(sum, a, b, k);
    if ((step + 1) % L::D::kPromoteStages == 0) promote(total, sum);
  }
}

template <class Task, class Tile, int planes>
TW_KERNEL_BOUNDS(Tile::kThreads, 1)
void mma_kernel(TW_GRID_CONSTANT const Task task) {
  using L = Loop<Task, Tile, planes>;
  using P = typename L::P;
  using D = typename L::D;
  using S = typename L::S;
  const TileIndex tile = tile_of_block(task.tiling);
  const std::int64_t first_k = P::first_k(task);
  const std::int64_t last_k = P::last_k(task);
  const auto steps = static_cast<int>((last_k - first_k + D::kK - 1) / D::kK);

  const SharedAddress stages(dynamic_shared<std::uint16_t>());
  typename L::CopyA copy_a(operand_of<std::uint16_t>(P::a(task)),
                           static_cast<std::int64_t>(tile.m) * Tile::kM, first_k, last_k);
  typename L::CopyB copy_b(operand_of<std::uint16_t>(P::b(task)),
                           static_cast<std::int64_t>(tile.n) * Tile::kN, first_k, last_k);
  const auto load_stage = [&](int step) {
    if (step < steps) {
      const SharedAddress stage = stages + step % D::kStages * L::kStageBytes;
      copy_a.template copy_and_advance<Tile::kThreads, planes>(stage);
      copy_b.template copy_and_advance<Tile::kThreads, planes>(stage + L::kBytesA);
    }
    commit_copies();  // an empty group keeps the count of groups
  };

  Accumulators<Tile> total = {};
  Accumulators<Tile> sum = {};
  for (int step = 0; step < D::kStages - 1; ++step) load_stage(step);
  TW_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    wait_copies<D::kStages - 2>();
    // All copies of this step have arrived, and everybody has read the stage that is loaded next.
    sync_block();
    load_stage(step + D::kStages - 1);
    const SharedAddress stage = stages + step % D::kStages * L::kStageBytes;
    multiply_stage<L, Tile, planes>(total, sum, step, stage, stage + L::kBytesA);
  }
  if (D::kPromoteStages > 1) promote(total, sum);
  wait_copies<0>();

  const auto write_slab = [&](S slab, int s) {
    const int warp_m = warp_index() / Tile::kWarpsN * Tile::kWarpM;
    const int warp_n = warp_index() % Tile::kWarpsN * Tile::kWarpN;
    if (warp_m / S::kRows != s) return;
    TW_UNROLL
    for (int i = 0; i < Tile::kBlocksM; ++i) {
      TW_UNROLL
      for (int j = 0; j < Tile::kBlocksN; ++j) {
        TW_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = warp_m % S::kRows + i * 16 + half * 8 + lane_index() / 4;
          const int column = warp_n + j * 8 + lane_index() % 4 * 2;
          const Vector<float, 2> pair = {
              {total.values[i][j][half * 2], total.values[i][j][half * 2 + 1]}};
          store_vector(slab.row(row) + column, pair);
        }
      }
    }
  };
  finish<S>(task, tile, P::a(task).rows, S{dynamic_shared<float>()}, write_slab);
}

template <class Tile, int planes, class Task>
void launch_tile(const Task& task, unsigned parts, cudaStream_t stream) {
  expect_tile<Tile>(task);
  using L = Loop<Task, Tile, planes>;
  launch(mma_kernel<Task, Tile, planes>,
         {.operation = "dense",
          .grid = dim3(static_cast<unsigned>(task.tiling.count()), parts),
          .block = dim3(Tile::kThreads),
          .dynamic_shared = L::kSharedBytes,
          .stream = stream},
         task);
}

template <class Tile, class Task>
void launch_planes(const Task& task, unsigned parts, cudaStream_t stream) {
  switch (planes_of(task.problem.precision)) {
    case 1:
      return launch_tile<Tile, 1>(task, parts, stream);
    case 2:
      return launch_tile<Tile, 2>(task, parts, stream);
    default:
      return launch_tile<Tile, 3>(task, parts, stream);
  }
}

// Narrow is the tile of few outputs, void where there is none.
template <class Narrow, class Task>
void launch_shape(const Task& task, unsigned parts, cudaStream_t stream) {
  if constexpr (!std::is_void_v<Narrow>) {
    if (task.tiling.shape == TileShape::kNarrow) return launch_planes<Narrow>(task, parts, stream);
  }
  if (task.tiling.shape == TileShape::kLarge) return launch_planes<LargeTile>(task, parts, stream);
  launch_planes<SmallTile>(task, parts, stream);
}

}  // namespace

template <>
void launch_mma(const ForwardTask<float>& task, cudaStream_t stream) {
  launch_shape<NarrowTile>(task, 1, stream);
}
template <>
void launch_mma(const InputGradientTask<float>& task, cudaStream_t stream) {
  launch_shape<void>(task, 1, stream);
}
template <>
void launch_mma(const WeightGradientTask<float>& task, cudaStream_t stream) {
  launch_shape<FlatTile>(task, static_cast<unsigned>(task.split.count), stream);
}

}  // namespace thalweg::cuda
