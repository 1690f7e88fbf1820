// Huber loss: d^2 / 2 for |d| <= delta, delta (|d| - delta / 2) otherwise, d = z - t (Huber 1964).
#ifndef THALWEG_MATH_LOSS_HUBER_H
#define THALWEG_MATH_LOSS_HUBER_H

#include "math/loss_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Huber {
  static constexpr const char* name = "huber";
  static constexpr TargetKind target = TargetKind::real;
  static constexpr const char* parameter = "delta";
  static constexpr double default_parameter = 1.0;
  static constexpr double lowest_parameter = 1e-12;
  static constexpr double highest_parameter = 1e12;

  // With c = d clamped to [-delta, delta] both branches are c (d - c / 2).
  template <class T>
  TW_HD static T value(T z, T t, T delta) {
    const T c = gradient(z, t, delta);
    return c * (z - t - T(0.5) * c);
  }

  template <class T>
  TW_HD static T gradient(T z, T t, T delta) {
    return at_most(at_least(z - t, -delta), delta);
  }

  template <class T>
  TW_HD static T second_derivative(T z, T t, T delta) {
    return select(abs(z - t) <= delta, T(1), T(0));
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_LOSS
TW_LOSS(Huber)
#endif
