// What the kernels of this build can do on the current device.
#pragma once

namespace thalweg::cuda {

// Runs one warp and looks at its result; throws DeviceError when that fails.
void probe_device();

// The architecture that the kernels which run there were compiled for, 80 for 8.0: instructions of
// a newer one are missing, whatever the device has.
int compiled_architecture(const char* operation);

}  // namespace thalweg::cuda
