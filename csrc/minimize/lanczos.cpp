// Krylov methods for symmetric operators.
#include "minimize/lanczos.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "math/philox.h"
#include "minimize/symmetric_eigen.h"

namespace thalweg::minimize {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr std::uint16_t kProbeStream = 0xff40;

std::uint64_t bits53(std::uint64_t seed, std::uint64_t number, std::int64_t i) {
  return philox_bits53(seed, kProbeStream, number, static_cast<std::uint64_t>(i));
}

void checked_product(const Operator& product, const double* v, double* out, std::int64_t n) {
  product(v, out);
  if (!all_finite(out, n)) {
    throw NonFiniteError(
        "[lanczos] expected a finite product with the operator, got NaN or infinity", -1, {});
  }
}

// w -= V' V w, twice: once leaves an error of epsilon norm(w), which matters when little is left.
void orthogonalize(const Vector& basis, std::int64_t count, double* w, std::int64_t n) {
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t k = 0; k < count; ++k) {
      const double* v = &basis[k * n];
      add_scaled(w, -dot(v, w, n), v, n);
    }
  }
}

// Lanczos' process, step by step.
class Process {
 public:
  Process(const Operator& product, std::int64_t n, std::int64_t max_steps)
      : product_(product), n_(n), next_(static_cast<std::size_t>(n)) {
    krylov_.basis.reserve(static_cast<std::size_t>(n * std::min(n, max_steps)));
  }

  const KrylovBasis& krylov() const { return krylov_; }
  KrylovBasis take() { return std::move(krylov_); }

  void start(const Vector& vector) { next_ = vector, scale(next_, 1.0 / norm(next_)); }

  // A direction outside the space, uncoupled from it.
  void restart(std::uint64_t seed) {
    do {
      start(random_normal(n_, seed, ++restarts_));
      orthogonalize(krylov_.basis, krylov_.steps, next_.data(), n_);
    } while (norm(next_) < 1e-8);
    scale(next_, 1.0 / norm(next_));
    krylov_.invariant = false;
  }

  void step() {
    krylov_.basis.insert(krylov_.basis.end(), next_.begin(), next_.end());
    const double* v = &krylov_.basis[krylov_.steps * n_];
    checked_product(product_, v, next_.data(), n_);
    const double size = norm(next_);
    largest_ = std::max(largest_, size);
    krylov_.diagonal.push_back(dot(v, next_.data(), n_));
    ++krylov_.steps;
    orthogonalize(krylov_.basis, krylov_.steps, next_.data(), n_);
    double coupling = norm(next_);
    // What is left is rounding error of the products so far.
    krylov_.invariant = krylov_.steps == n_ || coupling <= 64.0 * kEpsilon * largest_;
    if (krylov_.invariant) {
      coupling = 0.0;
    } else {
      scale(next_, 1.0 / coupling);
    }
    krylov_.off_diagonal.push_back(coupling);
  }

 private:
  const Operator& product_;
  std::int64_t n_;
  KrylovBasis krylov_;
  Vector next_;
  double largest_ = 0.0;
  std::uint64_t restarts_ = 0;
};

// Positions in ascending eigenvalues: the top ones descending, then the bottom ones ascending.
std::vector<std::int64_t> wanted(std::int64_t count, const EigenOptions& options) {
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < options.top; ++i) positions.push_back(count - 1 - i);
  for (std::int64_t i = 0; i < options.bottom; ++i) positions.push_back(i);
  return positions;
}

void check(std::int64_t n, const EigenOptions& options) {
  const std::int64_t count = options.top + options.bottom;
  const std::int64_t most = std::min(n, options.max_steps);
  expect<ValueError>(options.top >= 0 && options.bottom >= 0 && count >= 1 && count <= most,
                     "[eigenpairs] expected between 1 and ", most,
                     " eigenpairs (dimension and steps bound them), got top=", options.top,
                     ", bottom=", options.bottom);
  expect<ValueError>(options.tolerance > 0.0, "[eigenpairs] expected tolerance > 0, got ",
                     options.tolerance);
}

}  // namespace

Vector random_normal(std::int64_t n, std::uint64_t seed, std::uint64_t number) {
  Vector v(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) v[i] = standard_normal(bits53(seed, number, i));
  return v;
}

Vector random_signs(std::int64_t n, std::uint64_t seed, std::uint64_t number) {
  Vector v(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) v[i] = (bits53(seed, number, i) >> 52 & 1) != 0 ? 1.0 : -1.0;
  return v;
}

KrylovBasis krylov_basis(const Operator& product, const Vector& start, std::int64_t max_steps) {
  Process process(product, length(start), max_steps);
  process.start(start);
  do process.step();
  while (!process.krylov().invariant && process.krylov().steps < max_steps);
  return process.take();
}

Eigenpairs lanczos_eigenpairs(const Operator& product, std::int64_t n,
                              const EigenOptions& options) {
  check(n, options);
  const std::int64_t max_steps = std::min(n, options.max_steps);
  const std::int64_t count = options.top + options.bottom;
  constexpr std::int64_t kCheckEvery = 10;

  Process process(product, n, max_steps);
  process.start(random_normal(n, options.seed, 0));
  EigenSystem ritz;
  for (;;) {
    process.step();
    const KrylovBasis& krylov = process.krylov();
    const bool last = krylov.steps == max_steps;
    if (!last && (krylov.steps < count || krylov.steps % kCheckEvery != 0)) {
      if (krylov.invariant) process.restart(options.seed);
      continue;
    }
    ritz = tridiagonal_eigensystem(krylov.diagonal, krylov.off_diagonal);
    if (last) break;
    // After a restart the last coupling says nothing about the block before it.
    const double coupling = krylov.off_diagonal.back();
    const double size = std::max(std::abs(ritz.values.front()), std::abs(ritz.values.back()));
    bool done = !krylov.invariant;
    for (const std::int64_t k : wanted(krylov.steps, options)) {
      const double component = ritz.vectors[k * krylov.steps + krylov.steps - 1];
      done = done && std::abs(coupling * component) <= 0.5 * options.tolerance * size;
    }
    if (done) break;
    if (krylov.invariant) process.restart(options.seed);
  }

  const KrylovBasis krylov = process.take();
  Eigenpairs pairs;
  pairs.products = krylov.steps;
  const double size = std::max(std::abs(ritz.values.front()), std::abs(ritz.values.back()));
  Vector image(static_cast<std::size_t>(n));
  for (const std::int64_t k : wanted(krylov.steps, options)) {
    Vector v(static_cast<std::size_t>(n));
    for (std::int64_t j = 0; j < krylov.steps; ++j)
      add_scaled(v.data(), ritz.vectors[k * krylov.steps + j], &krylov.basis[j * n], n);
    scale(v, 1.0 / norm(v));
    checked_product(product, v.data(), image.data(), n);
    ++pairs.products;
    add_scaled(image, -ritz.values[k], v);
    const double residual = norm(image);
    pairs.values.push_back(ritz.values[k]);
    pairs.vectors.insert(pairs.vectors.end(), v.begin(), v.end());
    pairs.residuals.push_back(residual);
    pairs.converged.push_back(residual <= options.tolerance * size);
  }
  return pairs;
}

Eigenpairs power_iteration(const Operator& product, std::int64_t n, const EigenOptions& options) {
  expect<ValueError>(options.top + options.bottom == 1 && options.top >= 0 && options.bottom >= 0,
                     "[power_iteration] expected one eigenpair, got top=", options.top,
                     ", bottom=", options.bottom, "; Lanczos gives several");
  check(n, options);
  Eigenpairs pairs;
  Vector v = random_normal(n, options.seed, 0);
  scale(v, 1.0 / norm(v));
  Vector image(static_cast<std::size_t>(n));
  double size = 0.0;
  double value = 0.0;
  double residual = 0.0;
  bool converged = false;
  for (std::int64_t iteration = 0; iteration < options.max_steps; ++iteration) {
    checked_product(product, v.data(), image.data(), n);
    ++pairs.products;
    size = std::max(size, norm(image));
    value = dot(v, image);
    Vector rest = image;
    add_scaled(rest, -value, v);
    residual = norm(rest);
    converged = residual <= options.tolerance * size;
    if (converged || iteration + 1 == options.max_steps) break;
    add_scaled(image, options.top == 1 ? size : -size, v);
    const double next = norm(image);
    // A + s I annihilates v: it is an eigenvector at the other end. A new direction decides.
    if (next <= kEpsilon * size) {
      v = random_normal(n, options.seed, static_cast<std::uint64_t>(iteration) + 1);
      scale(v, 1.0 / norm(v));
      continue;
    }
    v = image;
    scale(v, 1.0 / next);
  }
  pairs.values = {value};
  pairs.vectors = std::move(v);
  pairs.residuals = {residual};
  pairs.converged = {converged};
  return pairs;
}

Quadrature lanczos_quadrature(const Operator& product, const Vector& start, std::int64_t steps) {
  const KrylovBasis krylov = krylov_basis(product, start, steps);
  EigenSystem ritz = tridiagonal_eigensystem(krylov.diagonal, krylov.off_diagonal);
  Quadrature result;
  for (std::int64_t k = 0; k < krylov.steps; ++k) {
    const double first = ritz.vectors[k * krylov.steps];
    result.weights.push_back(first * first);
  }
  result.nodes = std::move(ritz.values);
  return result;
}

CgResult conjugate_gradient(const Operator& product, const Vector& b, double tolerance,
                            std::int64_t max_iterations, Vector& x, Vector& direction) {
  const std::int64_t n = length(b);
  x.assign(b.size(), 0.0);
  Vector r = b;
  direction = b;
  Vector image(b.size());
  CgResult result;
  const double target = tolerance * norm(b);
  double squares = dot(r, r);
  for (;;) {
    result.residual = std::sqrt(squares);
    if (result.residual <= target) {
      result.end = CgEnd::kConverged;
      return result;
    }
    if (result.iterations == max_iterations) return result;
    checked_product(product, direction.data(), image.data(), n);
    ++result.iterations;
    const double curvature = dot(direction, image);
    if (!(curvature > kEpsilon * norm(direction) * norm(image))) {
      result.end = CgEnd::kNegativeCurvature;
      return result;
    }
    const double alpha = squares / curvature;
    add_scaled(x, alpha, direction);
    add_scaled(r, -alpha, image);
    const double next = dot(r, r);
    const double beta = next / squares;
    squares = next;
    for (std::int64_t i = 0; i < n; ++i) direction[i] = r[i] + beta * direction[i];
  }
}

}  // namespace thalweg::minimize
