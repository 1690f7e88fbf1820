// Hyperbolic tangent: y = tanh(z).
#ifndef THALWEG_MATH_ACTIVATION_TANH_H
#define THALWEG_MATH_ACTIVATION_TANH_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = false;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return tanh(z);
  }

  // 1 - y^2; the factors keep it accurate where |y| is near 1.
  template <class T>
  TW_HD static T derivative(T y, T) {
    return (T(1) - y) * (T(1) + y);
  }

  template <class T>
  TW_HD static T second_derivative(T y, T) {
    return T(-2) * y * ((T(1) - y) * (T(1) + y));
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Tanh)
#endif
