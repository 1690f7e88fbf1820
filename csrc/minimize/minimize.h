// A whole minimization: steps of one method until the gradient is small or something ends it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/export.h"
#include "minimize/method.h"

namespace thalweg::minimize {

enum class Status : int {
  kConverged = 0,    // max |g| <= gradient_tolerance
  kSmallChange = 1,  // f changed by value_tolerance max(1, |f|) at most
  kMaxIterations = 2,
  kMaxEvaluations = 3,
  kStopped = 4,     // by the callback
  kNoDecrease = 5,  // no step that the method knows decreases f
  kNonFinite = 6,   // a step led to a non-finite value or gradient
};
TW_INTERNAL_API const char* status_name(Status status);

struct Progress {
  std::int64_t iteration;
  const Vector& x;
  double f;
  double gradient_norm;
};

struct Options {
  std::int64_t max_iterations = 1000;
  std::int64_t max_evaluations = 0;  // 0: no limit
  double gradient_tolerance = 1e-6;
  double value_tolerance = -1.0;  // < 0: not a criterion
  // Parameters of the step with k steps done, in table order.
  std::function<void(std::int64_t k, double* values)> parameters;
  // After every iteration; true stops.
  std::function<bool(const Progress&)> callback;
};

struct Result {
  Vector x;
  double f = 0.0;
  Vector g;
  Status status = Status::kMaxIterations;
  std::string message;
  std::int64_t iterations = 0;
  Counts counts;
  // Of the start and of every iterate (at the point of the gradient, for look-ahead methods); step
  // sizes of every iteration.
  Vector values, gradient_norms, step_sizes;
  std::vector<std::pair<std::string, std::int64_t>> fallbacks;
};

// NonFiniteError when the function is not finite at x; what it throws passes through.
TW_INTERNAL_API Result minimize(Function& function, int method, Vector x, const Options& options);

}  // namespace thalweg::minimize
