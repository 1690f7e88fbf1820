// Eigenvalues and eigenvectors of dense symmetric matrices: Householder's reduction to tridiagonal
// form, then the implicit QR iteration with Wilkinson's shift (Golub, Van Loan, Matrix
// Computations, chapter 8). And the Cholesky factor of a positive definite one.
#pragma once

#include <cstdint>

#include "core/export.h"
#include "minimize/vector.h"

namespace thalweg::minimize {

struct EigenSystem {
  Vector values;   // ascending
  Vector vectors;  // one after another: eigenvector k is [k * n, (k + 1) * n)
};

// Of the row-major [n, n] matrix `a`, whose lower triangle is read. ValueError when it is not
// finite.
TW_INTERNAL_API EigenSystem symmetric_eigensystem(const double* a, std::int64_t n);

// Of the tridiagonal matrix with `diagonal` (n) and `off_diagonal` (n - 1 elements or more).
EigenSystem tridiagonal_eigensystem(const Vector& diagonal, const Vector& off_diagonal);

// Writes L with L L' = A into the lower triangle of `a`, row-major [n, n]. False, with `a` spoilt,
// when A is not positive definite to working precision.
TW_INTERNAL_API bool cholesky(double* a, std::int64_t n);
// x with L L' x = b; x and b may be the same.
TW_INTERNAL_API void cholesky_solve(const double* factor, std::int64_t n, const double* b,
                                    double* x);

}  // namespace thalweg::minimize
