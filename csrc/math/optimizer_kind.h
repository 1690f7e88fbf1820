// Owns what every optimizer declares about itself, and the update steps that several of them share.
#pragma once

#include "math/host_device.h"

namespace thalweg {

enum class HyperKind : int { real, flag };

// One row of an optimizer's table of hyper-parameters; lowest and highest are inclusive. A flag is
// 0 or 1.
struct HyperParameter {
  const char* name;
  double default_value;
  double lowest;
  double highest;
  HyperKind kind;
};

inline constexpr int kMaxCoefficients = 12;
inline constexpr int kMaxHyperParameters = 8;
inline constexpr int kMaxSlots = 2;

// The largest double below 1, the end of the range of a decay rate.
inline constexpr double kBelowOne = 1.0 - 0x1p-53;

inline namespace TW_ISA {

inline constexpr HyperParameter kWeightDecay = {"weight_decay", 0.0, 0.0, 1e6, HyperKind::real};
inline constexpr HyperParameter kTorchCompat = {"torch_compat", 0.0, 0.0, 1.0, HyperKind::flag};

constexpr HyperParameter learning_rate(double default_value) {
  return {"lr", default_value, 0.0, 1e9, HyperKind::real};
}

constexpr HyperParameter decay_rate(const char* name, double default_value) {
  return {name, default_value, 0.0, kBelowOne, HyperKind::real};
}

// delta stays a normal float32 number: with zero slots and zero gradient an update divides zero by
// it, and has to stay zero on the padding of a panel.
constexpr HyperParameter division_guard(double default_value) {
  return {"delta", default_value, 0x1p-126, 1e6, HyperKind::real};
}

// 1 - beta^t for t >= 1, accurate for beta near 1 and any t.
inline double bias_correction(double beta, std::int64_t t) {
  return -std::expm1(static_cast<double>(t) * std::log1p(beta - 1.0));
}

// v (1 - weight) for a rate 1 - weight near 1, which would itself round to 24 bits too coarsely.
template <class T>
TW_HD T decay(T v, T weight) {
  return madd(-weight, v, v);
}

// (1 - weight) average + weight sample.
template <class T>
TW_HD T exponential_average(T average, T weight, T sample) {
  return madd(weight, sample, decay(average, weight));
}

}  // namespace TW_ISA
}  // namespace thalweg
