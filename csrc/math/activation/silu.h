// SiLU (swish): y = z sigmoid(z) (Elfwing, Uchibe, Doya 2018).
#ifndef THALWEG_MATH_ACTIVATION_SILU_H
#define THALWEG_MATH_ACTIVATION_SILU_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Silu {
  static constexpr const char* name = "silu";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::input;
  static constexpr bool he_family = true;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return z * sigmoid(z);
  }

  // s + z s (1 - s), with 1 - s = sigmoid(-z).
  template <class T>
  TW_HD static T derivative(T z, T) {
    const T s = sigmoid(z);
    return s * madd(z, T(1) - s, T(1));
  }

  // s (1 - s) (2 + z (1 - 2 s)).
  template <class T>
  TW_HD static T second_derivative(T z, T) {
    const T s = sigmoid(z);
    return s * (T(1) - s) * madd(z, T(1) - (s + s), T(2));
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Silu)
#endif
