// Steps along a direction.
#include "minimize/steps.h"

#include <cmath>
#include <utility>

#include "core/error.h"

namespace thalweg::minimize {

void quadratic_product(Problem& problem, const Iterate& at, const Vector& d, Vector& out) {
  out.resize(d.size());
  if (problem.has(Curvature::kHessian)) {
    problem.curvature(Curvature::kHessian, at.x)(d.data(), out.data());
  } else {
    Iterate trial;
    trial.x = at.x;
    add_scaled(trial.x, 1.0, d);
    problem.evaluate(trial);
    out = std::move(trial.g);
    add_scaled(out, -1.0, at.g);
  }
  if (!all_finite(out)) {
    throw NonFiniteError(
        "[minimize] expected a finite product of Hessian and direction, got NaN or infinity", -1,
        {});
  }
}

void move(Iterate& at, double size, const Vector& d) {
  add_scaled(at.x, size, d);
  at.evaluated = false;
}

Step search_step(Problem& problem, Iterate& at, const Vector& d, double first, double c1, double c2,
                 Fallbacks& fallbacks) {
  if (!(dot(at.g, d) < 0.0))
    return {StepEnd::kNoDecrease, 0.0, "the direction is not one of descent"};
  WolfeConditions conditions;
  conditions.c1 = c1;
  conditions.c2 = c2;
  Iterate to;
  const LineSearch found = search_line(problem, at, d, first, conditions, to);
  switch (found.end) {
    case SearchEnd::kFailed:
      return {StepEnd::kNoDecrease, 0.0, "the line search found no decrease"};
    case SearchEnd::kApproximateWolfe:
      fallbacks.add("approximate_wolfe");
      break;
    case SearchEnd::kSufficientDecrease:
      fallbacks.add("sufficient_decrease");
      break;
    case SearchEnd::kStrongWolfe:
      break;
  }
  at = std::move(to);
  return {StepEnd::kMoved, found.step};
}

Step exact_step(Problem& problem, Iterate& at, const Vector& d) {
  Vector image;
  quadratic_product(problem, at, d, image);
  const double curvature = dot(d, image);
  if (!(curvature > 0.0))
    return {StepEnd::kNoDecrease, 0.0, "the direction has no positive curvature"};
  const double size = -dot(at.g, d) / curvature;
  move(at, size, d);
  return {StepEnd::kMoved, size};
}

const Vector& state_vector(const MethodState& state, const char* name, std::int64_t n) {
  for (const auto& entry : state.vectors) {
    if (entry.first != name) continue;
    expect<ValueError>(length(entry.second) == n, "[minimize] expected ", n,
                       " elements of the state '", name, "', got ", length(entry.second));
    return entry.second;
  }
  static const Vector empty;
  expect<ValueError>(n == 0, "[minimize] expected a state with the vector '", name, "', got none");
  return empty;
}

double state_number(const MethodState& state, const char* name) {
  for (const auto& entry : state.numbers) {
    if (entry.first == name) return entry.second;
  }
  throw ValueError(concat("[minimize] expected a state with the number '", name, "', got none"));
}

std::int64_t state_count(const MethodState& state, const char* name, std::int64_t highest) {
  const double value = state_number(state, name);
  expect<ValueError>(
      value >= 0.0 && value <= static_cast<double>(highest) && value == std::floor(value),
      "[minimize] expected the state '", name, "' as a count up to ", highest, ", got ", value);
  return static_cast<std::int64_t>(value);
}

}  // namespace thalweg::minimize
