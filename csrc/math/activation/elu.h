// ELU: y = z for z > 0, alpha (exp(z) - 1) otherwise (Clevert, Unterthiner, Hochreiter 2016).
#ifndef THALWEG_MATH_ACTIVATION_ELU_H
#define THALWEG_MATH_ACTIVATION_ELU_H

#include "math/activation_kind.h"
#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

struct Elu {
  static constexpr const char* name = "elu";
  static constexpr ActivationNeeds backward_needs = ActivationNeeds::output;
  static constexpr bool he_family = true;
  static constexpr const char* parameter = "alpha";
  static constexpr double default_parameter = 1.0;
  // A negative alpha would make the sign of z unrecoverable from y.
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 1e6;

  template <class T>
  TW_HD static T value(T z, T alpha) {
    return select(z > T(0), z, alpha * expm1(at_most(z, T(0))));
  }

  // For z <= 0: alpha exp(z) = y + alpha.
  template <class T>
  TW_HD static T derivative(T y, T alpha) {
    return select(y > T(0), T(1), y + alpha);
  }

  template <class T>
  TW_HD static T second_derivative(T y, T alpha) {
    return select(y > T(0), T(0), y + alpha);
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_ACTIVATION
TW_ACTIVATION(Elu)
#endif
