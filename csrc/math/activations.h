// Owns the list of activations: ids, names and the visitor that turns an id into a struct.
//
// An activation is a struct with
//   name, backward_needs, he_family (default initializer: He when true, Glorot when false),
//   parameter (its keyword or nullptr), default_parameter, lowest_parameter, highest_parameter,
//   value(z, a), derivative(s, a), second_derivative(s, a), where a is the parameter and s is y or
//   z as backward_needs says.
// To add one: a header in math/activation/ and a line in math/activations.inc.
#pragma once

#include "math/activations.inc"
#include "math/names.h"

namespace thalweg {

// kActivationRelu and so on, then the number of activations.
enum ActivationId : int {
#define TW_ACTIVATION(S) kActivation##S,
#include "math/activations.inc"
#undef TW_ACTIVATION
  kActivationCount
};

inline namespace TW_ISA {

// f(S{}) with the struct S of `id`. Precondition: 0 <= id < kActivationCount.
TW_VISITOR
template <class F>
TW_VISITS constexpr decltype(auto) dispatch_activation(int id, F&& f) {
  switch (id) {
#define TW_ACTIVATION(S) \
  case kActivation##S:   \
    return static_cast<F&&>(f)(S{});
#include "math/activations.inc"
#undef TW_ACTIVATION
  }
  __builtin_unreachable();
}

// Precondition: 0 <= id < kActivationCount.
constexpr const char* activation_name(int id) {
  return dispatch_activation(id, [](auto activation) { return decltype(activation)::name; });
}

// The id of `name`, or -1.
constexpr int activation_id(const char* name) {
  for (int id = 0; id < kActivationCount; ++id) {
    if (same_name(activation_name(id), name)) return id;
  }
  return -1;
}

}  // namespace TW_ISA
}  // namespace thalweg
