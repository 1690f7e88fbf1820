// Sums over vectors of doubles, in an order that the length alone fixes: blocks of eight lanes, the
// blocks merged with compensation (Neumaier 1974). The relative error of a sum of positive terms
// stays below 2e-14 for any length.
#pragma once

#include <cstdint>
#include <vector>

#include "core/export.h"

namespace thalweg::minimize {

using Vector = std::vector<double>;

TW_INTERNAL_API double dot(const double* a, const double* b, std::int64_t n);
TW_INTERNAL_API double sum_of_magnitudes(const double* a, std::int64_t n);
// NaN when an element is NaN.
double largest_magnitude(const double* a, std::int64_t n);
// The Euclidean norm; neither overflows nor underflows where the result does not.
TW_INTERNAL_API double norm(const double* a, std::int64_t n);
// y += alpha x
void add_scaled(double* y, double alpha, const double* x, std::int64_t n);
void scale(double* y, double alpha, std::int64_t n);
bool all_finite(const double* a, std::int64_t n);

inline std::int64_t length(const Vector& a) { return static_cast<std::int64_t>(a.size()); }
inline double dot(const Vector& a, const Vector& b) { return dot(a.data(), b.data(), length(a)); }
inline double sum_of_magnitudes(const Vector& a) { return sum_of_magnitudes(a.data(), length(a)); }
inline double largest_magnitude(const Vector& a) { return largest_magnitude(a.data(), length(a)); }
inline double norm(const Vector& a) { return norm(a.data(), length(a)); }
inline void add_scaled(Vector& y, double alpha, const Vector& x) {
  add_scaled(y.data(), alpha, x.data(), length(y));
}
inline void scale(Vector& y, double alpha) { scale(y.data(), alpha, length(y)); }
inline bool all_finite(const Vector& a) { return all_finite(a.data(), length(a)); }

}  // namespace thalweg::minimize
