// Newton's method, its saddle-free form, and the damped form of Levenberg and Marquardt.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/error.h"
#include "minimize/steps.h"
#include "minimize/symmetric_eigen.h"

namespace thalweg::minimize {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

Curvature curvature_kind(double choice) {
  return choice == 0.0 ? Curvature::kHessian : Curvature::kGaussNewton;
}

// The matrix of an operator, by n products; the mean with its transpose.
Vector dense_matrix(const Operator& product, std::int64_t n) {
  Vector matrix(static_cast<std::size_t>(n * n));
  Vector unit(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    unit[i] = 1.0;
    product(unit.data(), &matrix[i * n]);
    unit[i] = 0.0;
  }
  if (!all_finite(matrix)) {
    throw NonFiniteError("[minimize] expected finite second derivatives, got NaN or infinity", -1,
                         {});
  }
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) {
      const double mean = 0.5 * (matrix[i * n + j] + matrix[j * n + i]);
      matrix[i * n + j] = matrix[j * n + i] = mean;
    }
  }
  return matrix;
}

// The curvature at x in the directions that a step may use: all of them, or the Krylov space that
// the gradient starts. g has no part outside the space.
class Spectrum {
 public:
  Spectrum(const Operator& product, const Vector& g, std::int64_t exact_below,
           std::int64_t krylov_steps)
      : n_(length(g)) {
    if (n_ <= exact_below) {
      const Vector matrix = dense_matrix(product, n_);
      EigenSystem system = symmetric_eigensystem(matrix.data(), n_);
      values_ = std::move(system.values);
      vectors_ = std::move(system.vectors);
      for (std::size_t k = 0; k < values_.size(); ++k)
        slopes_.push_back(dot(&vectors_[k * n_], g.data(), n_));
      return;
    }
    krylov_ = krylov_basis(product, g, krylov_steps);
    EigenSystem ritz = tridiagonal_eigensystem(krylov_.diagonal, krylov_.off_diagonal);
    values_ = std::move(ritz.values);
    vectors_ = std::move(ritz.vectors);
    const double size = norm(g);
    for (std::size_t k = 0; k < values_.size(); ++k)
      slopes_.push_back(size * vectors_[k * krylov_.steps]);
  }

  // d = -sum slope / (lambda or |lambda| + damping) v. Directions whose divisor is zero to working
  // precision are left out; false when there were any.
  bool step(bool magnitudes, double damping, Vector& d) const {
    double largest = 0.0;
    for (const double value : values_) largest = std::max(largest, std::abs(value) + damping);
    bool regular = true;
    Vector along(values_.size());
    for (std::size_t k = 0; k < values_.size(); ++k) {
      const double divisor = (magnitudes ? std::abs(values_[k]) : values_[k]) + damping;
      if (std::abs(divisor) <= 64.0 * kEpsilon * largest) {
        regular = false;
      } else {
        along[k] = -slopes_[k] / divisor;
      }
    }
    lift(along, d);
    return regular;
  }

 private:
  // d = sum along_k v_k
  void lift(const Vector& along, Vector& d) const {
    const std::int64_t m = length(values_);
    d.assign(static_cast<std::size_t>(n_), 0.0);
    if (krylov_.steps == 0) {
      for (std::int64_t k = 0; k < m; ++k) add_scaled(d.data(), along[k], &vectors_[k * n_], n_);
      return;
    }
    Vector inside(static_cast<std::size_t>(m));
    for (std::int64_t k = 0; k < m; ++k) add_scaled(inside.data(), along[k], &vectors_[k * m], m);
    for (std::int64_t j = 0; j < m; ++j)
      add_scaled(d.data(), inside[j], &krylov_.basis[j * n_], n_);
  }

  std::int64_t n_;
  KrylovBasis krylov_;
  Vector values_;
  Vector vectors_;
  Vector slopes_;  // components of g
};

// x -= lr (H + damping I)^-1 g, or with |H| in place of H (Dauphin et al. 2014).
template <bool kMagnitudes>
class SpectralNewton final : public Method {
 public:
  static MethodInfo info() {
    using Kind = ParameterKind;
    MethodInfo info{kMagnitudes ? "saddle_free_newton" : "newton",
                    {lr_row(1.0),
                     {"damping", Kind::kReal, 0.0, 0.0, kHuge, {}},
                     {"damping_search", Kind::kFlag, 0.0, 0.0, 1.0, {}},
                     curvature_row(),
                     {"krylov", Kind::kInteger, 50.0, 1.0, 1e4, {}},
                     {"exact_below", Kind::kInteger, 300.0, 0.0, 1e4, {}}},
                    [](std::int64_t) { return std::make_unique<SpectralNewton>(); }};
    info.needs_curvature = true;
    return info;
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const double* v = values.now;
    if (largest_magnitude(at.g) == 0.0) return {StepEnd::kNoDecrease, 0.0, "the gradient is zero"};
    const Spectrum spectrum(problem.curvature(curvature_kind(v[kCurvature]), at.x), at.g,
                            static_cast<std::int64_t>(v[kExactBelow]),
                            static_cast<std::int64_t>(v[kKrylov]));
    Vector d;
    if (v[kSearch] != 0.0) return searched(problem, at, spectrum, v[kLr]);
    if (!spectrum.step(kMagnitudes, v[kDamping], d)) fallbacks_.add("singular");
    move(at, v[kLr], d);
    return {StepEnd::kMoved, v[kLr]};
  }

 private:
  enum : int { kLr, kDamping, kSearch, kCurvature, kKrylov, kExactBelow };

  // The damping of 1e-4, 1e-3, ..., 10 whose step gives the lowest value; larger ones when none of
  // them decreases f.
  Step searched(Problem& problem, Iterate& at, const Spectrum& spectrum, double lr) {
    double best = at.f;
    Vector best_x;
    Vector d;
    for (int exponent = -4; exponent <= 8 && (exponent <= 1 || best_x.empty()); ++exponent) {
      if (exponent == 2) fallbacks_.add("damping");
      spectrum.step(kMagnitudes, std::pow(10.0, exponent), d);
      Vector x = at.x;
      add_scaled(x, lr, d);
      const double f = problem.value(x);
      if (f < best) {
        best = f;
        best_x = std::move(x);
      }
    }
    if (best_x.empty()) return {StepEnd::kNoDecrease, 0.0, "no damping gives a decrease"};
    at.x = std::move(best_x);
    at.evaluated = false;
    return {StepEnd::kMoved, lr};
  }
};

// (C + mu I) d = -g. mu falls when f follows its quadratic model and rises when it does not
// (Levenberg 1944; Marquardt 1963); a step that does not decrease f is not made.
class DampedNewton final : public Method {
 public:
  static MethodInfo info() {
    using Kind = ParameterKind;
    MethodInfo info{"damped_newton",
                    {{"damping", Kind::kReal, 1e-3, 1e-12, kLargestDamping, {}},
                     curvature_row(),
                     {"exact_below", Kind::kInteger, 300.0, 0.0, 1e4, {}},
                     {"cg_iterations", Kind::kInteger, 100.0, 1.0, 1e6, {}},
                     {"cg_tolerance", Kind::kReal, 1e-6, 1e-15, 0.5, {}}},
                    [](std::int64_t) { return std::make_unique<DampedNewton>(); }};
    info.needs_curvature = true;
    return info;
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const double* v = values.now;
    const std::int64_t n = length(at.x);
    if (largest_magnitude(at.g) == 0.0) return {StepEnd::kNoDecrease, 0.0, "the gradient is zero"};
    double mu = mu_ == 0.0 ? v[kDamping] : mu_;
    const Operator product = problem.curvature(curvature_kind(v[kCurvature]), at.x);
    Vector matrix;
    if (n <= static_cast<std::int64_t>(v[kExactBelow])) matrix = dense_matrix(product, n);

    Vector d;
    Vector image(at.x.size());
    Iterate to;
    for (; mu <= kLargestDamping; mu *= 4.0) {
      if (!solve(product, matrix, at.g, mu, v, d)) {
        fallbacks_.add("damping");
        continue;
      }
      if (matrix.empty()) {
        product(d.data(), image.data());
      } else {
        for (std::int64_t i = 0; i < n; ++i) image[i] = dot(&matrix[i * n], d.data(), n);
      }
      const double predicted = -(dot(at.g, d) + 0.5 * dot(d, image));
      to.x = at.x;
      add_scaled(to.x, 1.0, d);
      problem.evaluate(to);
      if (!finite(to)) continue;
      const double decrease = at.f - to.f;
      const double noise = problem.noise() * std::abs(at.f);
      // Below the noise of f the gradient decides.
      const bool accepted =
          predicted > noise ? decrease > 0.0 : decrease >= -noise && norm(to.g) < norm(at.g);
      if (!accepted) continue;
      const double ratio = predicted > noise ? decrease / predicted : 1.0;
      if (ratio > 0.75) mu = std::max(mu / 3.0, 1e-12);
      if (ratio < 0.25) mu = std::min(mu * 4.0, kLargestDamping);
      mu_ = mu;
      at = std::move(to);
      return {StepEnd::kMoved, 1.0};
    }
    mu_ = kLargestDamping;
    return {StepEnd::kNoDecrease, 0.0, "no damping gives a decrease"};
  }

  MethodState state() const override { return {{}, {{"damping", mu_}}}; }
  void set_state(const MethodState& state) override { mu_ = state_number(state, "damping"); }

 private:
  enum : int { kDamping, kCurvature, kExactBelow, kCgIterations, kCgTolerance };
  static constexpr double kLargestDamping = 1e16;

  // False when C + mu I is not positive definite.
  static bool solve(const Operator& product, const Vector& matrix, const Vector& g, double mu,
                    const double* v, Vector& d) {
    const std::int64_t n = length(g);
    Vector b = g;
    scale(b, -1.0);
    if (!matrix.empty()) {
      Vector factor = matrix;
      for (std::int64_t i = 0; i < n; ++i) factor[i * n + i] += mu;
      if (!cholesky(factor.data(), n)) return false;
      d.resize(b.size());
      cholesky_solve(factor.data(), n, b.data(), d.data());
      return true;
    }
    const Operator damped = [&](const double* x, double* out) {
      product(x, out);
      add_scaled(out, mu, x, n);
    };
    Vector direction;
    const CgResult solved = conjugate_gradient(
        damped, b, v[kCgTolerance], static_cast<std::int64_t>(v[kCgIterations]), d, direction);
    return solved.end != CgEnd::kNegativeCurvature;
  }

  double mu_ = 0.0;  // 0: not started
};

}  // namespace

MethodInfo newton_method() { return SpectralNewton<false>::info(); }
MethodInfo saddle_free_newton_method() { return SpectralNewton<true>::info(); }
MethodInfo damped_newton_method() { return DampedNewton::info(); }

}  // namespace thalweg::minimize
