// AdamW (Loshchilov, Hutter 2019): Adam with decoupled decay, p *= 1 - lr weight_decay before the
// step.
#ifndef THALWEG_MATH_OPTIMIZER_ADAMW_H
#define THALWEG_MATH_OPTIMIZER_ADAMW_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct AdamW {
  static constexpr const char* name = "adamw";
  static constexpr int slots = 2;
  static constexpr const char* slot_names[kMaxSlots] = {"exp_avg", "exp_avg_sq"};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(1e-3),
      decay_rate("beta1", 0.9),
      decay_rate("beta2", 0.999),
      division_guard(1e-8),
      {"weight_decay", 0.01, 0.0, 1e6, HyperKind::real},
  };
  enum Hyper : int { kLr, kBeta1, kBeta2, kDelta, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t t, double* c) {
    c[0] = hyper[kLr] / bias_correction(hyper[kBeta1], t);
    c[1] = 1.0 - hyper[kBeta1];
    c[2] = 1.0 - hyper[kBeta2];
    c[3] = 1.0 / std::sqrt(bias_correction(hyper[kBeta2], t));
    c[4] = hyper[kDelta];
    c[5] = hyper[kLr] * hyper[kDecay];
  }

  template <class T>
  struct Update {
    T step_size, weight1, weight2, root_scale, delta, shrinkage;

    template <class C>
    TW_HD explicit Update(const C* c)
        : step_size(static_cast<T>(c[0])),
          weight1(static_cast<T>(c[1])),
          weight2(static_cast<T>(c[2])),
          root_scale(static_cast<T>(c[3])),
          delta(static_cast<T>(c[4])),
          shrinkage(static_cast<T>(c[5])) {}

    TW_HD void operator()(T& p, T g, T& s, T& r) const {
      s = exponential_average(s, weight1, g);
      r = exponential_average(r, weight2, g * g);
      // One rounding of p: that of a separate decay hardly changes from step to step and adds up.
      p = p + madd(-step_size, s / madd(sqrt(r), root_scale, delta), -shrinkage * p);
    }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(AdamW)
#endif
