// What several methods share: the step along a direction, and the classes behind the list.
#pragma once

#include <memory>

#include "minimize/line_search.h"
#include "minimize/method.h"

namespace thalweg::minimize {

// How far a first-order method goes along its direction.
enum class StepRule {
  kFixed,  // lr
  kExact,  // -g'd / d'Hd: the minimizer along d of a quadratic function
  kWolfe,  // a line search for the strong Wolfe conditions
};

// H d, by the Hessian-vector product or, without one, by g(x + d) - g(x): the same for a quadratic
// function. The gradient is not kept.
void quadratic_product(Problem& problem, const Iterate& at, const Vector& d, Vector& out);

// Moves `at` to x + size d without evaluating.
void move(Iterate& at, double size, const Vector& d);

// Moves `at` to the point that a strong Wolfe search from `first` accepts, evaluated; records a
// weaker end. kNoDecrease leaves `at` as it is.
Step search_step(Problem& problem, Iterate& at, const Vector& d, double first, double c1, double c2,
                 Fallbacks& fallbacks);

// Moves `at` by the exact step of a quadratic. Along a direction without positive curvature, or
// where H d is not finite, kNoDecrease or NonFiniteError.
Step exact_step(Problem& problem, Iterate& at, const Vector& d);

// State of a method by name; ValueError when missing (unless n is 0) or of another length.
const Vector& state_vector(const MethodState& state, const char* name, std::int64_t n);
double state_number(const MethodState& state, const char* name);
// A whole number from 0 to `highest`.
std::int64_t state_count(const MethodState& state, const char* name, std::int64_t highest);

// One per file; a method's table of parameters stands next to the code that reads it.
MethodInfo steepest_descent_method();
MethodInfo coordinate_descent_method();
MethodInfo path_sgd_method();
MethodInfo newton_method();
MethodInfo saddle_free_newton_method();
MethodInfo damped_newton_method();
MethodInfo nonlinear_cg_method();
MethodInfo linear_cg_method();
MethodInfo bfgs_method();
MethodInfo lbfgs_method();
MethodInfo elementwise_method(int optimizer);

// Rows of tables.
inline constexpr double kHuge = 1e300;
inline MethodParameter lr_row(double value) {
  return {"lr", ParameterKind::kReal, value, 0.0, 1e9, {}};
}
inline MethodParameter c1_row() { return {"c1", ParameterKind::kReal, 1e-4, 1e-12, 0.5, {}}; }
inline MethodParameter c2_row(double value) {
  return {"c2", ParameterKind::kReal, value, 1e-12, 1.0 - 0x1p-53, {}};
}
inline MethodParameter curvature_row() {
  return {"curvature", ParameterKind::kChoice, 0.0, 0.0, 1.0, {"hessian", "gauss_newton"}};
}

}  // namespace thalweg::minimize
