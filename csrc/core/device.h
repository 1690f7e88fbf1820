// What the CUDA back end answers about itself. Declared once, defined by the folder that the build
// links: no_cuda/ here.
#pragma once

#include <string>

#include "core/export.h"

namespace thalweg {

// Whether a model can run on device "cuda" in this process. Never throws, never initializes a GPU
// that it does not use.
TW_INTERNAL_API bool cuda_available() noexcept;

// DeviceError, naming what is missing and what to do about it, unless cuda_available().
TW_INTERNAL_API void require_cuda();

// One line: why device "auto" does not choose CUDA; empty when it does.
TW_INTERNAL_API std::string why_not_cuda();

// Lines of text about the back end, the driver and the GPUs, for `thalweg doctor`.
TW_INTERNAL_API std::string cuda_report();

}  // namespace thalweg
