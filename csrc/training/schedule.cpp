// Evaluation of schedules.
#include "training/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace thalweg {
namespace {

// From `from` to `to` along half a cosine wave; part in [0, 1].
double half_cosine(double from, double to, double part) {
  return to + (from - to) * 0.5 * (1.0 + std::cos(std::numbers::pi * part));
}

double linear(const Schedule& s, double k, double steps_per_epoch) {
  expect<ValueError>(s.tau || steps_per_epoch > 0.0,
                     "[schedule] expected a known number of updates per epoch for tau_epochs, got "
                     "none; give tau in updates");
  const double tau = s.tau ? *s.tau : *s.tau_epochs * steps_per_epoch;
  const double part = std::min(k / tau, 1.0);
  return (1.0 - part) * s.start + part * s.end;
}

double one_cycle(const Schedule& s, double k) {
  const double start = s.peak / s.initial_divisor;
  const double last = static_cast<double>(s.steps) - 1.0;
  const double top = s.start_fraction * static_cast<double>(s.steps) - 1.0;
  const double at = std::min(k, last);
  if (at < top) return half_cosine(start, s.peak, at / top);
  return at <= top ? s.peak
                   : half_cosine(s.peak, start / s.final_divisor, (at - top) / (last - top));
}

}  // namespace

double evaluate(const Schedule& s, std::int64_t updates, double steps_per_epoch) {
  const double k = static_cast<double>(updates);
  const double steps = static_cast<double>(s.steps);
  if (s.type == "constant") return s.value;
  if (s.type == "linear") return linear(s, k, steps_per_epoch);
  if (s.type == "robbins_monro") return s.start / std::pow(1.0 + k / s.k0, s.power);
  if (s.type == "step") return s.start * std::pow(s.factor, static_cast<double>(updates / s.every));
  if (s.type == "cosine") return half_cosine(s.start, s.end, std::min(k / steps, 1.0));
  if (s.type == "warmup") {
    if (updates >= s.steps) return evaluate(*s.then, updates - s.steps, steps_per_epoch);
    return evaluate(*s.then, 0, steps_per_epoch) * (k + 1.0) / steps;
  }
  if (s.type == "one_cycle") return one_cycle(s, k);
  if (s.type == "nesterov_convex") return k / (k + 3.0);
  throw InternalError(concat("[schedule] unknown schedule '", s.type, "'"));
}

double evaluate(const HyperValue& value, std::int64_t k, double steps_per_epoch) {
  return value.schedule ? evaluate(*value.schedule, k, steps_per_epoch) : value.value;
}

}  // namespace thalweg
