// Learning-rate and momentum schedules: functions of k, the number of updates already done.
//
//   constant         value
//   linear           (1 - a) start + a end, a = min(k / tau, 1)
//   robbins_monro    start / (1 + k / k0)^power                            (Robbins, Monro 1951)
//   step             start factor^floor(k / every)
//   cosine           end + (start - end) (1 + cos(pi min(k / steps, 1))) / 2 (Loshchilov, Hutter
//   2017) warmup           then(0) (k + 1) / steps for k < steps, then(k - steps) from there
//   on one_cycle        half cosines peak / initial_divisor -> peak at k = start_fraction steps - 1
//                    -> peak / (initial_divisor final_divisor) at k = steps - 1, constant after
//                                                                          (Smith, Topin 2019)
//   nesterov_convex  k / (k + 3)                                           (Nesterov 1983)
#pragma once

#include <cstdint>

#include "core/export.h"
#include "network/description.h"

namespace thalweg {

// steps_per_epoch resolves schedules given in epochs (<= 0: unknown, then such a schedule is a
// ValueError).
TW_INTERNAL_API double evaluate(const Schedule& schedule, std::int64_t k, double steps_per_epoch);
TW_INTERNAL_API double evaluate(const HyperValue& value, std::int64_t k, double steps_per_epoch);

}  // namespace thalweg
