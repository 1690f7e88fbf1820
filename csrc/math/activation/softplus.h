// Softplus: y = log(1 + exp(z)).
#ifndef THALWEG_MATH_ACTIVATION_SOFTPLUS_H
#define THALWEG_MATH_ACTIVATION_SOFTPLUS_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = false;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return softplus(z);
  }

  // sigmoid(z) = 1 - exp(-y), to full relative accuracy for every y.
  template <class T>
  TW_HD static T derivative(T y, T) {
    return -expm1(-y);
  }

  template <class T>
  TW_HD static T second_derivative(T y, T) {
    const T s = -expm1(-y);
    return s * (T(1) - s);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Softplus)
#endif
