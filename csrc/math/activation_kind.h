// Owns what every activation declares about itself, and how one is named at run time.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Which tensor derivative() and second_derivative() of an activation take: y = f(z) or z.
enum class ActivationNeeds : int { output, input };

// phi by its position in the list of activations, the identity first; `parameter` is the slope or
// alpha.
struct Activation {
  int id = 0;
  double parameter = 0.0;
};

}  // namespace thalweg
