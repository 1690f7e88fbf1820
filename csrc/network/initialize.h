// Initial parameter values, drawn on the CPU in double whatever the device and element type.
#pragma once

#include <cstdint>

#include "network/plan.h"

namespace thalweg {

// Fills the canonical [out, in] or [width] values of tensor `index`: a pure function of the plan,
// the index and the seed.
void initialize(const Plan& plan, int index, std::uint64_t seed, double* values);

}  // namespace thalweg
