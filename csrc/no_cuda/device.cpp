// The CUDA back end of a build without CUDA: says what is missing. It looks at the files that the
// NVIDIA driver publishes, and loads nothing.
#include "core/device.h"

#include <fstream>
#include <string>

#include "core/error.h"

namespace thalweg {
namespace {

// The version of the loaded kernel driver, or empty.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string word;
  while (file >> word) {
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 ..."
    const bool digits_and_dots = word.find_first_not_of("0123456789.") == std::string::npos;
    if (digits_and_dots && word.find('.') != std::string::npos) return word;
  }
  return {};
}

std::string driver_text() {
  const std::string version = driver_version();
  return version.empty() ? "no NVIDIA driver was found"
                         : concat("NVIDIA driver ", version, " was found");
}

}  // namespace

bool cuda_available() noexcept { return false; }

void require_cuda() {
  throw DeviceError(
      concat("[device] expected a CUDA back end for device 'cuda', got a build of thalweg "
             "without one (",
             driver_text(),
             "); use device='cpu', or install a build that was compiled with "
             "THALWEG_CUDA=ON"));
}

std::string why_not_cuda() {
  return concat("this build of thalweg has no CUDA back end (", driver_text(), ")");
}

std::string cuda_report() {
  const std::string version = driver_version();
  return concat("CUDA back end: not part of this build\nNVIDIA driver: ",
                version.empty() ? std::string("not found") : version, "\n");
}

std::string check_cuda() { return why_not_cuda(); }

}  // namespace thalweg
