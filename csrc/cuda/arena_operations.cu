#include "cuda/arena_operations.h"
#include "cuda/block_reduction.h"
#include "cuda/quad_loop.h"
#include "math/compensated_sum.h"

namespace thalweg::cuda {
namespace {

// Sums are taken by chunks of this many elements.
constexpr int kSumThreads = 256;
constexpr int kSumQuadsPerThread = 4;
constexpr std::int64_t kSumChunk = kSumThreads * kSumQuadsPerThread * kQuad;

// ---- Kernels ------------------------------------------------------------------------------------

// f(first element) for every quad of a flat array.
template <class F>
TW_DEVICE void for_flat_quads(std::int64_t count, F&& f) {
  for (std::int64_t at = global_thread_index() * kQuad; at < count;
       at += global_thread_count() * kQuad) {
    f(at);
  }
}

template <class T>
TW_KERNEL void scale_kernel(T* x, const T factor, const std::int64_t count) {
  for_flat_quads(count, [&](std::int64_t at) {
    Quad<T> values = load_quad(x + at);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) values[j] *= factor;
    store_quad(x + at, values);
  });
}

template <class T>
TW_KERNEL void axpy_kernel(const T a, const T* x, T* y, const std::int64_t count) {
  for_flat_quads(count, [&](std::int64_t at) {
    const Quad<T> from = load_quad(x + at);
    Quad<T> to = load_quad(y + at);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) to[j] = madd(a, from[j], to[j]);
    store_quad(y + at, to);
  });
}

template <class T>
TW_KERNEL void add_compensated_kernel(const T* x, double* sums, double* rest,
                                      const std::int64_t count, const bool first) {
  for_flat_quads(count, [&](std::int64_t at) {
    const Quad<T> terms = load_quad(x + at);
    Quad<double> sum{};
    Quad<double> lost{};
    if (!first) {
      sum = load_quad(sums + at);
      lost = load_quad(rest + at);
    }
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j)
      thalweg::add_compensated(sum[j], lost[j], static_cast<double>(terms[j]));
    store_quad(sums + at, sum);
    store_quad(rest + at, lost);
  });
}

template <class T>
TW_KERNEL_BOUNDS(kSumThreads, 4)
void dot_kernel(const T* x, const T* y, const std::int64_t count, double* result, double* partials,
                unsigned* ticket) {
  const std::int64_t chunks = ceil_div(count, kSumChunk);
  for (std::int64_t chunk = block_index().x; chunk < chunks; chunk += grid_size().x) {
    Quad<T> a[kSumQuadsPerThread];
    Quad<T> b[kSumQuadsPerThread];
    TW_UNROLL
    for (int u = 0; u < kSumQuadsPerThread; ++u) {
      const std::int64_t at = chunk * kSumChunk + (u * kSumThreads + thread_index().x) * kQuad;
      a[u] = b[u] = {};
      if (at >= count) continue;
      a[u] = load_quad(x + at);
      b[u] = load_quad(y + at);
    }
    double sum[1] = {0.0};
    TW_UNROLL
    for (int u = 0; u < kSumQuadsPerThread; ++u) {
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        sum[0] = madd(static_cast<double>(a[u][j]), static_cast<double>(b[u][j]), sum[0]);
      }
    }
    block_sums<kSumThreads>(sum);
    if (thread_index().x == 0) partials[chunk] = sum[0];
  }
  if (!is_last_block(ticket, static_cast<unsigned>(grid_size().x))) return;
  double total[1] = {0.0};
  for (std::int64_t chunk = thread_index().x; chunk < chunks; chunk += kSumThreads) {
    total[0] += partials[chunk];
  }
  block_sums<kSumThreads>(total);
  if (thread_index().x == 0) *result = total[0];
}

template <class T>
TW_KERNEL void count_not_finite_kernel(const T* x, const std::int64_t count,
                                       unsigned long long* bad) {
  unsigned long long found = 0;
  for_flat_quads(count, [&](std::int64_t at) {
    const Quad<T> values = load_quad(x + at);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) found += is_finite(values[j]) ? 0 : 1;
  });
  if (found > 0) atomic_add(bad, found);
}

TW_KERNEL void split_planes_kernel(const Matrix<float> x) {
  for_flat_quads(x.width, [&](std::int64_t at) { store_planes(x, 0, at, load_quad(x.data + at)); });
}

TW_KERNEL void copy_if_running_kernel(const StepState* state, const std::uint32_t* from,
                                      std::uint32_t* to, const std::int64_t count) {
  if (!updates_model(*state)) return;
  for_flat_quads(count,
                 [&](std::int64_t at) { store_vector(to + at, load_vector<kQuad>(from + at)); });
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

template <class T>
void scale(T* x, double factor, std::int64_t count, cudaStream_t stream) {
  launch(scale_kernel<T>, elementwise("scale", count, stream), x, static_cast<T>(factor), count);
}

template <class T>
void axpy(double a, const T* x, T* y, std::int64_t count, cudaStream_t stream) {
  launch(axpy_kernel<T>, elementwise("axpy", count, stream), static_cast<T>(a), x, y, count);
}

template <class T>
void add_compensated(const T* x, double* sums, double* rest, std::int64_t count, bool first,
                     cudaStream_t stream) {
  launch(add_compensated_kernel<T>, elementwise("add_compensated", count, stream), x, sums, rest,
         count, first);
}

std::size_t dot_scratch_bytes(std::int64_t count) {
  return sizeof(double) * static_cast<std::size_t>(ceil_div(count, kSumChunk));
}

template <class T>
void dot(const T* x, const T* y, std::int64_t count, double* result, const Scratch& scratch,
         cudaStream_t stream) {
  launch(dot_kernel<T>,
         {.operation = "dot",
          .grid = strided_blocks(ceil_div(count, kSumChunk), 4, "dot"),
          .block = kSumThreads,
          .stream = stream},
         x, y, count, result, static_cast<double*>(scratch.memory), scratch.tickets);
}

template <class T>
void count_not_finite(const T* x, std::int64_t count, unsigned long long* bad,
                      cudaStream_t stream) {
  launch(count_not_finite_kernel<T>, elementwise("count_not_finite", count, stream), x, count, bad);
}

void split_planes(const float* x, std::int64_t count, const PlaneArena& planes,
                  cudaStream_t stream) {
  const Matrix<float> arena{const_cast<float*>(x), 1,           count, count, planes.data,
                            planes.stride,         planes.count};
  launch(split_planes_kernel, elementwise("split_planes", count, stream), arena);
}

void copy_if_running(const StepState* state, const void* from, void* to, std::size_t bytes,
                     cudaStream_t stream) {
  const auto count = static_cast<std::int64_t>(bytes / sizeof(std::uint32_t));
  launch(copy_if_running_kernel, elementwise("copy_if_running", count, stream), state,
         static_cast<const std::uint32_t*>(from), static_cast<std::uint32_t*>(to), count);
}

#define TW_INSTANTIATE(T)                                                                      \
  template void scale(T*, double, std::int64_t, cudaStream_t);                                 \
  template void axpy(double, const T*, T*, std::int64_t, cudaStream_t);                        \
  template void add_compensated(const T*, double*, double*, std::int64_t, bool, cudaStream_t); \
  template void dot(const T*, const T*, std::int64_t, double*, const Scratch&, cudaStream_t);  \
  template void count_not_finite(const T*, std::int64_t, unsigned long long*, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
