// Owns the formulas of batch normalization (Ioffe, Szegedy 2015): statistics, forward, backward and
// tangent. Weighted rows (weight w, unweighted w = 1): mean and variance are those of the weighted
// batch, and W = sum of w.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Statistics of one column over some rows: total weight W, sum of squared weights, mean, and
// m2 = sum w (x - mean)^2. Merging is associative up to rounding; the caller fixes the order.
struct Moments {
  double weight;
  double weight_squares;
  double mean;
  double m2;
};

inline namespace TW_ISA {

// Of a tile from sums over its rows of w (x - shift) and w (x - shift)^2, where the shift is a row
// of the tile: no cancellation at a large mean, and a constant column gives exactly its value and
// 0.
TW_HD Moments shifted_moments(double weight, double weight_squares, double shift, double sum,
                              double sum_of_squares) {
  const double offset = select(weight > 0.0, sum / weight, 0.0);
  return {weight, weight_squares, shift + offset, at_least(sum_of_squares - offset * sum, 0.0)};
}

// Chan, Golub, LeVeque 1983.
TW_HD Moments merge_moments(const Moments& a, const Moments& b) {
  const double weight = a.weight + b.weight;
  const double fraction = select(weight > 0.0, b.weight / weight, 0.0);
  const double difference = b.mean - a.mean;
  return {weight, a.weight_squares + b.weight_squares, a.mean + difference * fraction,
          a.m2 + b.m2 + difference * difference * (a.weight * fraction)};
}

// The variance that normalizes.
TW_HD double biased_variance(const Moments& m) {
  return select(m.weight > 0.0, m.m2 / m.weight, 0.0);
}

// The variance for the running estimate: m2 / (n - 1) unweighted, m2 / (W - sum w^2 / W) weighted.
// Zero when a single row carries all the weight.
TW_HD double unbiased_variance(const Moments& m) {
  const double freedom = m.weight - m.weight_squares / m.weight;
  return select(freedom > 0.0, m.m2 / freedom, 0.0);
}

TW_HD double inverse_deviation(double variance, double epsilon) {
  return 1.0 / sqrt(variance + epsilon);
}

// momentum = weight of the new batch; 1 / batches seen gives the cumulative average.
TW_HD double running_average(double running, double batch, double momentum) {
  return running + momentum * (batch - running);
}

// xhat, for batch and for running statistics.
template <class T>
TW_HD T normalize(T z, T mean, T inverse_std) {
  return (z - mean) * inverse_std;
}

// y = gamma xhat + beta.
template <class T>
TW_HD T scale_shift(T normalized, T gamma, T beta) {
  return madd(normalized, gamma, beta);
}

// dz from the column sums over rows divided by W: mean_dy = sum dy / W, mean_dy_xhat = sum dy xhat
// / W. The row's weight w multiplies only what flows through the statistics. The sums themselves
// are dbeta and dgamma.
template <class T>
TW_HD T normalize_backward(T dy, T normalized, T w, T mean_dy, T mean_dy_xhat, T gamma,
                           T inverse_std) {
  return gamma * inverse_std * madd(-w, madd(normalized, mean_dy_xhat, mean_dy), dy);
}

// Tangent of xhat for the tangent q of z, with mean_q = sum w q / W, mean_q_xhat = sum w q xhat /
// W.
template <class T>
TW_HD T normalize_tangent(T q, T normalized, T mean_q, T mean_q_xhat, T inverse_std) {
  return madd(-normalized, mean_q_xhat, q - mean_q) * inverse_std;
}

// Tangent of y = gamma xhat + beta.
template <class T>
TW_HD T scale_shift_tangent(T normalized, T normalized_tangent, T gamma, T gamma_tangent,
                            T beta_tangent) {
  return madd(gamma, normalized_tangent, madd(gamma_tangent, normalized, beta_tangent));
}

// Tangent of gamma / s, whose s has the tangent mean_q_xhat; zero for constant statistics.
template <class T>
TW_HD T scale_tangent(T gamma, T gamma_tangent, T inverse_std, T mean_q_xhat) {
  return inverse_std * madd(-(gamma * inverse_std), mean_q_xhat, gamma_tangent);
}

// Tangent of normalize_backward(): with the tangents dy' and xhat', the column means of dy' and of
// (dy xhat)' = dy' xhat + dy xhat', and scale' from scale_tangent(). Nothing divides by gamma.
template <class T>
TW_HD T normalize_backward_tangent(T dy, T dy_tangent, T normalized, T normalized_tangent, T w,
                                   T mean_dy, T mean_dy_xhat, T mean_dy_tangent,
                                   T mean_dy_xhat_tangent, T scale, T scale_tangent) {
  const T projected = madd(-w, madd(normalized, mean_dy_xhat, mean_dy), dy);
  const T statistics = madd(normalized_tangent, mean_dy_xhat,
                            madd(normalized, mean_dy_xhat_tangent, mean_dy_tangent));
  return madd(scale_tangent, projected, scale * madd(-w, statistics, dy_tangent));
}

}  // namespace TW_ISA
}  // namespace thalweg
