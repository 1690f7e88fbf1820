// BFGS and L-BFGS.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr std::int64_t kMostPairs = 10'000;
constexpr std::int64_t kLargestDense = 20'000;  // 3.2 GB

// One step of either method: search along `d`, on failure forget the curvature and search along -g.
// The methods differ in what they remember.
class QuasiNewton : public Method {
 public:
  explicit QuasiNewton(std::int64_t n) : n_(n) {}

  Step step(Problem& problem, Iterate& at, const StepValues& values) override {
    const double c1 = values.now[kC1];
    const double c2 = values.now[kC2];
    read(values.now);
    const Vector x = at.x;
    const Vector g = at.g;
    Vector d(g.size());
    const auto steepest = [&] {
      for (std::size_t i = 0; i < g.size(); ++i) d[i] = -g[i];
      return std::min(1.0, 1.0 / sum_of_magnitudes(g));
    };
    Step step;
    if (fresh()) {
      step = search_step(problem, at, d, steepest(), c1, c2, fallbacks_);
    } else {
      direction(g, d);
      step = search_step(problem, at, d, 1.0, c1, c2, fallbacks_);
      if (step.end == StepEnd::kNoDecrease) {
        fallbacks_.add("steepest_descent");
        step = search_step(problem, at, d, steepest(), c1, c2, fallbacks_);
        forget();
      }
    }
    if (step.end != StepEnd::kMoved) return step;

    Vector s = at.x;
    add_scaled(s, -1.0, x);
    Vector y = at.g;
    add_scaled(y, -1.0, g);
    const double curvature = dot(s, y);
    if (curvature > kEpsilon * norm(s) * norm(y)) {
      remember(std::move(s), std::move(y), curvature);
    } else {
      fallbacks_.add("skipped_update");
    }
    return step;
  }

 protected:
  enum : int { kC1, kC2, kHistory };

  virtual void read(const double* values) { (void)values; }
  // Nothing is remembered: the direction would be -g.
  virtual bool fresh() const = 0;
  virtual void forget() = 0;
  virtual void direction(const Vector& g, Vector& d) = 0;
  virtual void remember(Vector s, Vector y, double curvature) = 0;

  std::int64_t n_;
};

// The inverse Hessian is approximated by a dense matrix (Broyden, Fletcher, Goldfarb, Shanno 1970):
// B <- (I - s y'/y's) B (I - y s'/y's) + s s'/y's, first scaled by y's/y'y.
class Bfgs final : public QuasiNewton {
 public:
  using QuasiNewton::QuasiNewton;

  static MethodInfo info() {
    MethodInfo info{
        "bfgs", {c1_row(), c2_row(0.9)}, [](std::int64_t n) { return std::make_unique<Bfgs>(n); }};
    info.largest_dimension = kLargestDense;
    return info;
  }

  MethodState state() const override {
    return {{{"inverse_hessian", inverse_}}, {{"started", fresh() ? 0.0 : 1.0}}};
  }
  void set_state(const MethodState& state) override {
    const bool started = state_number(state, "started") != 0.0;
    inverse_ = state_vector(state, "inverse_hessian", started ? n_ * n_ : 0);
  }

 private:
  bool fresh() const override { return inverse_.empty(); }
  void forget() override { inverse_.clear(); }

  void direction(const Vector& g, Vector& d) override {
    for (std::int64_t i = 0; i < n_; ++i) d[i] = -dot(&inverse_[i * n_], g.data(), n_);
  }

  void remember(Vector s, Vector y, double curvature) override {
    if (inverse_.empty()) {
      inverse_.assign(static_cast<std::size_t>(n_ * n_), 0.0);
      const double first = curvature / dot(y, y);
      for (std::int64_t i = 0; i < n_; ++i) inverse_[i * n_ + i] = first;
    }
    Vector image(y.size());
    for (std::int64_t i = 0; i < n_; ++i) image[i] = dot(&inverse_[i * n_], y.data(), n_);
    const double rho = 1.0 / curvature;
    const double growth = rho * (1.0 + rho * dot(y, image));
    // Row by row, with the same terms above and below the diagonal: the matrix stays symmetric.
    for (std::int64_t i = 0; i < n_; ++i) {
      double* row = &inverse_[i * n_];
      for (std::int64_t j = 0; j < n_; ++j)
        row[j] += growth * (s[i] * s[j]) - rho * (image[i] * s[j] + s[i] * image[j]);
    }
  }

  Vector inverse_;
};

// The same from the last `history` pairs, by the two-loop recursion (Nocedal 1980; Liu, Nocedal
// 1989).
class LBfgs final : public QuasiNewton {
 public:
  using QuasiNewton::QuasiNewton;

  static MethodInfo info() {
    return {
        "lbfgs",
        {c1_row(), c2_row(0.9), {"history", ParameterKind::kInteger, 10.0, 1.0, kMostPairs, {}}},
        [](std::int64_t n) { return std::make_unique<LBfgs>(n); }};
  }

  MethodState state() const override {
    MethodState state;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      state.vectors.emplace_back(concat("s", i), pairs_[i].s);
      state.vectors.emplace_back(concat("y", i), pairs_[i].y);
    }
    state.numbers.emplace_back("pairs", static_cast<double>(pairs_.size()));
    return state;
  }
  void set_state(const MethodState& state) override {
    std::vector<Pair> pairs;
    const std::int64_t count = state_count(state, "pairs", kMostPairs);
    for (std::int64_t i = 0; i < count; ++i) {
      const Vector& s = state_vector(state, concat("s", i).c_str(), n_);
      const Vector& y = state_vector(state, concat("y", i).c_str(), n_);
      pairs.push_back({s, y, dot(s, y)});
    }
    pairs_ = std::move(pairs);
  }

 private:
  struct Pair {
    Vector s, y;
    double curvature;
  };

  void read(const double* values) override {
    history_ = static_cast<std::size_t>(values[kHistory]);
  }
  bool fresh() const override { return pairs_.empty(); }
  void forget() override { pairs_.clear(); }

  void direction(const Vector& g, Vector& d) override {
    for (std::size_t i = 0; i < g.size(); ++i) d[i] = -g[i];
    Vector alpha(pairs_.size());
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      alpha[i] = dot(pairs_[i].s, d) / pairs_[i].curvature;
      add_scaled(d, -alpha[i], pairs_[i].y);
    }
    const Pair& newest = pairs_.back();
    scale(d, newest.curvature / dot(newest.y, newest.y));
    for (std::size_t i = 0; i < pairs_.size(); ++i)
      add_scaled(d, alpha[i] - dot(pairs_[i].y, d) / pairs_[i].curvature, pairs_[i].s);
  }

  void remember(Vector s, Vector y, double curvature) override {
    while (pairs_.size() >= history_) pairs_.erase(pairs_.begin());
    pairs_.push_back({std::move(s), std::move(y), curvature});
  }

  std::size_t history_ = 0;
  std::vector<Pair> pairs_;  // oldest first
};

}  // namespace

MethodInfo bfgs_method() { return Bfgs::info(); }
MethodInfo lbfgs_method() { return LBfgs::info(); }

}  // namespace thalweg::minimize
