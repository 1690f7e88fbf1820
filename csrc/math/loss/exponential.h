// Exponential margin loss: exp(-u), u = t z, t = -1 or +1.
// The value overflows only where the true value exceeds the largest finite number (u < -88.7 in
// float32, u < -709.7 in float64) and is exact down to the subnormal range; log_value() has no such
// limits, and sums of losses belong in the log domain: log sum exp(log_value).
#ifndef THALWEG_MATH_LOSS_EXPONENTIAL_H
#define THALWEG_MATH_LOSS_EXPONENTIAL_H

#include "math/elementary.h"
#include "math/loss_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Exponential {
  static constexpr const char* name = "exponential";
  static constexpr TargetKind target = TargetKind::sign;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T t, T) {
    return exp(-t * z);
  }

  template <class T>
  TW_HD static T log_value(T z, T t) {
    return -t * z;
  }

  template <class T>
  TW_HD static T gradient(T z, T t, T) {
    return -t * exp(-t * z);
  }

  template <class T>
  TW_HD static T second_derivative(T z, T t, T) {
    return t * t * exp(-t * z);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_LOSS
TW_LOSS(Exponential)
#endif
