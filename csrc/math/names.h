// Owns the comparison of names in the lists of activations, losses and optimizers.
#pragma once

#include "math/host_device.h"

namespace thalweg {
inline namespace TW_ISA {

constexpr bool same_name(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

}  // namespace TW_ISA
}  // namespace thalweg
