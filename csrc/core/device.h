// What the CUDA back end answers about itself. Declared once, defined by the folder that the build
// links: cuda/ or no_cuda/.
#pragma once

#include <string>

#include "core/export.h"

namespace thalweg {

// Whether a model can run on device "cuda" in this process. Never throws, never initializes a GPU
// that it does not use.
TW_INTERNAL_API bool cuda_available() noexcept;

// DeviceError, naming what is missing and what to do about it, unless cuda_available().
TW_INTERNAL_API void require_cuda();

// One line: why device "auto" does not choose CUDA; empty when it does. An emulated GPU is
// available, and never chosen.
TW_INTERNAL_API std::string why_not_cuda();

// Lines "name: text" about the back end, the driver and the GPUs, for `thalweg doctor`.
TW_INTERNAL_API std::string cuda_report();

// Runs a kernel on the current GPU: what went wrong, or empty.
TW_INTERNAL_API std::string check_cuda();

}  // namespace thalweg
