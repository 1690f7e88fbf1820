// Optimizer steps: one pass over the flat arenas of parameters, gradients and slots.
#include "cpu/operations.h"
#include "cpu/simd.h"
#include "math/optimizers.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Consecutive blocks of one group, as element range [begin, end) and the group.
template <class F>
TW_INLINE void for_groups(const std::uint8_t* groups, std::int64_t count, F&& f) {
  const std::int64_t blocks = ceil_div(count, kGroupBlock);
  for (std::int64_t begin = 0, end; begin < blocks; begin = end) {
    end = begin + 1;
    while (end < blocks && groups[end] == groups[begin]) ++end;
    const std::int64_t last = end < blocks ? end * kGroupBlock : count;
    f(begin * kGroupBlock, last, static_cast<std::int64_t>(groups[begin]));
  }
}

// Returns the number of non-finite gradients; their elements stay as they are.
template <class Optimizer, std::int64_t kBlock, class T>
TW_INLINE std::int64_t update(const typename Optimizer::template Update<T>& rule, T* p, const T* g,
                              T* s0, T* s1, std::int64_t count) {
  std::int64_t skipped = 0;
  for (std::int64_t block = 0; block < count; block += kBlock) {
    FloatBits<T> bad = 0;
    TW_INDEPENDENT
    for (std::int64_t i = block; i < block + kBlock; ++i) {
      const bool good = is_finite(g[i]);
      T parameter = p[i];
      T slot0 = 0;
      T slot1 = 0;
      if constexpr (Optimizer::slots > 0) slot0 = s0[i];
      if constexpr (Optimizer::slots > 1) slot1 = s1[i];
      rule(parameter, g[i], slot0, slot1);
      p[i] = good ? parameter : p[i];
      if constexpr (Optimizer::slots > 0) s0[i] = good ? slot0 : s0[i];
      if constexpr (Optimizer::slots > 1) s1[i] = good ? slot1 : s1[i];
      bad += good ? 0 : 1;
    }
    skipped += static_cast<std::int64_t>(bad);
  }
  return skipped;
}

}  // namespace

template <class T>
std::int64_t optimizer_step(int optimizer_id, const OptimizerStep<T>& step) {
  return dispatch_optimizer(optimizer_id, [&](auto optimizer) {
    using Optimizer = decltype(optimizer);
    std::int64_t skipped = 0;
    for_groups(step.groups, step.count,
               [&](std::int64_t begin, std::int64_t end, std::int64_t group) {
                 if (step.frozen[group]) return;
                 const typename Optimizer::template Update<T> rule(step.coefficients +
                                                                   group * kMaxCoefficients);
                 T* const s0 = Optimizer::slots > 0 ? step.s0 + begin : nullptr;
                 T* const s1 = Optimizer::slots > 1 ? step.s1 + begin : nullptr;
                 T* const p = step.p + begin;
                 const T* const g = step.g + begin;
                 const std::int64_t count = end - begin;
                 skipped += count % kGroupBlock == 0
                                ? update<Optimizer, kGroupBlock>(rule, p, g, s0, s1, count)
                                : update<Optimizer, kPanel>(rule, p, g, s0, s1, count);
               });
    return skipped;
  });
}

template <class T>
void optimizer_theta(int optimizer_id, const OptimizerStep<T>& step, T* theta) {
  dispatch_optimizer(optimizer_id, [&](auto optimizer) {
    using Optimizer = decltype(optimizer);
    if constexpr (Optimizer::look_ahead) {
      for_groups(step.groups, step.count,
                 [&](std::int64_t begin, std::int64_t end, std::int64_t group) {
                   const double* const c = step.coefficients + group * kMaxCoefficients;
                   const T* const p = step.p;
                   const T* const s0 = Optimizer::slots > 0 ? step.s0 : step.p;
                   const T* const s1 = Optimizer::slots > 1 ? step.s1 : step.p;
                   TW_INDEPENDENT
                   for (std::int64_t i = begin; i < end; ++i) {
                     theta[i] = Optimizer::template theta<T>(p[i], s0[i], s1[i], c);
                   }
                 });
    } else {
      for (std::int64_t i = 0; i < step.count; ++i) theta[i] = step.p[i];
    }
  });
}

#define TW_INSTANTIATE(T)                                             \
  template std::int64_t optimizer_step(int, const OptimizerStep<T>&); \
  template void optimizer_theta(int, const OptimizerStep<T>&, T*);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
