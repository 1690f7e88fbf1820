// Owns what every activation declares about itself.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Which tensor derivative() and second_derivative() of an activation take: y = f(z) or z.
enum class ActivationNeeds : int { output, input };

}  // namespace thalweg
