// Leaky ReLU: y = z for z > 0, slope z otherwise (Maas, Hannun, Ng 2013).
#ifndef THALWEG_MATH_ACTIVATION_LEAKY_RELU_H
#define THALWEG_MATH_ACTIVATION_LEAKY_RELU_H

#include "math/activation_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct LeakyRelu {
  static constexpr const char* name = "leaky_relu";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = true;
  static constexpr const char* parameter = "slope";
  static constexpr double default_parameter = 0.01;
  // A negative slope would make the sign of z unrecoverable from y.
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 1e6;

  template <class T>
  TW_HD static T value(T z, T slope) {
    return select(z > T(0), z, slope * z);
  }

  template <class T>
  TW_HD static T derivative(T y, T slope) {
    return select(y > T(0), T(1), slope);
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
TW_ACTIVATION(LeakyRelu)
#endif
