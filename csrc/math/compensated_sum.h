// Sums whose rounding errors are summed as well (Neumaier 1974).
#pragma once

#include "math/host_device.h"

namespace thalweg {
inline namespace TW_ISA {

// sum + rest is the sum of all terms to twice the precision.
TW_HD void add_compensated(double& sum, double& rest, double term) {
  const double total = sum + term;
  rest += abs(sum) >= abs(term) ? (sum - total) + term : (term - total) + sum;
  sum = total;
}

}  // namespace TW_ISA
}  // namespace thalweg
