// Stochastic gradient descent: theta -= lr g.
#ifndef THALWEG_MATH_OPTIMIZER_SGD_H
#define THALWEG_MATH_OPTIMIZER_SGD_H

#include "math/optimizer_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Sgd {
  static constexpr const char* name = "sgd";
  static constexpr int slots = 0;
  static constexpr const char* slot_names[kMaxSlots] = {nullptr, nullptr};
  static constexpr bool look_ahead = false;
  static constexpr HyperParameter hyper[] = {
      learning_rate(0.1),
      kWeightDecay,
  };
  enum Hyper : int { kLr, kDecay };

  static void coefficients(const double* hyper, const double*, std::int64_t, double* c) {
    c[0] = hyper[kLr];
    c[1] = hyper[kDecay];
  }

  template <class T>
  struct Update {
    T lr, weight_decay;

    template <class C>
    TW_HD explicit Update(const C* c)
        : lr(static_cast<T>(c[0])), weight_decay(static_cast<T>(c[1])) {}

    TW_HD void operator()(T& p, T g, T&, T&) const { p = madd(-lr, madd(weight_decay, p, g), p); }
  };
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_OPTIMIZER
TW_OPTIMIZER(Sgd)
#endif
