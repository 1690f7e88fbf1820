// AdaGrad (Duchi, Hazan, Singer 2011): r += g^2; theta -= lr g / (delta + sqrt(r)).
#ifndef THALWEG_MATH_OPTIMIZER_ADAGRAD_H
#define THALWEG_MATH_OPTIMIZER_ADAGRAD_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct AdaGrad {
  static constexpr const char* name = "adagrad";
  static constexpr int slots = 1;
  static constexpr const char* slot_names[kMaxSlots] = {"sum", nullptr};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(0.01),
      division_guard(1e-7),
      kWeightDecay,
  };
  enum Hyper : int { kLr, kDelta, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t, double* c) {
    c[0] = hyper[kLr];
    c[1] = hyper[kDelta];
    c[2] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T lr, delta, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : lr(static_cast<T>(c[0])),
          delta(static_cast<T>(c[1])),
          weight_decay(static_cast<T>(c[2])) {}

    TW_HD void operator()(T& p, T g, T& r, T&) const {
      g = madd(weight_decay, p, g);
      r = madd(g, g, r);
      p = madd(-lr, g / (delta + sqrt(r)), p);
    }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(AdaGrad)
#endif
