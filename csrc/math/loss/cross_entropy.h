// Softmax cross-entropy of one row of logits z with targets y: J = - sum_j y_j log a_j, a =
// softmax(z).
//
// A kernel makes two passes over the row: m = max_j z_j by row_maximum(), then the sum S of
// shifted_exponential(z_j, m). With these,
//   integer label:        label_loss(), label_gradient()
//   label smoothing e:    label_loss_smoothed(); the targets are smoothed_target()
//   probability targets:  probability_term() summed over j; probability_gradient(), for which the
//                         targets need not sum to 1: J = sum_j y_j (log S - (z_j - m)),
//                         dJ/dz = a sum(y) - y.
// Sums belong in double. No row with finite logits overflows: every exponential is in [0, 1].
#pragma once

#include "math/elementary.h"

namespace thalweg {
inline namespace TW_ISA {

namespace cross_entropy {

// Maximum that keeps a NaN of either operand.
template <class T>
TW_HD T row_maximum(T m, T z) {
  return select(m >= z || m != m, m, z);
}

template <class T>
TW_HD T shifted_exponential(T z, T m) {
  return exp(z - m);
}

// log(S / e_y) = log S - (z_y - m), from the label's exponential e_y and the sum of all others.
// While the label dominates the difference would cancel, so log1p of the ratio takes over: losses
// are accurate down to the smallest number.
TW_HD double label_loss(double sum_others, double label_exponential, double shifted_label) {
  const bool dominant = sum_others <= label_exponential;
  const double ratio = sum_others / select(dominant, label_exponential, 1.0);
  return select(dominant, log1p(ratio), log(sum_others + label_exponential) - shifted_label);
}

// Smoothed targets (Szegedy et al. 2016): (1 - e) [j = label] + e / classes.
template <class T>
TW_HD T smoothed_target(bool is_label, T smoothing, T classes) {
  return select(is_label, T(1) - smoothing, T(0)) + smoothing / classes;
}

// `loss` as label_loss() gives it; shifted_sum = sum_j (z_j - m) over the row.
TW_HD double label_loss_smoothed(double loss, double smoothing, double log_sum, double shifted_sum,
                                 double classes) {
  return (1.0 - smoothing) * loss + smoothing * (log_sum - shifted_sum / classes);
}

// dJ/dz_j for a target of sum 1: a_j - y_j, with inverse_sum = 1 / S.
template <class T>
TW_HD T label_gradient(T exponential, T inverse_sum, T target) {
  return madd(exponential, inverse_sum, -target);
}

// dJ/dz_y of an unsmoothed label, a_y - 1 without cancellation.
template <class T>
TW_HD T label_gradient_at_label(T sum_others, T inverse_sum) {
  return -(sum_others * inverse_sum);
}

// The term of element j; a zero target contributes zero whatever its logit is.
template <class T>
TW_HD T probability_term(T target, T log_sum, T shifted) {
  return select(target == T(0), T(0), target * (log_sum - shifted));
}

template <class T>
TW_HD T probability_gradient(T exponential, T inverse_sum, T target, T target_sum) {
  return madd(exponential * inverse_sum, target_sum, -target);
}

// Row of the Hessian-vector product: with tangents z' of the logits and mean = sum_i a_i z'_i,
// (a_j (z'_j - mean)) sum(y).
template <class T>
TW_HD T gradient_tangent(T probability, T tangent, T mean_tangent, T target_sum) {
  return probability * (tangent - mean_tangent) * target_sum;
}

}  // namespace cross_entropy

}  // namespace TW_ISA
}  // namespace thalweg
