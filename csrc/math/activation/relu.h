// ReLU: y = max(0, z), with derivative 0 at z = 0 (Glorot, Bordes, Bengio 2011). NaN propagates.
#ifndef THALWEG_MATH_ACTIVATION_RELU_H
#define THALWEG_MATH_ACTIVATION_RELU_H

#include "math/activation_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Relu {
  static constexpr const char* name = "relu";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = true;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return at_least(z, T(0));
  }

  // y is positive, zero or NaN; in the last two cases it is its own derivative.
  template <class T>
  TW_HD static T derivative(T y, T) {
    return select(y > T(0), T(1), y);
  }

  template <class T>
  TW_HD static T second_derivative(T, T) {
    return T(0);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Relu)
#endif
