#include "ops/device_resolution.h"

#include <cstdlib>

#include "core/device.h"
#include "core/error.h"

namespace thalweg {

std::string resolve_device(const std::string& name) {
  if (name == "cpu") return name;
  if (name == "auto") {
    const char* chosen = std::getenv("THALWEG_DEVICE");
    if (chosen == nullptr || *chosen == '\0') return why_not_cuda().empty() ? "cuda" : "cpu";
    const std::string device = chosen;
    expect<ValueError>(device == "cpu" || device == "cuda",
                       "[device] expected THALWEG_DEVICE in the environment to be 'cpu' or 'cuda', "
                       "got '",
                       device, "'");
    return resolve_device(device);
  }
  expect<ValueError>(name == "cuda", "[device] expected 'auto', 'cpu' or 'cuda', got '", name, "'");
  require_cuda();
  return name;
}

}  // namespace thalweg
