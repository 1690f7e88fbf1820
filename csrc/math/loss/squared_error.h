// Squared error: (z - t)^2, without the factor 1/2.
#ifndef THALWEG_MATH_LOSS_SQUARED_ERROR_H
#define THALWEG_MATH_LOSS_SQUARED_ERROR_H

#include "math/loss_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct SquaredError {
  static constexpr const char* name = "squared_error";
  static constexpr TargetKind target = TargetKind::real;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T t, T) {
    return (z - t) * (z - t);
  }

  template <class T>
  TW_HD static T gradient(T z, T t, T) {
    return T(2) * (z - t);
  }

  template <class T>
  TW_HD static T second_derivative(T, T, T) {
    return T(2);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_LOSS
TW_LOSS(SquaredError)
#endif
