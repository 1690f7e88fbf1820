// Conjugate gradients as minimization methods.
#include <algorithm>
#include <cmath>
#include <utility>

#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

// What both methods carry: the last direction and the gradient that it was made from.
class ConjugateGradient : public Method {
 public:
  explicit ConjugateGradient(std::int64_t n) : n_(n) {}

  MethodState state() const override {
    return {{{"direction", direction_}, {"gradient", gradient_}},
            {{"since_restart", static_cast<double>(since_restart_)}, {"slope", slope_}}};
  }
  void set_state(const MethodState& state) override {
    since_restart_ = static_cast<std::int64_t>(state_number(state, "since_restart"));
    slope_ = state_number(state, "slope");
    const std::int64_t expected = since_restart_ > 0 ? n_ : 0;
    direction_ = state_vector(state, "direction", expected);
    gradient_ = state_vector(state, "gradient", expected);
  }

 protected:
  // d = -g + beta d
  void turn(const Vector& g, double beta) {
    direction_.resize(g.size());
    if (beta == 0.0) {
      since_restart_ = 0;
      for (std::size_t i = 0; i < g.size(); ++i) direction_[i] = -g[i];
    } else {
      for (std::size_t i = 0; i < g.size(); ++i) direction_[i] = beta * direction_[i] - g[i];
    }
    gradient_ = g;
    ++since_restart_;
  }

  std::int64_t n_;
  Vector direction_;
  Vector gradient_;
  std::int64_t since_restart_ = 0;  // directions since the last steepest descent, that one included
  double slope_ = 0.0;              // size of the last step times its slope
};

// Polak and Ribiere's beta, not below 0 (PR+: Gilbert, Nocedal 1992), restarted after n directions
// and when consecutive gradients are far from orthogonal (Powell 1977).
class NonlinearCg final : public ConjugateGradient {
 public:
  using ConjugateGradient::ConjugateGradient;

  static MethodInfo info() {
    return {"nonlinear_cg",
            {c1_row(), c2_row(0.1), {"restart_every", ParameterKind::kInteger, 0.0, 0.0, 1e15, {}}},
            [](std::int64_t n) { return std::make_unique<NonlinearCg>(n); }};
  }

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const double* v = values.now;
    const auto every =
        static_cast<std::int64_t>(v[kRestart] > 0.0 ? v[kRestart] : std::max<double>(n_, 2));
    turn(at.g, since_restart_ == 0 || since_restart_ >= every ? 0.0 : beta(at.g));
    double slope = dot(at.g, direction_);
    if (!(slope < 0.0) && since_restart_ > 1) restart(at.g, slope);
    // The first-order change of the last step is a guess of this one's.
    double first = std::min(1.0, 1.0 / sum_of_magnitudes(at.g));
    if (slope_ < 0.0) first = std::min(slope_ / slope, 1e10);
    Step step = search_step(problem, at, direction_, first, v[kC1], v[kC2], fallbacks_);
    if (step.end == StepEnd::kNoDecrease && since_restart_ > 1) {
      restart(at.g, slope);
      first = std::min(1.0, 1.0 / sum_of_magnitudes(at.g));
      step = search_step(problem, at, direction_, first, v[kC1], v[kC2], fallbacks_);
    }
    slope_ = step.size * slope;
    return step;
  }

 private:
  enum : int { kC1, kC2, kRestart };

  void restart(const Vector& g, double& slope) {
    fallbacks_.add("steepest_descent");
    turn(g, 0.0);
    slope = dot(g, direction_);
  }

  double beta(const Vector& g) const {
    const double squares = dot(g, g);
    const double before = dot(gradient_, gradient_);
    const double along = dot(g, gradient_);
    if (before == 0.0 || std::abs(along) >= 0.2 * squares) return 0.0;
    return std::max(0.0, (squares - along) / before);
  }
};

// Conjugate gradients on a quadratic function (Hestenes, Stiefel 1952): exact steps, at most n of
// them in exact arithmetic.
class LinearCg final : public ConjugateGradient {
 public:
  using ConjugateGradient::ConjugateGradient;

  static MethodInfo info() {
    return {"linear_cg", {}, [](std::int64_t n) { return std::make_unique<LinearCg>(n); }};
  }

  Step step(Problem& problem, Iterate& at, const StepValues&) override {
    const double before = since_restart_ == 0 ? 0.0 : dot(gradient_, gradient_);
    turn(at.g, before == 0.0 ? 0.0 : dot(at.g, at.g) / before);
    return exact_step(problem, at, direction_);
  }
};

}  // namespace

MethodInfo nonlinear_cg_method() { return NonlinearCg::info(); }
MethodInfo linear_cg_method() { return LinearCg::info(); }

}  // namespace thalweg::minimize
