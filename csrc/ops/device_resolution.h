// From the device that a caller names to the device that runs.
#pragma once

#include <string>

#include "core/export.h"

namespace thalweg {

// "cpu" or "cuda". "auto" is what THALWEG_DEVICE in the environment says; without it, the CPU when
// why_not_cuda() has a reason. DeviceError when "cuda"
// cannot run here, ValueError for any other name.
TW_INTERNAL_API std::string resolve_device(const std::string& name);

}  // namespace thalweg
