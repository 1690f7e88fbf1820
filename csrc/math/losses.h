// Owns the list of elementwise losses: ids, names and the visitor that turns an id into a struct.
//
// A loss is a struct with
//   name, target, parameter (its keyword or nullptr), default_parameter, lowest_parameter,
//   highest_parameter, and, for a prediction z, a target t and the parameter a,
//   value(z, t, a), gradient(z, t, a) = d value / dz, second_derivative(z, t, a).
// Softmax cross-entropy couples the outputs of a row and lives in math/loss/cross_entropy.h.
// To add one: a header in math/loss/ and a line in math/losses.inc.
#pragma once

#include "math/losses.inc"
#include "math/names.h"

namespace thalweg {

// kLossSquaredError and so on, then the number of losses.
enum LossId : int {
#define TW_LOSS(S) kLoss##S,
#include "math/losses.inc"
#undef TW_LOSS
  kLossCount
};

inline namespace TW_ISA {

// f(S{}) with the struct S of `id`. Precondition: 0 <= id < kLossCount.
TW_VISITOR
template <class F>
TW_VISITS constexpr decltype(auto) dispatch_loss(int id, F&& f) {
  switch (id) {
#define TW_LOSS(S) \
  case kLoss##S:   \
    return static_cast<F&&>(f)(S{});
#include "math/losses.inc"
#undef TW_LOSS
  }
  __builtin_unreachable();
}

// Precondition: 0 <= id < kLossCount.
constexpr const char* loss_name(int id) {
  return dispatch_loss(id, [](auto loss) { return decltype(loss)::name; });
}

// The id of `name`, or -1.
constexpr int loss_id(const char* name) {
  for (int id = 0; id < kLossCount; ++id) {
    if (same_name(loss_name(id), name)) return id;
  }
  return -1;
}

}  // namespace TW_ISA
}  // namespace thalweg
