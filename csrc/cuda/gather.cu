#include "cuda/block_reduction.h"
#include "cuda/device_array.h"
#include "cuda/gather.h"
#include "cuda/quad_loop.h"
#include "math/row_weight.h"

namespace thalweg::cuda {
namespace {

constexpr const char* kGatherOperation = "gather";
constexpr const char* kTargetsOperation = "gather_targets";
constexpr const char* kCheckOperation = "check_elements";

// A block gathers tiles of whole rows, so that the place of a row in the data is looked up once.
constexpr int kGatherThreads = 256;
constexpr int kTileQuads = 512;
constexpr int kMostTileRows = 64;

// A thread per row, and whole row blocks per block of threads.
constexpr int kTargetsThreads = 256;
constexpr int kRowBlocksPerBlock = kTargetsThreads / static_cast<int>(kRowBlock);
constexpr int kWarpsPerRowBlock = static_cast<int>(kRowBlock) / kWarpThreads;

// ---- Kernels ------------------------------------------------------------------------------------

TW_DEVICE std::int64_t row_of(const RowOrder& order, std::int64_t r) {
  if (order.index != nullptr) return order.index[r];
  if (order.state != nullptr) return order.state->order(order.state->position + order.offset + r);
  return order.offset + r;
}

// Four neighbours in memory.
template <class T, class Element>
TW_DEVICE Quad<T> read_quad(const char* from) {
  using Storage = typename Element::Storage;
  constexpr int kCount = sizeof(Storage) == 8 ? 2 : 4;
  Quad<T> quad;
  TW_UNROLL
  for (int i = 0; i < kQuad; i += kCount) {
    const auto part = load_vector<kCount>(reinterpret_cast<const Storage*>(from) + i);
    TW_UNROLL
    for (int j = 0; j < kCount; ++j) quad[i + j] = static_cast<T>(Element::value(part[j]));
  }
  return quad;
}

// kVectors: the columns are neighbours, and quads are aligned to their size or 16 bytes.
template <class T, class Element, bool kVectors>
TW_KERNEL_BOUNDS(kGatherThreads, 4)
void gather_kernel(const ArrayView x, const bool aligned, const RowOrder order, const Matrix<T> out,
                   const int tile_rows) {
  TW_SHARED(std::int64_t[kMostTileRows], offsets);
  const char* const data = static_cast<const char*>(x.data);
  const int quads = static_cast<int>(quads_of(out));
  const std::int64_t stride = static_cast<std::int64_t>(grid_size().x) * tile_rows;
  for (std::int64_t first = static_cast<std::int64_t>(block_index().x) * tile_rows;
       first < out.rows; first += stride) {
    const int rows = static_cast<int>(
        out.rows - first < tile_rows ? out.rows - first : static_cast<std::int64_t>(tile_rows));
    sync_block();  // the offsets of the tile before have been read
    if (thread_index().x < rows) {
      offsets[thread_index().x] = row_of(order, first + thread_index().x) * x.row_stride;
    }
    sync_block();
    for (int i = thread_index().x; i < rows * quads; i += kGatherThreads) {
      const int r = i / quads;
      const std::int64_t column = (i - r * quads) * kQuad;
      const char* const from = data + offsets[r] + column * x.col_stride;
      Quad<T> quad{};
      if (kVectors && column + kQuad <= out.width) {
        quad = read_quad<T, Element>(from);
      } else {
        TW_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          if (column + j < out.width) {
            quad[j] = static_cast<T>(read_element<Element>(from + j * x.col_stride, aligned));
          }
        }
      }
      store_quad(out, first + r, column, quad);
    }
  }
}

template <class T>
TW_KERNEL_BOUNDS(kTargetsThreads, 2)
void gather_targets_kernel(const GatherTargets<T> problem, const DeviceColumn labels,
                           const DeviceColumn weights, double* partials, unsigned* ticket) {
  TW_SHARED(double[kTargetsThreads / kWarpThreads], warp_sums);
  StepState* const state = problem.state;
  const std::int64_t r = global_thread_index();
  double weight = 0.0;
  if (r < problem.rows) {
    const std::int64_t row = row_of(problem.order, r);
    std::int64_t label = 0;
    if (labels.data != nullptr) {
      label = labels.get<std::int64_t>(row);
      if (label < 0 || label >= problem.classes) {
        label = 0;
        if (state != nullptr && state->status == StepStatus::kRunning) {
          state->status = StepStatus::kInvalidLabel;
        }
      }
      if (problem.label_out != nullptr) problem.label_out[r] = label;
    }
    weight = weights.data != nullptr ? weights.get<double>(row) : 1.0;
    if (problem.class_weights != nullptr) weight *= problem.class_weights[label];
    const T rounded = rounded_weight<T>(weight);
    weight = static_cast<double>(rounded);
    if (problem.row_weights != nullptr) problem.row_weights[r] = rounded;
  }
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    weight += shuffle_xor(weight, distance);
  }
  if (lane_index() == 0) warp_sums[warp_index()] = weight;
  sync_block();
  const std::int64_t row_blocks = row_blocks_of(problem.rows);
  if (thread_index().x < kRowBlocksPerBlock) {
    const std::int64_t block =
        std::int64_t{block_index().x} * kRowBlocksPerBlock + thread_index().x;
    double sum = 0.0;
    for (int w = 0; w < kWarpsPerRowBlock; ++w) {
      sum += warp_sums[thread_index().x * kWarpsPerRowBlock + w];
    }
    if (block < row_blocks) {
      partials[block] = sum;
      if (problem.block_weights != nullptr) problem.block_weights[block] = sum;
    }
  }
  if (!is_last_block(ticket, static_cast<unsigned>(grid_size().x))) return;
  double total[1] = {0.0};
  for (std::int64_t block = thread_index().x; block < row_blocks; block += kTargetsThreads) {
    total[0] += partials[block];
  }
  block_sums<kTargetsThreads>(total);
  if (thread_index().x != 0) return;
  if (problem.total_weight != nullptr) *problem.total_weight = total[0];
  if (state == nullptr || !problem.whole_update) return;
  state->weight = total[0];
  const double divisor =
      problem.gradient_divisor == 0.0 ? 1.0 : total[0] * problem.gradient_divisor;
  state->gradient_scale = total[0] > 0.0 ? 1.0 / divisor : 0.0;
}

// Dense rows are aligned when `leading` is a multiple of four.
template <class T>
TW_KERNEL void scatter_kernel(const Matrix<const T> in, T* out, const std::int64_t leading,
                              const bool vectors) {
  for_quads(in, [&](std::int64_t row, std::int64_t column) {
    if (column >= in.width) return;
    const Quad<T> quad = load_quad(in, row, column);
    T* const to = out + row * leading + column;
    if (vectors && column + kQuad <= in.width) {
      store_quad(to, quad);
      return;
    }
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      if (column + j < in.width) to[j] = quad[j];
    }
  });
}

template <class T>
TW_KERNEL void pack_kernel(const T* in, const std::int64_t leading, const bool vectors,
                           const Matrix<T> out) {
  for_quads(out, [&](std::int64_t row, std::int64_t column) {
    const T* const from = in + row * leading + column;
    Quad<T> quad{};
    if (vectors && column + kQuad <= out.width) {
      quad = load_quad(from);
    } else {
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        if (column + j < out.width) quad[j] = from[j];
      }
    }
    store_quad(out, row, column, quad);
  });
}

template <class Element>
TW_KERNEL void check_elements_kernel(const ArrayView x, const bool aligned, const ElementRule rule,
                                     const double limit, ElementCheck* result) {
  const char* const data = static_cast<const char*>(x.data);
  unsigned long long first_bad = ~0ull;
  unsigned long long positive = 0;
  const std::int64_t count = x.rows * x.cols;
  for (std::int64_t i = global_thread_index(); i < count; i += global_thread_count()) {
    const std::int64_t r = i / x.cols;
    const char* const from = data + r * x.row_stride + (i - r * x.cols) * x.col_stride;
    const double value = static_cast<double>(read_element<Element>(from, aligned));
    if (!obeys(value, rule, limit) && static_cast<unsigned long long>(i) < first_bad) {
      first_bad = static_cast<unsigned long long>(i);
    }
    positive += value >= kLeastWeight ? 1 : 0;
  }
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    const unsigned long long other = shuffle_xor(first_bad, distance);
    first_bad = other < first_bad ? other : first_bad;
    positive += shuffle_xor(positive, distance);
  }
  if (lane_index() != 0) return;
  if (first_bad != ~0ull) atomic_min(&result->first_bad, first_bad);
  if (positive > 0) atomic_add(&result->positive, positive);
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

namespace {

// Whether quads of neighbours can be loaded as vectors.
bool has_vectors(const ArrayView& x, std::int64_t size) {
  const std::int64_t bytes = std::min<std::int64_t>(kQuad * size, 16);
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(x.data));
  return x.col_stride == size && address % bytes == 0 && x.row_stride % bytes == 0;
}

template <class T>
bool dense_vectors(const T* dense, std::int64_t leading) {
  return leading % kQuad == 0 && reinterpret_cast<std::uintptr_t>(dense) % 16 == 0;
}

}  // namespace

template <class T>
void gather(const ArrayView& x, const RowOrder& order, const Matrix<T>& out, cudaStream_t stream) {
  const std::int64_t tile_rows =
      std::clamp<std::int64_t>(kTileQuads / (out.pitch / kQuad), 1, kMostTileRows);
  const LaunchConfig config{
      .operation = kGatherOperation,
      .grid = strided_blocks(ceil_div(out.rows, tile_rows), 4, kGatherOperation),
      .block = kGatherThreads,
      .stream = stream};
  dispatch_dtype(x.dtype, [&](auto element) {
    using Element = decltype(element);
    const std::int64_t size = sizeof(typename Element::Storage);
    const bool aligned = is_aligned(x, size);
    launch(
        has_vectors(x, size) ? gather_kernel<T, Element, true> : gather_kernel<T, Element, false>,
        config, x, aligned, order, out, static_cast<int>(tile_rows));
  });
}

std::size_t gather_targets_scratch_bytes(std::int64_t rows) {
  return sizeof(double) * static_cast<std::size_t>(row_blocks_of(rows));
}

template <class T>
void gather_targets(const GatherTargets<T>& problem, const Scratch& scratch, cudaStream_t stream) {
  const std::int64_t blocks = ceil_div(problem.rows, kTargetsThreads);
  launch(gather_targets_kernel<T>,
         {.operation = kTargetsOperation,
          .grid = static_cast<unsigned>(std::max<std::int64_t>(blocks, 1)),
          .block = kTargetsThreads,
          .stream = stream},
         problem, DeviceColumn(problem.labels), DeviceColumn(problem.weights),
         static_cast<double*>(scratch.memory), scratch.tickets);
}

template <class T>
void scatter(const Matrix<const T>& in, T* out, std::int64_t leading, cudaStream_t stream) {
  launch(scatter_kernel<T>, elementwise("scatter", in.size(), stream), in, out, leading,
         dense_vectors(out, leading));
}

template <class T>
void pack(const T* in, std::int64_t leading, const Matrix<T>& out, cudaStream_t stream) {
  launch(pack_kernel<T>, elementwise("pack", out.size(), stream), in, leading,
         dense_vectors(in, leading), out);
}

void check_elements(const ArrayView& x, ElementRule rule, double limit, ElementCheck* result,
                    cudaStream_t stream) {
  dispatch_dtype(x.dtype, [&](auto element) {
    using Element = decltype(element);
    launch(check_elements_kernel<Element>, elementwise(kCheckOperation, x.size() * kQuad, stream),
           x, is_aligned(x, sizeof(typename Element::Storage)), rule, limit, result);
  });
}

#define TW_INSTANTIATE(T)                                                                  \
  template void gather(const ArrayView&, const RowOrder&, const Matrix<T>&, cudaStream_t); \
  template void gather_targets(const GatherTargets<T>&, const Scratch&, cudaStream_t);     \
  template void scatter(const Matrix<const T>&, T*, std::int64_t, cudaStream_t);           \
  template void pack(const T*, std::int64_t, const Matrix<T>&, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
