// The matrix products of a dense layer against double-precision loops: every form, precision, tile
// and epilogue, odd sizes, and what has to be equal bit for bit.
#include <array>
#include <functional>
#include <optional>

#include "cuda/gemm.h"
#include "kernel_test.h"
#include "math/activations.h"
#include "math/philox.h"
#include "matrices.h"

#if defined(TW_CUDA_EMULATED)
#include "cuda/emulator/execution.h"
#endif

namespace thalweg::cuda {
namespace {

using namespace test;

constexpr std::array kPrecisions = {Precision::kSimt, Precision::kBfloat16, Precision::kTwoPlanes,
                                    Precision::kThreePlanes};

template <class T>
constexpr double kUnit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;

// DESIGN.md's bound of a product, relative to |A| |B|.
template <class T>
double product_bound(int64_t depth) {
  return (16 + std::sqrt(static_cast<double>(depth)) / 16) * kUnit<T>;
}

// ---- Operands -----------------------------------------------------------------------------------

float round_to_bfloat16(float value) {
  if (!std::isfinite(value)) return value;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// A matrix on the device, with planes for the precision, and what a product multiplies of it.
template <class T>
class Operand {
 public:
  Operand(int64_t rows, int64_t width, Precision precision, const std::vector<T>& dense)
      : values_(rows * pitch_of(width)), planes_(kMaxPlanes * rows * pitch_of(width)) {
    const int64_t pitch = pitch_of(width);
    matrix_ = {values_.data(),      rows, width, pitch, planes_.data(), rows * pitch,
               planes_of(precision)};
    std::vector<T> padded(static_cast<std::size_t>(rows * pitch), T(0));
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(kMaxPlanes * rows * pitch));
    for (auto& parts : parts_) parts.resize(dense.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const auto at = static_cast<std::size_t>(r * width + c);
        padded[static_cast<std::size_t>(r * pitch + c)] = dense[at];
        if constexpr (sizeof(T) == 4) {
          float left = dense[at];
          for (int p = 0; p < planes_of(precision); ++p) {
            const float part = round_to_bfloat16(left);
            std::uint32_t word;
            std::memcpy(&word, &part, sizeof(word));
            bits[static_cast<std::size_t>((p * rows + r) * pitch + c)] =
                static_cast<std::uint16_t>(word >> 16);
            parts_[static_cast<std::size_t>(p)][at] = static_cast<double>(part);
            left = std::isfinite(left) ? left - part : 0.0f;
          }
        }
        if (precision == Precision::kSimt) parts_[0][at] = static_cast<double>(dense[at]);
        if (precision == Precision::kThreePlanes)
          exact_[1].push_back(static_cast<double>(dense[at]));
      }
    }
    values_.upload(padded);
    planes_.upload(bits);
  }

  operator Matrix<const T>() const { return matrix_; }
  // The parts whose products are taken: part i of one operand with part j of the other where
  // i + j < parts(). Three planes have to be as good as the values.
  int parts() const { return exact_[1].empty() ? std::max(matrix_.plane_count, 1) : 1; }
  double part(int p, int64_t r, int64_t c) const {
    const auto at = static_cast<std::size_t>(r * matrix_.width + c);
    return exact_[1].empty() ? parts_[static_cast<std::size_t>(p)][at] : exact_[1][at];
  }

 private:
  DeviceArray<T> values_;
  DeviceArray<std::uint16_t> planes_;
  Matrix<const T> matrix_;
  std::array<std::vector<double>, kMaxPlanes> parts_;
  std::array<std::vector<double>, 2> exact_;
};

// Sums over k of A(m, k) B(n, k), and of their absolute values.
struct Expected {
  std::vector<double> value;
  std::vector<double> magnitude;
};

template <class T>
using At = std::function<std::pair<int64_t, int64_t>(int64_t, int64_t)>;  // (m, k) -> (row, column)

template <class T>
Expected multiply(const Operand<T>& a, const Operand<T>& b, int64_t m, int64_t n, int64_t depth,
                  bool a_across, bool b_across) {
  Expected out;
  out.value.resize(static_cast<std::size_t>(m * n));
  out.magnitude.resize(out.value.size());
  for (int i = 0; i < a.parts(); ++i) {
    for (int j = 0; i + j < a.parts(); ++j) {
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t c = 0; c < n; ++c) {
          long double sum = 0;
          double magnitude = 0;
          for (int64_t k = 0; k < depth; ++k) {
            const double x = a_across ? a.part(i, k, r) : a.part(i, r, k);
            const double y = b_across ? b.part(j, k, c) : b.part(j, c, k);
            sum += static_cast<long double>(x) * static_cast<long double>(y);
            magnitude += std::abs(x * y);
          }
          out.value[static_cast<std::size_t>(r * n + c)] += static_cast<double>(sum);
          out.magnitude[static_cast<std::size_t>(r * n + c)] += magnitude;
        }
      }
    }
  }
  return out;
}

template <class T>
std::vector<T> whole_numbers(Random& random, int64_t count, int64_t most) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(random.below(2 * most + 1) - most);
  return values;
}

template <class T>
std::vector<double> widened(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

constexpr int64_t kWidest = kTickets * 128 + 8;

// Scratch memory as a problem wants it, and tickets that have to be zero after every launch.
class Workspace {
 public:
  Workspace() : tickets_(tickets_for(kWidest)) { tickets_.fill_bytes(0); }
  template <class Problem>
  Scratch of(const Problem& problem) {
    memory_.emplace(static_cast<int64_t>(scratch_bytes(problem)));
    return {tickets_.data(), memory_->size() > 0 ? memory_->data() : nullptr, tickets_.size()};
  }
  void check_tickets() {
    for (const unsigned ticket : tickets_.download()) expect_that(ticket == 0, "a ticket is left");
    if (memory_) (void)memory_->download();
  }

 private:
  DeviceArray<unsigned> tickets_;
  std::optional<DeviceArray<unsigned char>> memory_;
};

void run_forward(auto& problem, Workspace& workspace) {
  problem.scratch = workspace.of(problem);
  dense_forward(problem, nullptr);
  workspace.check_tickets();
}
void run_input_gradient(auto& problem, Workspace& workspace) {
  problem.scratch = workspace.of(problem);
  dense_input_gradient(problem, nullptr);
  workspace.check_tickets();
}
void run_weight_gradient(auto& problem, Workspace& workspace) {
  problem.scratch = workspace.of(problem);
  dense_weight_gradient(problem, nullptr);
  workspace.check_tickets();
}

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::kSimt:
      return "simt";
    case Precision::kBfloat16:
      return "bfloat16";
    case Precision::kTwoPlanes:
      return "two planes";
    case Precision::kThreePlanes:
      break;
  }
  return "three planes";
}
const char* name_of(TileShape tile) {
  switch (tile) {
    case TileShape::kAutomatic:
      return "automatic";
    case TileShape::kLarge:
      return "large";
    case TileShape::kSmall:
      return "small";
    case TileShape::kNarrow:
      break;
  }
  return "narrow";
}

// ---- Plain products -----------------------------------------------------------------------------

enum class Form { kForward, kInputGradient, kWeightGradient };

struct Shape {
  int64_t rows, in, out;
};

// Runs one product and returns what it gave.
template <class T>
std::vector<T> product(Form form, Precision precision, TileShape tile, const Shape& s,
                       const std::vector<T>& left, const std::vector<T>& right, int parts,
                       Expected* expected) {
  Workspace workspace;
  switch (form) {
    case Form::kForward: {
      const Operand<T> x(s.rows, s.in, precision, left);
      const Operand<T> w(s.out, s.in, precision, right);
      DeviceMatrix<T> y(s.rows, s.out);
      DenseForward<T> problem;
      problem.precision = precision;
      problem.x = x;
      problem.weight = w;
      problem.y = y;
      problem.tile = tile;
      run_forward(problem, workspace);
      if (expected) *expected = multiply(x, w, s.rows, s.out, s.in, false, false);
      return y.dense();
    }
    case Form::kInputGradient: {
      const Operand<T> dy(s.rows, s.out, precision, left);
      const Operand<T> w(s.out, s.in, precision, right);
      DeviceMatrix<T> dx(s.rows, s.in);
      DenseInputGradient<T> problem;
      problem.precision = precision;
      problem.dy = dy;
      problem.weight = w;
      problem.dx = dx;
      problem.tile = tile;
      run_input_gradient(problem, workspace);
      if (expected) *expected = multiply(dy, w, s.rows, s.in, s.out, false, true);
      return dx.dense();
    }
    case Form::kWeightGradient:
      break;
  }
  const Operand<T> dy(s.rows, s.out, precision, left);
  const Operand<T> x(s.rows, s.in, precision, right);
  DeviceMatrix<T> dw(s.out, s.in);
  DenseWeightGradient<T> problem;
  problem.precision = precision;
  problem.dy = dy;
  problem.x = x;
  problem.dw = dw;
  problem.tile = tile;
  problem.parts = parts;
  run_weight_gradient(problem, workspace);
  if (expected) *expected = multiply(dy, x, s.out, s.in, s.rows, true, true);
  return dw.dense();
}

int64_t left_size(Form form, const Shape& s) {
  return s.rows * (form == Form::kForward ? s.in : s.out);
}
int64_t right_size(Form form, const Shape& s) {
  return s.in * (form == Form::kWeightGradient ? s.rows : s.out);
}
int64_t depth_of(Form form, const Shape& s) {
  return form == Form::kForward ? s.in : form == Form::kInputGradient ? s.out : s.rows;
}

template <class T>
void set_context(const char* test, Form form, Precision precision, TileShape tile, const Shape& s) {
  const char* const forms[] = {"forward", "input gradient", "weight gradient"};
  context =
      concat(test, " ", forms[static_cast<int>(form)], " ", sizeof(T) * 8, " ", name_of(precision),
             " ", name_of(tile), " tile, batch ", s.rows, ", ", s.in, " -> ", s.out);
}

// Whole numbers are exact in every precision.
template <class T>
void test_whole_numbers(Form form, Precision precision, TileShape tile, const Shape& s,
                        int parts = 0) {
  set_context<T>("whole numbers", form, precision, tile, s);
  Random random(static_cast<std::uint64_t>(s.rows * 7 + s.in * 3 + s.out));
  const auto left = whole_numbers<T>(random, left_size(form, s), 4);
  const auto right = whole_numbers<T>(random, right_size(form, s), 4);
  Expected expected;
  const auto got = product(form, precision, tile, s, left, right, parts, &expected);
  expect_close("product", got, expected.value, 0.0);
}

// Numbers of both signs and positive numbers: rounding errors that cancel, and ones that add up.
template <class T>
void test_bounds(Form form, Precision precision, TileShape tile, const Shape& s, int parts = 0) {
  for (const bool positive : {false, true}) {
    set_context<T>(positive ? "positive" : "normal", form, precision, tile, s);
    Random random(static_cast<std::uint64_t>(s.rows + s.in * 5 + s.out * 11));
    auto left = random.normals<T>(left_size(form, s));
    auto right = random.normals<T>(right_size(form, s));
    if (positive) {
      for (T& value : left) value = std::abs(value);
      for (T& value : right) value = std::abs(value);
    }
    Expected expected;
    const auto got = product(form, precision, tile, s, left, right, parts, &expected);
    const double bound = product_bound<T>(depth_of(form, s));
    std::vector<double> bounds;
    for (const double magnitude : expected.magnitude) bounds.push_back(bound * magnitude);
    expect_close("product", got, expected.value, bounds);
  }
}

// A NaN or an infinity of an operand reaches its row (or column) of the result, and nothing else.
template <class T>
void test_not_finite(Form form, Precision precision, TileShape tile) {
  const Shape s{70, 37, 21};
  set_context<T>("not finite", form, precision, tile, s);
  const int64_t m = form == Form::kWeightGradient ? s.out : s.rows;
  const int64_t n = form == Form::kForward ? s.out : s.in;
  Random random(3);
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const bool in_left : {true, false}) {
      auto left = random.normals<T>(left_size(form, s));
      auto right = random.normals<T>(right_size(form, s));
      auto& operand = in_left ? left : right;
      const int64_t width = static_cast<int64_t>(operand.size()) /
                            (in_left || form == Form::kWeightGradient ? s.rows : s.out);
      const int64_t row = 13;
      const int64_t column = 5;
      operand[static_cast<std::size_t>(row * width + column)] = static_cast<T>(bad);
      const bool across =
          form == Form::kWeightGradient || (form == Form::kInputGradient && !in_left);
      const int64_t hit = across ? column : row;
      const auto got = product<T>(form, precision, tile, s, left, right, 2, nullptr);
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t c = 0; c < n; ++c) {
          const bool expected = (in_left ? r : c) == hit;
          const T value = got[static_cast<std::size_t>(r * n + c)];
          expect_that(std::isfinite(value) != expected, "[", r, ", ", c, "]: got ",
                      static_cast<double>(value));
        }
      }
    }
  }
}

// The output of a row is the same in every batch and every tile.
template <class T>
void test_rows_are_independent(Precision precision) {
  const Shape s{150, 300, 40};
  set_context<T>("rows alone", Form::kForward, precision, TileShape::kAutomatic, s);
  Random random(9);
  const auto x = random.normals<T>(s.rows * s.in);
  const auto w = random.normals<T>(s.out * s.in);
  const auto all = product<T>(Form::kForward, precision, TileShape::kSmall, s, x, w, 0, nullptr);
  for (const TileShape tile : {TileShape::kNarrow, TileShape::kLarge}) {
    if (tile == TileShape::kLarge && sizeof(T) == 8) continue;
    expect_same_bits("tile", product<T>(Form::kForward, precision, tile, s, x, w, 0, nullptr), all);
  }
  const std::vector<T> last(x.end() - s.in, x.end());
  const auto one = product<T>(Form::kForward, precision, TileShape::kAutomatic, {1, s.in, s.out},
                              last, w, 0, nullptr);
  expect_same_bits("row", one, {all.end() - s.out, all.end()});
}

// ---- Epilogue of the forward product ------------------------------------------------------------

// phi and its derivative at z, from their definitions.
double phi(int id, double z, double a) {
  switch (id) {
    case kActivationIdentity:
      return z;
    case kActivationRelu:
      return z > 0 ? z : 0;
    case kActivationLeakyRelu:
      return z > 0 ? z : a * z;
    case kActivationElu:
      return z > 0 ? z : a * std::expm1(z);
    case kActivationGelu:
      return z * 0.5 * std::erfc(-z / std::sqrt(2.0));
    case kActivationSilu:
      return z / (1 + std::exp(-z));
    case kActivationSigmoid:
      return 1 / (1 + std::exp(-z));
    case kActivationTanh:
      return std::tanh(z);
    case kActivationSoftplus:
      return z > 0 ? z + std::log1p(std::exp(-z)) : std::log1p(std::exp(z));
    default:
      return std::nan("");
  }
}

double phi_slope(int id, double z, double a) {
  const double s = 1 / (1 + std::exp(-z));
  switch (id) {
    case kActivationIdentity:
      return 1;
    case kActivationRelu:
      return z > 0;
    case kActivationLeakyRelu:
      return z > 0 ? 1 : a;
    case kActivationElu:
      return z > 0 ? 1 : a * std::exp(z);
    case kActivationGelu:
      return 0.5 * std::erfc(-z / std::sqrt(2.0)) +
             z * std::exp(-z * z / 2) / std::sqrt(2 * 3.141592653589793);
    case kActivationSilu:
      return s * (1 + z * (1 - s));
    case kActivationSigmoid:
      return s * (1 - s);
    case kActivationTanh:
      return 1 - std::tanh(z) * std::tanh(z);
    case kActivationSoftplus:
      return s;
    default:
      return std::nan("");
  }
}

bool needs_input(int id) {
  return dispatch_activation(
      id, [](auto a) { return decltype(a)::backward_needs == ActivationNeeds::input; });
}

double parameter_of(int id) {
  return id == kActivationLeakyRelu ? 0.125 : id == kActivationElu ? 0.75 : 0.0;
}

// The factor of dropout, by its rule.
double dropped(const Dropout& dropout, std::uint64_t step, int64_t width, int64_t row, int64_t c) {
  const auto element = static_cast<std::uint64_t>((dropout.first_row + row) * width + c);
  const std::uint32_t word =
      philox_word(dropout.seed, static_cast<std::uint16_t>(dropout.stream), step, element);
  return word >= dropout.threshold ? dropout.scale : 0.0;
}

Dropout make_dropout(const StepState* state) {
  Dropout dropout;
  dropout.seed = 77;
  dropout.state = state;
  dropout.step = 5;
  dropout.stream = 3;
  dropout.threshold = static_cast<std::uint32_t>(bernoulli_threshold(0.25));
  dropout.scale = 1 / 0.75;
  dropout.first_row = 10;
  return dropout;
}

template <class T>
std::vector<T> padded(const std::vector<T>& values) {
  std::vector<T> out = values;
  out.resize(static_cast<std::size_t>(pitch_of(static_cast<int64_t>(values.size()))), T(0));
  return out;
}

bool bit_of(const std::vector<std::uint32_t>& words, int64_t width, int64_t r, int64_t c) {
  return (words[static_cast<std::size_t>(r * sign_words(width) + c / 32)] >> (c % 32) & 1u) != 0;
}

// Scale, shift, a sum with what was there, z, activation, signs, dropout, rounding and planes.
template <class T>
void test_forward_epilogue(Precision precision, TileShape tile, const Shape& s, int id, bool drops,
                           int planes) {
  set_context<T>("epilogue", Form::kForward, precision, tile, s);
  const bool accumulate = id % 3 == 1;
  context += concat(" ", activation_name(id), drops ? " dropout" : "",
                    accumulate ? " accumulates" : "", " ", planes, " planes");
  Random random(static_cast<std::uint64_t>(s.rows + id));
  const Operand<T> x(s.rows, s.in, precision, random.normals<T>(s.rows * s.in));
  const Operand<T> w(s.out, s.in, precision, random.normals<T>(s.out * s.in, 0.3));
  const auto scale = random.normals<T>(s.out, 0.5, 1);
  const auto shift = random.normals<T>(s.out);
  DeviceArray<T> device_scale(padded(scale));
  DeviceArray<T> device_shift(padded(shift));
  DeviceMatrix<T> y(s.rows, s.out, planes, planes == 1);
  const auto before = random.normals<T>(s.rows * s.out);
  if (accumulate) y.assign(before);
  DeviceMatrix<T> z(s.rows, s.out);
  DeviceArray<std::uint32_t> signs(s.rows * sign_words(s.out));
  StepState state;
  state.steps = 1000003;
  DeviceArray<StepState> device_state(std::vector<StepState>{state});
  Workspace workspace;
  DenseForward<T> problem;
  problem.precision = precision;
  problem.tile = tile;
  problem.x = x;
  problem.weight = w;
  problem.y = y;
  problem.scale = device_scale.data();
  problem.shift = device_shift.data();
  problem.accumulate = accumulate;
  problem.activation = {id, parameter_of(id)};
  problem.pre = z;
  problem.signs = signs.data();
  problem.drops = drops;
  problem.dropout = make_dropout(id % 2 == 0 ? device_state.data() : nullptr);
  run_forward(problem, workspace);

  const Expected expected = multiply(x, w, s.rows, s.out, s.in, false, false);
  const auto got_z = z.dense();
  const auto got_y = y.dense();
  const auto words = signs.download();
  const double bound = product_bound<T>(s.in);
  std::vector<double> want_z;
  std::vector<double> bound_z;
  std::vector<double> want_y;
  std::vector<double> bound_y;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < s.out; ++c) {
      const auto at = static_cast<std::size_t>(r * s.out + c);
      const double by = static_cast<double>(scale[static_cast<std::size_t>(c)]);
      const double plus = static_cast<double>(shift[static_cast<std::size_t>(c)]);
      const double added = accumulate ? static_cast<double>(before[at]) : 0.0;
      want_z.push_back(expected.value[at] * by + plus + added);
      bound_z.push_back(bound * expected.magnitude[at] * std::abs(by) +
                        3 * kUnit<T> * (std::abs(expected.value[at] * by) + std::abs(plus)) +
                        kUnit<T> * std::abs(added));
      const double kept =
          drops ? dropped(problem.dropout, id % 2 == 0 ? 1000003 : 5, s.out, r, c) : 1.0;
      // From the z that was stored: the activation alone.
      const double value =
          phi(id, static_cast<double>(got_z[at]), problem.activation.parameter) * kept;
      want_y.push_back(value);
      const double at_z = static_cast<double>(got_z[at]);
      const double rounding = planes == 1 ? 0x1p-8 : 8 * kUnit<T> * (1 + at_z * at_z);
      bound_y.push_back(rounding * std::abs(value) + kUnit<T> * 1e-3);
      const bool positive = got_y[at] > T(0);
      expect_that(bit_of(words, s.out, r, c) == positive, "sign [", r, ", ", c, "]: expected ",
                  positive);
      if (drops && kept == 0.0) expect_that(got_y[at] == T(0), "dropped [", r, ", ", c, "]");
    }
    for (int64_t c = s.out; c < 32 * sign_words(s.out); ++c) {
      expect_that(!bit_of(words, s.out, r, c), "sign beyond the width [", r, ", ", c, "]");
    }
  }
  expect_close("z", got_z, want_z, bound_z);
  expect_close("y", got_y, want_y, bound_y);
}

// ---- Batch-norm statistics ----------------------------------------------------------------------

template <class T>
void test_statistics(Precision precision, TileShape tile, const Shape& s, double mean,
                     bool weighted) {
  set_context<T>("statistics", Form::kForward, precision, tile, s);
  context += concat(" mean ", mean, weighted ? " weighted" : "");
  Random random(static_cast<std::uint64_t>(s.rows));
  // The first column of X times the first of W makes the mean.
  auto x = random.normals<T>(s.rows * s.in);
  auto w = random.normals<T>(s.out * s.in, 0.5);
  for (int64_t r = 0; r < s.rows; ++r) x[static_cast<std::size_t>(r * s.in)] = T(1);
  for (int64_t c = 0; c < s.out; ++c) {
    w[static_cast<std::size_t>(c * s.in)] = static_cast<T>(mean * static_cast<double>(c % 3 - 1));
  }
  const Operand<T> device_x(s.rows, s.in, precision, x);
  const Operand<T> device_w(s.out, s.in, precision, w);
  DeviceMatrix<T> y(s.rows, s.out);
  const int64_t pitch = pitch_of(s.out);
  const auto blocks = static_cast<std::size_t>(row_blocks_of(s.rows));
  std::vector<T> weights(static_cast<std::size_t>(s.rows));
  std::vector<double> block_weights(blocks);
  double total = 0;
  for (int64_t r = 0; r < s.rows; ++r) {
    // The second row block weighs nothing.
    const double weight = r / kRowBlock == 1 ? 0 : random.uniform() + 0.1;
    weights[static_cast<std::size_t>(r)] = static_cast<T>(weight);
    block_weights[static_cast<std::size_t>(r / kRowBlock)] +=
        static_cast<double>(weights[static_cast<std::size_t>(r)]);
  }
  for (const double weight : block_weights) total += weight;
  DeviceArray<T> device_weights(weights);
  DeviceArray<double> device_block_weights(block_weights);
  DeviceArray<double> device_total(std::vector<double>{total});
  DeviceArray<T> device_mean(pitch);
  DeviceArray<T> inv_std(pitch);
  DeviceArray<double> batch_mean(pitch);
  DeviceArray<double> batch_var(pitch);
  Workspace workspace;
  DenseForward<T> problem;
  problem.precision = precision;
  problem.tile = tile;
  problem.x = device_x;
  problem.weight = device_w;
  problem.y = y;
  problem.takes_statistics = true;
  if (weighted) {
    problem.row_weights = {device_weights.data(), device_block_weights.data(), device_total.data()};
  }
  problem.statistics = {1e-5, batch_mean.data(), batch_var.data(), device_mean.data(),
                        inv_std.data()};
  run_forward(problem, workspace);

  const auto got_y = y.dense();
  const auto got_mean = batch_mean.download();
  const auto got_var = batch_var.download();
  const auto stored_mean = device_mean.download();
  const auto stored_inv_std = inv_std.download();
  for (int64_t c = 0; c < pitch; ++c) {
    const auto at = static_cast<std::size_t>(c);
    if (c >= s.out) {
      expect_that(got_mean[at] == 0 && got_var[at] == 0 && stored_mean[at] == T(0) &&
                      stored_inv_std[at] == T(0),
                  "padding of statistics at ", c);
      continue;
    }
    double weight_sum = 0;
    double sum = 0;
    for (int pass = 0; pass < 2; ++pass) {
      weight_sum = 0;
      double next = 0;
      const double around = pass == 0 ? 0 : sum;
      for (int64_t r = 0; r < s.rows; ++r) {
        const double weight =
            weighted ? static_cast<double>(weights[static_cast<std::size_t>(r)]) : 1;
        weight_sum += weight;
        next +=
            weight * (static_cast<double>(got_y[static_cast<std::size_t>(r * s.out + c)]) - around);
      }
      sum = around + next / weight_sum;
    }
    double squares = 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      const double weight =
          weighted ? static_cast<double>(weights[static_cast<std::size_t>(r)]) : 1;
      const double d = static_cast<double>(got_y[static_cast<std::size_t>(r * s.out + c)]) - sum;
      squares += weight * d * d;
    }
    const double variance = squares / weight_sum;
    const double deviation = std::sqrt(variance);
    expect_that(std::abs(got_mean[at] - sum) <= 1e-6 * deviation, "mean ", c, ": expected ", sum,
                ", got ", got_mean[at]);
    expect_that(std::abs(got_var[at] - variance) <= 1e-5 * variance, "variance ", c, ": expected ",
                variance, ", got ", got_var[at]);
    expect_that(std::abs(static_cast<double>(stored_mean[at]) - sum) <=
                    1e-6 * deviation + kUnit<T> * std::abs(sum),
                "stored mean ", c);
    const double want = 1 / std::sqrt(got_var[at] + 1e-5);
    expect_that(std::abs(static_cast<double>(stored_inv_std[at]) - want) <= 2 * kUnit<T> * want,
                "inv_std ", c);
  }
}

// ---- Softmax cross-entropy ----------------------------------------------------------------------

struct LossCase {
  bool weighted = false;
  double smoothing = 0;
  double size = 1;  // of the logits
  bool keeps_logits = false;
  bool trains = false;  // sums to a StepState
};

template <class T>
void test_loss(Precision precision, const Shape& s, const LossCase& options) {
  set_context<T>("loss", Form::kForward, precision, TileShape::kAutomatic, s);
  context += concat(" size ", options.size, " smoothing ", options.smoothing,
                    options.weighted ? " weighted" : "");
  Random random(static_cast<std::uint64_t>(s.rows + s.out));
  const Operand<T> x(s.rows, s.in, precision, whole_numbers<T>(random, s.rows * s.in, 3));
  auto w = whole_numbers<T>(random, s.out * s.in, 3);
  for (T& value : w) value *= static_cast<T>(options.size);
  const Operand<T> device_w(s.out, s.in, precision, w);
  std::vector<int64_t> labels;
  std::vector<T> weights;
  for (int64_t r = 0; r < s.rows; ++r) {
    labels.push_back(random.below(s.out));
    weights.push_back(static_cast<T>(random.uniform()));
  }
  DeviceArray<int64_t> device_labels(labels);
  DeviceArray<T> device_weights(weights);
  DeviceMatrix<T> logits(s.rows, s.out);
  DeviceMatrix<T> gradient(s.rows, s.out, sizeof(T) == 4 ? planes_of(precision) : 0,
                           precision == Precision::kBfloat16);
  DeviceArray<T> bias(pitch_of(s.out));
  bias.fill_bytes(0);
  const double scale = 1.0 / static_cast<double>(s.rows);
  DeviceArray<double> device_scale(std::vector<double>{scale});
  StepState state;
  state.loss = 2;
  state.hits = 3;
  DeviceArray<StepState> device_state(std::vector<StepState>{state});
  DeviceArray<LossSums> sums(1);
  Workspace workspace;
  DenseForward<T> problem;
  problem.precision = precision;
  problem.x = x;
  problem.weight = device_w;
  if (options.keeps_logits) problem.y = logits;
  problem.takes_loss = true;
  problem.loss.labels = device_labels.data();
  if (options.weighted) problem.loss.row_weights = device_weights.data();
  problem.loss.label_smoothing = options.smoothing;
  problem.loss.gradient = gradient;
  problem.loss.gradient_scale_at = device_scale.data();
  if (options.trains) {
    problem.loss.state = device_state.data();
    problem.loss.accumulate = true;
  } else {
    problem.loss.sums = sums.data();
  }
  problem.loss_bias_gradient = bias.data();
  problem.accumulate_bias = true;
  run_forward(problem, workspace);

  const Expected expected = multiply(x, device_w, s.rows, s.out, s.in, false, false);
  if (options.keeps_logits) expect_close("logits", logits.dense(), expected.value, 0.0);
  LossSums want{0, 0, 0};
  std::vector<double> want_gradient;
  std::vector<double> want_bias(static_cast<std::size_t>(pitch_of(s.out)));
  for (int64_t r = 0; r < s.rows; ++r) {
    const double* z = &expected.value[static_cast<std::size_t>(r * s.out)];
    const double weight =
        options.weighted ? static_cast<double>(weights[static_cast<std::size_t>(r)]) : 1.0;
    const int64_t largest = std::max_element(z, z + s.out) - z;
    double sum = 0;
    for (int64_t c = 0; c < s.out; ++c) sum += std::exp(z[c] - z[largest]);
    const int64_t label = labels[static_cast<std::size_t>(r)];
    for (int64_t c = 0; c < s.out; ++c) {
      const double log_probability = z[c] - z[largest] - std::log(sum);
      const double target = (c == label ? 1 - options.smoothing : 0.0) +
                            options.smoothing / static_cast<double>(s.out);
      if (target != 0) want.loss -= weight * target * log_probability;
      want_gradient.push_back(scale * weight * (std::exp(log_probability) - target));
      want_bias[static_cast<std::size_t>(c)] += want_gradient.back();
    }
    want.hits += largest == label ? weight : 0;
    want.weight += weight;
  }
  std::vector<double> bounds;
  for (const double value : want_gradient) {
    const double rounding = precision == Precision::kBfloat16 ? 0x1p-8 : 0.0;
    bounds.push_back(1e-6 * scale + rounding * std::abs(value));
  }
  expect_close("gradient", gradient.dense(), want_gradient, bounds);
  const double bias_bound = precision == Precision::kBfloat16 ? 0x1p-8 : 1e-6;
  expect_close("bias gradient", bias.download(), want_bias, bias_bound);
  const double loss_bound = 1e-6 * std::max(want.loss, 1.0);
  if (options.trains) {
    const StepState after = device_state.download()[0];
    expect_that(std::abs(after.loss - 2 - want.loss) <= loss_bound, "loss: expected ",
                want.loss + 2, ", got ", after.loss);
    expect_that(std::abs(after.hits - 3 - want.hits) <= 1e-6, "hits: expected ", want.hits + 3,
                ", got ", after.hits);
    expect_that(after.status == StepStatus::kRunning, "status");
  } else {
    const LossSums got = sums.download()[0];
    expect_that(std::abs(got.loss - want.loss) <= loss_bound, "loss: expected ", want.loss,
                ", got ", got.loss);
    expect_that(std::abs(got.hits - want.hits) <= 1e-6, "hits: expected ", want.hits, ", got ",
                got.hits);
    expect_that(std::abs(got.weight - want.weight) <= 1e-6, "weight: expected ", want.weight,
                ", got ", got.weight);
  }
}

// A loss that is not finite fails a step that would write the model: one whose rows weigh
// something.
void test_loss_fails_step() {
  context = "loss that is not finite";
  std::vector<float> x(65 * 4, 1.0f);
  x[64 * 4] = std::nanf("");
  const Operand<float> device_x(65, 4, Precision::kSimt, x);
  const Operand<float> w(10, 4, Precision::kSimt, std::vector<float>(40, 0.5f));
  DeviceArray<int64_t> labels(std::vector<int64_t>(65, 3));
  for (const double weight : {65.0, 0.0}) {
    StepState before;
    before.weight = weight;
    DeviceArray<StepState> state(std::vector<StepState>{before});
    Workspace workspace;
    DenseForward<float> problem;
    problem.x = device_x;
    problem.weight = w;
    problem.takes_loss = true;
    problem.loss.labels = labels.data();
    problem.loss.state = state.data();
    run_forward(problem, workspace);
    const StepState after = state.download()[0];
    const StepStatus want = weight > 0 ? StepStatus::kLossNotFinite : StepStatus::kRunning;
    expect_that(after.status == want && std::isnan(after.loss), "status at weight ", weight);
  }
}

// ---- Epilogue of the input gradient -------------------------------------------------------------

struct GradientCase {
  int id = 0;
  bool accumulate = false;
  bool drops = false;
  bool signs = false;
};

template <class T>
void test_input_gradient_epilogue(Precision precision, TileShape tile, const Shape& s,
                                  const GradientCase& options) {
  set_context<T>("epilogue", Form::kInputGradient, precision, tile, s);
  context += concat(" ", activation_name(options.id), options.accumulate ? " accumulates" : "",
                    options.drops ? " dropout" : "", options.signs ? " signs" : "");
  Random random(static_cast<std::uint64_t>(s.rows + options.id));
  const Operand<T> dy(s.rows, s.out, precision, random.normals<T>(s.rows * s.out));
  const Operand<T> w(s.out, s.in, precision, random.normals<T>(s.out * s.in));
  const auto z = random.normals<T>(s.rows * s.in);
  const double a = parameter_of(options.id);
  auto at = z;
  if (!needs_input(options.id)) {
    for (T& value : at) value = static_cast<T>(phi(options.id, static_cast<double>(value), a));
  }
  DeviceMatrix<T> device_at(s.rows, s.in, at);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(s.rows * sign_words(s.in)));
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < s.in; ++c) {
      const bool positive = z[static_cast<std::size_t>(r * s.in + c)] > T(0);
      words[static_cast<std::size_t>(r * sign_words(s.in) + c / 32)] |= std::uint32_t{positive}
                                                                        << (c % 32);
    }
  }
  DeviceArray<std::uint32_t> signs(words);
  const auto before = random.normals<T>(s.rows * s.in);
  DeviceMatrix<T> dx =
      options.accumulate ? DeviceMatrix<T>(s.rows, s.in, before) : DeviceMatrix<T>(s.rows, s.in);
  DeviceArray<T> bias(pitch_of(s.in));
  if (options.accumulate)
    bias.upload(std::vector<T>(static_cast<std::size_t>(bias.size()), T(0.5)));
  Workspace workspace;
  DenseInputGradient<T> problem;
  problem.precision = precision;
  problem.tile = tile;
  problem.dy = dy;
  problem.weight = w;
  problem.dx = dx;
  problem.accumulate = options.accumulate;
  problem.drops = options.drops;
  problem.dropout = make_dropout(nullptr);
  if (options.signs) {
    problem.signs = signs.data();
    problem.if_positive = 1.25;
    problem.otherwise = 0.25;
  } else {
    problem.derivative = {options.id, a};
    problem.at = device_at;
  }
  problem.bias_gradient = bias.data();
  problem.accumulate_bias = options.accumulate;
  run_input_gradient(problem, workspace);

  const Expected expected = multiply(dy, w, s.rows, s.in, s.out, false, true);
  const auto got = dx.dense();
  std::vector<double> want;
  std::vector<double> bounds;
  std::vector<double> sums(static_cast<std::size_t>(pitch_of(s.in)));
  std::vector<double> sum_bounds(sums.size());
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t c = 0; c < s.in; ++c) {
      const auto i = static_cast<std::size_t>(r * s.in + c);
      double factor = options.signs ? (z[i] > T(0) ? 1.25 : 0.25)
                                    : phi_slope(options.id, static_cast<double>(z[i]), a);
      if (options.drops) factor *= dropped(problem.dropout, 5, s.in, r, c);
      const double added = options.accumulate ? static_cast<double>(before[i]) : 0.0;
      const double value = (expected.value[i] + added) * factor;
      want.push_back(value);
      // phi' from y loses digits where y is close to its limit.
      const double lost = options.signs ? 0.0 : 8 * kUnit<T>;
      bounds.push_back((product_bound<T>(s.out) + lost) *
                           (expected.magnitude[i] + std::abs(added)) * (std::abs(factor) + lost) +
                       lost * (expected.magnitude[i] + std::abs(added)));
      sums[static_cast<std::size_t>(c)] += static_cast<double>(got[i]);
      sum_bounds[static_cast<std::size_t>(c)] +=
          64 * kUnit<T> * std::abs(static_cast<double>(got[i]));
    }
  }
  if (options.accumulate) {
    for (int64_t c = 0; c < s.in; ++c) sums[static_cast<std::size_t>(c)] += 0.5;
  }
  for (double& bound : sum_bounds) bound += kUnit<T>;
  expect_close("dX", got, want, bounds);
  expect_close("bias gradient", bias.download(), sums, sum_bounds);
}

// ---- Weight gradient ----------------------------------------------------------------------------

template <class T>
void test_weight_gradient_epilogue(Precision precision, TileShape tile, const Shape& s, int parts,
                                   bool accumulate) {
  set_context<T>("epilogue", Form::kWeightGradient, precision, tile, s);
  context += concat(" ", parts, " parts", accumulate ? " accumulates" : "");
  Random random(static_cast<std::uint64_t>(s.rows + parts));
  const Operand<T> dy(s.rows, s.out, precision, whole_numbers<T>(random, s.rows * s.out, 2));
  const Operand<T> x(s.rows, s.in, precision, whole_numbers<T>(random, s.rows * s.in, 2));
  const auto before = whole_numbers<T>(random, s.out * s.in, 9);
  DeviceMatrix<T> dw =
      accumulate ? DeviceMatrix<T>(s.out, s.in, before) : DeviceMatrix<T>(s.out, s.in);
  DeviceArray<double> squares(1);
  Workspace workspace;
  DenseWeightGradient<T> problem;
  problem.precision = precision;
  problem.tile = tile;
  problem.parts = parts;
  problem.dy = dy;
  problem.x = x;
  problem.dw = dw;
  problem.accumulate = accumulate;
  problem.squares = squares.data();
  run_weight_gradient(problem, workspace);
  Expected expected = multiply(dy, x, s.out, s.in, s.rows, true, true);
  double sum = 0;
  for (std::size_t i = 0; i < expected.value.size(); ++i) {
    if (accumulate) expected.value[i] += static_cast<double>(before[i]);
    sum += expected.value[i] * expected.value[i];
  }
  expect_close("dW", dw.dense(), expected.value, 0.0);
  expect_close("squares", squares.download(), {sum}, 0.0);
}

// ---- Replays, and what stands alone -------------------------------------------------------------

// A graph of all three products, replayed: the same bits every time, whatever the schedule.
void test_replays(Precision precision) {
  context = "replays";
  const Shape s{2200, 40, 20};
  Random random(5);
  const Operand<float> x(s.rows, s.in, precision, random.normals<float>(s.rows * s.in));
  const Operand<float> w(s.out, s.in, precision, random.normals<float>(s.out * s.in));
  const Operand<float> dy(s.rows, s.out, precision, random.normals<float>(s.rows * s.out));
  DeviceMatrix<float> y(s.rows, s.out);
  DeviceMatrix<float> dx(s.rows, s.in);
  DeviceMatrix<float> dw(s.out, s.in);
  DeviceArray<float> mean(pitch_of(s.out));
  DeviceArray<float> inv_std(pitch_of(s.out));
  DeviceArray<float> bias(pitch_of(s.in));
  DeviceArray<double> squares(1);
  DenseForward<float> forward;
  forward.precision = precision;
  forward.x = x;
  forward.weight = w;
  forward.y = y;
  forward.takes_statistics = true;
  forward.statistics = {1e-5, nullptr, nullptr, mean.data(), inv_std.data()};
  DenseInputGradient<float> input;
  input.precision = precision;
  input.dy = dy;
  input.weight = w;
  input.dx = dx;
  input.bias_gradient = bias.data();
  DenseWeightGradient<float> weight;
  weight.precision = precision;
  weight.dy = dy;
  weight.x = x;
  weight.dw = dw;
  weight.parts = 20;
  weight.squares = squares.data();
  const std::size_t bytes =
      std::max({scratch_bytes(forward), scratch_bytes(input), scratch_bytes(weight)});
  DeviceArray<unsigned char> memory(static_cast<int64_t>(bytes));
  DeviceArray<unsigned> tickets(kTickets);
  tickets.fill_bytes(0);
  forward.scratch = input.scratch = weight.scratch = {tickets.data(), memory.data()};

  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "test");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  dense_forward(forward, stream);
  dense_input_gradient(input, stream);
  dense_weight_gradient(weight, stream);
  check(cudaStreamEndCapture(stream, &graph), "test");
  check(cudaGraphInstantiate(&replay, graph, 0), "test");
  std::optional<std::vector<float>> first;
  for (int run = 0; run < 3; ++run) {
    memory.fill_bytes(0xff);
    check(cudaDeviceSynchronize(), "test");  // the stream does not wait for the default one
    check(cudaGraphLaunch(replay, stream), "test");
    check(cudaStreamSynchronize(stream), "test");
    std::vector<float> all;
    for (const auto& part : {y.dense(), dx.dense(), dw.dense(), mean.download(), inv_std.download(),
                             bias.download()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    all.push_back(static_cast<float>(squares.download()[0]));
    if (!first) first = all;
    expect_same_bits("replay", all, *first);
    for (const float value : all) expect_that(std::isfinite(value), "not finite");
  }
  check(cudaGraphExecDestroy(replay), "test");
  check(cudaGraphDestroy(graph), "test");
  check(cudaStreamDestroy(stream), "test");
}

// ---- Scratch memory -----------------------------------------------------------------------------

// What is reserved for a batch is enough for any smaller one.
template <class T>
void test_scratch_grows_with_rows(int64_t out, int64_t in) {
  context = concat("scratch memory ", sizeof(T) * 8, " ", out, "x", in);
  T vector{};  // nothing is launched: that it is there counts
  double squares = 0;
  const auto matrix = [](int64_t rows, int64_t width) {
    Matrix<T> shape;
    shape.rows = rows;
    shape.width = width;
    shape.pitch = pitch_of(width);
    return shape;
  };
  const auto bytes = [&](int64_t rows) {
    DenseForward<T> statistics;
    statistics.x = matrix(rows, in);
    statistics.weight = matrix(out, in);
    statistics.y = matrix(rows, out);
    statistics.takes_statistics = true;
    DenseForward<T> loss = statistics;
    loss.takes_statistics = false;
    loss.takes_loss = out <= kFusedClasses<T>;
    loss.loss_bias_gradient = &vector;
    DenseInputGradient<T> input;
    input.dy = matrix(rows, out);
    input.weight = matrix(out, in);
    input.dx = matrix(rows, in);
    input.bias_gradient = &vector;
    DenseWeightGradient<T> weight;
    weight.dy = input.dy;
    weight.x = statistics.x;
    weight.dw = matrix(out, in);
    weight.squares = &squares;
    ColumnSums<T> sums;
    sums.x = statistics.x;
    return std::array{scratch_bytes(statistics), scratch_bytes(loss), scratch_bytes(input),
                      scratch_bytes(weight), scratch_bytes(sums)};
  };
  const auto check_pair = [&](int64_t rows, int64_t capacity) {
    const auto needed = bytes(rows);
    const auto reserved = bytes(capacity);
    for (std::size_t i = 0; i < needed.size(); ++i)
      expect_that(needed[i] <= reserved[i], "problem ", i, ": ", capacity, " rows need ",
                  reserved[i], " bytes, but ", rows, " need ", needed[i]);
  };
  for (int64_t rows = 1; rows < 50000; rows += rows < 1500 ? 1 : 37) check_pair(rows, rows + 37);
  for (const int64_t rows : {16384, 2016 * 64, 4064 * 64}) {
    for (int64_t more = 64; more < 20000; more += 640) check_pair(rows, rows + more);
  }
  Random random(static_cast<std::uint64_t>(out + in));
  for (int i = 0; i < 3000; ++i) {
    const int64_t capacity = 1 + random.below(400000);
    check_pair(1 + random.below(capacity), capacity);
  }
}

template <class T>
void test_column_sums(int64_t rows, int64_t width, bool accumulate) {
  context = concat("column sums ", sizeof(T) * 8, " ", rows, "x", width);
  Random random(static_cast<std::uint64_t>(rows));
  const auto x = random.normals<T>(rows * width);
  DeviceMatrix<T> device_x(rows, width, x);
  DeviceArray<T> sums(pitch_of(width));
  if (accumulate) sums.upload(std::vector<T>(static_cast<std::size_t>(sums.size()), T(2)));
  Workspace workspace;
  ColumnSums<T> problem{
      .x = device_x, .sums = sums.data(), .accumulate = accumulate, .scratch = {}};
  problem.scratch = workspace.of(problem);
  column_sums(problem, nullptr);
  workspace.check_tickets();
  std::vector<double> want(static_cast<std::size_t>(pitch_of(width)));
  std::vector<double> bounds(want.size());
  for (int64_t c = 0; c < width; ++c) {
    const auto at = static_cast<std::size_t>(c);
    want[at] = accumulate ? 2 : 0;
    for (int64_t r = 0; r < rows; ++r) {
      const double value = static_cast<double>(x[static_cast<std::size_t>(r * width + c)]);
      want[at] += value;
      bounds[at] += 16 * kUnit<T> * std::abs(value);
    }
    bounds[at] += 2 * kUnit<T>;
  }
  expect_close("sums", sums.download(), want, bounds);
}

void test_split_planes(int planes, bool rounded) {
  context = concat("split planes ", planes, rounded ? " rounded" : "");
  const int64_t rows = 13;
  const int64_t width = 21;
  Random random(4);
  auto values = random.normals<float>(rows * width, 100);
  const float special[] = {0.0f,      -0.0f,     3.4028235e38f,  -3.4028235e38f,
                           0x1p-130f, HUGE_VALF, -HUGE_VALF,     std::nanf(""),
                           0x1.01p0f, 0x1.03p0f, 1.17549435e-38f};
  std::copy(std::begin(special), std::end(special), values.begin());
  DeviceMatrix<float> source(rows, width, values);
  DeviceMatrix<float> target(rows, width, planes, rounded);
  Matrix<float> matrix = target.matrix();
  check(
      cudaMemcpy(matrix.data, source.matrix().data,
                 static_cast<std::size_t>(matrix.size()) * sizeof(float), cudaMemcpyDeviceToDevice),
      "test");
  split_planes(matrix, nullptr);
  const auto got = target.dense();  // compares the planes with the values
  for (std::size_t i = 0; i < got.size(); ++i) {
    float want = values[i];
    if (rounded && std::isfinite(want)) {
      want = round_to_bfloat16(want);
      if (std::isinf(want)) want = std::copysign(0x1.fep127f, want);
    }
    expect_that(got[i] == want || (std::isnan(got[i]) && std::isnan(want)), "value ", i,
                ": expected ", static_cast<double>(want), ", got ", static_cast<double>(got[i]));
  }
}

// A tile that a product does not have is an error, not another tile.
void test_missing_tile() {
  context = "a tile that there is not";
  const Operand<double> x(3, 4, Precision::kSimt, std::vector<double>(12, 1.0));
  const Operand<double> w(5, 4, Precision::kSimt, std::vector<double>(20, 1.0));
  DeviceMatrix<double> y(3, 5);
  DenseForward<double> problem;
  problem.x = x;
  problem.weight = w;
  problem.y = y;
  problem.tile = TileShape::kLarge;
  bool thrown = false;
  try {
    dense_forward(problem, nullptr);
  } catch (const InternalError&) {
    thrown = true;
  }
  expect_that(thrown, "expected an InternalError");
}

// ---- All of it ----------------------------------------------------------------------------------

bool exists(Form form, TileShape tile, bool is_double) {
  if (tile == TileShape::kLarge) return !is_double;
  return tile != TileShape::kNarrow || form != Form::kInputGradient;
}

template <class T>
void test_products(Precision precision) {
  const Shape shapes[] = {{1, 1, 1}, {7, 33, 10}, {64, 64, 64}, {65, 100, 31}, {129, 31, 130}};
  for (const Form form : {Form::kForward, Form::kInputGradient, Form::kWeightGradient}) {
    for (const TileShape tile :
         {TileShape::kAutomatic, TileShape::kLarge, TileShape::kSmall, TileShape::kNarrow}) {
      if (!exists(form, tile, sizeof(T) == 8)) continue;
      for (const Shape& s : shapes) test_whole_numbers<T>(form, precision, tile, s);
    }
    // Deep: over several stages and promotions; of the batch, in several parts and groups of parts.
    const Shape deep = form == Form::kForward         ? Shape{33, 1100, 20}
                       : form == Form::kInputGradient ? Shape{33, 20, 1100}
                                                      : Shape{1100, 33, 20};
    test_bounds<T>(form, precision, TileShape::kSmall, deep, 1);
    if (form == Form::kWeightGradient) {
      test_bounds<T>(form, precision, TileShape::kAutomatic, deep);
      test_whole_numbers<T>(form, precision, TileShape::kSmall, {1100, 70, 66}, 17);
    }
    test_not_finite<T>(form, precision, TileShape::kSmall);
  }
  test_whole_numbers<T>(Form::kForward, precision, TileShape::kSmall, {600, 9, 70});
  test_rows_are_independent<T>(precision);
}

template <class T>
void test_epilogues(Precision precision) {
  const bool is_double = sizeof(T) == 8;
  const int planes = is_double ? 0 : planes_of(precision);
  for (int id = 0; id < kActivationCount; ++id) {
    const TileShape tile = id % 2 == 0 ? TileShape::kSmall : TileShape::kAutomatic;
    test_forward_epilogue<T>(precision, tile, {70, 20, 37 + id}, id, id % 2 == 1, planes);
    test_input_gradient_epilogue<T>(precision, TileShape::kSmall, {70, 37 + id, 20},
                                    {.id = id, .accumulate = id % 3 == 1, .drops = id % 2 == 1});
  }
  test_forward_epilogue<T>(precision, TileShape::kNarrow, {130, 20, 10}, kActivationRelu, true,
                           planes);
  if (!is_double) {
    test_forward_epilogue<T>(precision, TileShape::kLarge, {130, 20, 129}, kActivationRelu, true,
                             planes);
    test_input_gradient_epilogue<T>(precision, TileShape::kLarge, {130, 129, 20},
                                    {.id = kActivationTanh, .drops = true});
  }
  test_input_gradient_epilogue<T>(precision, TileShape::kSmall, {129, 70, 9}, {.signs = true});
  test_input_gradient_epilogue<T>(precision, TileShape::kSmall, {2200, 9, 9},
                                  {.accumulate = true, .signs = true});

  test_statistics<T>(precision, TileShape::kAutomatic, {2200, 5, 12}, 2, false);
  test_statistics<T>(precision, TileShape::kSmall, {193, 5, 33}, 1e4, false);
  test_statistics<T>(precision, TileShape::kSmall, {193, 5, 33}, 100, true);
  if (!is_double) test_statistics<T>(precision, TileShape::kLarge, {257, 5, 130}, 2, true);

  test_loss<T>(precision, {65, 6, 10}, {.keeps_logits = true});
  test_loss<T>(precision, {2200, 3, 10}, {.weighted = true, .trains = true});
  test_loss<T>(precision, {100, 6, 33}, {.weighted = true, .smoothing = 0.1});
  test_loss<T>(precision, {31, 6, 2}, {.smoothing = 0.25, .trains = true});
  test_loss<T>(precision, {64, 6, 64}, {.size = 512});
  if (!is_double) test_loss<T>(precision, {129, 6, 128}, {.size = 512, .keeps_logits = true});

  for (const TileShape tile : {TileShape::kLarge, TileShape::kSmall, TileShape::kNarrow}) {
    if (!exists(Form::kWeightGradient, tile, is_double)) continue;
    test_weight_gradient_epilogue<T>(precision, tile, {700, 70, 20}, 1, true);
    test_weight_gradient_epilogue<T>(precision, tile, {700, 70, 20}, 10, false);
  }
  test_weight_gradient_epilogue<T>(precision, TileShape::kSmall, {0, 20, 20}, 0, false);
}

void test_all() {
  for (const Precision precision : kPrecisions) {
    if (precision != Precision::kSimt && !has_tensor_cores()) continue;
    test_products<float>(precision);
    test_epilogues<float>(precision);
  }
  test_products<double>(Precision::kSimt);
  test_epilogues<double>(Precision::kSimt);
  // More columns of tiles than there are tickets for two levels.
  test_input_gradient_epilogue<float>(Precision::kSimt, TileShape::kSmall, {2, 134400, 1},
                                      {.signs = true});
  // More of them than there are tickets.
  test_input_gradient_epilogue<float>(Precision::kSimt, TileShape::kSmall,
                                      {2, kTickets * 64 + 8, 1}, {.signs = true});
  test_column_sums<float>(2, kWidest, false);
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{64, 64},
                                {10, 64},
                                {200, 100},
                                {2, 200},
                                {1300, 1300},
                                {4096, 24},
                                {24, 4096},
                                {8192, 8192}}) {
    test_scratch_grows_with_rows<float>(out, in);
    test_scratch_grows_with_rows<double>(out, in);
  }
  test_missing_tile();
  test_loss_fails_step();
  test_replays(has_tensor_cores() ? Precision::kTwoPlanes : Precision::kSimt);
  for (const bool accumulate : {false, true}) {
    test_column_sums<float>(200, 37, accumulate);
    test_column_sums<double>(4200, 129, accumulate);
  }
  for (int planes = 0; planes <= kMaxPlanes; ++planes) {
    test_split_planes(planes, planes <= 1);
    test_split_planes(planes, false);
  }
#if defined(TW_CUDA_EMULATED)
  context = "ldmatrix";
  const emulator::Counters counters = emulator::counters();
  expect_that((counters.matrix_rows > 0 || !has_tensor_cores()) && counters.matrix_conflicts == 0,
              "expected no bank conflicts, got ", counters.matrix_conflicts, " in ",
              counters.matrix_rows, " phases");
#endif
}

}  // namespace
}  // namespace thalweg::cuda

int main() { return thalweg::cuda::test::run(thalweg::cuda::test_all); }
