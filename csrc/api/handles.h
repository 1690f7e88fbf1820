// What the opaque handles of the C interface point to.
#pragma once

#include <memory>
#include <string>

#include "training/model.h"

struct tw_model {
  std::unique_ptr<thalweg::Model> model;
  std::string device;
  thalweg::CustomLoss custom_loss;
};

struct tw_fit_result {
  thalweg::FitResult result;
};
