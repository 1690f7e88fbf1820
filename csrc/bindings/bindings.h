// The parts of the Python module thalweg._core, one function per file.
#pragma once

#include <pybind11/pybind11.h>

namespace thalweg::bindings {

void bind_errors(pybind11::module_& module);          // errors.cpp: exception types and translation
void bind_information(pybind11::module_& module);     // information.cpp: version, build, processor
void bind_tables(pybind11::module_& module);          // tables.cpp: what the lists of math/ hold
void bind_descriptions(pybind11::module_& module);    // descriptions.cpp: JSON text
void bind_device_array(pybind11::module_& module);    // device_array.cpp: class DeviceArray
void bind_model(pybind11::module_& module);           // model.cpp: class Model
void bind_objective(pybind11::module_& module);       // objective.cpp: class Objective, paths
void bind_population(pybind11::module_& module);      // population.cpp: calls on many models
void bind_minimize(pybind11::module_& module);        // minimize.cpp: methods on Python functions
void bind_curvature(pybind11::module_& module);       // curvature.cpp: eigenpairs of operators
void bind_ops(pybind11::module_& module);             // ops.cpp: submodule ops
void bind_testing(pybind11::module_& module);         // testing.cpp: submodule _testing
void bind_linear_algebra(pybind11::module_& module);  // linear_algebra.cpp: of minimize/, for tests

}  // namespace thalweg::bindings
