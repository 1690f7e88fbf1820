// A program of small kernels, one of each kind that thalweg has, with checks of their results.
//
// nvcc compiles it for a GPU; g++ compiles it for the emulator, where every kernel also exists with
// a fault planted in it. `cases NAME` runs one case and exits with 0 for right results, 1 for wrong
// ones and 2 for a reported error; `cases` lists the names.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device/device.h"
#include "cuda/runtime.h"

#if defined(TW_CUDA_EMULATED)
#include "cuda/emulator/execution.h"
#endif

namespace thalweg::cuda {
namespace {

// What is wrong with a kernel.
enum class Fault {
  kNone,
  kBarrierCount,
  kDivergentBarrier,
  kDivergentShuffle,
  kEarlyRelease,
  kExitedLane,
  kGlobalOverrun,
  kGlobalReadBeyondPage,
  kGlobalWriteBeyondPage,
  kHostPointer,
  kLateWait,
  kMisalignedVector,
  kMissingBarrier,
  kMissingClusterBarrier,
  kMissingCopyWait,
  kMissingGraphEdge,
  kMissingReuseBarrier,
  kMissingSynchronize,
  kNotCooperative,
  kSemaphoreNotReset,
  kSharedOverrun,
  kSharedReadOverrun,
  kTailRows,
  kUseAfterFree,
  kWrongPhase,
  kWrongStage,
  kWrongStride,
  kEarlyClusterExit,
};

// ---- Host side ----------------------------------------------------------------------------------

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)), "test");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    check(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "test");
  }
  ~DeviceArray() { (void)cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> download() const {
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "test");
    return values;
  }
  void fill_zero() { check(cudaMemset(data_, 0, size_ * sizeof(T)), "test"); }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

// Whole numbers from -4 to 4: sums of products are exact.
std::vector<float> whole_numbers(std::size_t size, unsigned seed) {
  std::vector<float> values(size);
  unsigned state = seed * 2654435761u + 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int>(state >> 16) % 9 - 4);
  }
  return values;
}

std::uint16_t bfloat16_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>(bits >> 16);  // exact for small whole numbers
}

bool equal(const std::vector<float>& actual, const std::vector<float>& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    std::printf("element %zu: expected %g, got %g\n", i, static_cast<double>(expected[i]),
                static_cast<double>(actual[i]));
    return false;
  }
  return true;
}

void synchronize() { check(cudaDeviceSynchronize(), "test"); }

unsigned blocks_for(std::int64_t elements, int per_block) {
  return static_cast<unsigned>((elements + per_block - 1) / per_block);
}

// ---- Elementwise: vectors with a tail -----------------------------------------------------------

constexpr int kElementwiseThreads = 128;

template <Fault fault>
TW_KERNEL_BOUNDS(kElementwiseThreads, 8)
void axpy_kernel(const float* x, float* y, float factor, std::int64_t size) {
  constexpr int kWidth = 4;
  const std::int64_t vectors = size / kWidth;
  for (std::int64_t i = global_thread_index(); i < vectors; i += global_thread_count()) {
    const int shift = fault == Fault::kMisalignedVector ? 1 : 0;
    const auto source = load_vector<kWidth>(x + i * kWidth + shift);
    auto target = load_vector<kWidth>(y + i * kWidth);
    TW_UNROLL
    for (int j = 0; j < kWidth; ++j) target[j] += factor * source[j];
    store_vector(y + i * kWidth, target);
  }
  std::int64_t end = size;
  if (fault == Fault::kGlobalOverrun) end = size + 1;
  for (std::int64_t i = vectors * kWidth + global_thread_index(); i < end;
       i += global_thread_count()) {
    y[i] += factor * x[i];
  }
  constexpr std::int64_t kBeyondPage = 4096;
  if (fault == Fault::kGlobalReadBeyondPage) y[0] = x[size + kBeyondPage / 4];
  if (fault == Fault::kGlobalWriteBeyondPage) y[size + kBeyondPage / 4] = 1.0f;
}

template <Fault fault>
bool axpy() {
  for (const std::int64_t size : {1, 3, 127, 1001, 5000}) {
    const auto x = whole_numbers(static_cast<std::size_t>(size), 1);
    auto expected = whole_numbers(static_cast<std::size_t>(size), 2);
    const DeviceArray<float> device_x(x);
    const DeviceArray<float> device_y(expected);
    const float* x_argument = fault == Fault::kHostPointer ? x.data() : device_x.data();
    launch(axpy_kernel<fault>,
           {.operation = "axpy", .grid = dim3(3), .block = dim3(kElementwiseThreads)}, x_argument,
           device_y.data(), 2.0f, size);
    synchronize();
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += 2.0f * x[i];
    if (!equal(device_y.download(), expected)) return false;
  }
  return true;
}

// ---- Block reduction: shuffles, votes, static shared memory
// ---------------------------------------

constexpr int kSumThreads = 256;

// The sum over the block, in every thread. Shared memory is ready for the next call on return.
template <Fault fault>
TW_DEVICE float block_sum(float value) {
  constexpr int kWarps = kSumThreads / kWarpThreads;
  TW_SHARED(float[kWarps], partials);
  if (fault == Fault::kDivergentShuffle) {
    // Lanes meet in two different calls.
    if (lane_index() < 16) {
      value += shuffle_xor(value, 8);
    } else {
      value += shuffle_xor(value, 4);
    }
  }
  TW_UNROLL
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  int slot = warp_index();
  if (fault == Fault::kSharedOverrun) slot += 1;
  if (lane_index() == 0) partials[slot] = value;
  if (fault == Fault::kDivergentBarrier) {
    if (warp_index() == 0) {
      sync_block();
    } else {
      sync_block();
    }
  } else if (fault != Fault::kMissingBarrier) {
    sync_block();
  }
  float sum = 0.0f;
  const int read = fault == Fault::kSharedReadOverrun ? kWarps + 1 : kWarps;
  for (int warp = 0; warp < read; ++warp) sum += partials[warp];
  if (fault != Fault::kMissingReuseBarrier) sync_block();
  return sum;
}

template <Fault fault>
TW_KERNEL_BOUNDS(kSumThreads, 2)
void row_sums_kernel(const float* x, float* sums, float* squares, int* positive, int rows,
                     int width) {
  for (int row = block_index().x; row < rows; row += grid_size().x) {
    const float* values = x + static_cast<std::int64_t>(row) * width;
    float own = 0.0f;
    for (int column = thread_index().x; column < width; column += kSumThreads) {
      own += values[column];
    }
    if (fault == Fault::kExitedLane && thread_index().x == kSumThreads - 1) return;
    const float sum = block_sum<fault>(own);
    const float sum_of_squares = block_sum<fault>(own * own);
    const int threads_with_positive_sum = sync_block_count(own > 0.0f);
    if (thread_index().x == 0) {
      sums[row] = sum;
      squares[row] = sum_of_squares;
      positive[row] = threads_with_positive_sum;
    }
  }
}

template <Fault fault>
bool row_sums() {
  constexpr int kRows = 37;
  for (const int width : {1, 31, 300, 1000}) {
    const auto x = whole_numbers(static_cast<std::size_t>(kRows * width), 3);
    const DeviceArray<float> device_x(x);
    const DeviceArray<float> sums(kRows);
    const DeviceArray<float> squares(kRows);
    const DeviceArray<int> positive(kRows);
    launch(row_sums_kernel<fault>,
           {.operation = "row_sums", .grid = dim3(5), .block = dim3(kSumThreads)}, device_x.data(),
           sums.data(), squares.data(), positive.data(), kRows, width);
    synchronize();
    std::vector<float> expected(kRows);
    std::vector<float> expected_squares(kRows);
    std::vector<float> expected_positive(kRows);
    for (int row = 0; row < kRows; ++row) {
      std::vector<float> own(kSumThreads);
      for (int column = 0; column < width; ++column) {
        own[column % kSumThreads] += x[row * width + column];
      }
      for (const float value : own) {
        expected[row] += value;
        expected_squares[row] += value * value;
        if (value > 0.0f) expected_positive[row] += 1.0f;
      }
    }
    const std::vector<int> counts = positive.download();
    if (!equal(sums.download(), expected)) return false;
    if (!equal(squares.download(), expected_squares)) return false;
    if (!equal({counts.begin(), counts.end()}, expected_positive)) return false;
  }
  return true;
}

// ---- GEMM: cp.async, ldmatrix, mma.sync
// -----------------------------------------------------------

constexpr int kTile = 64;   // rows of A and of B, one block
constexpr int kTileK = 32;  // bf16: rows of 64 bytes, four units of 16 bytes
constexpr int kUnits = 4;
constexpr int kStages = 3;
constexpr int kGemmThreads = 128;

struct GemmStage {
  std::uint16_t a[kTile * kTileK];
  std::uint16_t b[kTile * kTileK];
};

// Unit `unit` of row `row` in a swizzled tile, in bytes: the eight rows of a matrix lie in
// different banks.
TW_DEVICE int unit_offset(int row, int unit) {
  return (row * kUnits + (unit ^ (row / 2 % kUnits))) * 16;
}

// Rows [first_row, first_row + kTile) and columns [k, k + kTileK) of a bf16 matrix; zero outside.
TW_DEVICE void load_tile(SharedAddress tile, const std::uint16_t* matrix, int rows, int columns,
                         int pitch, int first_row, int k) {
  TW_UNROLL
  for (int i = 0; i < kTile * kUnits / kGemmThreads; ++i) {
    const int index = i * kGemmThreads + thread_index().x;
    const int row = index / kUnits;
    const int unit = index % kUnits;
    const int column = k + unit * 8;
    const int left = first_row + row < rows ? (columns - column) * 2 : 0;
    const int filled = left < 0 ? 0 : left > 16 ? 16 : left;
    const std::uint16_t* source =
        filled > 0 ? matrix + static_cast<std::int64_t>(first_row + row) * pitch + column : matrix;
    copy_async<16>(tile + unit_offset(row, unit), source, filled);
  }
}

// C[m, n] = A[m, k] B[n, k]^T. A block of 4 warps owns 64 x 64 of C, a warp 32 x 32.
template <Fault fault>
TW_KERNEL_BOUNDS(kGemmThreads, 4)
void gemm_kernel(const std::uint16_t* a, const std::uint16_t* b, float* c, int m, int n, int k,
                 int pitch) {
  GemmStage* stages = dynamic_shared<GemmStage>();
  const int first_m = block_index().y * kTile;
  const int first_n = block_index().x * kTile;
  const int lane = lane_index();
  const int warp_m = warp_index() / 2 * 32;
  const int warp_n = warp_index() % 2 * 32;
  const int steps = (k + kTileK - 1) / kTileK;

  const auto load_step = [&](int step) {
    if (step < steps) {
      GemmStage& stage = stages[step % kStages];
      load_tile(stage.a, a, m, k, pitch, first_m, step * kTileK);
      load_tile(stage.b, b, n, k, pitch, first_n, step * kTileK);
    }
    commit_copies();  // an empty group keeps the count of groups
  };

  float d[2][4][4] = {};
  for (int step = 0; step < kStages - 1; ++step) load_step(step);
  for (int step = 0; step < steps; ++step) {
    if (fault == Fault::kLateWait) {
      wait_copies<kStages - 1>();
    } else if (fault != Fault::kMissingCopyWait) {
      wait_copies<kStages - 2>();
    }
    if (fault == Fault::kEarlyRelease) load_step(step + kStages - 1);
    // All copies of this step have arrived, and everybody has read the stage that comes next.
    if (fault != Fault::kMissingBarrier) sync_block();
    if (fault != Fault::kEarlyRelease) load_step(step + kStages - 1);

    const int index = fault == Fault::kWrongStage ? (step + 1) % kStages : step % kStages;
    const SharedAddress tile_a(stages[index].a);
    const SharedAddress tile_b(stages[index].b);
    TW_UNROLL
    for (int half = 0; half < 2; ++half) {
      std::uint32_t fragment_a[2][4];
      std::uint32_t fragment_b[2][4];
      TW_UNROLL
      for (int i = 0; i < 2; ++i) {
        int row = warp_m + i * 16 + lane % 16;
        if (fault == Fault::kWrongStride) row = row ^ 1;
        load_matrices(fragment_a[i], tile_a + unit_offset(row, half * 2 + lane / 16));
        const int column = warp_n + i * 16 + lane / 16 * 8 + lane % 8;
        load_matrices(fragment_b[i], tile_b + unit_offset(column, half * 2 + lane / 8 % 2));
      }
      TW_UNROLL
      for (int i = 0; i < 2; ++i) {
        TW_UNROLL
        for (int j = 0; j < 4; ++j) {
          const std::uint32_t pair[2] = {fragment_b[j / 2][j % 2 * 2],
                                         fragment_b[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16_bf16(d[i][j], fragment_a[i], pair);
        }
      }
    }
  }

  TW_UNROLL
  for (int i = 0; i < 2; ++i) {
    TW_UNROLL
    for (int j = 0; j < 4; ++j) {
      TW_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = first_m + warp_m + i * 16 + lane / 4 + e / 2 * 8;
        const int column = first_n + warp_n + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n) c[static_cast<std::int64_t>(row) * n + column] = d[i][j][e];
      }
    }
  }
}

template <Fault fault>
bool gemm() {
  struct Shape {
    int m, n, k;
  };
  for (const Shape s :
       {Shape{64, 64, 32}, Shape{1, 1, 1}, Shape{130, 70, 200}, Shape{10, 100, 97}}) {
    const int pitch = (s.k + 7) / 8 * 8;
    const auto a = whole_numbers(static_cast<std::size_t>(s.m * pitch), 4);
    const auto b = whole_numbers(static_cast<std::size_t>(s.n * pitch), 5);
    std::vector<std::uint16_t> a_bits(a.size());
    std::vector<std::uint16_t> b_bits(b.size());
    std::transform(a.begin(), a.end(), a_bits.begin(), bfloat16_bits);
    std::transform(b.begin(), b.end(), b_bits.begin(), bfloat16_bits);
    const DeviceArray<std::uint16_t> device_a(a_bits);
    const DeviceArray<std::uint16_t> device_b(b_bits);
    const DeviceArray<float> c(static_cast<std::size_t>(s.m * s.n));
    launch(gemm_kernel<fault>,
           {.operation = "gemm",
            .grid = dim3(blocks_for(s.n, kTile), blocks_for(s.m, kTile)),
            .block = dim3(kGemmThreads),
            .dynamic_shared = kStages * sizeof(GemmStage)},
           device_a.data(), device_b.data(), c.data(), s.m, s.n, s.k, pitch);
    synchronize();
    std::vector<float> expected(static_cast<std::size_t>(s.m * s.n));
    for (int i = 0; i < s.m; ++i) {
      for (int j = 0; j < s.n; ++j) {
        for (int l = 0; l < s.k; ++l) {
          expected[i * s.n + j] += a[i * pitch + l] * b[j * pitch + l];
        }
      }
    }
    if (!equal(c.download(), expected)) return false;
  }
#if defined(TW_CUDA_EMULATED)
  const emulator::Counters counters = emulator::counters();
  if (fault == Fault::kNone && (counters.matrix_rows == 0 || counters.matrix_conflicts != 0)) {
    std::printf("expected ldmatrix without bank conflicts, got %llu in %llu phases\n",
                static_cast<unsigned long long>(counters.matrix_conflicts),
                static_cast<unsigned long long>(counters.matrix_rows));
    return false;
  }
#endif
  return true;
}

// ---- Every form of mma.sync, ldmatrix and stmatrix, one warp
// --------------------------------------

enum class Form { kBf16K16, kBf16K8, kF16K16, kF16K8, kTf32K8, kTf32K4 };

TW_DEVICE std::uint32_t pack(Form form, float low, float high) {
  const bool is_float16 = form == Form::kF16K16 || form == Form::kF16K8;
  return is_float16 ? pack_float16(low, high) : pack_bfloat16(low, high);
}

// d[16, 8] = a[16, k] b[k, 8], the fragments read element by element.
template <Form form>
TW_KERNEL void mma_kernel(const float* a, const float* b, float* d) {
  constexpr bool kTf32 = form == Form::kTf32K8 || form == Form::kTf32K4;
  constexpr int kDepth = form == Form::kBf16K16 || form == Form::kF16K16 ? 16
                         : form == Form::kTf32K4                         ? 4
                                                                         : 8;
  constexpr int kRegistersA = kDepth / (kTf32 ? 2 : 4);
  const int g = lane_index() / 4;
  const int t = lane_index() % 4;
  std::uint32_t fragment_a[kRegistersA];
  std::uint32_t fragment_b[kRegistersA / 2];
  TW_UNROLL
  for (int r = 0; r < kRegistersA; ++r) {
    const int row = g + r % 2 * 8;
    if constexpr (kTf32) {
      fragment_a[r] = float_to_tfloat32(a[row * kDepth + t + r / 2 * 4]);
    } else {
      const int column = 2 * t + r / 2 * 8;
      fragment_a[r] = pack(form, a[row * kDepth + column], a[row * kDepth + column + 1]);
    }
  }
  TW_UNROLL
  for (int r = 0; r < kRegistersA / 2; ++r) {
    if constexpr (kTf32) {
      fragment_b[r] = float_to_tfloat32(b[(t + r * 4) * 8 + g]);
    } else {
      const int row = 2 * t + r * 8;
      fragment_b[r] = pack(form, b[row * 8 + g], b[(row + 1) * 8 + g]);
    }
  }
  float accumulator[4] = {};
  if constexpr (form == Form::kBf16K16) mma_m16n8k16_bf16(accumulator, fragment_a, fragment_b);
  if constexpr (form == Form::kBf16K8) mma_m16n8k8_bf16(accumulator, fragment_a, fragment_b);
  if constexpr (form == Form::kF16K16) mma_m16n8k16_f16(accumulator, fragment_a, fragment_b);
  if constexpr (form == Form::kF16K8) mma_m16n8k8_f16(accumulator, fragment_a, fragment_b);
  if constexpr (form == Form::kTf32K8) mma_m16n8k8_tf32(accumulator, fragment_a, fragment_b);
  if constexpr (form == Form::kTf32K4) mma_m16n8k4_tf32(accumulator, fragment_a, fragment_b);
  TW_UNROLL
  for (int e = 0; e < 4; ++e) {
    d[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = accumulator[e];
  }
}

template <Form form>
bool mma_form(int depth) {
  const auto a = whole_numbers(static_cast<std::size_t>(16 * depth), 6);
  const auto b = whole_numbers(static_cast<std::size_t>(depth * 8), 7);
  const DeviceArray<float> device_a(a);
  const DeviceArray<float> device_b(b);
  const DeviceArray<float> d(16 * 8);
  launch(mma_kernel<form>, {.operation = "mma", .grid = dim3(1), .block = dim3(32)},
         device_a.data(), device_b.data(), d.data());
  std::vector<float> expected(16 * 8);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      for (int k = 0; k < depth; ++k) expected[i * 8 + j] += a[i * depth + k] * b[k * 8 + j];
    }
  }
  return equal(d.download(), expected);
}

bool mma_forms() {
  return mma_form<Form::kBf16K16>(16) && mma_form<Form::kBf16K8>(8) &&
         mma_form<Form::kF16K16>(16) && mma_form<Form::kF16K8>(8) && mma_form<Form::kTf32K8>(8) &&
         mma_form<Form::kTf32K4>(4);
}

// Transposes four 8x8 matrices on their way through the registers, in shared memory.
template <bool store_transposed>
TW_KERNEL void transpose_kernel(const std::uint16_t* x, std::uint16_t* y) {
  TW_SHARED(std::uint16_t[4 * 64], source);
  TW_SHARED(std::uint16_t[4 * 64], target);
  const int lane = lane_index();
  copy_async<16>(source + lane * 8, x + lane * 8);
  commit_copies();
  wait_copies<0>();
  sync_warp();
  std::uint32_t registers[4];
  load_matrices<!store_transposed>(registers, source + lane * 8);
  store_matrices<store_transposed>(registers, target + lane * 8);
  sync_warp();
  for (int i = 0; i < 8; ++i) y[lane * 8 + i] = target[lane * 8 + i];
}

template <bool store_transposed>
bool transpose() {
  std::vector<std::uint16_t> x(4 * 64);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint16_t>(i);
  const DeviceArray<std::uint16_t> device_x(x);
  const DeviceArray<std::uint16_t> y(x.size());
  launch(transpose_kernel<store_transposed>,
         {.operation = "transpose", .grid = dim3(1), .block = dim3(32)}, device_x.data(), y.data());
  const std::vector<std::uint16_t> actual = y.download();
  std::vector<float> expected(x.size());
  for (int i = 0; i < 4 * 64; ++i) {
    expected[i] = static_cast<float>(i / 64 * 64 + i % 8 * 8 + i / 8 % 8);
  }
  return equal({actual.begin(), actual.end()}, expected);
}

bool matrix_transposes() { return transpose<false>() && transpose<true>(); }

// ---- Column means over all blocks: partials, a ticket, the last block adds
// ------------------------

constexpr int kMeanColumns = 32;
constexpr int kMeanRows = 64;  // per block
constexpr int kMeanThreads = 128;

// Means of x + bias over the rows. A tile's rows beyond the end are zeros, but not after the bias.
template <Fault fault>
TW_KERNEL void column_means_kernel(const float* x, const float* bias, float* partials,
                                   unsigned* counter, float* means, int rows) {
  TW_SHARED(float[kMeanRows * kMeanColumns], tile);
  TW_SHARED(bool, is_last);
  const int first = block_index().x * kMeanRows;
  const int thread = thread_index().x;
  for (int i = thread * 4; i < kMeanRows * kMeanColumns; i += kMeanThreads * 4) {
    const bool inside = first + i / kMeanColumns < rows;
    copy_async<16>(tile + i, inside ? x + first * kMeanColumns + i : x, inside ? 16 : 0);
  }
  commit_copies();
  wait_copies<0>();
  sync_block();
  const int valid = rows - first < kMeanRows ? rows - first : kMeanRows;
  const int counted = fault == Fault::kTailRows ? kMeanRows : valid;
  if (thread < kMeanColumns) {
    float sum = 0.0f;
    for (int row = 0; row < counted; ++row) sum += tile[row * kMeanColumns + thread] + bias[thread];
    partials[block_index().x * kMeanColumns + thread] = sum;
  }
  sync_block();
  const auto last = static_cast<unsigned>(grid_size().x - 1);
  if (thread == 0) {
    is_last = fault == Fault::kSemaphoreNotReset ? atomic_add(counter, 1u) == last
                                                 : take_ticket(counter, last) == last;
  }
  if (fault != Fault::kMissingBarrier) sync_block();
  if (!is_last || thread >= kMeanColumns) return;
  float sum = 0.0f;
  for (int block = 0; block < grid_size().x; ++block) {
    sum += partials[block * kMeanColumns + thread];
  }
  means[thread] = sum / static_cast<float>(rows);
}

template <Fault fault>
bool column_means() {
  const auto bias = whole_numbers(kMeanColumns, 8);
  const DeviceArray<float> device_bias(bias);
  const DeviceArray<float> partials(160 * kMeanColumns);
  DeviceArray<unsigned> counter(1);
  counter.fill_zero();
  for (const int rows : {256, 1, 63, 65, 10000}) {
    const auto x = whole_numbers(static_cast<std::size_t>(rows * kMeanColumns), 9);
    const DeviceArray<float> device_x(x);
    const DeviceArray<float> means(kMeanColumns);
    launch(column_means_kernel<fault>,
           {.operation = "column_means",
            .grid = dim3(blocks_for(rows, kMeanRows)),
            .block = dim3(kMeanThreads)},
           device_x.data(), device_bias.data(), partials.data(), counter.data(), means.data(),
           rows);
    synchronize();
    std::vector<float> expected(kMeanColumns);
    for (int i = 0; i < rows * kMeanColumns; ++i) {
      expected[i % kMeanColumns] += x[i] + bias[i % kMeanColumns];
    }
    for (float& value : expected) value /= static_cast<float>(rows);
    if (!equal(means.download(), expected)) return false;
  }
  return true;
}

// ---- Cooperative grid
// -----------------------------------------------------------------------------

constexpr int kGridThreads = 64;
constexpr int kGridBlocks = 6;

// Twice: moves every element by one against the sign of the sum of all.
template <Fault fault>
TW_KERNEL void against_total_kernel(float* x, float* partials, GridBarrier* barrier, int size) {
  TW_SHARED(float[kGridThreads], own);
  for (int round = 0; round < 2; ++round) {
    float sum = 0.0f;
    for (auto i = global_thread_index(); i < size; i += global_thread_count()) sum += x[i];
    own[thread_index().x] = sum;
    sync_block();
    if (thread_index().x == 0) {
      for (int i = 1; i < kGridThreads; ++i) sum += own[i];
      partials[block_index().x] = sum;
    }
    if (fault == Fault::kMissingBarrier) {
      sync_block();
    } else {
      sync_grid(barrier);
    }
    float total = 0.0f;
    for (int block = 0; block < grid_size().x; ++block) total += partials[block];
    for (auto i = global_thread_index(); i < size; i += global_thread_count()) {
      x[i] += total > 0.0f ? -1.0f : 1.0f;
    }
    // The partials are free again.
    sync_grid(barrier);
  }
}

template <Fault fault>
bool against_total() {
  constexpr int kSize = 500;
  auto expected = whole_numbers(kSize, 10);
  const DeviceArray<float> x(expected);
  const DeviceArray<float> partials(kGridBlocks);
  const LaunchConfig config{.operation = "against_total",
                            .grid = dim3(kGridBlocks),
                            .block = dim3(kGridThreads),
                            .cooperative = fault != Fault::kNotCooperative};
  if (max_resident_blocks(against_total_kernel<fault>, config) < kGridBlocks) return false;
  DeviceArray<GridBarrier> barrier(1);
  barrier.fill_zero();
  for (int launches = 0; launches < 2; ++launches) {
    launch(against_total_kernel<fault>, config, x.data(), partials.data(), barrier.data(), kSize);
    synchronize();
    for (int round = 0; round < 2; ++round) {
      float total = 0.0f;
      for (const float value : expected) total += value;
      for (float& value : expected) value += total > 0.0f ? -1.0f : 1.0f;
    }
  }
  return equal(x.download(), expected);
}

// ---- Clusters and distributed shared memory
// -------------------------------------------------------

constexpr int kClusterBlocks = 4;
constexpr int kClusterThreads = 64;

// sums[cluster] of 4 * 64 consecutive elements; block `rank` of a cluster adds columns rank, rank +
// 4,
// ... of the cluster's rows.
template <Fault fault>
TW_KERNEL void cluster_sums_kernel(const float* x, float* sums) {
  TW_SHARED(float[kClusterThreads], own);
  own[thread_index().x] = x[global_thread_index()];
  if (fault != Fault::kMissingClusterBarrier) sync_cluster();
  if (cluster_rank() == 0 && thread_index().x < kWarpThreads) {
    float sum = 0.0f;
    for (int rank = 0; rank < cluster_size(); ++rank) {
      const float* other = map_to_rank(own, rank);
      for (int i = lane_index(); i < kClusterThreads; i += kWarpThreads) sum += other[i];
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_down(sum, distance);
    if (lane_index() == 0) sums[block_index().x / kClusterBlocks] = sum;
  }
  if (fault != Fault::kEarlyClusterExit) sync_cluster();
}

template <Fault fault>
bool cluster_sums() {
  constexpr int kClusters = 3;
  const auto x = whole_numbers(kClusters * kClusterBlocks * kClusterThreads, 11);
  const DeviceArray<float> device_x(x);
  const DeviceArray<float> sums(kClusters);
  launch(cluster_sums_kernel<fault>,
         {.operation = "cluster_sums",
          .grid = dim3(kClusters * kClusterBlocks),
          .block = dim3(kClusterThreads),
          .cluster = kClusterBlocks},
         device_x.data(), sums.data());
  synchronize();
  std::vector<float> expected(kClusters);
  for (std::size_t i = 0; i < x.size(); ++i)
    expected[i / (kClusterBlocks * kClusterThreads)] += x[i];
  return equal(sums.download(), expected);
}

// ---- Named barriers: one warp produces, one consumes
// ----------------------------------------------

constexpr int kFullBarrier = 1;   // + stage
constexpr int kEmptyBarrier = 3;  // + stage
constexpr int kRounds = 10;

template <Fault fault>
TW_KERNEL void producer_consumer_kernel(const float* x, float* y) {
  TW_SHARED(float[2 * 32], buffer);
  constexpr int kBoth = 64;
  const int lane = lane_index();
  if (warp_index() == 0) {
    for (int round = 0; round < kRounds; ++round) {
      const int stage = round % 2;
      if (round >= 2) sync_barrier(kEmptyBarrier + stage, kBoth);
      buffer[stage * 32 + lane] = x[round * 32 + lane];
      arrive_barrier(kFullBarrier + stage, fault == Fault::kBarrierCount ? 96 : kBoth);
    }
  } else {
    for (int round = 0; round < kRounds; ++round) {
      // The wrong parity waits for the stage that is not being filled.
      const int stage = fault == Fault::kWrongPhase ? (round + 1) % 2 : round % 2;
      sync_barrier(kFullBarrier + stage, fault == Fault::kBarrierCount ? 96 : kBoth);
      // Another lane's element: a copy in a register would hide a missing barrier.
      y[round * 32 + lane] = buffer[stage * 32 + (lane + 1) % 32];
      if (round < kRounds - 2) arrive_barrier(kEmptyBarrier + stage, kBoth);
    }
  }
}

template <Fault fault>
bool producer_consumer() {
  const auto x = whole_numbers(kRounds * 32, 12);
  const DeviceArray<float> device_x(x);
  const DeviceArray<float> y(x.size());
  launch(producer_consumer_kernel<fault>,
         {.operation = "producer_consumer", .grid = dim3(2), .block = dim3(64)}, device_x.data(),
         y.data());
  synchronize();
  std::vector<float> expected(x.size());
  for (int i = 0; i < kRounds * 32; ++i) expected[i] = x[i / 32 * 32 + (i + 1) % 32];
  return equal(y.download(), expected);
}

// ---- Streams, events and graphs
// -------------------------------------------------------------------

// x = x * factor + addend[0]
TW_KERNEL void affine_kernel(float* x, float factor, const float* addend, int size) {
  const auto i = global_thread_index();
  if (i < size) x[i] = x[i] * factor + addend[0];
}

// A step of two branches: x = 2 x + 1 beside s = 3 s + 1, then x = x + s.
template <Fault fault>
bool graph_replay() {
  constexpr int kSize = 100;
  std::vector<float> expected(kSize, 1.0f);
  const DeviceArray<float> x(expected);
  const DeviceArray<float> scalar(std::vector<float>{1.0f});
  const DeviceArray<float> one(std::vector<float>{1.0f});
  cudaStream_t stream, branch;
  cudaEvent_t fork, join;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test");
  check(cudaStreamCreateWithFlags(&branch, cudaStreamNonBlocking), "test");
  check(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), "test");
  check(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), "test");
  float* pinned = nullptr;
  check(cudaMallocHost(reinterpret_cast<void**>(&pinned), kSize * sizeof(float)), "test");

  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  check(cudaEventRecord(fork, stream), "test");
  check(cudaStreamWaitEvent(branch, fork, 0), "test");
  LaunchConfig config{.operation = "affine", .grid = dim3(1), .block = dim3(128)};
  config.stream = branch;
  launch(affine_kernel, config, scalar.data(), 3.0f, one.data(), 1);
  check(cudaEventRecord(join, branch), "test");
  config.stream = stream;
  launch(affine_kernel, config, x.data(), 2.0f, one.data(), kSize);
  if (fault != Fault::kMissingGraphEdge) check(cudaStreamWaitEvent(stream, join, 0), "test");
  launch(affine_kernel, config, x.data(), 1.0f, scalar.data(), kSize);
  if (fault == Fault::kMissingGraphEdge) check(cudaStreamWaitEvent(stream, join, 0), "test");
  check(cudaMemcpyAsync(pinned, x.data(), kSize * sizeof(float), cudaMemcpyDeviceToHost, stream),
        "test");
  cudaGraph_t graph;
  check(cudaStreamEndCapture(stream, &graph), "test");
  std::size_t nodes = 0;
  check(cudaGraphGetNodes(graph, nullptr, &nodes), "test");
  cudaGraphExec_t executable;
  check(cudaGraphInstantiate(&executable, graph, 0), "test");
  check(cudaGraphDestroy(graph), "test");

  constexpr int kReplays = 4;
  for (int i = 0; i < kReplays; ++i) check(cudaGraphLaunch(executable, stream), "test");
  if (fault != Fault::kMissingSynchronize) check(cudaStreamSynchronize(stream), "test");
  const std::vector<float> actual(pinned, pinned + kSize);
  check(cudaStreamSynchronize(stream), "test");
  float s = 1.0f;
  for (int i = 0; i < kReplays; ++i) {
    s = 3.0f * s + 1.0f;
    for (float& value : expected) value = 2.0f * value + 1.0f + s;
  }
  check(cudaGraphExecDestroy(executable), "test");
  check(cudaFreeHost(pinned), "test");
  check(cudaEventDestroy(fork), "test");
  check(cudaEventDestroy(join), "test");
  check(cudaStreamDestroy(branch), "test");
  check(cudaStreamDestroy(stream), "test");
  if (nodes != 4) std::printf("expected 4 nodes, got %zu\n", nodes);
  return nodes == 4 && equal(actual, expected);
}

// What a capture forbids, and what it must not leave open.
bool capture_rules() {
  cudaStream_t stream, branch;
  cudaEvent_t fork;
  cudaGraph_t graph = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test");
  check(cudaStreamCreateWithFlags(&branch, cudaStreamNonBlocking), "test");
  check(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), "test");

  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  const bool waits = cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported;
  const bool ends = cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated;
  (void)cudaGetLastError();

  const DeviceArray<float> one(std::vector<float>{1.0f});
  LaunchConfig config{.operation = "affine", .grid = dim3(1), .block = dim3(32)};
  config.stream = branch;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  check(cudaEventRecord(fork, stream), "test");
  check(cudaStreamWaitEvent(branch, fork, 0), "test");
  launch(affine_kernel, config, one.data(), 1.0f, one.data(), 1);
  const bool unjoined = cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined;
  (void)cudaGetLastError();

  // The default stream would have to wait for a blocking one that is being captured.
  cudaStream_t blocking;
  check(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault), "test");
  check(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeThreadLocal), "test");
  const bool implicit =
      cudaMemsetAsync(one.data(), 0, sizeof(float), nullptr) == cudaErrorStreamCaptureImplicit;
  const bool lost = cudaStreamEndCapture(blocking, &graph) == cudaErrorStreamCaptureInvalidated;
  (void)cudaGetLastError();

  check(cudaEventDestroy(fork), "test");
  check(cudaStreamDestroy(blocking), "test");
  check(cudaStreamDestroy(branch), "test");
  check(cudaStreamDestroy(stream), "test");
  return waits && ends && unjoined && implicit && lost;
}

// Two streams that an event orders, and queries that get there.
bool stream_order() {
  const DeviceArray<float> x(std::vector<float>{1.0f});
  const DeviceArray<float> one(std::vector<float>{1.0f});
  cudaStream_t first, second;
  cudaEvent_t event;
  check(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), "test");
  check(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), "test");
  check(cudaEventCreateWithFlags(&event, cudaEventDefault), "test");
  LaunchConfig config{.operation = "affine", .grid = dim3(1), .block = dim3(32)};
  config.stream = first;
  launch(affine_kernel, config, x.data(), 5.0f, one.data(), 1);
  check(cudaEventRecord(event, first), "test");
  check(cudaStreamWaitEvent(second, event, 0), "test");
  config.stream = second;
  launch(affine_kernel, config, x.data(), 7.0f, one.data(), 1);
  while (cudaStreamQuery(second) == cudaErrorNotReady) {
  }
  const bool reached = cudaEventQuery(event) == cudaSuccess;
  float actual = 0.0f;
  check(cudaMemcpyAsync(&actual, x.data(), sizeof(float), cudaMemcpyDeviceToHost, second), "test");
  check(cudaStreamSynchronize(second), "test");
  check(cudaEventDestroy(event), "test");
  check(cudaStreamDestroy(first), "test");
  check(cudaStreamDestroy(second), "test");
  return reached && equal({actual}, {43.0f});
}

// Rows of 3 from a pitch of 4 to one of 5 and back, around what was there.
bool pitched_copies() {
  constexpr int kRows = 6;
  constexpr std::size_t kFloat = sizeof(float);
  const auto x = whole_numbers(kRows * 4, 13);
  const DeviceArray<float> device_x(std::vector<float>(kRows * 5, 7.0f));
  std::vector<float> back(kRows * 4, 9.0f);
  check(cudaMemcpy2DAsync(device_x.data(), 5 * kFloat, x.data(), 4 * kFloat, 3 * kFloat, kRows,
                          cudaMemcpyHostToDevice, nullptr),
        "test");
  check(cudaMemcpy2DAsync(back.data(), 4 * kFloat, device_x.data(), 5 * kFloat, 3 * kFloat, kRows,
                          cudaMemcpyDeviceToHost, nullptr),
        "test");
  synchronize();
  std::vector<float> expected_back = x;
  std::vector<float> expected(kRows * 5, 7.0f);
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < 3; ++i) expected[row * 5 + i] = x[row * 4 + i];
    expected_back[row * 4 + 3] = 9.0f;
  }
  return equal(device_x.download(), expected) && equal(back, expected_back);
}

// ---- Errors
// -----------------------------------------------------------------------------------------

// Errors that leave the device usable.
bool recoverable_errors() {
  void* pointer = nullptr;
  if (cudaMalloc(&pointer, std::size_t{1} << 50) != cudaErrorMemoryAllocation) return false;
  if (cudaGetLastError() != cudaErrorMemoryAllocation) return false;
  if (cudaGetLastError() != cudaSuccess) return false;
  std::vector<float> host(4, 1.0f);
  const DeviceArray<float> x(host);
  LaunchConfig config{.operation = "affine", .grid = dim3(1), .block = dim3(2048)};
  try {
    launch(affine_kernel, config, x.data(), 1.0f, x.data(), 4);
    return false;
  } catch (const DeviceError& error) {
    std::printf("%s\n", error.what());
  }
  config.block = dim3(32);
  launch(affine_kernel, config, x.data(), 2.0f, x.data(), 1);
  return equal(x.download(), {3.0f, 1.0f, 1.0f, 1.0f});
}

#if defined(TW_CUDA_EMULATED)
// A pointer that no check of arguments sees.
struct Box {
  float* pointer;
};
TW_KERNEL void store_kernel(Box box) { box.pointer[thread_index().x] = 1.0f; }

bool use_after_free() {
  float* x = nullptr;
  check(cudaMalloc(reinterpret_cast<void**>(&x), 4096), "test");
  check(cudaFree(x), "test");
  launch(store_kernel, {.operation = "store", .grid = dim3(1), .block = dim3(32)}, Box{x});
  synchronize();
  return true;
}

bool host_access() {
  emulator::settings().protect = true;
  axpy<Fault::kNone>();
  const DeviceArray<float> x(std::vector<float>{1.0f});
  return x.data()[0] == 2.0f;
}

// The device stays broken, and says what broke it, until it is reset.
bool sticky_error() {
  try {
    axpy<Fault::kMisalignedVector>();
    return false;
  } catch (const DeviceError&) {
  }
  void* pointer = nullptr;
  if (cudaMalloc(&pointer, 16) != cudaErrorMisalignedAddress) return false;
  if (cudaGetLastError() != cudaErrorMisalignedAddress) return false;
  if (cudaGetLastError() != cudaErrorMisalignedAddress) return false;
  if (cudaDeviceReset() != cudaSuccess) return false;
  return axpy<Fault::kNone>();
}
#endif

struct Case {
  const char* name;
  bool (*run)();
};

constexpr Case kCases[] = {
    {"axpy", axpy<Fault::kNone>},
    {"row_sums", row_sums<Fault::kNone>},
    {"gemm", gemm<Fault::kNone>},
    {"mma_forms", mma_forms},
    {"matrix_transposes", matrix_transposes},
    {"column_means", column_means<Fault::kNone>},
    {"against_total", against_total<Fault::kNone>},
    {"cluster_sums", cluster_sums<Fault::kNone>},
    {"producer_consumer", producer_consumer<Fault::kNone>},
    {"graph_replay", graph_replay<Fault::kNone>},
    {"capture_rules", capture_rules},
    {"stream_order", stream_order},
    {"pitched_copies", pitched_copies},
    {"recoverable_errors", recoverable_errors},
#if defined(TW_CUDA_EMULATED)
    {"sticky_error", sticky_error},
    {"fault:axpy_global_overrun", axpy<Fault::kGlobalOverrun>},
    {"fault:axpy_read_beyond_page", axpy<Fault::kGlobalReadBeyondPage>},
    {"fault:axpy_write_beyond_page", axpy<Fault::kGlobalWriteBeyondPage>},
    {"fault:axpy_misaligned_vector", axpy<Fault::kMisalignedVector>},
    {"fault:axpy_host_pointer", axpy<Fault::kHostPointer>},
    {"fault:row_sums_missing_barrier", row_sums<Fault::kMissingBarrier>},
    {"fault:row_sums_missing_reuse_barrier", row_sums<Fault::kMissingReuseBarrier>},
    {"fault:row_sums_divergent_barrier", row_sums<Fault::kDivergentBarrier>},
    {"fault:row_sums_divergent_shuffle", row_sums<Fault::kDivergentShuffle>},
    {"fault:row_sums_exited_lane", row_sums<Fault::kExitedLane>},
    {"fault:row_sums_shared_overrun", row_sums<Fault::kSharedOverrun>},
    {"fault:row_sums_shared_read_overrun", row_sums<Fault::kSharedReadOverrun>},
    {"fault:gemm_missing_barrier", gemm<Fault::kMissingBarrier>},
    {"fault:gemm_early_release", gemm<Fault::kEarlyRelease>},
    {"fault:gemm_missing_copy_wait", gemm<Fault::kMissingCopyWait>},
    {"fault:gemm_late_wait", gemm<Fault::kLateWait>},
    {"fault:gemm_wrong_stage", gemm<Fault::kWrongStage>},
    {"fault:gemm_wrong_stride", gemm<Fault::kWrongStride>},
    {"fault:column_means_tail_rows", column_means<Fault::kTailRows>},
    {"fault:column_means_semaphore_not_reset", column_means<Fault::kSemaphoreNotReset>},
    {"fault:column_means_missing_barrier", column_means<Fault::kMissingBarrier>},
    {"fault:against_total_not_cooperative", against_total<Fault::kNotCooperative>},
    {"fault:against_total_missing_barrier", against_total<Fault::kMissingBarrier>},
    {"fault:cluster_sums_missing_barrier", cluster_sums<Fault::kMissingClusterBarrier>},
    {"fault:cluster_sums_early_exit", cluster_sums<Fault::kEarlyClusterExit>},
    {"fault:producer_consumer_barrier_count", producer_consumer<Fault::kBarrierCount>},
    {"fault:producer_consumer_wrong_phase", producer_consumer<Fault::kWrongPhase>},
    {"fault:graph_replay_missing_edge", graph_replay<Fault::kMissingGraphEdge>},
    {"fault:graph_replay_missing_synchronize", graph_replay<Fault::kMissingSynchronize>},
    {"fault:use_after_free", use_after_free},
    {"fault:host_access", host_access},
#endif
};

}  // namespace
}  // namespace thalweg::cuda

int main(int argc, char** argv) {
  for (const auto& test : thalweg::cuda::kCases) {
    if (argc < 2) {
      std::printf("%s\n", test.name);
    } else if (std::strcmp(argv[1], test.name) == 0) {
      try {
        return test.run() ? 0 : 1;
      } catch (const thalweg::Error& error) {
        std::printf("%s\n", error.what());
        return 2;
      }
    }
  }
  if (argc < 2) return 0;
  std::printf("no case named %s\n", argv[1]);
  return 3;
}
