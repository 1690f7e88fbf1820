// A minimization method: one iteration at a time, on whatever function the caller has for it. A
// whole minimization is minimize/minimize.h; training calls step() once per update, with the
// function of that update's minibatch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/export.h"
#include "minimize/problem.h"

namespace thalweg::minimize {

enum class ParameterKind { kReal, kInteger, kFlag, kChoice };

// One row of a method's table of parameters; the range is inclusive. A flag is 0 or 1, a choice the
// position in `choices`. `lr` and `momentum` may follow a schedule.
struct MethodParameter {
  std::string_view name;
  ParameterKind kind;
  double default_value;
  double lowest;
  double highest;
  std::vector<std::string_view> choices;
};

// The values of a step's parameters in table order, and those of the step after it.
struct StepValues {
  std::int64_t t = 1;  // number of the step, from 1
  const double* now = nullptr;
  const double* next = nullptr;
};

enum class StepEnd {
  kMoved,
  kNoDecrease,  // no step that the method knows decreases f; the iterate is unchanged
  kNonFinite,   // the step led to a non-finite value or gradient; the iterate is unchanged
};

struct Step {
  StepEnd end = StepEnd::kMoved;
  double size = 0.0;        // of the step along its direction
  std::string reason = {};  // of kNoDecrease, for people
};

// What a method carries from step to step, for checkpoints.
struct MethodState {
  std::vector<std::pair<std::string, Vector>> vectors;
  std::vector<std::pair<std::string, double>> numbers;
};

class TW_INTERNAL_API Method {
 public:
  virtual ~Method() = default;

  // One iteration from `at`, which is evaluated. Afterwards at.x is the next iterate, evaluated or
  // not. Throws what the function throws, and NonFiniteError for second derivatives; the state of
  // the method is then that before the step.
  virtual Step step(Problem& problem, Iterate& at, const StepValues& values) = 0;

  // The minimizer found, where it differs from the point of the gradient (look-ahead methods).
  virtual void solution(const Vector& x, const StepValues& values, Vector& theta) const {
    (void)values;
    theta = x;
  }

  // State that a later instance continues from, bit for bit.
  virtual MethodState state() const { return {}; }
  // ValueError when it is not a state of this method and dimension.
  virtual void set_state(const MethodState& state) { (void)state; }

  const Fallbacks& fallbacks() const { return fallbacks_; }

 protected:
  Fallbacks fallbacks_;
};

struct MethodInfo {
  std::string_view name;
  std::vector<MethodParameter> parameters;
  std::function<std::unique_ptr<Method>(std::int64_t n)> make;
  bool needs_curvature = false;  // Hessian or Gauss-Newton products, as `curvature` says
  bool needs_path_scales = false;
  bool elementwise = false;            // an optimizer of math/optimizers.inc
  std::int64_t largest_dimension = 0;  // of a method that keeps a dense matrix; 0: any
};

// The list of methods: first those of minimize/, then the optimizers of math/optimizers.inc.
TW_INTERNAL_API const std::vector<MethodInfo>& methods();
// The position of `name`, or -1.
TW_INTERNAL_API int method_id(std::string_view name);
// Position of a parameter, or -1.
TW_INTERNAL_API int parameter_index(const MethodInfo& method, std::string_view name);

// ValueError when the function lacks what the method needs or is too large for it, or when the
// values, in table order, do not fit together.
TW_INTERNAL_API void check_method(int id, const double* values, const Function& function);

}  // namespace thalweg::minimize
