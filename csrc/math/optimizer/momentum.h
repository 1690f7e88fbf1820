// Momentum (Polyak 1964): v = a v - lr g; theta += v. The learning rate is inside v, so that a
// schedule acts on new gradients only; with torch_compat it is outside: v = a v + g; theta -= lr v.
#ifndef THALWEG_MATH_OPTIMIZER_MOMENTUM_H
#define THALWEG_MATH_OPTIMIZER_MOMENTUM_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Momentum {
  static constexpr const char* name = "momentum";
  static constexpr int slots = 1;
  static constexpr const char* slot_names[kMaxSlots] = {"momentum_buffer", nullptr};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(0.1),
      decay_rate("momentum", 0.9),
      kTorchCompat,
      kWeightDecay,
  };
  enum Hyper : int { kLr, kMomentum, kCompat, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t, double* c) {
    const bool outside = hyper[kCompat] != 0.0;
    c[0] = 1.0 - hyper[kMomentum];
    c[1] = outside ? 1.0 : -hyper[kLr];
    c[2] = outside ? -hyper[kLr] : 1.0;
    c[3] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T friction, gradient_scale, velocity_scale, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : friction(static_cast<T>(c[0])),
          gradient_scale(static_cast<T>(c[1])),
          velocity_scale(static_cast<T>(c[2])),
          weight_decay(static_cast<T>(c[3])) {}

    TW_HD void operator()(T& p, T g, T& v, T&) const {
      v = madd(gradient_scale, madd(weight_decay, p, g), decay(v, friction));
      p = madd(velocity_scale, v, p);
    }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(Momentum)
#endif
