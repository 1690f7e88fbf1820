// Conjugate gradients as minimization methods.
#include <algorithm>
#include <cmath>
#include <utility>

#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

// What both methods carry: the last direction and the gradient that it was made from.
struct Memory {
  Vector direction;
  Vector gradient;
  std::int64_t since_restart = 0;  // directions since the last steepest descent, that one included
  double change = 0.0;             // first-order change of f in the last step
};

// d = -g + beta d
Memory turned(const Memory& last, const Vector& g, double beta) {
  Memory next;
  next.direction.resize(g.size());
  for (std::size_t i = 0; i < g.size(); ++i) {
    next.direction[i] = -g[i];
    if (beta != 0.0) next.direction[i] += beta * last.direction[i];
  }
  next.gradient = g;
  next.since_restart = beta == 0.0 ? 1 : last.since_restart + 1;
  return next;
}

class ConjugateGradient : public Method {
 public:
  explicit ConjugateGradient(std::int64_t n) : n_(n) {}

  MethodState state() const override {
    return {
        {{"direction", last_.direction}, {"gradient", last_.gradient}},
        {{"since_restart", static_cast<double>(last_.since_restart)}, {"change", last_.change}}};
  }
  void set_state(const MethodState& state) override {
    Memory read;
    read.since_restart = state_count(state, "since_restart", std::int64_t{1} << 52);
    read.change = state_number(state, "change");
    const std::int64_t expected = read.since_restart > 0 ? n_ : 0;
    read.direction = state_vector(state, "direction", expected);
    read.gradient = state_vector(state, "gradient", expected);
    last_ = std::move(read);
  }

 protected:
  std::int64_t n_;
  Memory last_;
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
    Memory memory = turned(last_, at.g, beta(at.g, v[kRestart]));
    double slope = dot(at.g, memory.direction);
    const auto steepest = [&] {
      fallbacks_.add("steepest_descent");
      memory = turned(last_, at.g, 0.0);
      slope = dot(at.g, memory.direction);
    };
    const auto search = [&](double first) {
      return search_step(problem, at, memory.direction, first, v[kC1], v[kC2], fallbacks_);
    };
    if (!(slope < 0.0) && memory.since_restart > 1) steepest();
    const double cautious = std::min(1.0, 1.0 / sum_of_magnitudes(at.g));
    // The first-order change of the last step is a guess of this one's.
    Step step = search(last_.change < 0.0 ? std::min(last_.change / slope, 1e10) : cautious);
    if (step.end == StepEnd::kNoDecrease && memory.since_restart > 1) {
      steepest();
      step = search(cautious);
    }
    memory.change = step.size * slope;
    last_ = std::move(memory);
    return step;
  }

 private:
  enum : int { kC1, kC2, kRestart };

  double beta(const Vector& g, double restart_every) const {
    const double every = restart_every > 0.0 ? restart_every : static_cast<double>(n_);
    if (last_.since_restart == 0 || static_cast<double>(last_.since_restart) >= every) return 0.0;
    const double squares = dot(g, g);
    const double before = dot(last_.gradient, last_.gradient);
    const double along = dot(g, last_.gradient);
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
    const double before = last_.since_restart == 0 ? 0.0 : dot(last_.gradient, last_.gradient);
    Memory memory = turned(last_, at.g, before == 0.0 ? 0.0 : dot(at.g, at.g) / before);
    const Step step = exact_step(problem, at, memory.direction);
    last_ = std::move(memory);
    return step;
  }
};

}  // namespace

MethodInfo nonlinear_cg_method() { return NonlinearCg::info(); }
MethodInfo linear_cg_method() { return LinearCg::info(); }

}  // namespace thalweg::minimize
