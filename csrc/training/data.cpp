// Data checks and gathering.
#include "training/data.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"
#include "cpu/kernels.h"
#include "math/element_rule.h"
#include "math/losses.h"
#include "math/row_weight.h"

namespace thalweg {
namespace {

template <class Source>
Source load(const std::byte* at) {
  Source value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

double half_to_double(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const int fraction = bits & 0x3ff;
  double magnitude;
  if (exponent == 31)
    magnitude = fraction ? std::nan("") : HUGE_VAL;
  else if (exponent == 0)
    magnitude = std::ldexp(fraction, -24);
  else
    magnitude = std::ldexp(fraction + 1024, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

double bfloat16_to_double(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  return load<float>(reinterpret_cast<const std::byte*>(&wide));
}

// f(read) with read(address) -> the element as double (labels: exact below 2^53, checked by range).
template <class F>
decltype(auto) with_reader(DType dtype, F&& f) {
  const auto reader = [&]<class Source>() {
    return f([](const std::byte* at) { return static_cast<double>(load<Source>(at)); });
  };
  switch (dtype) {
    case DType::kBool:
    case DType::kUInt8:
      return reader.template operator()<std::uint8_t>();
    case DType::kInt8:
      return reader.template operator()<std::int8_t>();
    case DType::kInt16:
      return reader.template operator()<std::int16_t>();
    case DType::kInt32:
      return reader.template operator()<std::int32_t>();
    case DType::kInt64:
      return reader.template operator()<std::int64_t>();
    case DType::kUInt16:
      return reader.template operator()<std::uint16_t>();
    case DType::kUInt32:
      return reader.template operator()<std::uint32_t>();
    case DType::kUInt64:
      return reader.template operator()<std::uint64_t>();
    case DType::kFloat16:
      return f([](const std::byte* at) { return half_to_double(load<std::uint16_t>(at)); });
    case DType::kBFloat16:
      return f([](const std::byte* at) { return bfloat16_to_double(load<std::uint16_t>(at)); });
    case DType::kFloat32:
      return reader.template operator()<float>();
    case DType::kFloat64:
      break;
  }
  return reader.template operator()<double>();
}

constexpr std::int64_t kNoElement = std::numeric_limits<std::int64_t>::max();

const std::byte* element(const ArrayView& array, std::int64_t row, std::int64_t col = 0) {
  return static_cast<const std::byte*>(array.data) + row * array.row_stride +
         col * array.col_stride;
}

std::string shape_text(const ArrayView& array) {
  return array.dimensions == 1 ? concat("(", array.rows, ",)")
                               : concat("(", array.rows, ", ", array.cols, ")");
}

// The model's device has to be where the array lies.
void check_place(const DataCheck& check, const ArrayView& array, const char* name) {
  if (!array.on_device()) return;
  expect<DeviceError>(check.exchange != nullptr, "[", check.operation, "] expected ", name,
                      " in CPU memory, got an array in GPU memory; copy it to the CPU first: "
                      "only models on device \"cuda\" take it as it is");
  check.exchange->check_place(array, check.operation, name);
}

// In host memory.
ElementReport find_bad_element(const DataCheck& check, const ArrayView& array, ElementRule rule,
                               double limit) {
  ElementReport report;
  with_reader(array.dtype, [&](auto read) {
    std::atomic<std::int64_t> first_bad = kNoElement;
    std::atomic<bool> positive = false;
    scan_rows(array.rows, array.cols, check.threads, check.interrupt, check.operation,
              [&](Range rows) {
                bool any_positive = false;
                for (std::int64_t r = rows.begin; r < rows.end; ++r)
                  for (std::int64_t c = 0; c < array.cols; ++c) {
                    const double value = read(element(array, r, c));
                    any_positive |= value >= kLeastWeight;
                    if (obeys(value, rule, limit)) continue;
                    const std::int64_t place = r * array.cols + c;
                    std::int64_t least = first_bad.load();
                    while (place < least && !first_bad.compare_exchange_weak(least, place)) {
                    }
                    return;
                  }
                if (any_positive) positive = true;
              });
    if (first_bad != kNoElement) report.first_bad = first_bad;
    report.positive = positive;
  });
  return report;
}

// Checks of elements: at once in host memory; those on a device are collected, so that the host
// waits for the device once.
class ElementChecks {
 public:
  explicit ElementChecks(const DataCheck& check) : check_(check) {}

  // With `some_positive`, one of them has to be above zero too.
  void add(const ArrayView& array, const char* name, const std::string& expected, ElementRule rule,
           double limit = 0.0, bool some_positive = false) {
    if (!check_.elements) return;
    const Item item{array, name, expected, some_positive};
    if (!array.on_device()) {
      judge(item, find_bad_element(check_, array, rule, limit));
      return;
    }
    items_.push_back(item);
    requests_.push_back({array, rule, limit});
  }
  void finish() {
    if (items_.empty()) return;
    const std::vector<ElementReport> reports = check_.exchange->check(requests_);
    for (std::size_t i = 0; i < items_.size(); ++i) judge(items_[i], reports[i]);
  }

 private:
  struct Item {
    ArrayView array;
    const char* name;
    std::string expected;
    bool some_positive;
  };

  // Throws with the place of the first element that breaks the rule.
  void judge(const Item& item, const ElementReport& report) const {
    expect<ValueError>(report.first_bad || report.positive || !item.some_positive, "[",
                       check_.operation, "] expected ", item.name,
                       " with a positive sum, got all zeros (numbers below 1.2e-38 count as zero)");
    if (!report.first_bad) return;
    const ArrayView& array = item.array;
    const std::int64_t r = *report.first_bad / array.cols, c = *report.first_bad % array.cols;
    const std::byte* at = element(array, r, c);
    std::array<std::byte, sizeof(double)> fetched;
    if (array.on_device()) {
      check_.exchange->fetch(at, fetched.data(), item_size(array.dtype));
      at = fetched.data();
    }
    const double value = with_reader(array.dtype, [&](auto read) { return read(at); });
    const std::string place =
        array.dimensions == 1 ? concat("[", r, "]") : concat("[", r, ", ", c, "]");
    throw ValueError(concat("[", check_.operation, "] expected ", item.expected, ", got ",
                            item.name, place, " = ", value));
  }

  const DataCheck& check_;
  std::vector<Item> items_;
  std::vector<ElementRequest> requests_;
};

void check_weights(const DataCheck& check, const ArrayView& weights, std::int64_t rows,
                   ElementChecks* elements) {
  expect<ValueError>(weights.dimensions == 1 && weights.rows == rows, "[", check.operation,
                     "] expected sample_weight of shape (", rows, ",), got ", shape_text(weights));
  check_place(check, weights, "sample_weight");
  elements->add(weights, "sample_weight", "finite sample weights >= 0", ElementRule::kNotNegative,
                0.0, true);
}

Targets check_cross_entropy_target(const DataCheck& check, const ArrayView& y,
                                   ElementChecks* elements) {
  const std::int64_t classes = check.plan.out_features;
  if (y.dimensions == 1) {
    expect<TypeError>(is_integer(y.dtype), "[", check.operation,
                      "] expected integer labels or probabilities of shape (n, ", classes,
                      ") for cross_entropy, got a one-dimensional array of ", dtype_name(y.dtype),
                      "; cast labels with y.astype(int)");
    elements->add(y, "y", concat("labels in [0, ", classes, ")"), ElementRule::kBelow,
                  static_cast<double>(classes));
    return Targets::kLabels;
  }
  expect<ValueError>(y.cols == classes, "[", check.operation, "] expected probabilities of shape (",
                     y.rows, ", ", classes, "), one column per output, got ", shape_text(y),
                     "; integer labels are one-dimensional");
  elements->add(y, "y", "finite probabilities >= 0", ElementRule::kNotNegative);
  return Targets::kDense;
}

void check_dense_target(const DataCheck& check, const ArrayView& y, ElementChecks* elements) {
  const Plan& plan = check.plan;
  const std::string& operation = check.operation;
  expect<ValueError>((y.dimensions == 1 && plan.out_features == 1) || y.cols == plan.out_features ||
                         y.dimensions != 2,
                     "[", operation, "] expected y.shape[1] == ", plan.out_features,
                     ", one column per output, got ", shape_text(y));
  expect<ValueError>(y.dimensions == 2 || plan.out_features == 1, "[", operation,
                     "] expected y of shape (", y.rows, ", ", plan.out_features, "), got ",
                     shape_text(y));
  const auto target = dispatch_loss(plan.description.loss.elementwise,
                                    [](auto loss) { return decltype(loss)::target; });
  const char* name = loss_name(plan.description.loss.elementwise);
  switch (target) {
    case TargetKind::real:
      elements->add(y, "y", "finite targets", ElementRule::kFinite);
      break;
    case TargetKind::unit_interval:
      elements->add(y, "y", concat("targets in [0, 1] for ", name), ElementRule::kUnitInterval);
      break;
    case TargetKind::sign:
      elements->add(y, "y", concat("targets -1 or +1 for ", name), ElementRule::kSign);
      break;
  }
}

// Labels index memory, and the caller may have changed them after the check.
template <class Read>
std::int64_t label_at(Read read, const Batch& batch, std::int64_t row) {
  const double label = read(element(batch.data->y, row));
  expect<ValueError>(label >= 0.0 && label < static_cast<double>(batch.classes),
                     "[data] expected labels in [0, ", batch.classes, "), got y[", row,
                     "] = ", label, "; y was changed while it was in use");
  return static_cast<std::int64_t>(label);
}

void check_input_with(const DataCheck& check, const ArrayView& x, ElementChecks* elements) {
  const Plan& plan = check.plan;
  expect<ValueError>(x.dimensions == 2, "[", check.operation, "] expected x of shape (n, ",
                     plan.in_features, "), got ", shape_text(x),
                     x.dimensions == 1 ? "; reshape one row with x.reshape(1, -1)" : "");
  expect<ValueError>(x.cols == plan.in_features, "[", check.operation,
                     "] expected x.shape[1] == ", plan.in_features, " (in_features), got ",
                     shape_text(x));
  expect<ValueError>(x.rows >= 1, "[", check.operation, "] expected at least one row, got ",
                     shape_text(x));
  check_place(check, x, "x");
  if (!check.elements || !check.require_finite || is_integer(x.dtype)) return;
  std::atomic<bool> finite = !x.on_device();
  if (finite)
    scan_rows(x.rows, x.cols, check.threads, check.interrupt, check.operation, [&](Range rows) {
      if (!cpu::kernels<float>().all_finite(x, rows)) finite = false;
    });
  if (!finite) elements->add(x, "x", "finite x", ElementRule::kFinite);
}

Targets check_data_with(const DataCheck& check, const Data& data, ElementChecks* elements) {
  check_input_with(check, data.x, elements);
  if (data.weights.present()) check_weights(check, data.weights, data.x.rows, elements);
  const LossDescription::Kind kind = check.plan.description.loss.kind;
  if (kind == LossDescription::Kind::kCustom) return Targets::kNone;
  expect<ValueError>(data.y.present(), "[", check.operation, "] expected targets y, got none");
  expect<ValueError>(data.y.rows == data.x.rows, "[", check.operation,
                     "] expected len(y) == len(x) (", data.x.rows, "), got ", data.y.rows);
  check_place(check, data.y, "y");
  if (kind == LossDescription::Kind::kCrossEntropy)
    return check_cross_entropy_target(check, data.y, elements);
  check_dense_target(check, data.y, elements);
  return Targets::kDense;
}

}  // namespace

ArrayView on_host(const ArrayView& array, const DeviceExchange* exchange,
                  std::vector<std::byte>* bytes) {
  if (!array.on_device()) return array;
  if (bytes->empty()) {
    bytes->resize(array_bytes(array.rows, static_cast<std::size_t>(row_bytes_of(array))));
    exchange->fetch(array, bytes->data());
  }
  ArrayView view = contiguous_view(array, array.rows, bytes->data());
  view.memory = Memory::kHost;
  return view;
}

void check_input(const DataCheck& check, const ArrayView& x) {
  ElementChecks elements(check);
  check_input_with(check, x, &elements);
  elements.finish();
}

Targets check_data(const DataCheck& check, const Data& data) {
  ElementChecks elements(check);
  const Targets targets = check_data_with(check, data, &elements);
  elements.finish();
  return targets;
}

void check_class_weights(const Plan& plan, const std::vector<double>& weights, Targets targets,
                         const std::string& operation) {
  if (weights.empty()) return;
  expect<ValueError>(targets == Targets::kLabels, "[", operation,
                     "] expected integer labels with class_weight; use sample_weight with other "
                     "targets");
  expect<ValueError>(static_cast<std::int64_t>(weights.size()) == plan.out_features, "[", operation,
                     "] expected one class weight per output (", plan.out_features, "), got ",
                     weights.size());
  for (const double w : weights)
    expect<ValueError>(w >= 0.0 && std::isfinite(w), "[", operation,
                       "] expected finite class weights >= 0, got ", w);
}

template <class T>
double row_weight(const Batch& batch, std::int64_t row) {
  const Data& data = *batch.data;
  double weight = 1.0;
  if (data.weights.present())
    weight = with_reader(data.weights.dtype,
                         [&](auto read) { return read(element(data.weights, row)); });
  if (batch.class_weights != nullptr) {
    const std::int64_t label =
        with_reader(data.y.dtype, [&](auto read) { return label_at(read, batch, row); });
    weight *= (*batch.class_weights)[static_cast<std::size_t>(label)];
  }
  return static_cast<double>(rounded_weight<T>(weight));
}

template <class T>
void gather(Team& team, const Batch& batch, const cpu::Kernels<T>& kernels, Workspace<T>& workspace,
            Range own) {
  const Data& data = *batch.data;
  const Panels<T> x = workspace.value(0);
  const Panels<T> targets{workspace.targets.data(), batch.rows,
                          batch.targets == Targets::kDense ? data.y.cols : 0};
  std::int64_t* const index = batch.order != nullptr ? workspace.row_index.data() : nullptr;
  const auto row_of = [&](std::int64_t r) { return index != nullptr ? index[r] : batch.first + r; };
  const auto copy = [&](Range rows) {
    if (index != nullptr) {
      const std::int64_t first = batch.first + rows.begin;
      if (const PermutationKeys* const keys = batch.order->permutation())
        kernels.permute(*keys, static_cast<std::uint64_t>(first), rows.size(), index + rows.begin);
      else
        for (std::int64_t i = 0; i < rows.size(); ++i)
          index[rows.begin + i] = (*batch.order)(first + i);
    }
    kernels.gather(data.x, index, batch.first, rows, x);
    if (batch.targets == Targets::kDense) kernels.gather(data.y, index, batch.first, rows, targets);
    if (batch.targets == Targets::kLabels)
      with_reader(data.y.dtype, [&](auto read) {
        for (std::int64_t r = rows.begin; r < rows.end; ++r)
          workspace.labels[r] = label_at(read, batch, row_of(r));
      });
    if (batch.weighted() || batch.fill_weights)
      for (std::int64_t r = rows.begin; r < rows.end; ++r)
        workspace.row_weights[r] = static_cast<T>(row_weight<T>(batch, row_of(r)));
  };
  const bool apart = own.size() > 0;
  if (!apart) {
    // Parts smaller than a row block: the copy of a small minibatch is worth sharing too.
    const Range parts = team.share(row_parts_of(batch.rows));
    own = {parts.begin * kRowPart, std::min(parts.end * kRowPart, batch.rows)};
  }
  for (std::int64_t r = own.begin; r < own.end && !team.stop_requested(); r += kRowBlock)
    copy({r, std::min(r + kRowBlock, own.end)});
  if (!apart) team.barrier();
}

template double row_weight<float>(const Batch&, std::int64_t);
template double row_weight<double>(const Batch&, std::int64_t);
template void gather(Team&, const Batch&, const cpu::Kernels<float>&, Workspace<float>&, Range);
template void gather(Team&, const Batch&, const cpu::Kernels<double>&, Workspace<double>&, Range);

}  // namespace thalweg
