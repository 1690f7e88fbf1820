// Softmax, and its fusion with cross-entropy on integer or probability labels.
#include <cstring>

#include "ops/arguments.h"
#include "ops/ops.h"
#include "ops/region.h"
#include "ops/row_weights.h"

namespace thalweg::ops {
namespace {

// Values above the range of int64 come out negative, which is no label either.
std::int64_t read_integer(DType dtype, const void* at) {
  const auto as = [at](auto value) {
    std::memcpy(&value, at, sizeof(value));
    return static_cast<std::int64_t>(value);
  };
  switch (dtype) {
    case DType::kInt8:
      return as(std::int8_t{});
    case DType::kInt16:
      return as(std::int16_t{});
    case DType::kInt32:
      return as(std::int32_t{});
    case DType::kInt64:
      return as(std::int64_t{});
    case DType::kUInt16:
      return as(std::uint16_t{});
    case DType::kUInt32:
      return as(std::uint32_t{});
    case DType::kUInt64:
      return as(std::uint64_t{});
    default:  // bool, uint8
      return as(std::uint8_t{});
  }
}

Arena<std::int64_t> load_labels(std::string_view op, const ArrayView& target, std::int64_t rows,
                                std::int64_t classes) {
  expect<TypeError>(is_integer(target.dtype), "[", op, "] expected integer labels, got ",
                    dtype_name(target.dtype), "; probabilities have shape (rows, ", classes, ")");
  expect_rows(op, "target", target, "logits.shape[0]", rows);
  Arena<std::int64_t> labels(rows);
  for (std::int64_t r = 0; r < rows; ++r) {
    labels[r] = read_integer(target.dtype,
                             static_cast<const std::byte*>(target.data) + r * target.row_stride);
    expect<ValueError>(labels[r] >= 0 && labels[r] < classes, "[", op, "] expected labels in [0, ",
                       classes, "), got ", labels[r], " in row ", r);
  }
  return labels;
}

}  // namespace

template <class T>
void softmax(const ArrayView& logits, T* probabilities, int threads) {
  expect_matrix("softmax", "logits", logits);
  Matrix<T> values(logits.rows, logits.cols), result(logits.rows, logits.cols);
  run(threads, [&](Team& team) {
    load(team, logits, values.panels);
    for_each_row_block(team, logits.rows, [&](Range rows) {
      cpu::kernels<T>().softmax(values.panels, result.panels, rows);
    });
    store<T>(team, result.panels, probabilities);
  });
}

template <class T>
double softmax_cross_entropy(const ArrayView& logits, const ArrayView& target,
                             const ArrayView& weights, double label_smoothing, T* gradient,
                             int threads) {
  constexpr std::string_view op = "softmax_cross_entropy";
  expect_matrix(op, "logits", logits);
  expect<ValueError>(logits.rows > 0 && logits.cols > 0, "[", op,
                     "] expected logits with rows and columns, got ", shape_text(logits));
  expect<ValueError>(label_smoothing >= 0.0 && label_smoothing < 1.0, "[", op,
                     "] expected label_smoothing in [0, 1), got ", label_smoothing);
  const bool dense_target = target.dimensions == 2;
  Arena<std::int64_t> labels;
  if (dense_target)
    expect_same_shape(op, "target", target, "logits", logits);
  else
    labels = load_labels(op, target, logits.rows, logits.cols);
  const RowWeights<T> row_weights(op, weights, logits.rows);

  Matrix<T> outputs(logits.rows, logits.cols), targets(logits.rows, dense_target ? logits.cols : 0);
  Matrix<T> result(logits.rows, gradient ? logits.cols : 0);
  Arena<cpu::PartLoss> parts(row_parts_of(logits.rows));
  cpu::Loss<T> problem;
  problem.outputs = outputs.panels;
  problem.labels = labels.data();
  problem.targets = targets.panels;
  problem.row_weights = row_weights.data();
  problem.label_smoothing = label_smoothing;
  problem.gradient_scale = 1.0 / row_weights.total;
  problem.gradient = result.panels;
  problem.parts = parts.data();
  run(threads, [&](Team& team) {
    load(team, logits, outputs.panels);
    if (dense_target) load(team, target, targets.panels);
    for_each_row_block(team, logits.rows,
                       [&](Range rows) { cpu::kernels<T>().softmax_cross_entropy(problem, rows); });
    if (gradient) store<T>(team, result.panels, gradient);
  });
  double loss = 0.0;
  for (const cpu::PartLoss& part : parts) loss += part.loss;
  return loss / row_weights.total;
}

template void softmax<float>(const ArrayView&, float*, int);
template void softmax<double>(const ArrayView&, double*, int);
template double softmax_cross_entropy<float>(const ArrayView&, const ArrayView&, const ArrayView&,
                                             double, float*, int);
template double softmax_cross_entropy<double>(const ArrayView&, const ArrayView&, const ArrayView&,
                                              double, double*, int);

}  // namespace thalweg::ops
