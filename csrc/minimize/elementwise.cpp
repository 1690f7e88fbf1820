// The optimizers of math/optimizers.inc on a bare function, in double.
#include <cmath>
#include <utility>

#include "core/error.h"
#include "math/optimizers.h"
#include "minimize/steps.h"

namespace thalweg::minimize {
namespace {

class Elementwise final : public Method {
 public:
  Elementwise(int optimizer, std::int64_t n)
      : optimizer_(optimizer), n_(n), slots_(kMaxSlots, Vector(static_cast<std::size_t>(n))) {}

  Step step(Problem&, Iterate& at, const StepValues& values) override {
    double c[kMaxCoefficients] = {};
    optimizer_coefficients(optimizer_, values.now, values.next, values.t, c);
    dispatch_optimizer(optimizer_, [&](auto optimizer) {
      const typename decltype(optimizer)::template Update<double> update(c);
      for (std::int64_t i = 0; i < n_; ++i) update(at.x[i], at.g[i], slots_[0][i], slots_[1][i]);
    });
    at.evaluated = false;
    return {StepEnd::kMoved, values.now[0]};
  }

  void solution(const Vector& x, const StepValues& values, Vector& theta) const override {
    theta = x;
    double c[kMaxCoefficients] = {};
    optimizer_coefficients(optimizer_, values.now, values.next, values.t, c);
    dispatch_optimizer(optimizer_, [&](auto optimizer) {
      using S = decltype(optimizer);
      if constexpr (S::look_ahead) {
        for (std::int64_t i = 0; i < n_; ++i)
          theta[i] = S::theta(x[i], slots_[0][i], slots_[1][i], c);
      }
    });
  }

  MethodState state() const override {
    MethodState state;
    for (int slot = 0; slot < optimizer_slots(optimizer_); ++slot)
      state.vectors.emplace_back(optimizer_slot_name(optimizer_, slot), slots_[slot]);
    return state;
  }
  void set_state(const MethodState& state) override {
    for (int slot = 0; slot < optimizer_slots(optimizer_); ++slot)
      slots_[slot] = state_vector(state, optimizer_slot_name(optimizer_, slot), n_);
  }

 private:
  int optimizer_;
  std::int64_t n_;
  std::vector<Vector> slots_;
};

}  // namespace

MethodInfo elementwise_method(int optimizer) {
  MethodInfo info;
  info.name = optimizer_name(optimizer);
  for (const HyperParameter& row : optimizer_hyper(optimizer)) {
    info.parameters.push_back(
        {row.name,
         row.kind == HyperKind::flag ? ParameterKind::kFlag : ParameterKind::kReal,
         row.default_value,
         row.lowest,
         row.highest,
         {}});
  }
  info.make = [optimizer](std::int64_t n) { return std::make_unique<Elementwise>(optimizer, n); };
  info.elementwise = true;
  return info;
}

}  // namespace thalweg::minimize
