// Reads the environment.
#include "cuda/emulator/settings.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/available_processors.h"
#include "core/error.h"

namespace thalweg::emulator {
namespace {

// The whole number in an environment variable, or `otherwise` where it is not set.
std::uint64_t number(const char* name, std::uint64_t otherwise, std::uint64_t lowest,
                     std::uint64_t highest) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  std::uint64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, value);
  expect<ValueError>(
      result.ec == std::errc() && result.ptr == end && value >= lowest && value <= highest, "[",
      name, "] expected a whole number from ", lowest, " to ", highest, ", got '", text, "'");
  return value;
}

Settings from_environment() {
  Settings settings;
  settings.seed = number("THALWEG_EMULATOR_SEED", 0, 0, UINT64_MAX);
  const int processors = std::min(available_processors(), 8);
  settings.threads = static_cast<int>(
      number("THALWEG_EMULATOR_THREADS", static_cast<std::uint64_t>(processors), 1, 256));
  settings.arch = static_cast<int>(number("THALWEG_EMULATOR_ARCH", 90, 75, 120));
  settings.code = static_cast<int>(number("THALWEG_EMULATOR_CODE", 120, 75, 120));
  settings.multiprocessors =
      static_cast<int>(number("THALWEG_EMULATOR_MULTIPROCESSORS", 4, 1, 256));
  settings.memory_bytes = number("THALWEG_EMULATOR_MEMORY_MB", 4096, 1, 1 << 20) << 20;
  settings.protect = number("THALWEG_EMULATOR_PROTECT", 0, 0, 1) != 0;
  return settings;
}

}  // namespace

Settings& settings() {
  static Settings settings = from_environment();
  return settings;
}

}  // namespace thalweg::emulator
