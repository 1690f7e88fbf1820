// Minibatches out of data of every type, layout and order; labels, weights and their sums; checks
// of data; and the way back to dense arrays.
#include <functional>

#include "core/layout.h"
#include "cuda/gather.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

constexpr DType kTypes[] = {DType::kBool,   DType::kInt8,    DType::kInt16,    DType::kInt32,
                            DType::kInt64,  DType::kUInt8,   DType::kUInt16,   DType::kUInt32,
                            DType::kUInt64, DType::kFloat16, DType::kBFloat16, DType::kFloat32,
                            DType::kFloat64};

// Appends a value in a type's own bytes, and returns what they mean.
template <class S>
double append(std::vector<unsigned char>& bytes, double value) {
  const S stored = static_cast<S>(value);
  const auto* raw = reinterpret_cast<const unsigned char*>(&stored);
  bytes.insert(bytes.end(), raw, raw + sizeof(S));
  return static_cast<double>(stored);
}

double append(std::vector<unsigned char>& bytes, DType dtype, double value) {
  switch (dtype) {
    case DType::kBool:
      bytes.push_back(value > 0 ? 7 : 0);  // any byte but zero is true
      return value > 0 ? 1 : 0;
    case DType::kInt8:
      return append<std::int8_t>(bytes, value);
    case DType::kInt16:
      return append<std::int16_t>(bytes, value * 100);
    case DType::kInt32:
      return append<std::int32_t>(bytes, value * 1e6);
    case DType::kInt64:
      return append<std::int64_t>(bytes, value * 1e12);
    case DType::kUInt8:
      return append<std::uint8_t>(bytes, std::abs(value));
    case DType::kUInt16:
      return append<std::uint16_t>(bytes, std::abs(value) * 300);
    case DType::kUInt32:
      return append<std::uint32_t>(bytes, std::abs(value) * 2e7);
    case DType::kUInt64:
      return append<std::uint64_t>(bytes, std::abs(value) * 1e17);
    case DType::kFloat16: {
      // Sign, exponent and fraction by hand: value = (1 + f / 1024) 2^e, or a subnormal number.
      const auto bits = static_cast<std::uint16_t>(
          value < -50 ? 0x8001
                      : (value < 0 ? 0x8000 : 0) | 10 << 10 |
                            (static_cast<int>(std::abs(value) * 9) & 0x3ff));
      append<std::uint16_t>(bytes, bits);
      if (bits == 0x8001) return -0x1p-24;
      return (value < 0 ? -1 : 1) * (1 + (bits & 0x3ff) / 1024.0) * 0x1p-5;
    }
    case DType::kBFloat16: {
      const float exact = static_cast<float>(static_cast<int>(value)) * 0x1p70f;
      std::uint32_t bits;
      std::memcpy(&bits, &exact, sizeof(bits));
      append<std::uint16_t>(bytes, static_cast<double>(bits >> 16));
      return static_cast<double>(exact);
    }
    case DType::kFloat32:
      return append<float>(bytes, value / 3);
    case DType::kFloat64:
      break;
  }
  return append<double>(bytes, value / 3);
}

// A data set in memory of its own: `gap` unused bytes after each row, rows or columns reversed, the
// columns outermost, or the start at an odd address.
struct DataSet {
  enum Layout { kPlain, kGap, kReversed, kColumns, kOdd, kBroadcast };

  DataSet(DType dtype, int64_t rows, int64_t cols, Layout layout, std::uint64_t seed) {
    const int64_t size = item_size(dtype);
    Random random(seed);
    std::vector<unsigned char> flat;
    for (int64_t i = 0; i < rows * cols; ++i)
      values.push_back(append(flat, dtype, static_cast<double>(random.below(200) - 100)));
    view.dtype = dtype;
    view.rows = rows;
    view.cols = cols;
    const int64_t gap = layout == kGap ? 3 * size : layout == kOdd ? 1 : 0;
    int64_t first = layout == kOdd ? 1 : 0;
    view.row_stride = cols * size + gap;
    view.col_stride = size;
    if (layout == kColumns) {
      view.row_stride = size;
      view.col_stride = rows * size;
    } else if (layout == kReversed) {
      view.row_stride = -cols * size;
      view.col_stride = -size;
      first = (rows * cols - 1) * size;
    } else if (layout == kBroadcast) {
      view.row_stride = 0;
      for (int64_t i = cols; i < rows * cols; ++i)
        values[static_cast<std::size_t>(i)] = values[static_cast<std::size_t>(i % cols)];
    }
    std::vector<unsigned char> bytes(static_cast<std::size_t>(1 + rows * (cols * size + gap)));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        if (layout == kBroadcast && r > 0) continue;
        std::memcpy(
            &bytes[static_cast<std::size_t>(first + r * view.row_stride + c * view.col_stride)],
            &flat[static_cast<std::size_t>((r * cols + c) * size)], static_cast<std::size_t>(size));
      }
    memory = std::make_unique<DeviceArray<unsigned char>>(bytes);
    view.data = memory->data() + first;
  }

  std::vector<double> values;
  std::unique_ptr<DeviceArray<unsigned char>> memory;
  ArrayView view;
};

template <class T>
std::vector<T> rows_of(const DataSet& data, int64_t rows,
                       const std::function<int64_t(int64_t)>& row_of) {
  std::vector<T> out;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < data.view.cols; ++c)
      out.push_back(
          static_cast<T>(data.values[static_cast<std::size_t>(row_of(r) * data.view.cols + c)]));
  return out;
}

template <class T>
void test_types() {
  for (const DType dtype : kTypes)
    for (const auto layout : {DataSet::kPlain, DataSet::kGap, DataSet::kReversed, DataSet::kColumns,
                              DataSet::kOdd, DataSet::kBroadcast})
      for (const int64_t cols : {1, 5, 8, 33}) {
        context = concat(dtype_name(dtype), " layout ", static_cast<int>(layout), " columns ", cols,
                         sizeof(T) == 4 ? " to float32" : " to float64");
        DataSet data(dtype, 70, cols, layout, static_cast<std::uint64_t>(cols));
        DeviceMatrix<T> out(65, cols);
        gather<T>(data.view, {nullptr, nullptr, 3}, out, nullptr);
        expect_same_bits("rows", out.dense(),
                         rows_of<T>(data, 65, [](int64_t r) { return r + 3; }));
      }
}

template <class T>
void test_orders() {
  constexpr int64_t kData = 1000;
  for (const int64_t cols : {3, 40, 2100}) {
    DataSet data(DType::kFloat32, kData, cols, DataSet::kPlain, 3);
    for (const Shuffle shuffle : {Shuffle::kEpoch, Shuffle::kStack, Shuffle::kIid, Shuffle::kNone})
      for (const int64_t rows : {1, 64, 129}) {
        context = concat("order ", static_cast<int>(shuffle), " rows ", rows, " columns ", cols);
        StepState host;
        host.order = Order(shuffle, kData, 0xfeedu, 17);
        host.position = 200;
        DeviceArray<StepState> state(std::vector<StepState>{host});
        DeviceMatrix<T> out(rows, cols);
        gather<T>(data.view, {nullptr, state.data(), 5}, out, nullptr);
        const auto by_order = [&](int64_t r) { return host.order(205 + r); };
        expect_same_bits("by state", out.dense(), rows_of<T>(data, rows, by_order));
        std::vector<int64_t> index;
        for (int64_t r = 0; r < rows; ++r) index.push_back((r * 37 + 11) % kData);
        DeviceArray<int64_t> device_index(index);
        gather<T>(data.view, {device_index.data()}, out, nullptr);
        const auto by_index = [&](int64_t r) { return index[static_cast<std::size_t>(r)]; };
        expect_same_bits("by index", out.dense(), rows_of<T>(data, rows, by_index));
      }
  }
}

void test_planes() {
  context = "gather with planes";
  DataSet data(DType::kFloat64, 40, 13, DataSet::kPlain, 3);
  DeviceMatrix<float> three(40, 13, 3), rounded(40, 13, 1, true);
  gather<float>(data.view, {}, three, nullptr);
  gather<float>(data.view, {}, rounded, nullptr);
  expect_same_bits("three planes", three.dense(),
                   rows_of<float>(data, 40, [](int64_t r) { return r; }));
  expect_close("rounded", rounded.dense(), data.values, 40 * 0x1p-8);
}

template <class T>
void test_targets(int64_t rows, DType label_type, DType weight_type, bool class_weights) {
  constexpr int64_t kData = 900, kClasses = 5;
  context = concat("targets ", rows, " labels ", dtype_name(label_type), " weights ",
                   dtype_name(weight_type), class_weights ? " class weights" : "");
  Random random(static_cast<std::uint64_t>(rows));
  std::vector<unsigned char> label_bytes;
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < kData; ++i) {
    const int64_t label = random.below(kClasses);
    labels.push_back(label);
    if (label_type == DType::kUInt8)
      append<std::uint8_t>(label_bytes, static_cast<double>(label));
    else
      append<int64_t>(label_bytes, static_cast<double>(label));
  }
  DeviceArray<unsigned char> device_labels(label_bytes);
  DataSet weights(weight_type, kData, 1, DataSet::kPlain, 5);
  const std::vector<double> by_class = {0.5, 1.0 / 3, 2, 0, 1};
  DeviceArray<double> device_by_class(by_class);
  StepState host;
  host.order = Order(Shuffle::kEpoch, kData, 1, 2);
  host.position = 30;
  DeviceArray<StepState> state(std::vector<StepState>{host});
  const int64_t blocks = row_blocks_of(rows);
  DeviceArray<int64_t> label_out(rows);
  DeviceArray<T> row_weights(rows);
  DeviceArray<double> block_weights(blocks), total(1);
  TestScratch scratch(gather_targets_scratch_bytes(rows));

  GatherTargets<T> problem;
  problem.order = {nullptr, state.data(), 7};
  problem.rows = rows;
  problem.labels = {device_labels.data(),  label_type,           1, kData, 1,
                    item_size(label_type), item_size(label_type)};
  problem.classes = kClasses;
  problem.label_out = label_out.data();
  problem.weights = weights.view;
  if (class_weights) problem.class_weights = device_by_class.data();
  problem.row_weights = row_weights.data();
  problem.block_weights = block_weights.data();
  problem.total_weight = total.data();
  problem.state = state.data();
  problem.gradient_divisor = 4;

  std::vector<int64_t> want_labels;
  std::vector<T> want_weights;
  std::vector<double> want_blocks(static_cast<std::size_t>(blocks), 0.0);
  double want_total = 0, size = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = static_cast<std::size_t>(host.order(37 + r));
    want_labels.push_back(labels[row]);
    double w = weights.values[row];
    if (class_weights) w *= by_class[static_cast<std::size_t>(labels[row])];
    // What float32 holds as subnormal numbers only counts as zero.
    want_weights.push_back(w < 1.17549435e-38 ? T(0) : static_cast<T>(w));
    want_blocks[static_cast<std::size_t>(r / kRowBlock)] +=
        static_cast<double>(want_weights.back());
    want_total += static_cast<double>(want_weights.back());
    size += std::abs(static_cast<double>(want_weights.back()));
  }
  for (int replay = 0; replay < 2; ++replay) {
    gather_targets(problem, scratch.scratch(), nullptr);
    expect_same_bits("labels", label_out.download(), want_labels);
    expect_same_bits("weights", row_weights.download(), want_weights);
    expect_close("block weights", block_weights.download(), want_blocks, 1e-14 * size);
    expect_close("total", total.download(), {want_total}, 1e-14 * size);
    const StepState got = state.download()[0];
    expect_that(got.status == StepStatus::kRunning, "status");
    expect_that(got.weight == total.download()[0], "weight of the update");
    const double scale = got.weight > 0 ? 1 / (got.weight * 4) : 0;
    expect_that(std::abs(got.gradient_scale - scale) <= 1e-15 * scale, "gradient scale ",
                got.gradient_scale);
    scratch.expect_ready();
  }

  // Without weights, as a part of an update.
  problem.weights = {};
  problem.class_weights = nullptr;
  problem.whole_update = false;
  const StepState before = state.download()[0];
  gather_targets(problem, scratch.scratch(), nullptr);
  expect_close("weights of one", row_weights.download(),
               std::vector<double>(static_cast<std::size_t>(rows), 1.0), 0.0);
  expect_close("total of one", total.download(), {static_cast<double>(rows)}, 0.0);
  expect_that(state.download()[0].weight == before.weight, "a part wrote the update's weight");

  // The sum of rows has the scale 1; nothing to learn from has the scale 0.
  problem.whole_update = true;
  problem.gradient_divisor = 0;
  gather_targets(problem, scratch.scratch(), nullptr);
  expect_that(state.download()[0].gradient_scale == 1.0, "scale of a sum");
  DeviceArray<double> zeros(std::vector<double>(kClasses, 0.0));
  problem.class_weights = zeros.data();
  problem.gradient_divisor = 1;
  gather_targets(problem, scratch.scratch(), nullptr);
  const StepState nothing = state.download()[0];
  expect_that(nothing.weight == 0 && nothing.gradient_scale == 0, "scale of no weight");
}

template <class T>
void test_invalid_labels() {
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{5}, std::int64_t{1} << 40}) {
    context = concat("label ", bad);
    std::vector<std::int64_t> labels(100, 2);
    labels[70] = bad;
    DeviceArray<std::int64_t> device_labels(labels), out(100);
    DeviceArray<StepState> state(std::vector<StepState>{StepState{}});
    TestScratch scratch(gather_targets_scratch_bytes(100));
    GatherTargets<T> problem;
    problem.rows = 100;
    problem.labels = ArrayView::vector(device_labels.data(), 100);
    problem.classes = 5;
    problem.label_out = out.data();
    problem.state = state.data();
    gather_targets(problem, scratch.scratch(), nullptr);
    expect_that(state.download()[0].status == StepStatus::kInvalidLabel, "status");
    labels[70] = 0;
    expect_same_bits("labels", out.download(), labels);
  }
}

template <class T>
void test_dense() {
  for (const auto& [rows, width] : odd_shapes())
    for (const int64_t extra : {0, 3, 4}) {
      context = concat("dense ", rows, "x", width, " leading + ", extra);
      const int64_t leading = width + extra;
      const std::vector<T> values = Random(6).normals<T>(rows * leading);
      DeviceArray<T> dense(values), back(std::vector<T>(values.size(), T(-7)));
      DeviceMatrix<T> matrix(rows, width);
      pack<T>(dense.data(), leading, matrix, nullptr);
      std::vector<T> want;
      std::vector<T> want_back(values.size(), T(-7));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) {
          const auto at = static_cast<std::size_t>(r * leading + c);
          want.push_back(values[at]);
          want_back[at] = values[at];
        }
      expect_same_bits("pack", matrix.dense(), want);
      scatter<T>(matrix, back.data(), leading, nullptr);
      expect_same_bits("scatter", back.download(), want_back);
    }
}

void test_checks() {
  struct Row {
    ElementRule rule;
    double good, bad;
  };
  const double nan = std::nan("");
  const Row rows[] = {{ElementRule::kFinite, -1e30, nan},
                      {ElementRule::kFinite, 0, HUGE_VAL},
                      {ElementRule::kNotNegative, 0, -1e-30},
                      {ElementRule::kNotNegative, 3, nan},
                      {ElementRule::kNotNegative, 3, HUGE_VAL},
                      {ElementRule::kBelow, 9, 10},
                      {ElementRule::kBelow, 0, -1},
                      {ElementRule::kUnitInterval, 1, 1.5},
                      {ElementRule::kUnitInterval, 0, nan},
                      {ElementRule::kSign, -1, 0},
                      {ElementRule::kSign, 1, nan}};
  for (const Row& row : rows)
    for (const int64_t cols : {1, 7}) {
      context = concat("rule ", static_cast<int>(row.rule), " bad ", row.bad, " columns ", cols);
      std::vector<double> values(static_cast<std::size_t>(700 * cols), row.good);
      DeviceArray<double> device(values);
      DeviceArray<ElementCheck> result(std::vector<ElementCheck>{{~0ull, 0}});
      ArrayView view = ArrayView::matrix(device.data(), 700, cols);
      check_elements(view, row.rule, 10, result.data(), nullptr);
      ElementCheck got = result.download()[0];
      expect_that(got.first_bad == ~0ull, "good values failed at ", got.first_bad);
      expect_that(got.positive == (row.good > 0 ? values.size() : 0), "positive ", got.positive);
      values[values.size() - 1] = row.bad;
      values[300] = row.bad;
      device.upload(values);
      result.upload({{~0ull, 0}});
      check_elements(view, row.rule, 10, result.data(), nullptr);
      got = result.download()[0];
      expect_that(got.first_bad == 300, "expected 300, got ", got.first_bad);
    }
  context = "check of strided integers";
  DataSet data(DType::kInt16, 50, 9, DataSet::kReversed, 1);
  DeviceArray<ElementCheck> result(std::vector<ElementCheck>{{~0ull, 0}});
  check_elements(data.view, ElementRule::kNotNegative, 0, result.data(), nullptr);
  std::size_t first = 0;
  while (data.values[first] >= 0) ++first;
  expect_that(result.download()[0].first_bad == first, "first negative");
}

template <class T>
void test_all() {
  test_types<T>();
  test_orders<T>();
  for (const int64_t rows : {1, 63, 64, 65, 300, 517}) {
    test_targets<T>(rows, DType::kInt64, DType::kFloat64, true);
    test_targets<T>(rows, DType::kUInt8, DType::kUInt8, false);
  }
  test_invalid_labels<T>();
  test_dense<T>();
}

void tests() {
  test_all<float>();
  test_all<double>();
  test_planes();
  test_checks();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
