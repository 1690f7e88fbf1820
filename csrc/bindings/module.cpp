// The Python module thalweg._core: everything native that the package thalweg stands on.
//
// Threads: every call that computes releases the GIL; calls that write one model exclude each other
// and all readers of that model (model_lock.h). The module does not declare itself free of the GIL:
// a free-threaded interpreter turns the GIL on when it imports thalweg, until nanobind's static
// state and the exception translation are proven without it.
#include "bindings/arrays.h"
#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  using namespace thalweg::bindings;
  initialize_arrays(module);
  module.doc() =
      "Native part of thalweg. Private: use the package thalweg.\n\n"
      "Calls that compute release the GIL. On a free-threaded Python, importing this module turns "
      "the GIL on.";
  bind_errors(module);
  bind_information(module);
  bind_tables(module);
  bind_descriptions(module);
  bind_device_array(module);
  bind_model(module);
  bind_objective(module);
  bind_population(module);
  bind_minimize(module);
  bind_curvature(module);
  bind_ops(module);
  bind_testing(module);
  bind_linear_algebra(module);
}
