// Krylov methods for a symmetric operator that is known by its products alone: Lanczos' process
// with full reorthogonalization, extreme eigenpairs, stochastic quadrature of the spectral density,
// shifted power iteration and conjugate gradients.
//
// A product that is not finite throws NonFiniteError.
#pragma once

#include <cstdint>
#include <functional>

#include "core/export.h"
#include "minimize/vector.h"

namespace thalweg::minimize {

// out = A v
using Operator = std::function<void(const double* v, double* out)>;

// V' A V = T with orthonormal rows of `basis`, T tridiagonal.
struct KrylovBasis {
  std::int64_t steps = 0;
  Vector basis;  // [steps, n]
  Vector diagonal;
  Vector off_diagonal;     // [steps]: the last one couples to the vector after the basis
  bool invariant = false;  // the last coupling vanished: T holds eigenvalues of A exactly
};

// At most `max_steps` steps from `start` (Lanczos 1950; reorthogonalized twice, Parlett 1980).
// Ends early when the space is invariant. Precondition: start is finite and not zero.
TW_INTERNAL_API KrylovBasis krylov_basis(const Operator& product, const Vector& start,
                                         std::int64_t max_steps);

// Standard normal elements, or random signs; a function of (seed, number) alone.
TW_INTERNAL_API Vector random_normal(std::int64_t n, std::uint64_t seed, std::uint64_t number);
TW_INTERNAL_API Vector random_signs(std::int64_t n, std::uint64_t seed, std::uint64_t number);

struct EigenOptions {
  std::int64_t top = 1;     // eigenpairs wanted at the upper end
  std::int64_t bottom = 1;  // and at the lower one
  std::int64_t max_steps = 100;
  double tolerance = 1e-3;  // of a residual, relative to the largest |eigenvalue| found
  std::uint64_t seed = 0;
};

struct Eigenpairs {
  Vector values;     // top ones descending, then bottom ones ascending
  Vector vectors;    // [count, n], of norm 1
  Vector residuals;  // norm(A v - value v)
  std::vector<bool> converged;
  std::int64_t products = 0;
};

// Extreme eigenpairs by Lanczos. When the space becomes invariant, a new random direction extends
// it, so that multiple eigenvalues and those orthogonal to the start are found as well. With
// max_steps >= n the result is exact. ValueError when top + bottom exceeds n or max_steps.
TW_INTERNAL_API Eigenpairs lanczos_eigenpairs(const Operator& product, std::int64_t n,
                                              const EigenOptions& options);

// The same pair by power iteration on A + s I (top) or A - s I (bottom), s the running maximum of
// norm(A v), until norm(A v - value v) <= tolerance s. One pair: top = 1, bottom = 0 or reverse;
// max_steps is the number of iterations.
TW_INTERNAL_API Eigenpairs power_iteration(const Operator& product, std::int64_t n,
                                           const EigenOptions& options);

// One probe of the spectral density: v' f(A) v for a random v of norm 1 is sum weights f(nodes)
// (Ubaru, Chen, Saad 2017).
struct Quadrature {
  Vector nodes;
  Vector weights;
};
TW_INTERNAL_API Quadrature lanczos_quadrature(const Operator& product, const Vector& start,
                                              std::int64_t steps);

enum class CgEnd { kConverged, kNegativeCurvature, kMaxIterations };

struct CgResult {
  CgEnd end = CgEnd::kMaxIterations;
  std::int64_t iterations = 0;
  double residual = 0.0;  // norm(b - A x), as the recurrence carries it
};

// Solves A x = b from x = 0 by conjugate gradients (Hestenes, Stiefel 1952) until the residual is
// at most tolerance norm(b). On a direction d with d' A d <= 0 it stops, with that direction in
// `direction` and the last good x.
TW_INTERNAL_API CgResult conjugate_gradient(const Operator& product, const Vector& b,
                                            double tolerance, std::int64_t max_iterations,
                                            Vector& x, Vector& direction);

}  // namespace thalweg::minimize
