#include "ops/device_resolution.h"

#include "core/device.h"
#include "core/error.h"

namespace thalweg {

std::string resolve_device(const std::string& name) {
  if (name == "cpu") return name;
  if (name == "auto") return why_not_cuda().empty() ? "cuda" : "cpu";
  expect<ValueError>(name == "cuda", "[device] expected 'auto', 'cpu' or 'cuda', got '", name, "'");
  require_cuda();
  return name;
}

}  // namespace thalweg
