// The strong Wolfe line search: a step is extended until an interval is known to hold acceptable
// ones, then the interval shrinks by cubic interpolation.
#include "minimize/line_search.h"

#include <algorithm>
#include <cmath>

namespace thalweg::minimize {
namespace {

struct Trial {
  double step, f, slope;
};

// Minimizer of the cubic through values and slopes of two trials, or NaN.
double cubic_minimizer(const Trial& a, const Trial& b) {
  const double secant = 3.0 * (a.f - b.f) / (b.step - a.step);
  const double d1 = a.slope + b.slope + secant;
  const double inside = d1 * d1 - a.slope * b.slope;
  if (!(inside >= 0.0)) return std::nan("");
  const double d2 = std::copysign(std::sqrt(inside), b.step - a.step);
  return b.step - (b.step - a.step) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2.0 * d2));
}

class Search {
 public:
  Search(Problem& problem, const Iterate& from, const Vector& direction,
         const WolfeConditions& conditions, Iterate& to)
      : problem_(problem),
        from_(from),
        direction_(direction),
        conditions_(conditions),
        to_(to),
        slope_(dot(from.g, direction)),
        slack_(problem.noise() * std::abs(from.f)) {}

  LineSearch run(double step) {
    Trial low{0.0, from_.f, slope_};  // the best trial with sufficient decrease
    Trial high{0.0, 0.0, 0.0};        // the other end, once bracketed
    bool bracketed = false;
    double width_before = 0.0;  // two trials ago
    double width = 0.0;
    for (std::int64_t i = 0; i < conditions_.max_evaluations; ++i) {
      const Trial trial = evaluate(step);
      if (const SearchEnd end = acceptance(trial); end != SearchEnd::kFailed) return {end, step};
      if (too_high(trial, low)) {
        high = trial;
        bracketed = true;
      } else if (bracketed ? trial.slope * (high.step - low.step) >= 0.0 : trial.slope >= 0.0) {
        high = low;
        low = trial;
        bracketed = true;
      } else if (bracketed) {
        low = trial;
      } else {
        const Trial before = low;
        low = trial;
        step = extended(before, low);
        continue;
      }
      const double new_width = std::abs(high.step - low.step);
      if (new_width <= 1e-14 * std::max(low.step, high.step)) break;
      // Interpolation that halves the interval in less than two trials may go on.
      const bool slow = i > 1 && new_width > 0.5 * width_before;
      step = inside(low, high, slow);
      width_before = width;
      width = new_width;
    }
    if (low.step == 0.0 || !(low.f < from_.f)) return {};
    evaluate(low.step);
    return {SearchEnd::kSufficientDecrease, low.step};
  }

 private:
  Trial evaluate(double step) {
    to_.x = from_.x;
    add_scaled(to_.x, step, direction_);
    problem_.evaluate(to_);
    return {step, to_.f, finite(to_) ? dot(to_.g, direction_) : std::nan("")};
  }

  double line(double step) const { return from_.f + conditions_.c1 * step * slope_; }

  bool too_high(const Trial& trial, const Trial& low) const {
    return !std::isfinite(trial.slope) || trial.f > line(trial.step) + slack_ ||
           trial.f > low.f + slack_;
  }

  SearchEnd acceptance(const Trial& trial) const {
    // NaN fails both comparisons.
    if (!(std::abs(trial.slope) <= -conditions_.c2 * slope_)) return SearchEnd::kFailed;
    if (trial.f <= line(trial.step)) return SearchEnd::kStrongWolfe;
    return trial.f <= from_.f + slack_ ? SearchEnd::kApproximateWolfe : SearchEnd::kFailed;
  }

  static double extended(const Trial& before, const Trial& last) {
    const double stride = last.step - before.step;
    const double guess = cubic_minimizer(before, last);
    const double lowest = last.step + stride;
    const double highest = last.step + 9.0 * stride;
    return std::isfinite(guess) && guess > last.step ? std::clamp(guess, lowest, highest) : highest;
  }

  static double inside(const Trial& low, const Trial& high, bool bisect) {
    const double middle = 0.5 * (low.step + high.step);
    // At a non-finite end nothing is known but that it is too long.
    if (!std::isfinite(high.slope) || !std::isfinite(high.f))
      return low.step + 0.1 * (high.step - low.step);
    const double guess = bisect ? middle : cubic_minimizer(low, high);
    if (!std::isfinite(guess)) return middle;
    const double margin = 0.05 * (high.step - low.step);
    const double first = low.step + margin;
    const double second = high.step - margin;
    return std::clamp(guess, std::min(first, second), std::max(first, second));
  }

  Problem& problem_;
  const Iterate& from_;
  const Vector& direction_;
  const WolfeConditions& conditions_;
  Iterate& to_;
  double slope_;
  double slack_;
};

}  // namespace

LineSearch search_line(Problem& problem, const Iterate& from, const Vector& direction, double first,
                       const WolfeConditions& conditions, Iterate& to) {
  return Search(problem, from, direction, conditions, to).run(first);
}

}  // namespace thalweg::minimize
