// The loop around a method.
#include "minimize/minimize.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"

namespace thalweg::minimize {
namespace {

class Loop {
 public:
  Loop(Function& function, int id, Vector x, const Options& options)
      : problem_(function),
        options_(options),
        now_(methods()[static_cast<std::size_t>(id)].parameters.size()),
        next_(now_.size()) {
    read_parameters(0);
    check_method(id, now_.data(), function);
    method_ = methods()[static_cast<std::size_t>(id)].make(function.dimension());
    at_.x = std::move(x);
  }

  Result run() {
    problem_.evaluate(at_);
    if (!finite(at_)) {
      throw NonFiniteError(concat("[minimize] expected a finite value and gradient at x0, got ",
                                  std::isfinite(at_.f) ? "a non-finite gradient" : "value ",
                                  std::isfinite(at_.f) ? std::string() : concat(at_.f)),
                           0, {});
    }
    record();
    for (;;) {
      if (ended()) break;
      read_parameters(result_.iterations);
      Iterate before = at_;
      const double f = at_.f;
      const Step step = method_->step(problem_, at_, values());
      if (step.end == StepEnd::kNoDecrease) {
        end(Status::kNoDecrease, step.reason);
        break;
      }
      if (!at_.evaluated) problem_.evaluate(at_);
      if (!finite(at_)) {
        at_ = std::move(before);
        end(Status::kNonFinite,
            concat("iteration ", result_.iterations + 1, " led to a non-finite value or gradient"));
        break;
      }
      ++result_.iterations;
      result_.step_sizes.push_back(step.size);
      record();
      if (options_.callback &&
          options_.callback({result_.iterations, at_.x, at_.f, result_.gradient_norms.back()})) {
        end(Status::kStopped, "the callback asked to stop");
        break;
      }
      if (std::abs(at_.f - f) <= options_.value_tolerance * std::max(1.0, std::abs(at_.f))) {
        end(Status::kSmallChange, "the value hardly changes");
        break;
      }
    }
    return finish();
  }

 private:
  void read_parameters(std::int64_t done) {
    options_.parameters(done, now_.data());
    options_.parameters(done + 1, next_.data());
  }

  StepValues values() const { return {result_.iterations + 1, now_.data(), next_.data()}; }

  void end(Status status, std::string message) {
    result_.status = status;
    result_.message = std::move(message);
  }

  void record() {
    result_.values.push_back(at_.f);
    result_.gradient_norms.push_back(norm(at_.g));
  }

  bool ended() {
    if (largest_magnitude(at_.g) <= options_.gradient_tolerance) {
      end(Status::kConverged, "the gradient is small");
    } else if (result_.iterations >= options_.max_iterations) {
      end(Status::kMaxIterations, concat("stopped after ", result_.iterations, " iterations"));
    } else if (options_.max_evaluations > 0 &&
               problem_.counts().values >= options_.max_evaluations) {
      end(Status::kMaxEvaluations,
          concat("stopped after ", problem_.counts().values, " evaluations"));
    } else {
      return false;
    }
    return true;
  }

  Result finish() {
    // After a non-finite step the velocity of a look-ahead method is worthless, before the first it
    // is zero: x is the point of the last gradient then.
    if (result_.status != Status::kNonFinite && result_.iterations > 0) look_back();
    result_.x = std::move(at_.x);
    result_.f = at_.f;
    result_.g = std::move(at_.g);
    result_.counts = problem_.counts();
    result_.fallbacks = method_->fallbacks().counts();
    return std::move(result_);
  }

  // From the point of the gradient to the minimizer that the method means.
  void look_back() {
    read_parameters(result_.iterations - 1);
    Iterate solution;
    method_->solution(at_.x, {result_.iterations, now_.data(), next_.data()}, solution.x);
    if (solution.x == at_.x) return;
    problem_.evaluate(solution);
    at_ = std::move(solution);
  }

  Problem problem_;
  const Options& options_;
  Vector now_, next_;
  std::unique_ptr<Method> method_;
  Iterate at_;
  Result result_;
};

}  // namespace

const char* status_name(Status status) {
  constexpr const char* kNames[] = {"converged",       "small_change", "max_iterations",
                                    "max_evaluations", "stopped",      "no_decrease",
                                    "non_finite"};
  return kNames[static_cast<int>(status)];
}

Result minimize(Function& function, int method, Vector x, const Options& options) {
  expect<ValueError>(length(x) == function.dimension(), "[minimize] expected x0 with ",
                     function.dimension(), " elements, got ", x.size());
  return Loop(function, method, std::move(x), options).run();
}

}  // namespace thalweg::minimize
