// Binary cross-entropy of a logit: -t log s - (1 - t) log(1 - s), s = sigmoid(z), t in [0, 1].
// The forms below do not cancel for large |z|.
#ifndef THALWEG_MATH_LOSS_BINARY_CROSS_ENTROPY_H
#define THALWEG_MATH_LOSS_BINARY_CROSS_ENTROPY_H

#include "math/elementary.h"
#include "math/loss_kind.h"

namespace thalweg {
inline namespace TW_ISA {

struct BinaryCrossEntropy {
  static constexpr const char* name = "binary_cross_entropy";
  static constexpr TargetKind target = TargetKind::unit_interval;
  static constexpr const char* parameter = nullptr;
  static constexpr double default_parameter = 0.0;
  static constexpr double lowest_parameter = 0.0;
  static constexpr double highest_parameter = 0.0;

  template <class T>
  TW_HD static T value(T z, T t, T) {
    return madd(abs(z), select(z > T(0), T(1) - t, t), softplus(-abs(z)));
  }

  // s - t, written as (1 - t) s(z) - t s(-z).
  template <class T>
  TW_HD static T gradient(T z, T t, T) {
    const T e = exp(-abs(z));
    const T near = T(1) / (T(1) + e);
    const T far = e * near;
    const T up = select(z > T(0), near, far);
    const T down = select(z > T(0), far, near);
    return (T(1) - t) * up - t * down;
  }

  template <class T>
  TW_HD static T second_derivative(T z, T, T) {
    const T e = exp(-abs(z));
    const T near = T(1) / (T(1) + e);
    return e * near * near;
  }
};

}  // namespace TW_ISA
}  // namespace thalweg

#endif

#ifdef TW_LOSS
TW_LOSS(BinaryCrossEntropy)
#endif
