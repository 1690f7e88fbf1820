// Identity: y = z.
#ifndef THALWEG_MATH_ACTIVATION_IDENTITY_H
#define THALWEG_MATH_ACTIVATION_IDENTITY_H

#include "math/activation_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Identity {
  static constexpr const char* name = "identity";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = false;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return z;
  }

  template <class T>
  TW_HD static T derivative(T, T) {
    return T(1);
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
TW_ACTIVATION(Identity)
#endif
