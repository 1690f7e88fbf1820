#include <cmath>

#include "cuda/block_reduction.h"
#include "cuda/device_matrix.h"
#include "cuda/launch_shape.h"
#include "cuda/optimizer_step.h"
#include "math/clip.h"
#include "math/optimizers.h"

namespace thalweg::cuda {
namespace {

constexpr const char* kOperation = "optimizer_step";
constexpr const char* kThetaOperation = "optimizer_theta";
constexpr const char* kNormOperation = "gradient_norm";

// Every thread has this many quads in flight, from up to five arenas; 80 registers for float, 128
// for double.
constexpr int kThreads = 256;
template <class T>
constexpr int kQuadsPerThread = sizeof(T) == 4 ? 2 : 1;
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 3 : 2;

// The norm is summed by chunks of this many elements.
constexpr int kNormThreads = 256;
constexpr int kNormQuadsPerThread = 4;
constexpr std::int64_t kNormChunk = kNormThreads * kNormQuadsPerThread * kQuad;

constexpr std::int64_t kQuadsPerGroupBlock = kGroupBlock / kQuad;

// ---- Kernels ------------------------------------------------------------------------------------

TW_DEVICE void advance(StepState& state, std::int64_t rows) {
  if (state.status != StepStatus::kRunning) return;
  state.position += rows;
  if (!updates_model(state)) {
    state.skipped_rows += rows;
    return;
  }
  state.steps += 1;
  state.row += 1;
  state.updates += 1;
  state.last_loss = state.loss;
  state.last_hits = state.hits;
  state.last_weight = state.weight;
  state.last_squares = state.squares;
  state.run_loss += state.loss;
  state.run_hits += state.hits;
  state.run_weight += state.weight;
  if (state.skipped_elements > 0) state.status = StepStatus::kElementsNotFinite;
}

TW_KERNEL void advance_step_kernel(StepState* state, std::int64_t rows) { advance(*state, rows); }

// The coefficients of all groups, rounded to T once per block.
template <class T>
TW_DEVICE void load_coefficients(const double* from, int groups, T* to) {
  for (int i = thread_index().x; i < groups * kMaxCoefficients; i += kThreads) {
    to[i] = static_cast<T>(from[i]);
  }
  sync_block();
}

template <class T>
struct Parameters {
  Quad<T> p, g, s0, s1, average;
};

// Returns how many of the four gradients are not finite; their elements stay as they are.
template <class T, class Optimizer>
TW_DEVICE int update_quad(const T* coefficients, T factor, Parameters<T>& x) {
  const typename Optimizer::template Update<T> rule(coefficients);
  int bad = 0;
  TW_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    const T g = x.g[j] * factor;
    T p = x.p[j];
    T s0 = T(0);
    T s1 = T(0);
    if constexpr (Optimizer::slots > 0) s0 = x.s0[j];
    if constexpr (Optimizer::slots > 1) s1 = x.s1[j];
    rule(p, g, s0, s1);
    const bool good = is_finite(g);
    x.p[j] = good ? p : x.p[j];
    if constexpr (Optimizer::slots > 0) x.s0[j] = good ? s0 : x.s0[j];
    if constexpr (Optimizer::slots > 1) x.s1[j] = good ? s1 : x.s1[j];
    bad += good ? 0 : 1;
  }
  return bad;
}

template <class Optimizer, class T>
TW_DEVICE T theta_of(T p, T s0, T s1, const T* coefficients) {
  if constexpr (Optimizer::look_ahead) {
    return Optimizer::template theta<T>(p, s0, s1, coefficients);
  } else {
    return p;
  }
}

template <class T, class Optimizer>
TW_DEVICE void update_all(const OptimizerStep<T>& problem, T* coefficients) {
  constexpr int kUnroll = kQuadsPerThread<T>;
  StepState* const state = problem.state;
  const int groups = problem.groups.groups;
  load_coefficients(problem.coefficients + state->row * groups * kMaxCoefficients, groups,
                    coefficients);
  const T factor = static_cast<T>(state->gradient_factor);
  const T average_weight =
      problem.average != nullptr ? static_cast<T>(problem.average_weights[state->row]) : T(0);
  const bool averages = average_weight > T(0);
  const Matrix<T> planes{problem.p,           1,
                         problem.count,       problem.count,
                         problem.planes.data, problem.planes.stride,
                         problem.planes.count};

  const std::int64_t quads = problem.count / kQuad;
  const std::int64_t stride = global_thread_count() * kUnroll;
  unsigned long long skipped = 0;
  for (std::int64_t first = std::int64_t{block_index().x} * kThreads * kUnroll; first < quads;
       first += stride) {
    Parameters<T> x[kUnroll];
    int group[kUnroll];
    bool moves[kUnroll];
    bool active[kUnroll];
    TW_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t quad = first + u * kThreads + thread_index().x;
      active[u] = quad < quads;
      group[u] = active[u] ? problem.groups.of_block[quad / kQuadsPerGroupBlock] : 0;
      moves[u] = active[u] && problem.groups.frozen[group[u]] == 0;
      active[u] = moves[u] || (active[u] && averages);
      if (!active[u]) continue;
      const std::int64_t at = quad * kQuad;
      x[u].p = load_quad(problem.p + at);
      if (moves[u]) x[u].g = load_quad(problem.g + at);
      if constexpr (Optimizer::slots > 0) x[u].s0 = load_quad(problem.s0 + at);
      if constexpr (Optimizer::slots > 1) x[u].s1 = load_quad(problem.s1 + at);
      if (averages) x[u].average = load_quad(problem.average + at);
    }
    TW_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      if (!active[u]) continue;
      const std::int64_t at = (first + u * kThreads + thread_index().x) * kQuad;
      const T* const c = coefficients + group[u] * kMaxCoefficients;
      if (moves[u]) {
        skipped += static_cast<unsigned>(update_quad<T, Optimizer>(c, factor, x[u]));
        store_quad(problem.p + at, x[u].p);
        if constexpr (Optimizer::slots > 0) store_quad(problem.s0 + at, x[u].s0);
        if constexpr (Optimizer::slots > 1) store_quad(problem.s1 + at, x[u].s1);
        if (problem.planes.count > 0) store_planes(planes, 0, at, x[u].p);
      }
      if (averages) {
        TW_UNROLL
        for (int j = 0; j < kQuad; ++j) {
          T s0 = T(0);
          T s1 = T(0);
          if constexpr (Optimizer::slots > 0) s0 = x[u].s0[j];
          if constexpr (Optimizer::slots > 1) s1 = x[u].s1[j];
          const T theta = theta_of<Optimizer>(x[u].p[j], s0, s1, c);
          x[u].average[j] = madd(average_weight, theta - x[u].average[j], x[u].average[j]);
        }
        store_quad(problem.average + at, x[u].average);
      }
    }
  }
  if (skipped > 0) {
    atomic_add(reinterpret_cast<unsigned long long*>(&state->skipped_elements), skipped);
  }
}

// The status and the row are read before a block takes its ticket, and change after the last one.
template <class T, class Optimizer>
TW_KERNEL_BOUNDS(kThreads, kBlocks<T>)
void optimizer_step_kernel(const OptimizerStep<T> problem, unsigned* ticket) {
  if (updates_model(*problem.state)) {
    update_all<T, Optimizer>(problem, dynamic_shared<T>());
  }
  if (!problem.advances) return;
  if (!is_last_block(ticket, static_cast<unsigned>(grid_size().x))) return;
  if (thread_index().x == 0) advance(*problem.state, problem.rows);
}

template <class T, class Optimizer>
TW_KERNEL void optimizer_theta_kernel(const OptimizerTheta<T> problem) {
  T* const coefficients = dynamic_shared<T>();
  load_coefficients(problem.coefficients, problem.groups.groups, coefficients);
  const std::int64_t quads = problem.count / kQuad;
  for (std::int64_t quad = global_thread_index(); quad < quads; quad += global_thread_count()) {
    const std::int64_t at = quad * kQuad;
    const int group = problem.groups.of_block[quad / kQuadsPerGroupBlock];
    Quad<T> p = load_quad(problem.p + at);
    Quad<T> s0{};
    Quad<T> s1{};
    if constexpr (Optimizer::slots > 0) s0 = load_quad(problem.s0 + at);
    if constexpr (Optimizer::slots > 1) s1 = load_quad(problem.s1 + at);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      p[j] = theta_of<Optimizer>(p[j], s0[j], s1[j], coefficients + group * kMaxCoefficients);
    }
    store_quad(problem.theta + at, p);
  }
}

template <class T>
TW_KERNEL_BOUNDS(kNormThreads, 4)
void gradient_norm_kernel(const GradientNorm<T> problem, double* partials, unsigned* ticket) {
  const std::int64_t count = problem.block_count * kGroupBlock;
  const std::int64_t chunks = ceil_div(count, kNormChunk);
  for (std::int64_t chunk = block_index().x; chunk < chunks; chunk += grid_size().x) {
    Quad<T> x[kNormQuadsPerThread];
    TW_UNROLL
    for (int u = 0; u < kNormQuadsPerThread; ++u) {
      const std::int64_t at = chunk * kNormChunk + (u * kNormThreads + thread_index().x) * kQuad;
      x[u] = {};
      if (at >= count) continue;
      const std::int64_t block = problem.blocks[at / kGroupBlock];
      x[u] = load_quad(problem.g + block * kGroupBlock + at % kGroupBlock);
    }
    double sum[1] = {0.0};
    TW_UNROLL
    for (int u = 0; u < kNormQuadsPerThread; ++u) {
      TW_UNROLL
      for (int j = 0; j < kQuad; ++j) {
        const double element = static_cast<double>(x[u][j]);
        sum[0] = madd(element, element, sum[0]);
      }
    }
    block_sums<kNormThreads>(sum);
    if (thread_index().x == 0) partials[chunk] = sum[0];
  }
  if (!is_last_block(ticket, static_cast<unsigned>(grid_size().x))) return;
  double total[1] = {0.0};
  for (std::int64_t chunk = thread_index().x; chunk < chunks; chunk += kNormThreads) {
    total[0] += partials[chunk];
  }
  for (std::int64_t i = thread_index().x; i < problem.sum_count; i += kNormThreads) {
    total[0] += problem.sums[i];
  }
  block_sums<kNormThreads>(total);
  if (thread_index().x != 0) return;
  StepState* const state = problem.state;
  state->squares = total[0];
  if (is_finite(total[0])) {
    state->gradient_factor = clip_scale(total[0], problem.clip_norm);
  } else if (updates_model(*state)) {
    state->status = StepStatus::kGradientNotFinite;
  }
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

namespace {

template <class T>
std::size_t coefficient_bytes(const ParameterGroups& groups) {
  return sizeof(T) * static_cast<std::size_t>(groups.groups * kMaxCoefficients);
}

}  // namespace

template <class T>
void optimizer_step(const OptimizerStep<T>& problem, const Scratch& scratch, cudaStream_t stream) {
  dispatch_optimizer(problem.optimizer, [&](auto optimizer) {
    const std::int64_t parts =
        ceil_div(problem.count / kQuad, std::int64_t{kThreads} * kQuadsPerThread<T>);
    launch(optimizer_step_kernel<T, decltype(optimizer)>,
           {.operation = kOperation,
            .grid = strided_blocks(parts, kBlocks<T>, kOperation),
            .block = kThreads,
            .dynamic_shared = coefficient_bytes<T>(problem.groups),
            .stream = stream},
           problem, scratch.tickets);
  });
}

void advance_step(StepState* state, std::int64_t rows, cudaStream_t stream) {
  launch(advance_step_kernel,
         {.operation = "advance_step", .grid = 1, .block = 1, .stream = stream}, state, rows);
}

std::size_t gradient_norm_scratch_bytes(std::int64_t block_count) {
  return sizeof(double) * static_cast<std::size_t>(ceil_div(block_count * kGroupBlock, kNormChunk));
}

template <class T>
void gradient_norm(const GradientNorm<T>& problem, const Scratch& scratch, cudaStream_t stream) {
  const std::int64_t chunks = ceil_div(problem.block_count * kGroupBlock, kNormChunk);
  launch(gradient_norm_kernel<T>,
         {.operation = kNormOperation,
          .grid = strided_blocks(chunks, 4, kNormOperation),
          .block = kNormThreads,
          .stream = stream},
         problem, static_cast<double*>(scratch.memory), scratch.tickets);
}

template <class T>
void optimizer_theta(const OptimizerTheta<T>& problem, cudaStream_t stream) {
  dispatch_optimizer(problem.optimizer, [&](auto optimizer) {
    using Optimizer = decltype(optimizer);
    if constexpr (Optimizer::look_ahead) {
      launch(optimizer_theta_kernel<T, Optimizer>,
             {.operation = kThetaOperation,
              .grid = strided_blocks(ceil_div(problem.count / kQuad, kThreads), 8, kThetaOperation),
              .block = kThreads,
              .dynamic_shared = coefficient_bytes<T>(problem.groups),
              .stream = stream},
             problem);
    } else {
      check(cudaMemcpyAsync(problem.theta, problem.p,
                            static_cast<std::size_t>(problem.count) * sizeof(T),
                            cudaMemcpyDeviceToDevice, stream),
            kThetaOperation);
    }
  });
}

#define TW_INSTANTIATE(T)                                                              \
  template void optimizer_step(const OptimizerStep<T>&, const Scratch&, cudaStream_t); \
  template void gradient_norm(const GradientNorm<T>&, const Scratch&, cudaStream_t);   \
  template void optimizer_theta(const OptimizerTheta<T>&, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
