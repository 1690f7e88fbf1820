// The list of methods.
#include <string>

#include "core/error.h"
#include "math/optimizers.h"
#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

std::vector<MethodInfo> all_methods() {
  std::vector<MethodInfo> list = {
      steepest_descent_method(),
      coordinate_descent_method(),
      nonlinear_cg_method(),
      linear_cg_method(),
      bfgs_method(),
      lbfgs_method(),
      newton_method(),
      damped_newton_method(),
      saddle_free_newton_method(),
      path_sgd_method(),
  };
  for (int id = 0; id < kOptimizerCount; ++id) list.push_back(elementwise_method(id));
  return list;
}

}  // namespace

const std::vector<MethodInfo>& methods() {
  static const std::vector<MethodInfo> list = all_methods();
  return list;
}

int method_id(std::string_view name) {
  for (std::size_t i = 0; i < methods().size(); ++i) {
    if (methods()[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

int parameter_index(const MethodInfo& method, std::string_view name) {
  for (std::size_t i = 0; i < method.parameters.size(); ++i) {
    if (method.parameters[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

void check_method(int id, const double* values, const Function& function) {
  const MethodInfo& info = methods().at(static_cast<std::size_t>(id));
  const std::int64_t n = function.dimension();
  expect<ValueError>(n > 0, "[", info.name, "] expected at least one variable, got none");
  if (info.needs_curvature) {
    const int row = parameter_index(info, "curvature");
    const bool gauss_newton = values[row] != 0.0;
    expect<ValueError>(gauss_newton ? function.has_gauss_newton() : function.has_hessian(), "[",
                       info.name, "] expected a function with ",
                       gauss_newton ? "Gauss-Newton" : "Hessian-vector", " products, got none");
  }
  expect<ValueError>(!info.needs_path_scales || function.has_path_scales(), "[", info.name,
                     "] expected the loss of a network without batch norm, whose weights lie on "
                     "paths, got another function");
  expect<ValueError>(info.largest_dimension == 0 || n <= info.largest_dimension, "[", info.name,
                     "] expected at most ", info.largest_dimension,
                     " variables, since it keeps a dense matrix, got ", n, "; use lbfgs");
  const int c1 = parameter_index(info, "c1");
  if (c1 >= 0) {
    const double c2 = values[parameter_index(info, "c2")];
    expect<ValueError>(values[c1] < c2, "[", info.name, "] expected c1 < c2, got c1=", values[c1],
                       ", c2=", c2);
  }
}

}  // namespace thalweg::minimize
