// Whether a kernel runs on the current device at all.
#pragma once

namespace thalweg::cuda {

// Runs one warp and looks at its result; throws DeviceError when that fails.
void probe_device();

}  // namespace thalweg::cuda
