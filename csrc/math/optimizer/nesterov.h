// Nesterov momentum (Sutskever et al. 2013): g at theta + a v; v = a v - lr g; theta += v.
// Stores p = theta + a v, the point of the gradient, for which the update is
// p += a_next v - lr g with the momentum a_next of the following update.
// With torch_compat the learning rate is outside v: v = a v + g; p -= lr (g + a v).
#ifndef THALWEG_MATH_OPTIMIZER_NESTEROV_H
#define THALWEG_MATH_OPTIMIZER_NESTEROV_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Nesterov {
  static constexpr const char* name = "nesterov";
  static constexpr int slots = 1;
  static constexpr const char* slot_names[kMaxSlots] = {"momentum_buffer", nullptr};
  static constexpr bool look_ahead = true;
  static constexpr HyperParameter hyper[] = {
      learning_rate(0.1),
      decay_rate("momentum", 0.9),
      kTorchCompat,
      kWeightDecay,
  };
  enum Hyper : int { kLr, kMomentum, kCompat, kDecay };

  static void coefficients(const double* hyper, const double* next_hyper, std::int64_t, double* c) {
    const double lr = hyper[kLr];
    const double look = hyper[kCompat] != 0.0 ? -lr * hyper[kMomentum] : next_hyper[kMomentum];
    c[0] = 1.0 - hyper[kMomentum];
    c[1] = hyper[kCompat] != 0.0 ? 1.0 : -lr;
    c[2] = look;
    c[3] = -lr;
    c[4] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T friction, gradient_scale, look, gradient_step, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : friction(static_cast<T>(c[0])),
          gradient_scale(static_cast<T>(c[1])),
          look(static_cast<T>(c[2])),
          gradient_step(static_cast<T>(c[3])),
          weight_decay(static_cast<T>(c[4])) {}

    TW_HD void operator()(T& p, T g, T& v, T&) const {
      g = madd(weight_decay, p, g);
      v = madd(gradient_scale, g, decay(v, friction));
      p = madd(gradient_step, g, madd(look, v, p));
    }
  };

  template <class T, class C>
  TW_HD static T theta(T p, T v, T, const C* c) {
    return madd(static_cast<T>(-c[2]), v, p);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(Nesterov)
#endif
