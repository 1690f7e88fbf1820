#include "ops/arguments.h"

#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"

namespace thalweg::ops {
namespace {

// "'relu', 'gelu'"
template <class NameOf>
std::string list_names(int count, NameOf name_of) {
  std::string names;
  for (int id = 0; id < count; ++id) names += concat(id == 0 ? "'" : ", '", name_of(id), "'");
  return names;
}

// `Struct` has a parameter with bounds, or none.
template <class Struct>
void check_parameter(std::string_view op, double value) {
  if constexpr (Struct::parameter != nullptr)
    expect_in(op, Struct::parameter, value, Struct::lowest_parameter, Struct::highest_parameter);
}

}  // namespace

int find_activation(std::string_view op, const std::string& name, double parameter) {
  const int id = activation_id(name.c_str());
  expect<ValueError>(id >= 0, "[", op, "] expected an activation among ",
                     list_names(kActivationCount, [](int i) { return activation_name(i); }),
                     ", got '", name, "'");
  dispatch_activation(
      id, [&](auto activation) { check_parameter<decltype(activation)>(op, parameter); });
  return id;
}

int find_elementwise_loss(const std::string& name, double parameter) {
  const int id = loss_id(name.c_str());
  expect<ValueError>(id >= 0, "[loss] expected a loss among ",
                     list_names(kLossCount, [](int i) { return loss_name(i); }), ", got '", name,
                     "'");
  dispatch_loss(id, [&](auto loss) { check_parameter<decltype(loss)>(name, parameter); });
  return id;
}

int find_optimizer(const std::string& name) {
  const int id = optimizer_id(name.c_str());
  expect<ValueError>(id >= 0, "[optimizer_step] expected an optimizer among ",
                     list_names(kOptimizerCount, [](int i) { return optimizer_name(i); }),
                     ", got '", name, "'");
  return id;
}

}  // namespace thalweg::ops
