// The linear algebra of minimize/ on dense matrices, for the tests: part of submodule _testing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bindings/bindings.h"
#include "bindings/flat_arrays.h"
#include "minimize/lanczos.h"
#include "minimize/symmetric_eigen.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;
using minimize::Operator;
using minimize::Vector;

Operator operator_of(const FlatArray& matrix, std::int64_t n) {
  const double* a = matrix.data();
  return [a, n](const double* v, double* out) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = minimize::dot(a + i * n, v, n);
  };
}

py::array matrix_of(const Vector& values, std::int64_t columns) {
  const std::int64_t rows = columns == 0 ? 0 : minimize::length(values) / columns;
  return flat_array(values).reshape({rows, columns});
}

// Ascending eigenvalues, and eigenvectors as rows.
py::tuple symmetric_eigensystem(const FlatArray& a) {
  const std::int64_t n = a.shape(0);
  const minimize::EigenSystem system = minimize::symmetric_eigensystem(a.data(), n);
  return py::make_tuple(flat_array(system.values), matrix_of(system.vectors, n));
}

py::object cholesky_solve(const FlatArray& a, const FlatArray& b) {
  const std::int64_t n = b.size();
  Vector factor(a.data(), a.data() + a.size());
  if (!minimize::cholesky(factor.data(), n)) return py::none();
  Vector x(b.data(), b.data() + n);
  minimize::cholesky_solve(factor.data(), n, x.data(), x.data());
  return flat_array(x);
}

py::tuple conjugate_gradient(const FlatArray& a, const FlatArray& b, double tolerance,
                             std::int64_t max_iterations) {
  const std::int64_t n = b.size();
  Vector x;
  Vector direction;
  const minimize::CgResult result = minimize::conjugate_gradient(
      operator_of(a, n), Vector(b.data(), b.data() + n), tolerance, max_iterations, x, direction);
  constexpr const char* kEnds[] = {"converged", "negative_curvature", "max_iterations"};
  return py::make_tuple(kEnds[static_cast<int>(result.end)], flat_array(x), flat_array(direction),
                        result.iterations, result.residual);
}

py::tuple krylov_basis(const FlatArray& a, const FlatArray& start, std::int64_t steps) {
  const std::int64_t n = start.size();
  const minimize::KrylovBasis krylov =
      minimize::krylov_basis(operator_of(a, n), Vector(start.data(), start.data() + n), steps);
  return py::make_tuple(matrix_of(krylov.basis, n), flat_array(krylov.diagonal),
                        flat_array(krylov.off_diagonal), krylov.invariant);
}

double vector_sum(const std::string& kind, const FlatArray& a, const FlatArray& b) {
  if (kind == "dot") return minimize::dot(a.data(), b.data(), a.size());
  if (kind == "norm") return minimize::norm(a.data(), a.size());
  return minimize::sum_of_magnitudes(a.data(), a.size());
}

}  // namespace

void bind_linear_algebra(py::module_& parent) {
  py::module_ module = parent.def_submodule("_testing");
  module.def("symmetric_eigensystem", &symmetric_eigensystem, py::arg("a"));
  module.def("cholesky_solve", &cholesky_solve, py::arg("a"), py::arg("b"));
  module.def("conjugate_gradient", &conjugate_gradient, py::arg("a"), py::arg("b"),
             py::arg("tolerance"), py::arg("max_iterations"));
  module.def("krylov_basis", &krylov_basis, py::arg("a"), py::arg("start"), py::arg("steps"));
  module.def("vector_sum", &vector_sum, py::arg("kind"), py::arg("a"), py::arg("b"));
}

}  // namespace thalweg::bindings
