// Sums over vectors in a fixed order.
#include "minimize/vector.h"

#include <algorithm>
#include <cmath>

namespace thalweg::minimize {
namespace {

constexpr std::int64_t kLanes = 8;
constexpr std::int64_t kBlock = 512;

// term(i) summed over [0, n).
template <class Term>
double sum(std::int64_t n, Term&& term) {
  double total = 0.0;
  double lost = 0.0;
  for (std::int64_t first = 0; first < n; first += kBlock) {
    const std::int64_t end = std::min(first + kBlock, n);
    double lanes[kLanes] = {};
    std::int64_t i = first;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
    }
    for (std::int64_t lane = 0; i < end; ++i, ++lane) lanes[lane] += term(i);
    const double block = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
                         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    const double next = total + block;
    lost += std::abs(total) >= std::abs(block) ? (total - next) + block : (block - next) + total;
    total = next;
  }
  // An infinite total has no remainder; inf - inf would turn it into NaN.
  return std::isfinite(total) ? total + lost : total;
}

}  // namespace

double dot(const double* a, const double* b, std::int64_t n) {
  return sum(n, [&](std::int64_t i) { return a[i] * b[i]; });
}

double sum_of_magnitudes(const double* a, std::int64_t n) {
  return sum(n, [&](std::int64_t i) { return std::abs(a[i]); });
}

double largest_magnitude(const double* a, std::int64_t n) {
  double largest = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double magnitude = std::abs(a[i]);
    if (!(magnitude <= largest)) largest = magnitude;
    if (std::isnan(largest)) break;
  }
  return largest;
}

double norm(const double* a, std::int64_t n) {
  constexpr double kSmall = 0x1p-480;
  constexpr double kLarge = 0x1p480;
  const double largest = largest_magnitude(a, n);
  if (largest == 0.0 || !std::isfinite(largest)) return largest;
  if (largest > kSmall && largest < kLarge) return std::sqrt(dot(a, a, n));
  return largest * std::sqrt(sum(n, [&](std::int64_t i) {
           const double ratio = a[i] / largest;
           return ratio * ratio;
         }));
}

void add_scaled(double* y, double alpha, const double* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
}

void scale(double* y, double alpha, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] *= alpha;
}

bool all_finite(const double* a, std::int64_t n) { return std::isfinite(largest_magnitude(a, n)); }

}  // namespace thalweg::minimize
