// RMSProp with Nesterov momentum: g at theta + a v; r = rho r + (1 - rho) g^2;
// v = a v - u, u = lr g / (delta + sqrt(r)); theta += v.
// Stores p = theta + a v, for which the update is p += a_next v - u with the momentum a_next of the
// following update.
#ifndef THALWEG_MATH_OPTIMIZER_RMSPROP_NESTEROV_H
#define THALWEG_MATH_OPTIMIZER_RMSPROP_NESTEROV_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct RmsPropNesterov {
  static constexpr const char* name = "rmsprop_nesterov";
  static constexpr int slots = 2;
  static constexpr const char* slot_names[kMaxSlots] = {"square_avg", "momentum_buffer"};
  static constexpr bool look_ahead = true;
  static constexpr HyperParameter hyper[] = {
      learning_rate(1e-3),  decay_rate("rho", 0.9), decay_rate("momentum", 0.9),
      division_guard(1e-6), kWeightDecay,
  };
  enum Hyper : int { kLr, kRho, kMomentum, kDelta, kDecay };

  static void coefficients(const double* hyper, const double* next_hyper, std::int64_t, double* c) {
    c[0] = hyper[kLr];
    c[1] = 1.0 - hyper[kRho];
    c[2] = 1.0 - hyper[kMomentum];
    c[3] = next_hyper[kMomentum];
    c[4] = hyper[kDelta];
    c[5] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T lr, weight, friction, look, delta, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : lr(static_cast<T>(c[0])),
          weight(static_cast<T>(c[1])),
          friction(static_cast<T>(c[2])),
          look(static_cast<T>(c[3])),
          delta(static_cast<T>(c[4])),
          weight_decay(static_cast<T>(c[5])) {}

    TW_HD void operator()(T& p, T g, T& r, T& v) const {
      g = madd(weight_decay, p, g);
      r = exponential_average(r, weight, g * g);
      const T scaled = g / (delta + sqrt(r));
      v = madd(-lr, scaled, decay(v, friction));
      p = madd(-lr, scaled, madd(look, v, p));
    }
  };

  template <class T, class C>
  TW_HD static T theta(T p, T, T v, const C* c) {
    return madd(static_cast<T>(-c[3]), v, p);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(RmsPropNesterov)
#endif
