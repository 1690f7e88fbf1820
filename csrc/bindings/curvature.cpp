// Krylov methods on a symmetric operator that Python gives by its products.
// python/thalweg/landscape/curvature.py checks arguments and what the operator returns.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/python_call.h"
#include "minimize/lanczos.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;
using minimize::Vector;
using Flat = py::array_t<double, py::array::c_style>;

Flat flat(const Vector& values) {
  Flat array(minimize::length(values));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

// work(operator) without the GIL; the operator calls `product`, a function of a float64 vector.
template <class Work>
void with_operator(const py::object& product, std::int64_t n, Work&& work) {
  PythonCall call;
  call.run([&](const Interrupt& interrupt) {
    work([&](const double* v, double* out) {
      if (interrupt && interrupt()) throw Interrupted("[eigenpairs] interrupted");
      call.with_gil([&] {
        Flat vector(n);
        std::copy_n(v, n, vector.mutable_data());
        const auto image = product(vector).template cast<Flat>();
        expect<ValueError>(image.size() == n, "[eigenpairs] expected ", n, " elements, got ",
                           image.size());
        std::copy_n(image.data(), n, out);
      });
    });
  });
}

py::dict eigenpairs(const py::object& product, std::int64_t n, std::int64_t top,
                    std::int64_t bottom, std::int64_t max_steps, double tolerance,
                    std::uint64_t seed, bool power) {
  const minimize::EigenOptions options{top, bottom, max_steps, tolerance, seed};
  minimize::Eigenpairs pairs;
  with_operator(product, n, [&](const minimize::Operator& apply) {
    pairs = power ? minimize::power_iteration(apply, n, options)
                  : minimize::lanczos_eigenpairs(apply, n, options);
  });
  py::dict result;
  result["values"] = flat(pairs.values);
  result["vectors"] = flat(pairs.vectors);
  result["residuals"] = flat(pairs.residuals);
  result["converged"] = pairs.converged;
  result["products"] = pairs.products;
  return result;
}

// Nodes and weights of every probe, one after another.
py::list spectral_quadrature(const py::object& product, std::int64_t n, std::int64_t steps,
                             std::int64_t probes, std::uint64_t seed) {
  std::vector<minimize::Quadrature> found;
  with_operator(product, n, [&](const minimize::Operator& apply) {
    for (std::int64_t i = 0; i < probes; ++i) {
      const Vector start = minimize::random_signs(n, seed, static_cast<std::uint64_t>(i));
      found.push_back(minimize::lanczos_quadrature(apply, start, steps));
    }
  });
  py::list result;
  for (const minimize::Quadrature& probe : found)
    result.append(py::make_tuple(flat(probe.nodes), flat(probe.weights)));
  return result;
}

}  // namespace

void bind_curvature(py::module_& module) {
  module.def("eigenpairs", &eigenpairs, py::arg("product"), py::arg("n"), py::arg("top"),
             py::arg("bottom"), py::arg("max_steps"), py::arg("tolerance"), py::arg("seed"),
             py::arg("power"), "Extreme eigenpairs of a symmetric operator.");
  module.def("spectral_quadrature", &spectral_quadrature, py::arg("product"), py::arg("n"),
             py::arg("steps"), py::arg("probes"), py::arg("seed"),
             "Stochastic Lanczos quadrature of a symmetric operator.");
}

}  // namespace thalweg::bindings
