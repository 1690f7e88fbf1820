// AdaDelta (Zeiler 2012): r = rho r + (1 - rho) g^2; d = sqrt(s + delta) / sqrt(r + delta) g;
// s = rho s + (1 - rho) d^2; theta -= lr d.
#ifndef THALWEG_MATH_OPTIMIZER_ADADELTA_H
#define THALWEG_MATH_OPTIMIZER_ADADELTA_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct AdaDelta {
  static constexpr const char* name = "adadelta";
  static constexpr int slots = 2;
  static constexpr const char* slot_names[kMaxSlots] = {"square_avg", "acc_delta"};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(1.0),
      decay_rate("rho", 0.95),
      division_guard(1e-6),
      kWeightDecay,
  };
  enum Hyper : int { kLr, kRho, kDelta, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t, double* c) {
    c[0] = hyper[kLr];
    c[1] = 1.0 - hyper[kRho];
    c[2] = hyper[kDelta];
    c[3] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T lr, weight, delta, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : lr(static_cast<T>(c[0])),
          weight(static_cast<T>(c[1])),
          delta(static_cast<T>(c[2])),
          weight_decay(static_cast<T>(c[3])) {}

    TW_HD void operator()(T& p, T g, T& r, T& s) const {
      g = madd(weight_decay, p, g);
      r = exponential_average(r, weight, g * g);
      const T d = sqrt(s + delta) / sqrt(r + delta) * g;
      s = exponential_average(s, weight, d * d);
      p = madd(-lr, d, p);
    }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(AdaDelta)
#endif
