// Dense symmetric eigenproblems and Cholesky's factor.
#include "minimize/symmetric_eigen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace thalweg::minimize {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr int kMaxSweeps = 100;  // of the QR iteration, per eigenvalue; about two are usual

// Diagonalizes the tridiagonal matrix (d, e) in place, e with n - 1 elements or more, and applies
// the rotations to the rows of z: with z = Q' for A = Q T Q', its rows become eigenvectors of A.
void implicit_qr(Vector& d, Vector& e, Vector& z) {
  const std::int64_t n = length(d);
  std::int64_t last = n - 1;
  int sweeps = 0;
  const auto negligible = [&](std::int64_t i) {
    return std::abs(e[i]) <= kEpsilon * (std::abs(d[i]) + std::abs(d[i + 1]));
  };
  while (last > 0) {
    if (negligible(last - 1)) {
      --last;
      sweeps = 0;
      continue;
    }
    if (++sweeps > kMaxSweeps)
      throw InternalError("[symmetric_eigensystem] the QR iteration did not converge");
    std::int64_t first = last - 1;
    while (first > 0 && !negligible(first - 1)) --first;

    // Wilkinson's shift: the eigenvalue of the trailing 2 x 2 block that is nearer to d[last].
    const double half = 0.5 * (d[last - 1] - d[last]);
    const double coupling = e[last - 1];
    const double shift =
        d[last] - coupling * (coupling / (half + std::copysign(std::hypot(half, coupling), half)));
    double x = d[first] - shift;
    double bulge = e[first];
    for (std::int64_t k = first; k < last; ++k) {
      const double r = std::hypot(x, bulge);
      const double c = r == 0.0 ? 1.0 : x / r;
      const double s = r == 0.0 ? 0.0 : bulge / r;
      if (k > first) e[k - 1] = r;
      // moved = s (s (d2 - d1) + 2 c e): what the rotation carries from one diagonal to the other.
      const double difference = d[k + 1] - d[k];
      const double moved = s * (s * difference + 2.0 * c * e[k]);
      e[k] = c * (s * difference + c * e[k]) - s * (s * e[k]);
      d[k] += moved;
      d[k + 1] -= moved;
      if (k + 1 < last) {
        x = e[k];
        bulge = s * e[k + 1];
        e[k + 1] *= c;
      }
      double* upper = &z[k * n];
      double* lower = upper + n;
      for (std::int64_t j = 0; j < n; ++j) {
        const double held = upper[j];
        upper[j] = c * held + s * lower[j];
        lower[j] = c * lower[j] - s * held;
      }
    }
  }
}

EigenSystem sorted(const Vector& d, const Vector& z, double factor) {
  const std::int64_t n = length(d);
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t i, std::int64_t j) { return d[i] < d[j]; });
  EigenSystem result;
  result.values.resize(d.size());
  result.vectors.resize(z.size());
  for (std::int64_t k = 0; k < n; ++k) {
    result.values[k] = d[order[k]] * factor;
    std::copy_n(&z[order[k] * n], n, &result.vectors[k * n]);
  }
  return result;
}

}  // namespace

EigenSystem symmetric_eigensystem(const double* matrix, std::int64_t n) {
  Vector a(matrix, matrix + n * n);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) a[j * n + i] = a[i * n + j];
  }
  const double largest = largest_magnitude(a);
  expect<ValueError>(std::isfinite(largest),
                     "[symmetric_eigensystem] expected a finite matrix, got NaN or infinity");
  Vector d(static_cast<std::size_t>(n));
  Vector e(static_cast<std::size_t>(n));
  Vector z(static_cast<std::size_t>(n * n));
  if (largest == 0.0) {
    for (std::int64_t i = 0; i < n; ++i) z[i * n + i] = 1.0;
    return {std::move(d), std::move(z)};
  }
  // Entries of magnitude up to 1: no square overflows, and none that matters underflows.
  scale(a, 1.0 / largest);

  // Column k is reduced by I - tau v v' with v in place of column k below the diagonal.
  Vector tau(static_cast<std::size_t>(n));
  Vector v(static_cast<std::size_t>(n));
  Vector p(static_cast<std::size_t>(n));
  for (std::int64_t k = 0; k + 2 < n; ++k) {
    const std::int64_t m = n - k - 1;
    for (std::int64_t i = 0; i < m; ++i) v[i] = a[(k + 1 + i) * n + k];
    const double tail = norm(v.data() + 1, m - 1);
    if (tail == 0.0) {
      e[k] = v[0];
      continue;
    }
    const double length_of_column = std::hypot(v[0], tail);
    e[k] = -std::copysign(length_of_column, v[0]);
    v[0] -= e[k];
    const double squares = dot(v.data(), v.data(), m);
    tau[k] = 2.0 / squares;
    for (std::int64_t i = 0; i < m; ++i)
      p[i] = tau[k] * dot(&a[(k + 1 + i) * n + k + 1], v.data(), m);
    add_scaled(p.data(), -0.5 * tau[k] * dot(p.data(), v.data(), m), v.data(), m);
    for (std::int64_t i = 0; i < m; ++i) {
      double* row = &a[(k + 1 + i) * n + k + 1];
      for (std::int64_t j = 0; j < m; ++j) row[j] -= v[i] * p[j] + p[i] * v[j];
    }
    for (std::int64_t i = 0; i < m; ++i) a[(k + 1 + i) * n + k] = v[i];
  }
  if (n >= 2) e[n - 2] = a[(n - 1) * n + n - 2];
  for (std::int64_t i = 0; i < n; ++i) d[i] = a[i * n + i];

  // z = Q' with Q = H_0 H_1 ...: row r of z times H_k from the right, last reflection first.
  for (std::int64_t i = 0; i < n; ++i) z[i * n + i] = 1.0;
  for (std::int64_t k = n - 3; k >= 0; --k) {
    if (tau[k] == 0.0) continue;
    const std::int64_t m = n - k - 1;
    for (std::int64_t i = 0; i < m; ++i) v[i] = a[(k + 1 + i) * n + k];
    for (std::int64_t r = k + 1; r < n; ++r) {
      double* row = &z[r * n + k + 1];
      add_scaled(row, -tau[k] * dot(row, v.data(), m), v.data(), m);
    }
  }
  implicit_qr(d, e, z);
  return sorted(d, z, largest);
}

EigenSystem tridiagonal_eigensystem(const Vector& diagonal, const Vector& off_diagonal) {
  const std::int64_t n = length(diagonal);
  Vector d = diagonal;
  Vector e(static_cast<std::size_t>(n));
  std::copy_n(off_diagonal.begin(), std::max<std::int64_t>(n - 1, 0), e.begin());
  const double largest = std::max(largest_magnitude(d), largest_magnitude(e));
  expect<ValueError>(std::isfinite(largest),
                     "[tridiagonal_eigensystem] expected a finite matrix, got NaN or infinity");
  Vector z(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i) z[i * n + i] = 1.0;
  if (largest == 0.0) return {std::move(d), std::move(z)};
  scale(d, 1.0 / largest);
  scale(e, 1.0 / largest);
  implicit_qr(d, e, z);
  return sorted(d, z, largest);
}

bool cholesky(double* a, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) {
    double* row = a + j * n;
    const double diagonal = row[j];
    const double pivot = diagonal - dot(row, row, j);
    // Below this the pivot is rounding error of the subtraction.
    if (!(pivot > static_cast<double>(n) * kEpsilon * std::abs(diagonal)) || !std::isfinite(pivot))
      return false;
    row[j] = std::sqrt(pivot);
    for (std::int64_t i = j + 1; i < n; ++i) {
      double* below = a + i * n;
      below[j] = (below[j] - dot(below, row, j)) / row[j];
    }
  }
  return true;
}

void cholesky_solve(const double* factor, std::int64_t n, const double* b, double* x) {
  for (std::int64_t i = 0; i < n; ++i)
    x[i] = (b[i] - dot(factor + i * n, x, i)) / factor[i * n + i];
  for (std::int64_t i = n - 1; i >= 0; --i) {
    x[i] /= factor[i * n + i];
    add_scaled(x, -x[i], factor + i * n, i);
  }
}

}  // namespace thalweg::minimize
