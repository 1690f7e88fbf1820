// y = phi(z) and dz = dy phi'(z), elementwise.
#include "math/activations.h"
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"

namespace thalweg::ops {
namespace {

template <class T>
void apply(Team& team, cpu::Activation phi, Panels<T> values) {
  for_each_row_block(team, values.rows, [&](Range rows) {
    cpu::kernels<T>().activation(values, values, phi, rows, {0, values.panels()});
  });
}

}  // namespace

template <class T>
void activation(const std::string& name, double parameter, const ArrayView& z, T* y, int threads) {
  const cpu::Activation phi{find_activation("activation", name, parameter), parameter};
  expect_matrix("activation", "z", z);

  Matrix<T> values(z.rows, z.cols);
  run(threads, [&](Team& team) {
    load(team, z, values.panels);
    apply(team, phi, values.panels);
    store<T>(team, values.panels, y);
  });
}

template <class T>
void activation_backward(const std::string& name, double parameter, const ArrayView& z,
                         const ArrayView& dy, T* dz, int threads) {
  const cpu::Activation phi{find_activation("activation_backward", name, parameter), parameter};
  expect_matrix("activation_backward", "z", z);
  expect_matrix("activation_backward", "dy", dy);
  expect_same_shape("activation_backward", "dy", dy, "z", z);
  const bool at_output = dispatch_activation(
      phi.id, [](auto s) { return decltype(s)::backward_needs == ActivationNeeds::output; });

  Matrix<T> at(z.rows, z.cols), gradient(z.rows, z.cols);
  run(threads, [&](Team& team) {
    load(team, z, at.panels);
    load(team, dy, gradient.panels);
    if (at_output) apply(team, phi, at.panels);
    for_each_row_block(team, z.rows, [&](Range rows) {
      cpu::kernels<T>().activation_backward(gradient.panels, at.panels.data, gradient.panels, phi,
                                            false, rows, {0, gradient.panels.panels()});
    });
    store<T>(team, gradient.panels, dz);
  });
}

template void activation<float>(const std::string&, double, const ArrayView&, float*, int);
template void activation<double>(const std::string&, double, const ArrayView&, double*, int);
template void activation_backward<float>(const std::string&, double, const ArrayView&,
                                         const ArrayView&, float*, int);
template void activation_backward<double>(const std::string&, double, const ArrayView&,
                                          const ArrayView&, double*, int);

}  // namespace thalweg::ops
