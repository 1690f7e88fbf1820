// Logistic margin loss: log(1 + exp(-u)), u = t z, t = -1 or +1; finite for every finite u.
#ifndef THALWEG_MATH_LOSS_LOGISTIC_H
#define THALWEG_MATH_LOSS_LOGISTIC_H

#include "math/elementary.h"
#include "math/loss_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct Logistic {
  static constexpr const char* name = "logistic";
  static constexpr TargetKind target = TargetKind::sign;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T t, T) {
    return softplus(-t * z);
  }

  template <class T>
  TW_HD static T gradient(T z, T t, T) {
    return -t * sigmoid(-t * z);
  }

  template <class T>
  TW_HD static T second_derivative(T z, T t, T) {
    const T e = exp(-abs(z));
    const T near = T(1) / (T(1) + e);
    return t * t * (e * near * near);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_LOSS
TW_LOSS(Logistic)
#endif
