// The lists of math/ as Python dictionaries: names, parameters, defaults and ranges. The Python
// descriptions and the tests check themselves against them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "minimize/method.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;

// {keyword: {"default", "lowest", "highest", "kind"}}
py::dict hyper_row(double default_value, double lowest, double highest, const char* kind) {
  py::dict row;
  row["default"] = default_value;
  row["lowest"] = lowest;
  row["highest"] = highest;
  row["kind"] = kind;
  return row;
}

// The optional parameter of an activation or a loss.
template <class S>
py::dict parameters_of(S) {
  py::dict rows;
  if (S::parameter) {
    rows[S::parameter] =
        hyper_row(S::default_parameter, S::lowest_parameter, S::highest_parameter, "real");
  }
  return rows;
}

py::dict activations() {
  py::dict table;
  for (int id = 0; id < kActivationCount; ++id) {
    dispatch_activation(id, [&](auto activation) {
      using S = decltype(activation);
      py::dict entry;
      entry["parameters"] = parameters_of(activation);
      entry["he_family"] = S::he_family;
      entry["backward_needs"] = S::backward_needs == ActivationNeeds::input ? "input" : "output";
      table[S::name] = entry;
    });
  }
  return table;
}

const char* target_name(TargetKind target) {
  switch (target) {
    case TargetKind::unit_interval:
      return "unit_interval";
    case TargetKind::sign:
      return "sign";
    case TargetKind::real:
      break;
  }
  return "real";
}

py::dict losses() {
  py::dict table;
  for (int id = 0; id < kLossCount; ++id) {
    dispatch_loss(id, [&](auto loss) {
      using S = decltype(loss);
      py::dict entry;
      entry["parameters"] = parameters_of(loss);
      entry["target"] = target_name(S::target);
      table[S::name] = entry;
    });
  }
  return table;
}

py::dict optimizers() {
  py::dict table;
  for (int id = 0; id < kOptimizerCount; ++id) {
    py::dict rows;
    for (const HyperParameter& row : optimizer_hyper(id)) {
      rows[row.name] = hyper_row(row.default_value, row.lowest, row.highest,
                                 row.kind == HyperKind::flag ? "flag" : "real");
    }
    py::list slots;
    for (int slot = 0; slot < optimizer_slots(id); ++slot)
      slots.append(optimizer_slot_name(id, slot));
    py::dict entry;
    entry["parameters"] = rows;
    entry["slots"] = slots;
    entry["look_ahead"] = optimizer_looks_ahead(id);
    table[optimizer_name(id)] = entry;
  }
  return table;
}

const char* kind_name(minimize::ParameterKind kind) {
  constexpr const char* kNames[] = {"real", "integer", "flag", "choice"};
  return kNames[static_cast<int>(kind)];
}

py::dict methods() {
  py::dict table;
  for (const minimize::MethodInfo& info : minimize::methods()) {
    py::dict rows;
    for (const minimize::MethodParameter& row : info.parameters) {
      py::dict entry = hyper_row(row.default_value, row.lowest, row.highest, kind_name(row.kind));
      entry["choices"] = row.choices;
      rows[py::str(row.name.data(), row.name.size())] = entry;
    }
    py::dict entry;
    entry["parameters"] = rows;
    entry["elementwise"] = info.elementwise;
    entry["needs_curvature"] = info.needs_curvature;
    entry["needs_path_scales"] = info.needs_path_scales;
    table[py::str(info.name.data(), info.name.size())] = entry;
  }
  return table;
}

}  // namespace

void bind_tables(py::module_& module) {
  module.def("activations", &activations, "Activations by name, in list order.");
  module.def("losses", &losses, "Elementwise losses by name, in list order.");
  module.def("optimizers", &optimizers, "Optimizers by name, in list order.");
  module.def("methods", &methods,
             "Minimization methods by name, in list order; elementwise optimizers come last.");
}

}  // namespace thalweg::bindings
