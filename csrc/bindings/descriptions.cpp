// Descriptions as JSON text: the canonical form, and the value of a schedule.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/bindings.h"
#include "network/description.h"
#include "training/schedule.h"

namespace thalweg::bindings {
namespace {

std::string canonical_description(const std::string& json) {
  return to_json(parse_description(json));
}

// The engine reads schedules as hyper-parameters only: this one is a learning rate.
double schedule_value(const std::string& json, std::int64_t k, double steps_per_epoch) {
  const Description description = parse_description(
      R"({"in_features": 1, "layers": [{"type": "dense", "units": 1}], "loss": {"type": "squared_error"},)"
      R"( "optimizer": {"type": "sgd", "lr": )" +
      json + "}}");
  return evaluate(description.optimizer.hyper.front(), k, steps_per_epoch);
}

}  // namespace

void bind_descriptions(pybind11::module_& module) {
  namespace py = pybind11;
  module.def("canonical_description", &canonical_description, py::arg("json"),
             "The description with all keys, in fixed order; ValueError names what is wrong.");
  module.def("schedule_value", &schedule_value, py::arg("json"), py::arg("k"),
             py::arg("steps_per_epoch"), "Value of a schedule after k updates.");
}

}  // namespace thalweg::bindings
