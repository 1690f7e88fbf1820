// Sigmoid: y = 1 / (1 + exp(-z)).
#ifndef THALWEG_MATH_ACTIVATION_SIGMOID_H
#define THALWEG_MATH_ACTIVATION_SIGMOID_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = false;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T) {
    return sigmoid(z);
  }

  template <class T>
  TW_HD static T derivative(T y, T) {
    return y * (T(1) - y);
  }

  template <class T>
  TW_HD static T second_derivative(T y, T) {
    return y * (T(1) - y) * (T(1) - (y + y));
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Sigmoid)
#endif
