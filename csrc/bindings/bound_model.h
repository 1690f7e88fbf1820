// What an object of class _core.Model holds, for calls on several of them.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/model_lock.h"
#include "training/model.h"

namespace thalweg::bindings {

struct BoundModel {
  Model& model;
  ModelLock& lock;
};

// Valid while the object lives.
BoundModel bound_model(pybind11::handle object);  // model.cpp

}  // namespace thalweg::bindings
