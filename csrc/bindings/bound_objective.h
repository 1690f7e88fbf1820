// What an object of class _core.Objective holds, for methods that minimize it.
#pragma once

#include <pybind11/pybind11.h>

#include "training/objective.h"

namespace thalweg::bindings {

// Valid while the object lives. One call at a time: whoever uses it keeps others away.
Objective& bound_objective(pybind11::handle object);  // objective.cpp

}  // namespace thalweg::bindings
