// Owns what every elementwise loss declares about itself.
#pragma once

#include "math/host_device.h"

namespace thalweg {

// Admissible targets of a loss: any finite number, a number in [0, 1], or exactly -1 or +1.
enum class TargetKind : int { real, unit_interval, sign };

}  // namespace thalweg
