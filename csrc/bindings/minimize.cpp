// Minimization of Python functions. python/thalweg/_minimize.py gives x its shape and type and
// checks what functions return: here vectors are flat float64 arrays.
#include "minimize/minimize.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/flat_arrays.h"
#include "bindings/python_call.h"
#include "network/description.h"
#include "training/schedule.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;
using minimize::Vector;
Vector vector_of(const FlatArray& array) { return {array.data(), array.data() + array.size()}; }

// A function made of Python callables; None for what it lacks. Called without the GIL.
class PythonFunction final : public minimize::Function {
 public:
  struct Parts {
    py::object value_and_gradient, value, hessian_product, gauss_newton_product, path_scales;
  };

  PythonFunction(PythonCall& call, const Interrupt& interrupt, const Parts& parts, std::int64_t n,
                 double noise)
      : call_(call), interrupt_(interrupt), parts_(parts), n_(n), noise_(noise) {}

  std::int64_t dimension() const override { return n_; }

  double value_and_gradient(const double* x, double* gradient) override {
    return call_.with_gil([&] {
      const py::tuple result = parts_.value_and_gradient(flat_array(x, n_));
      read_flat(result[1], n_, gradient);
      return result[0].cast<double>();
    });
  }

  double value(const double* x) override {
    if (parts_.value.is_none()) return Function::value(x);
    return call_.with_gil([&] { return parts_.value(flat_array(x, n_)).template cast<double>(); });
  }

  bool has_hessian() const override { return !parts_.hessian_product.is_none(); }
  void hessian_product(const double* x, const double* v, double* out) override {
    call_.with_gil(
        [&] { read_flat(parts_.hessian_product(flat_array(x, n_), flat_array(v, n_)), n_, out); });
  }

  bool has_gauss_newton() const override { return !parts_.gauss_newton_product.is_none(); }
  void gauss_newton_product(const double* x, const double* v, double* out) override {
    call_.with_gil([&] {
      read_flat(parts_.gauss_newton_product(flat_array(x, n_), flat_array(v, n_)), n_, out);
    });
  }

  bool has_path_scales() const override { return !parts_.path_scales.is_none(); }
  void path_scales(const double* x, double* kappa) override {
    call_.with_gil([&] { read_flat(parts_.path_scales(flat_array(x, n_)), n_, kappa); });
  }

  double relative_noise() const override { return noise_; }
  bool interrupted() override { return interrupt_ && interrupt_(); }

 private:
  PythonCall& call_;
  const Interrupt& interrupt_;
  const Parts& parts_;
  std::int64_t n_;
  double noise_;
};

py::dict result_of(minimize::Result& result) {
  py::dict out;
  out["x"] = flat_array(result.x);
  out["fun"] = result.f;
  out["grad"] = flat_array(result.g);
  out["status"] = minimize::status_name(result.status);
  out["message"] = result.message;
  out["nit"] = result.iterations;
  out["nfev"] = result.counts.values;
  out["njev"] = result.counts.gradients;
  out["nhev"] = result.counts.products;
  out["values"] = flat_array(result.values);
  out["gradient_norms"] = flat_array(result.gradient_norms);
  out["step_sizes"] = flat_array(result.step_sizes);
  py::dict fallbacks;
  for (const auto& [name, count] : result.fallbacks) fallbacks[py::str(name)] = count;
  out["fallbacks"] = fallbacks;
  return out;
}

py::dict minimize_function(const std::string& method, const FlatArray& x0,
                           const py::object& value_and_gradient, const py::object& value,
                           const py::object& hvp, const py::object& ggnvp,
                           const py::object& path_scales, double noise, std::int64_t max_iterations,
                           std::int64_t max_evaluations, double gtol, double ftol,
                           const py::object& callback) {
  const MethodDescription description = parse_method(method);
  const PythonFunction::Parts parts{value_and_gradient, value, hvp, ggnvp, path_scales};
  Vector x = vector_of(x0);
  minimize::Result result;
  PythonCall call;
  call.run([&](const Interrupt& interrupt) {
    PythonFunction function(call, interrupt, parts, minimize::length(x), noise);
    minimize::Options options;
    options.max_iterations = max_iterations;
    options.max_evaluations = max_evaluations;
    options.gradient_tolerance = gtol;
    options.value_tolerance = ftol;
    options.parameters = [&](std::int64_t k, double* values) {
      for (std::size_t i = 0; i < description.values.size(); ++i)
        values[i] = evaluate(description.values[i], k, 0.0);
    };
    if (!callback.is_none()) {
      options.callback = [&](const minimize::Progress& progress) {
        return call.with_gil([&] {
          return callback(progress.iteration, flat_array(progress.x), progress.f,
                          progress.gradient_norm)
              .template cast<bool>();
        });
      };
    }
    result = minimize::minimize(function, description.method, std::move(x), options);
  });
  return result_of(result);
}

}  // namespace

void bind_minimize(py::module_& module) {
  module.def(
      "minimize", &minimize_function, py::arg("method"), py::arg("x0"),
      py::arg("value_and_gradient"), py::arg("value"), py::arg("hvp"), py::arg("ggnvp"),
      py::arg("path_scales"), py::arg("noise"), py::arg("max_iterations"),
      py::arg("max_evaluations"), py::arg("gtol"), py::arg("ftol"), py::arg("callback"),
      "Minimizes a function of a flat float64 vector; a dict with the fields of the result.");
}

}  // namespace thalweg::bindings
