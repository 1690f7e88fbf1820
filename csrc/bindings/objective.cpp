// Class _core.Objective: a model's loss on fixed data. Arguments have been given their public
// meaning and defaults by python/thalweg/objective.py, which also sees that calls do not overlap.
#include "training/objective.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/bound_model.h"
#include "bindings/bound_objective.h"
#include "bindings/data_arguments.h"
#include "bindings/numpy_arrays.h"
#include "bindings/python_call.h"
#include "bindings/python_loss.h"
#include "network/path.h"

namespace thalweg::bindings {
namespace {

using Doubles = std::vector<double>;
using Vector = py::array_t<double, py::array::c_style | py::array::forcecast>;

// The model's present parameters as doubles.
Doubles parameters_of(const Model& model) {
  Doubles values(static_cast<std::size_t>(model.num_parameters()));
  with_real_type(model.description().dtype, [&](auto zero) {
    std::vector<decltype(zero)> flat(values.size());
    model.get_parameters(flat.data());
    std::copy(flat.begin(), flat.end(), values.begin());
    return 0;
  });
  return values;
}

// An array of that type; what overflows becomes infinite.
py::array to_array(DType dtype, const std::vector<std::int64_t>& shape, const Doubles& values) {
  py::array out = new_array(dtype, shape);
  with_real_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    std::transform(values.begin(), values.end(), static_cast<T*>(out.mutable_data()),
                   [](double x) { return static_cast<T>(x); });
    return 0;
  });
  return out;
}

class PyObjective {
 public:
  PyObjective(py::object model, const py::object& x, const py::object& y, const py::object& weights,
              bool batch_statistics, bool dropout, std::int64_t chunk_rows, py::object loss,
              py::object targets)
      : model_(std::move(model)),
        data_("Objective", bound_model(model_).model.exchange(), x, y, weights),
        loss_(std::move(loss)),
        targets_(std::move(targets)) {
    const BoundModel bound = bound_model(model_);
    dtype_ = bound.model.description().dtype;
    ObjectiveOptions options;
    options.statistics = batch_statistics ? Statistics::kBatch : Statistics::kFrozen;
    options.dropout = dropout;
    options.chunk_rows = chunk_rows;
    if (!loss_.is_none()) {
      options.custom_loss = [this](const void* outputs, const std::int64_t* row_index,
                                   std::int64_t rows, void* gradient) {
        return (*current_loss_)(dtype_, objective_->out_features(), outputs, row_index, rows,
                                gradient);
      };
    }
    const Data data = data_.data();
    PythonCall().run([&](const Interrupt& interrupt) {
      const ModelLock::Read scope(bound.lock, interrupt);
      objective_ = Objective::create(bound.model, data, options, interrupt);
    });
  }

  Objective& objective() { return *objective_; }
  std::int64_t rows() const { return objective_->rows(); }

  double value(const std::optional<Vector>& theta) {
    double value = 0.0;
    call(theta, [&](const double* at) { value = objective_->value(at); });
    return value;
  }

  py::tuple value_and_gradient(const std::optional<Vector>& theta) {
    Doubles gradient = parameter_vector();
    double value = 0.0;
    call(theta,
         [&](const double* at) { value = objective_->value_and_gradient(at, gradient.data()); });
    return py::make_tuple(value, to_array(dtype_, {dimension()}, gradient));
  }

  // kind: "hvp", "ggnvp"
  py::array product(const std::string& kind, const Vector& v, const std::optional<Vector>& theta) {
    Doubles out = parameter_vector();
    call(theta, [&](const double* at) {
      if (kind == "hvp")
        objective_->hessian_product(at, v.data(), out.data());
      else
        objective_->gauss_newton_product(at, v.data(), out.data());
    });
    return to_array(dtype_, {dimension()}, out);
  }

  py::array hessian(const std::optional<Vector>& theta) {
    Doubles out;
    call(theta, [&](const double* at) { objective_->hessian(at, &out); });
    return to_array(dtype_, {dimension(), dimension()}, out);
  }

  py::array jacobian_product(const Vector& v, const std::optional<Vector>& theta) {
    const std::int64_t out_features = objective_->out_features();
    Doubles out(static_cast<std::size_t>(rows() * out_features));
    call(theta, [&](const double* at) { objective_->jacobian_product(at, v.data(), out.data()); });
    return to_array(dtype_, {rows(), out_features}, out);
  }

  py::array jacobian_transposed_product(const Vector& u, const std::optional<Vector>& theta) {
    Doubles out = parameter_vector();
    call(theta, [&](const double* at) {
      objective_->jacobian_transposed_product(at, u.data(), out.data());
    });
    return to_array(dtype_, {dimension()}, out);
  }

  py::array example_gradients(std::int64_t first, std::int64_t count,
                              const std::optional<Vector>& theta) {
    py::array out = new_array(dtype_, {count, dimension()});
    void* data = out.mutable_data();
    call(theta, [&](const double* at) { objective_->example_gradients(at, first, count, data); });
    return out;
  }

  py::array example_gradient_norms(const std::optional<Vector>& theta) {
    Doubles out(static_cast<std::size_t>(rows()));
    call(theta, [&](const double* at) { objective_->example_gradient_norms(at, out.data()); });
    return to_array(dtype_, {rows()}, out);
  }

 private:
  std::int64_t dimension() const { return objective_->dimension(); }
  Doubles parameter_vector() const { return Doubles(static_cast<std::size_t>(dimension())); }

  // What a call lends to the objective.
  class Scope {
   public:
    Scope(PyObjective& owner, const PythonLoss& loss, const Interrupt& interrupt) : owner_(owner) {
      owner_.objective_->set_interrupt(interrupt);
      owner_.current_loss_ = &loss;
    }
    ~Scope() {
      owner_.objective_->set_interrupt({});
      owner_.current_loss_ = nullptr;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PyObjective& owner_;
  };

  // work(theta), with the model's present parameters for None, and its running statistics.
  template <class Work>
  void call(const std::optional<Vector>& theta, Work&& work) {
    const BoundModel bound = bound_model(model_);
    PythonCall python;
    const PythonLoss loss(python, loss_, targets_);
    const double* given = theta ? theta->data() : nullptr;
    python.run([&](const Interrupt& interrupt) {
      Doubles present;
      {
        const ModelLock::Read scope(bound.lock, interrupt);
        if (!given) present = parameters_of(bound.model);
        objective_->take_state(bound.model);
      }
      const Scope scope(*this, loss, interrupt);
      work(given ? given : present.data());
    });
  }

  py::object model_;  // kept alive
  DataArguments data_;
  py::object loss_;
  py::object targets_;
  DType dtype_ = DType::kFloat32;
  std::unique_ptr<Objective> objective_;
  const PythonLoss* current_loss_ = nullptr;  // of the call that runs
};

// Without data: of the model's parameters, or of others.
Doubles parameters_for_paths(const BoundModel& bound, const std::optional<Vector>& theta,
                             const Interrupt& interrupt) {
  if (theta) return {theta->data(), theta->data() + theta->size()};
  const ModelLock::Read scope(bound.lock, interrupt);
  return parameters_of(bound.model);
}

double path_norm_of(const py::object& model, const std::optional<Vector>& theta, double p,
                    bool biases) {
  const BoundModel bound = bound_model(model);
  double norm = 0.0;
  PythonCall().run([&](const Interrupt& interrupt) {
    const Doubles parameters = parameters_for_paths(bound, theta, interrupt);
    norm = path_norm(bound.model.description(), parameters.data(), p, biases);
  });
  return norm;
}

py::array path_scales_of(const py::object& model, const std::optional<Vector>& theta, double p) {
  const BoundModel bound = bound_model(model);
  Doubles scales(static_cast<std::size_t>(bound.model.num_parameters()));
  PythonCall().run([&](const Interrupt& interrupt) {
    const Doubles parameters = parameters_for_paths(bound, theta, interrupt);
    path_scales(bound.model.description(), parameters.data(), p, scales.data());
  });
  return to_array(bound.model.description().dtype, {bound.model.num_parameters()}, scales);
}

}  // namespace

Objective& bound_objective(py::handle object) { return object.cast<PyObjective&>().objective(); }

void bind_objective(py::module_& module) {
  py::class_<PyObjective>(module, "Objective",
                          "A model's loss on fixed data. Private: use thalweg.Objective.")
      .def(py::init<py::object, const py::object&, const py::object&, const py::object&, bool, bool,
                    std::int64_t, py::object, py::object>(),
           py::kw_only(), py::arg("model"), py::arg("x"), py::arg("y"), py::arg("weights"),
           py::arg("batch_statistics"), py::arg("dropout"), py::arg("chunk_rows"), py::arg("loss"),
           py::arg("targets"))
      .def_property_readonly("rows", &PyObjective::rows)
      .def("value", &PyObjective::value, py::arg("theta"))
      .def("value_and_gradient", &PyObjective::value_and_gradient, py::arg("theta"))
      .def("product", &PyObjective::product, py::arg("kind"), py::arg("v"), py::arg("theta"))
      .def("hessian", &PyObjective::hessian, py::arg("theta"))
      .def("jacobian_product", &PyObjective::jacobian_product, py::arg("v"), py::arg("theta"))
      .def("jacobian_transposed_product", &PyObjective::jacobian_transposed_product, py::arg("u"),
           py::arg("theta"))
      .def("example_gradients", &PyObjective::example_gradients, py::arg("first"), py::arg("count"),
           py::arg("theta"))
      .def("example_gradient_norms", &PyObjective::example_gradient_norms, py::arg("theta"));
  module.def("path_norm", &path_norm_of, py::arg("model"), py::arg("theta"), py::arg("p"),
             py::arg("biases"));
  module.def("path_scales", &path_scales_of, py::arg("model"), py::arg("theta"), py::arg("p"));
}

}  // namespace thalweg::bindings
