// One update of flat vectors by any optimizer of math/optimizers.inc, and clipping by global norm.
#include <cmath>

#include "math/optimizers.h"
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {
namespace {

// Elements that are staged in aligned memory at a time; fixes the chunks of the norm as well.
constexpr std::int64_t kChunk = 4 * kGroupBlock;

std::int64_t chunk_size(std::int64_t chunk, std::int64_t count) {
  return std::min(kChunk, count - chunk * kChunk);
}

void expect_hyper(const std::string& name, const HyperTable& table, const double* hyper) {
  for (int i = 0; i < table.count; ++i)
    expect_in(name, table[i].name, hyper[i], table[i].lowest, table[i].highest);
}

// The vectors of one chunk. The last one is padded with zeros, which every optimizer keeps at zero.
template <class T>
struct alignas(64) Stage {
  T p[kChunk], g[kChunk], s0[kChunk], s1[kChunk];
};

template <class T>
void stage_in(const T* from, std::int64_t count, T* to) {
  if (from) std::copy_n(from, count, to);
  std::fill(to + (from ? count : 0), to + kChunk, T(0));
}

template <class T>
void stage_out(const T* from, std::int64_t count, T* to) {
  if (to) std::copy_n(from, count, to);
}

}  // namespace

template <class T>
void optimizer_step(const std::string& name, const double* hyper, const double* next_hyper,
                    std::int64_t t, T* p, const T* g, T* s0, T* s1, std::int64_t count,
                    int threads) {
  const int id = find_optimizer(name);
  const HyperTable table = optimizer_hyper(id);
  if (!next_hyper) next_hyper = hyper;
  expect_hyper(name, table, hyper);
  expect_hyper(name, table, next_hyper);
  expect<ValueError>(t >= 1, "[", name, "] expected t >= 1, got ", t);
  expect<ValueError>(count == 0 || (p && g), "[", name, "] expected parameters and gradients");
  const int slots = optimizer_slots(id);
  expect<ValueError>(count == 0 || ((slots < 1 || s0) && (slots < 2 || s1)), "[", name,
                     "] expected ", slots, " slots");
  double coefficients[kMaxCoefficients] = {};
  optimizer_coefficients(id, hyper, next_hyper, t, coefficients);

  run(threads, [&](Team& team) {
    team.for_each(ceil_div(count, kChunk), [&](std::int64_t chunk) {
      const std::int64_t at = chunk * kChunk, size = chunk_size(chunk, count);
      constexpr std::uint8_t kGroups[kChunk / kGroupBlock] = {};
      constexpr bool kFrozen = false;
      const auto offset = [at](auto* vector) { return vector ? vector + at : nullptr; };
      Stage<T> stage;
      stage_in<T>(p + at, size, stage.p);
      stage_in<T>(g + at, size, stage.g);
      stage_in<T>(offset(s0), size, stage.s0);
      stage_in<T>(offset(s1), size, stage.s1);
      cpu::OptimizerStep<T> step;
      step.p = stage.p;
      step.g = stage.g;
      step.s0 = slots >= 1 ? stage.s0 : nullptr;
      step.s1 = slots >= 2 ? stage.s1 : nullptr;
      step.groups = kGroups;
      step.coefficients = coefficients;
      step.frozen = &kFrozen;
      step.count = kChunk;
      cpu::kernels<T>().optimizer_step(id, step);
      stage_out<T>(stage.p, size, p + at);
      if (slots >= 1) stage_out<T>(stage.s0, size, offset(s0));
      if (slots >= 2) stage_out<T>(stage.s1, size, offset(s1));
    });
  });
}

template <class T>
double clip_by_global_norm(T* g, std::int64_t count, double clip, int threads) {
  expect<ValueError>(clip > 0.0, "[clip_by_global_norm] expected clip > 0, got ", clip);
  const std::int64_t chunks = ceil_div(count, kChunk);
  Arena<double> partial(chunks);
  run(threads, [&](Team& team) {
    team.for_each(chunks, [&](std::int64_t chunk) {
      partial[chunk] =
          cpu::kernels<T>().sum_of_squares(g + chunk * kChunk, chunk_size(chunk, count));
    });
  });
  double sum = 0.0;
  for (const double part : partial) sum += part;
  const double norm = std::sqrt(sum);
  // A norm that is not finite leaves the gradient as it is: there is no meaningful scale.
  if (!(norm > clip) || std::isinf(norm)) return norm;
  run(threads, [&](Team& team) {
    team.for_each(chunks, [&](std::int64_t chunk) {
      cpu::kernels<T>().scale(g + chunk * kChunk, clip / norm, chunk_size(chunk, count));
    });
  });
  return norm;
}

template void optimizer_step<float>(const std::string&, const double*, const double*, std::int64_t,
                                    float*, const float*, float*, float*, std::int64_t, int);
template void optimizer_step<double>(const std::string&, const double*, const double*, std::int64_t,
                                     double*, const double*, double*, double*, std::int64_t, int);
template double clip_by_global_norm<float>(float*, std::int64_t, double, int);
template double clip_by_global_norm<double>(double*, std::int64_t, double, int);

}  // namespace thalweg::ops
