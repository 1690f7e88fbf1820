// Losses that are sums over single outputs: squared error, Huber, binary cross-entropy, margin
// losses.
#include "math/losses.h"
#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"
#include "ops/row_weights.h"

namespace thalweg::ops {
namespace {

// What the weighted sum over rows and outputs is divided by.
double reduction_divisor(const std::string& name, const std::string& reduction, double total_weight,
                         std::int64_t outputs) {
  if (reduction == "batch_mean") return total_weight;
  if (reduction == "element_mean") return total_weight * static_cast<double>(outputs);
  expect<ValueError>(reduction == "sum", "[", name,
                     "] expected reduction 'batch_mean', 'sum' or 'element_mean', got '", reduction,
                     "'");
  return 1.0;
}

// NaN is let through: operations propagate it.
template <class T>
void expect_targets(const std::string& name, TargetKind kind, Panels<const T> targets) {
  for (std::int64_t p = 0; p < targets.panels() && kind != TargetKind::real; ++p) {
    for (std::int64_t r = 0; r < targets.rows; ++r) {
      for (std::int64_t lane = 0; lane < targets.lanes(p); ++lane) {
        const T t = targets.row(p, r)[lane];
        if (kind == TargetKind::sign)
          expect<ValueError>(!(t < T(-1) || t > T(1) || (t > T(-1) && t < T(1))), "[", name,
                             "] expected targets -1 or 1, got ", t, " in row ", r);
        else
          expect<ValueError>(!(t < T(0) || t > T(1)), "[", name,
                             "] expected targets in [0, 1], got ", t, " in row ", r);
      }
    }
  }
}

}  // namespace

template <class T>
double elementwise_loss(const std::string& name, double parameter, const std::string& reduction,
                        const ArrayView& output, const ArrayView& target, const ArrayView& weights,
                        T* gradient, int threads) {
  const int id = find_elementwise_loss(name, parameter);
  expect<ValueError>(output.rows > 0 && output.cols > 0, "[", name,
                     "] expected output with rows and columns, got ", shape_text(output));
  expect_same_shape(name, "target", target, "output", output);
  const RowWeights<T> row_weights(name, weights, output.rows);
  const double divisor = reduction_divisor(name, reduction, row_weights.total, output.cols);

  Matrix<T> outputs(output.rows, output.cols), targets(output.rows, output.cols);
  Matrix<T> result(output.rows, gradient ? output.cols : 0);
  Arena<cpu::PartLoss> parts(row_parts_of(output.rows));
  cpu::Loss<T> problem;
  problem.outputs = outputs.panels;
  problem.targets = targets.panels;
  problem.row_weights = row_weights.data();
  problem.parameter = parameter;
  problem.gradient_scale = 1.0 / divisor;
  problem.gradient = result.panels;
  problem.parts = parts.data();
  run(threads, [&](Team& team) {
    load(team, output, outputs.panels);
    load(team, target, targets.panels);
  });
  expect_targets<T>(name, dispatch_loss(id, [](auto loss) { return decltype(loss)::target; }),
                    targets.panels);
  run(threads, [&](Team& team) {
    for_each_row_block(team, output.rows,
                       [&](Range rows) { cpu::kernels<T>().elementwise_loss(id, problem, rows); });
    if (gradient) store<T>(team, result.panels, gradient);
  });
  double loss = 0.0;
  for (const cpu::PartLoss& part : parts) loss += part.loss;
  return loss / divisor;
}

template double elementwise_loss<float>(const std::string&, double, const std::string&,
                                        const ArrayView&, const ArrayView&, const ArrayView&,
                                        float*, int);
template double elementwise_loss<double>(const std::string&, double, const std::string&,
                                         const ArrayView&, const ArrayView&, const ArrayView&,
                                         double*, int);

}  // namespace thalweg::ops
