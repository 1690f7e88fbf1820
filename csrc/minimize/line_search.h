// A line search for the strong Wolfe conditions (Wolfe 1969; Nocedal, Wright, Numerical
// Optimization, section 3.5):
//   f(x + a d) <= f(x) + c1 a g'd   and   |g(x + a d)'d| <= c2 |g'd|,  0 < c1 < c2 < 1.
#pragma once

#include <cstdint>

#include "core/export.h"
#include "minimize/problem.h"

namespace thalweg::minimize {

struct WolfeConditions {
  double c1 = 1e-4;
  double c2 = 0.9;
  std::int64_t max_evaluations = 40;
};

enum class SearchEnd {
  kStrongWolfe,
  // The decrease is below the noise of f: the first condition holds up to it, as in the approximate
  // Wolfe conditions of Hager and Zhang 2005.
  kApproximateWolfe,
  // The first condition alone: f is unbounded below along d, or its gradient jumps.
  kSufficientDecrease,
  // No step decreases f; `to` is not meaningful.
  kFailed,
};

struct LineSearch {
  SearchEnd end = SearchEnd::kFailed;
  double step = 0.0;
};

// From `from`, evaluated, along a direction of descent, with `first` as first step; `to` becomes
// the evaluated accepted point. Steps at which f is not finite count as too long.
TW_INTERNAL_API LineSearch search_line(Problem& problem, const Iterate& from,
                                       const Vector& direction, double first,
                                       const WolfeConditions& conditions, Iterate& to);

}  // namespace thalweg::minimize
