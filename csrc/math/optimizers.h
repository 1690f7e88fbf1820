// Owns the list of optimizers: ids, names, hyper-parameter tables and the visitor that turns an id
// into a struct.
//
// An optimizer is a struct with
//   name, slots (0..2), slot_names[] (slots entries used), hyper[] ("lr" first, "weight_decay" in
//   all), look_ahead: whether the stored parameters are p = theta + a v, coefficients(hyper,
//   next_hyper, t, c): fills c[kMaxCoefficients] in double for update t >= 1 of a
//     parameter group; hyper and next_hyper hold the values of updates t and t + 1 in table order,
//   Update<T>(c): the update (p, g, s0, s1) of one element, which keeps p = g = s0 = s1 = 0 at
//   zero, and with look_ahead, theta(p, s0, s1, c) from the c of the last update (any c before the
//   first). c is in double, or rounded to T already.
// weight_decay is coupled (g += weight_decay p) except in adamw.
// To add one: a header in math/optimizer/ and a line in math/optimizers.inc.
#pragma once

#include "math/names.h"
#include "math/optimizers.inc"

namespace thalweg {

// kOptimizerSgd and so on, then the number of optimizers.
enum OptimizerId : int {
#define TW_OPTIMIZER(S) kOptimizer##S,
#include "math/optimizers.inc"
#undef TW_OPTIMIZER
  kOptimizerCount
};

inline namespace TW_ISA {

// The rows of an optimizer's table.
struct HyperTable {
  const HyperParameter* rows;
  int count;

  constexpr const HyperParameter* begin() const { return rows; }
  constexpr const HyperParameter* end() const { return rows + count; }
  constexpr const HyperParameter& operator[](int i) const { return rows[i]; }
};

// f(S{}) with the struct S of `id`. Precondition: 0 <= id < kOptimizerCount.
TW_VISITOR
template <class F>
TW_VISITS constexpr decltype(auto) dispatch_optimizer(int id, F&& f) {
  switch (id) {
#define TW_OPTIMIZER(S) \
  case kOptimizer##S:   \
    return static_cast<F&&>(f)(S{});
#include "math/optimizers.inc"
#undef TW_OPTIMIZER
  }
  __builtin_unreachable();
}

// The functions of an id below have the precondition 0 <= id < kOptimizerCount.
constexpr const char* optimizer_name(int id) {
  return dispatch_optimizer(id, [](auto optimizer) { return decltype(optimizer)::name; });
}

// The id of `name`, or -1.
constexpr int optimizer_id(const char* name) {
  for (int id = 0; id < kOptimizerCount; ++id) {
    if (same_name(optimizer_name(id), name)) return id;
  }
  return -1;
}

constexpr HyperTable optimizer_hyper(int id) {
  return dispatch_optimizer(id, [](auto optimizer) {
    using S = decltype(optimizer);
    return HyperTable{S::hyper, static_cast<int>(sizeof(S::hyper) / sizeof(S::hyper[0]))};
  });
}

// The row of `name` in the table of `id`, or -1.
constexpr int optimizer_hyper_index(int id, const char* name) {
  const HyperTable table = optimizer_hyper(id);
  for (int i = 0; i < table.count; ++i) {
    if (same_name(table[i].name, name)) return i;
  }
  return -1;
}

constexpr int optimizer_slots(int id) {
  return dispatch_optimizer(id, [](auto optimizer) { return decltype(optimizer)::slots; });
}

// Precondition: 0 <= slot < optimizer_slots(id).
constexpr const char* optimizer_slot_name(int id, int slot) {
  return dispatch_optimizer(
      id, [slot](auto optimizer) { return decltype(optimizer)::slot_names[slot]; });
}

constexpr bool optimizer_looks_ahead(int id) {
  return dispatch_optimizer(id, [](auto optimizer) { return decltype(optimizer)::look_ahead; });
}

inline void optimizer_coefficients(int id, const double* hyper, const double* next_hyper,
                                   std::int64_t t, double* c) {
  dispatch_optimizer(
      id, [&](auto optimizer) { decltype(optimizer)::coefficients(hyper, next_hyper, t, c); });
}

}  // namespace TW_ISA
}  // namespace thalweg
