// RMSProp (Tieleman, Hinton 2012): r = rho r + (1 - rho) g^2; theta -= lr g / (delta + sqrt(r)), or
// with delta_inside theta -= lr g / sqrt(delta + r).
#ifndef THALWEG_MATH_OPTIMIZER_RMSPROP_H
#define THALWEG_MATH_OPTIMIZER_RMSPROP_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct RmsProp {
  static constexpr const char* name = "rmsprop";
  static constexpr int slots = 1;
  static constexpr const char* slot_names[kMaxSlots] = {"square_avg", nullptr};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(1e-3),  decay_rate("rho", 0.9),
      division_guard(1e-6), {"delta_inside", 0.0, 0.0, 1.0, HyperKind::flag},
      kWeightDecay,
  };
  enum Hyper : int { kLr, kRho, kDelta, kInside, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t, double* c) {
    const bool inside = hyper[kInside] != 0.0;
    c[0] = hyper[kLr];
    c[1] = 1.0 - hyper[kRho];
    c[2] = inside ? hyper[kDelta] : 0.0;
    c[3] = inside ? 0.0 : hyper[kDelta];
    c[4] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T lr, weight, delta_inside, delta_outside, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : lr(static_cast<T>(c[0])),
          weight(static_cast<T>(c[1])),
          delta_inside(static_cast<T>(c[2])),
          delta_outside(static_cast<T>(c[3])),
          weight_decay(static_cast<T>(c[4])) {}

    TW_HD void operator()(T& p, T g, T& r, T&) const {
      g = madd(weight_decay, p, g);
      r = exponential_average(r, weight, g * g);
      p = madd(-lr, g / (delta_outside + sqrt(delta_inside + r)), p);
    }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(RmsProp)
#endif
