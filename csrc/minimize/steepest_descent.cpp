// Steepest descent in a norm, coordinate descent and Path-SGD.
#include <cmath>
#include <utility>

#include "core/error.h"
#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

std::int64_t largest_coordinate(const Vector& g) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < length(g); ++i) {
    if (std::abs(g[i]) > std::abs(g[best])) best = i;
  }
  return best;
}

double sign(double x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : 0.0; }

// The direction of steepest descent minimizes g'd + norm(d)^2 / 2; normalized, g'd over the ball of
// radius 1 (Boyd, Vandenberghe, Convex Optimization, section 9.4).
class SteepestDescent final : public Method {
 public:
  static MethodInfo info() {
    using Kind = ParameterKind;
    return {"steepest_descent",
            {lr_row(0.1),
             {"norm", Kind::kChoice, 1.0, 0.0, 2.0, {"l1", "l2", "linf"}},
             {"normalized", Kind::kFlag, 0.0, 0.0, 1.0, {}},
             {"step", Kind::kChoice, 0.0, 0.0, 2.0, {"fixed", "exact", "wolfe"}},
             c1_row(),
             c2_row(0.9)},
            [](std::int64_t) { return std::make_unique<SteepestDescent>(); }};
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const double* v = values.now;
    const Vector d = direction(at.g, static_cast<int>(v[kNorm]), v[kNormalized] != 0.0);
    switch (static_cast<int>(v[kStep])) {
      case 1:
        return exact_step(problem, at, d);
      case 2: {
        const double first = last_ > 0.0 ? last_ : v[kLr];
        const Step step = search_step(problem, at, d, first, v[kC1], v[kC2], fallbacks_);
        last_ = step.size;
        return step;
      }
      default:
        move(at, v[kLr], d);
        return {StepEnd::kMoved, v[kLr]};
    }
  }

  MethodState state() const override { return {{}, {{"last_step", last_}}}; }
  void set_state(const MethodState& state) override { last_ = state_number(state, "last_step"); }

 private:
  enum : int { kLr, kNorm, kNormalized, kStep, kC1, kC2 };

  static Vector direction(const Vector& g, int norm_kind, bool normalized) {
    Vector d(g.size());
    if (norm_kind == 0) {
      const std::int64_t j = largest_coordinate(g);
      d[j] = normalized ? -sign(g[j]) : -g[j];
      return d;
    }
    const bool euclidean = norm_kind == 1;
    const double size = euclidean ? norm(g) : sum_of_magnitudes(g);
    if (size == 0.0) return d;
    const double factor = euclidean ? (normalized ? 1.0 / size : 1.0) : (normalized ? 1.0 : size);
    for (std::size_t i = 0; i < g.size(); ++i) d[i] = -factor * (euclidean ? g[i] : sign(g[i]));
    return d;
  }

  double last_ = 0.0;
};

// One coordinate per step: that of the largest |g_j| (greedy, Gauss-Southwell), or all in turn.
class CoordinateDescent final : public Method {
 public:
  explicit CoordinateDescent(std::int64_t n) : n_(n) {}

  static MethodInfo info() {
    using Kind = ParameterKind;
    return {"coordinate_descent",
            {lr_row(0.1),
             {"order", Kind::kChoice, 0.0, 0.0, 1.0, {"greedy", "cyclic"}},
             {"step", Kind::kChoice, 1.0, 0.0, 1.0, {"fixed", "exact"}}},
            [](std::int64_t n) { return std::make_unique<CoordinateDescent>(n); }};
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const std::int64_t j = values.now[kOrder] == 0.0 ? largest_coordinate(at.g) : next_;
    Vector d(at.x.size());
    Step step{StepEnd::kMoved, values.now[kLr]};
    if (values.now[kStep] == 0.0) {
      d[j] = -at.g[j];
      move(at, step.size, d);
    } else {
      d[j] = 1.0;
      step = exact_step(problem, at, d);
    }
    next_ = (next_ + 1) % n_;
    return step;
  }

  MethodState state() const override { return {{}, {{"next", static_cast<double>(next_)}}}; }
  void set_state(const MethodState& state) override { next_ = state_count(state, "next", n_ - 1); }

 private:
  enum : int { kLr, kOrder, kStep };

  std::int64_t n_;
  std::int64_t next_ = 0;
};

// theta_j -= lr g_j / kappa_j with kappa the product of the squared path sums into and out of a
// weight (Neyshabur, Salakhutdinov, Srebro 2015): invariant under rescaling of ReLU units. A weight
// on no path has kappa 0 and is not updated; bounding kappa away from 0 would break the invariance.
class PathSgd final : public Method {
 public:
  static MethodInfo info() {
    MethodInfo info{
        "path_sgd", {lr_row(0.01)}, [](std::int64_t) { return std::make_unique<PathSgd>(); }};
    info.needs_path_scales = true;
    return info;
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    problem.path_scales(at.x, kappa_);
    Vector d(at.x.size());
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = kappa_[i] > 0.0 ? -at.g[i] / kappa_[i] : 0.0;
    move(at, values.now[0], d);
    return {StepEnd::kMoved, values.now[0]};
  }

 private:
  Vector kappa_;
};

}  // namespace

MethodInfo steepest_descent_method() { return SteepestDescent::info(); }
MethodInfo coordinate_descent_method() { return CoordinateDescent::info(); }
MethodInfo path_sgd_method() { return PathSgd::info(); }

}  // namespace thalweg::minimize
