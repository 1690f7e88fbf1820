// GELU: y = z Phi(z), Phi the standard normal distribution function, exact form (Hendrycks, Gimpel
// 2016).
#ifndef THALWEG_MATH_ACTIVATION_GELU_H
#define THALWEG_MATH_ACTIVATION_GELU_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::input;
  static constexpr bool he_family = true;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return z * normal_distribution(z);
  }

  // Phi(z) + z phi(z).
  template <class T>
  TW_HD static T derivative(T z, T) {
    return madd(z, normal_density(z), normal_distribution(z));
  }

  // phi(z) (2 - z^2).
  template <class T>
  TW_HD static T second_derivative(T z, T) {
    return normal_density(z) * madd(-z, z, T(2));
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Gelu)
#endif
