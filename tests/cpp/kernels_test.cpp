// Every kernel of every instruction set that this processor has, in float and double, against plain
// loops in double. Outputs start as NaN and have guard bands; splits of a problem must not change a
// bit. Prints one line per failing case; the exit code is 0 when there is none.
#include "cpu/kernels.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cpu/weight_gradient.h"
#include "math/activations.h"
#include "math/loss/cross_entropy.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "math/philox.h"

namespace {

using namespace thalweg;
using cpu::BlockStatistics;
using cpu::BlockSums;
using cpu::Kernels;
using cpu::PartLoss;
using std::int64_t;

int failures = 0;
std::string path;  // "v4 float32"

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  ++failures;
  std::printf("FAIL %s: %s\n", path.c_str(), concat(parts...).c_str());
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33) ^ static_cast<std::uint32_t>(state_ >> 50);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits()) % n; }
  double uniform() { return (static_cast<double>(bits() & 0x7fffffff) + 0.5) * 0x1p-31; }
  double normal() {
    return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
  }

 private:
  std::uint64_t state_;
};

template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();
template <class T>
constexpr double kEpsilon = std::numeric_limits<T>::epsilon() / 2;

constexpr int64_t kGuard = 64;

// Elements with guard bands on both sides.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, T value = kNaN<T>)
      : memory_(static_cast<std::size_t>(size + 2 * kGuard), value), size_(size) {
    for (int64_t i = 0; i < kGuard; ++i) {
      memory_[static_cast<std::size_t>(i)] = guard();
      memory_[static_cast<std::size_t>(kGuard + size + i)] = guard();
    }
  }
  T* data() { return memory_.data() + kGuard; }
  const T* data() const { return memory_.data() + kGuard; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  bool intact() const {
    for (int64_t i = 0; i < kGuard; ++i) {
      if (memory_[static_cast<std::size_t>(i)] != guard()) return false;
      if (memory_[static_cast<std::size_t>(kGuard + size_ + i)] != guard()) return false;
    }
    return true;
  }
  bool operator==(const Buffer& other) const {
    return size_ == other.size_ &&
           std::memcmp(data(), other.data(), static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

 private:
  static T guard() { return static_cast<T>(-77.25); }
  std::vector<T> memory_;
  int64_t size_;
};

// A matrix in panels.
template <class T>
struct Matrix {
  int64_t rows, width;
  Buffer<T> memory;

  Matrix(int64_t r, int64_t w) : rows(r), width(w), memory(panels_of(w) * r * kPanel) {}
  Panels<T> panels() { return {memory.data(), rows, width}; }
  Panels<const T> panels() const { return {memory.data(), rows, width}; }
  T& at(int64_t r, int64_t c) { return memory[(c / kPanel * rows + r) * kPanel + c % kPanel]; }
  double at(int64_t r, int64_t c) const {
    return static_cast<double>(memory[(c / kPanel * rows + r) * kPanel + c % kPanel]);
  }
  Range all_rows() const { return {0, rows}; }
  Range all_panels() const { return {0, panels_of(width)}; }

  template <class F>
  void fill(F&& f) {
    for (int64_t i = 0; i < memory.size(); ++i) memory[i] = T(0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) at(r, c) = static_cast<T>(f(r, c));
    }
  }
  void fill_normal(Random& random, double scale = 1.0) {
    fill([&](int64_t, int64_t) { return scale * random.normal(); });
  }
  bool padding_zero() const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = width; c < panels_of(width) * kPanel; ++c) {
        if (at(r, c) != 0.0) return false;
      }
    }
    return true;
  }
};

// Columns [width], padded with zeros.
template <class T, class F>
Buffer<T> columns(int64_t width, F&& f) {
  Buffer<T> out(panels_of(width) * kPanel, T(0));
  for (int64_t c = 0; c < width; ++c) out[c] = static_cast<T>(f(c));
  return out;
}

template <class T>
Buffer<T> row_weights(int64_t rows, Random& random) {
  Buffer<T> out(rows);
  for (int64_t r = 0; r < rows; ++r) out[r] = static_cast<T>(r % 5 == 3 ? 0.0 : random.uniform());
  return out;
}

// Largest |out - expected(r, c)| / bound(r, c) over the matrix must be at most 1.
template <class T, class Expected, class Bound>
void check_matrix(const std::string& name, const Matrix<T>& out, Expected&& expected,
                  Bound&& bound) {
  check(out.memory.intact(), name, ": guard band overwritten");
  check(out.padding_zero(), name, ": padding is not zero");
  double worst = 0.0;
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.width; ++c) {
      const double want = expected(r, c);
      const double got = out.at(r, c);
      if (std::isnan(want) && std::isnan(got)) continue;
      const double error = want == got ? 0.0 : std::abs(got - want) / bound(r, c);
      worst = error <= worst ? worst : error;
    }
  }
  check(worst <= 1.0, name, ": error ", worst, " times the bound");
}

// Cuts [0, count) at every multiple of `step`.
std::vector<Range> cuts(int64_t count, int64_t step) {
  std::vector<Range> out;
  for (int64_t begin = 0; begin < count; begin += step) {
    out.push_back({begin, std::min(begin + step, count)});
  }
  return out;
}

std::string shape(std::initializer_list<int64_t> sizes) {
  std::string out = "[";
  for (const int64_t size : sizes) out += concat(out.size() > 1 ? ", " : "", size);
  return out + "]";
}

// B of a Gemm: panels_of(width) panels of [32 * panels_of(depth), 32].
template <class T>
struct Weights {
  int64_t depth, width;
  Buffer<T> memory;
  Weights(int64_t d, int64_t w)
      : depth(d), width(w), memory(panels_of(d) * panels_of(w) * kTile, T(0)) {}
  T& at(int64_t k, int64_t n) {
    return memory[(n / kPanel * panels_of(depth) * kPanel + k) * kPanel + n % kPanel];
  }
  double at(int64_t k, int64_t n) const {
    return static_cast<double>(
        memory[(n / kPanel * panels_of(depth) * kPanel + k) * kPanel + n % kPanel]);
  }
};

double activate(cpu::Activation phi, double z) {
  return dispatch_activation(phi.id, [&](auto f) { return decltype(f)::value(z, phi.parameter); });
}
double derivative(cpu::Activation phi, double s) {
  return dispatch_activation(phi.id,
                             [&](auto f) { return decltype(f)::derivative(s, phi.parameter); });
}
double default_parameter(int id) {
  return dispatch_activation(id, [](auto f) { return decltype(f)::default_parameter; });
}

// ---- dense

template <class T>
struct GemmCase {
  std::string name;
  int64_t rows, depth, width;
  bool accumulate = false;
  bool affine = false;
  int activation = 0;
  int derivative = -1;
  bool statistics = false;
  bool weighted = false;
  bool integers = false;
};

template <class T>
void test_gemm(const Kernels<T>& kernels, const GemmCase<T>& test) {
  Random random(static_cast<std::uint64_t>(test.rows * 7919 + test.depth * 31 + test.width));
  const int64_t rows = test.rows;
  const int64_t depth = test.depth;
  const int64_t width = test.width;
  const std::string name = concat("gemm ", test.name, " ", shape({rows, depth, width}));
  const auto draw = [&] {
    return test.integers ? static_cast<double>(random.below(9) - 4) : random.normal();
  };
  Matrix<T> a(rows, depth);
  a.fill([&](int64_t, int64_t) { return draw(); });
  Weights<T> b(depth, width);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t n = 0; n < width; ++n) b.at(k, n) = static_cast<T>(draw());
  }
  const Buffer<T> scale = columns<T>(width, [&](int64_t) { return 0.5 + random.uniform(); });
  const Buffer<T> shift = columns<T>(width, [&](int64_t) { return random.normal(); });
  Matrix<T> start(rows, width);
  start.fill([&](int64_t, int64_t) { return draw(); });
  Matrix<T> at(rows, width);
  at.fill([&](int64_t, int64_t) { return std::abs(random.normal()) * (random.below(3) > 0); });
  const Buffer<T> weights = row_weights<T>(rows, random);
  const int64_t blocks = row_blocks_of(rows);
  const int64_t panels = panels_of(width);

  struct Output {
    Matrix<T> c, pre;
    std::vector<BlockStatistics> statistics;
  };
  const auto run = [&](int64_t row_step, int64_t panel_step) {
    Output out{Matrix<T>(rows, width), Matrix<T>(rows, width),
               std::vector<BlockStatistics>(static_cast<std::size_t>(blocks * panels))};
    if (test.accumulate) out.c = start;
    const cpu::Gemm<T> problem{.a = a.panels(),
                               .b = b.memory.data(),
                               .c = out.c.panels(),
                               .accumulate = test.accumulate,
                               .scale = test.affine ? scale.data() : nullptr,
                               .shift = test.affine ? shift.data() : nullptr,
                               .activation = {test.activation, default_parameter(test.activation)},
                               .pre = test.affine ? out.pre.memory.data() : nullptr,
                               .statistics = test.statistics ? out.statistics.data() : nullptr,
                               .row_weights = test.weighted ? weights.data() : nullptr,
                               .has_derivative = test.derivative >= 0,
                               .derivative = {std::max(test.derivative, 0),
                                              default_parameter(std::max(test.derivative, 0))},
                               .derivative_at = at.memory.data()};
    for (const Range p : cuts(panels, panel_step)) {
      for (const Range r : cuts(rows, row_step)) kernels.gemm(problem, r, p);
    }
    return out;
  };
  const Output out = run(std::max<int64_t>(rows, 1), panels);

  std::vector<double> exact(static_cast<std::size_t>(rows * width));
  std::vector<double> bound(exact.size());
  std::vector<double> affine(exact.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < width; ++n) {
      long double sum = test.accumulate ? static_cast<const Matrix<T>&>(start).at(r, n) : 0.0;
      double absolute = std::abs(static_cast<double>(sum));
      for (int64_t k = 0; k < depth; ++k) {
        const long double product = static_cast<long double>(std::as_const(a).at(r, k)) *
                                    static_cast<long double>(std::as_const(b).at(k, n));
        sum += product;
        absolute += std::abs(static_cast<double>(product));
      }
      const std::size_t i = static_cast<std::size_t>(r * width + n);
      double value = static_cast<double>(sum);
      double slack = (16.0 + std::sqrt(static_cast<double>(depth)) / 16.0) * kEpsilon<T> * absolute;
      if (test.affine) {
        value = value * static_cast<double>(scale[n]) + static_cast<double>(shift[n]);
        slack = slack * 2.0 + 4.0 * kEpsilon<T> * (std::abs(value) + std::abs(double(shift[n])));
      }
      affine[i] = value;
      value = activate({test.activation, default_parameter(test.activation)}, value);
      if (test.activation != 0) slack = 2.0 * slack + 16.0 * kEpsilon<T> * (1.0 + std::abs(value));
      if (test.derivative >= 0) {
        const double slope = derivative({test.derivative, default_parameter(test.derivative)},
                                        std::as_const(at).at(r, n));
        value *= slope;
        slack = slack * (1.0 + std::abs(slope)) + 16.0 * kEpsilon<T> * std::abs(value);
      }
      exact[i] = value;
      bound[i] = test.integers ? 1e-300 : slack + 1e-300;
    }
  }
  const auto look = [width](const std::vector<double>& from) {
    return [&from, width](int64_t r, int64_t c) {
      return from[static_cast<std::size_t>(r * width + c)];
    };
  };
  check_matrix(name, out.c, look(exact), look(bound));
  if (test.affine) check_matrix(name + " pre", out.pre, look(affine), look(bound));

  for (const int64_t row_step : {int64_t{64}, int64_t{128}}) {
    for (const int64_t panel_step : {int64_t{1}, int64_t{2}}) {
      const Output split = run(row_step, panel_step);
      check(split.c.memory == out.c.memory && split.statistics.size() == out.statistics.size() &&
                (!test.statistics ||
                 std::memcmp(split.statistics.data(), out.statistics.data(),
                             out.statistics.size() * sizeof(BlockStatistics)) == 0),
            name, ": bits depend on the split");
    }
  }
  // Any row alone gives the same bits.
  if (!test.accumulate && test.derivative < 0) {
    for (const int64_t r : {int64_t{0}, rows / 2, rows - 1}) {
      Matrix<T> row(1, depth);
      row.fill([&](int64_t, int64_t k) { return std::as_const(a).at(r, k); });
      Matrix<T> alone(1, width);
      const cpu::Gemm<T> problem{
          .a = row.panels(),
          .b = b.memory.data(),
          .c = alone.panels(),
          .scale = test.affine ? scale.data() : nullptr,
          .shift = test.affine ? shift.data() : nullptr,
          .activation = {test.activation, default_parameter(test.activation)}};
      kernels.gemm(problem, {0, 1}, {0, panels});
      bool same = true;
      for (int64_t n = 0; n < width; ++n) {
        same = same && std::as_const(alone).at(0, n) == out.c.at(r, n);
      }
      check(same, name, ": row ", r, " depends on the batch");
    }
  }
  if (test.statistics) {
    std::vector<BlockStatistics> separate(out.statistics.size());
    kernels.column_statistics(out.c.panels(), test.weighted ? weights.data() : nullptr,
                              separate.data(), {0, blocks}, {0, panels});
    check(std::memcmp(separate.data(), out.statistics.data(),
                      separate.size() * sizeof(BlockStatistics)) == 0,
          name, ": statistics differ from those of the finished matrix");
  }
}

template <class T>
void test_gemms(const Kernels<T>& kernels) {
  const int64_t sizes[][3] = {{1, 1, 1},     {1, 0, 5},     {3, 7, 10},    {64, 32, 32},
                              {65, 33, 31},  {130, 64, 64}, {13, 784, 10}, {128, 10, 70},
                              {50, 300, 17}, {5, 1030, 40}, {200, 257, 9}, {27, 31, 24}};
  for (const auto& [rows, depth, width] : sizes) {
    test_gemm<T>(kernels, {.name = "plain", .rows = rows, .depth = depth, .width = width});
    test_gemm<T>(
        kernels,
        {.name = "integers", .rows = rows, .depth = depth, .width = width, .integers = true});
    test_gemm<T>(kernels, {.name = "accumulate integers",
                           .rows = rows,
                           .depth = depth,
                           .width = width,
                           .accumulate = true,
                           .integers = true});
    test_gemm<T>(kernels, {.name = "relu derivative",
                           .rows = rows,
                           .depth = depth,
                           .width = width,
                           .derivative = kActivationRelu});
    test_gemm<T>(
        kernels,
        {.name = "statistics", .rows = rows, .depth = depth, .width = width, .statistics = true});
    test_gemm<T>(kernels, {.name = "weighted statistics",
                           .rows = rows,
                           .depth = depth,
                           .width = width,
                           .affine = true,
                           .statistics = true,
                           .weighted = true});
  }
  for (int id = 0; id < kActivationCount; ++id) {
    const std::string name = activation_name(id);
    test_gemm<T>(
        kernels,
        {.name = name, .rows = 70, .depth = 40, .width = 43, .affine = true, .activation = id});
    test_gemm<T>(kernels, {.name = name + " derivative",
                           .rows = 70,
                           .depth = 40,
                           .width = 43,
                           .accumulate = true,
                           .derivative = id});
  }
}

// Inf in A, zero in the padding of B: the padding of C is still zero, NaN stays NaN.
template <class T>
void test_gemm_special_values(const Kernels<T>& kernels) {
  for (int id = 0; id < kActivationCount; ++id) {
    const int64_t width = 37;
    Matrix<T> a(20, 35);
    a.fill([](int64_t r, int64_t k) {
      return r == 3 && k == 4 ? std::numeric_limits<double>::infinity() : 1.0;
    });
    Weights<T> b(35, width);
    for (int64_t k = 0; k < 35; ++k) {
      for (int64_t n = 0; n < width; ++n) b.at(k, n) = n == 5 && k == 7 ? kNaN<T> : T(-1);
    }
    Matrix<T> c(20, width);
    Matrix<T> pre(20, width);
    kernels.gemm({.a = a.panels(),
                  .b = b.memory.data(),
                  .c = c.panels(),
                  .activation = {id, default_parameter(id)},
                  .pre = pre.memory.data()},
                 {0, 20}, {0, 2});
    const std::string name = concat("gemm special values ", activation_name(id));
    check(c.padding_zero() && pre.padding_zero(), name, ": padding is not zero");
    bool nan = true;
    for (int64_t r = 0; r < 20; ++r) nan = nan && std::isnan(c.at(r, 5));
    check(nan, name, ": NaN is hidden");

    Matrix<T> y(20, width);
    kernels.activation(std::as_const(pre).panels(), y.panels(), {id, default_parameter(id)},
                       {0, 20}, {0, 2});
    check(y.padding_zero() && std::isnan(y.at(2, 5)), name, ": activation hides NaN");
  }
}

template <class T>
void test_wgrad(const Kernels<T>& kernels) {
  Random random(5);
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{32}, int64_t{257}, int64_t{600}}) {
    for (const int64_t x_lanes : {int64_t{1}, int64_t{10}, int64_t{16}, int64_t{32}}) {
      for (const int64_t dy_lanes : {int64_t{1}, int64_t{9}, int64_t{20}, int64_t{32}}) {
        for (const bool integers : {false, true}) {
          for (const bool accumulate : {false, true}) {
            const std::string name = concat("wgrad_tile ", shape({rows, x_lanes, dy_lanes}),
                                            accumulate ? " accumulate" : "");
            const auto draw = [&](int64_t, int64_t) {
              return integers ? static_cast<double>(random.below(9) - 4) : random.normal();
            };
            Matrix<T> x(rows, x_lanes);
            Matrix<T> dy(rows, dy_lanes);
            x.fill(draw);
            dy.fill(draw);
            Matrix<T> tile(kPanel, dy_lanes);
            if (accumulate) {
              tile.fill([&](int64_t i, int64_t) { return i < x_lanes ? draw(0, 0) : 0.0; });
            }
            const Matrix<T> start = tile;
            kernels.wgrad_tile(x.memory.data(), x_lanes, dy.memory.data(), dy_lanes, rows,
                               accumulate, tile.memory.data());
            double absolute = 0.0;
            const auto exact = [&](int64_t i, int64_t j) {
              long double sum = accumulate ? start.at(i, j) : 0.0;
              absolute = std::abs(static_cast<double>(sum));
              for (int64_t r = 0; r < rows && i < x_lanes; ++r) {
                const double product = std::as_const(x).at(r, i) * std::as_const(dy).at(r, j);
                sum += product;
                absolute += std::abs(product);
              }
              return static_cast<double>(sum);
            };
            check_matrix(name, tile, exact, [&](int64_t, int64_t) {
              return integers ? 1e-300
                              : (16.0 + std::sqrt(static_cast<double>(rows)) / 16.0) * kEpsilon<T> *
                                        absolute +
                                    1e-300;
            });
          }
        }
      }
    }
    Matrix<T> panel(rows, 21);
    panel.fill_normal(random);
    Matrix<T> sum(1, 21);
    kernels.column_sum(panel.memory.data(), rows, 21, false, sum.memory.data());
    const auto exact = [&](int64_t, int64_t c) {
      double total = 0.0;
      for (int64_t r = 0; r < rows; ++r) total += std::as_const(panel).at(r, c);
      return total;
    };
    const auto bound = [&](int64_t, int64_t) {
      return kEpsilon<T> * 8.0 * static_cast<double>(rows + 1);
    };
    check_matrix(concat("column_sum ", rows), sum, exact, bound);
    kernels.column_sum(panel.memory.data(), rows, 21, true, sum.memory.data());
    check_matrix(
        concat("column_sum accumulate ", rows), sum,
        [&](int64_t r, int64_t c) { return 2.0 * exact(r, c); }, bound);
  }
  Buffer<T> tile(kTile);
  Buffer<T> transposed(kTile);
  for (int64_t i = 0; i < kTile; ++i) tile[i] = static_cast<T>(i);
  bool good = true;
  for (const auto& [rows, columns] :
       {std::pair{kPanel, kPanel}, {int64_t{16}, int64_t{10}}, {kPanel, int64_t{1}}}) {
    for (int64_t i = 0; i < kTile; ++i) transposed[i] = T(-1);
    kernels.transpose_tile(tile.data(), rows, columns, transposed.data());
    good = good && transposed.intact();
    for (int64_t j = 0; j < kPanel; ++j) {
      for (int64_t i = 0; i < kPanel; ++i) {
        const T found = transposed[j * kPanel + i];
        const bool asked = i < rows && j < columns;
        // No vector is longer than 16.
        const bool rounded = i < round_up(rows, 16) && j < round_up(columns, 16);
        good = good && (found == tile[i * kPanel + j] ? rounded : !asked && found == T(-1));
      }
    }
  }
  check(good, "transpose_tile");
}

// Groups of tiles have the bits of each tile over all rows, and leave other tiles alone.
template <class T>
void test_weight_gradient(const Kernels<T>& kernels) {
  Random random(6);
  constexpr int64_t kIn = 7, kOut = 5;
  for (const int64_t rows :
       {int64_t{0}, int64_t{1000}, int64_t{1025}, int64_t{2600}, int64_t{8300}, int64_t{20000}}) {
    Matrix<T> x(rows, kIn * kPanel - 5);
    Matrix<T> dy(rows, kOut * kPanel - 22);
    x.fill_normal(random);
    dy.fill_normal(random);
    for (const Range own : {Range{0, kIn * kOut}, Range{5, 24}, Range{8, 11}, Range{9, 9}}) {
      Buffer<T> gradient(kIn * kOut * kTile, T(-1));
      Buffer<T> expected = gradient;
      for (const bool accumulate : {false, true}) {
        const auto make = [&](Range part, int64_t k, int64_t o, bool add, T* tile) {
          kernels.wgrad_tile(x.panels().row(k, part.begin), x.panels().lanes(k),
                             dy.panels().row(o, part.begin), dy.panels().lanes(o), part.size(), add,
                             tile);
        };
        int asked = 0;
        cpu::weight_gradient(
            kernels, rows, kIn, own, accumulate, gradient.data(), [&] { return ++asked < 0; },
            make);
        for (int64_t t = own.begin; t < own.end; ++t)
          make({0, rows}, t % kIn, t / kIn, accumulate, expected.data() + t * kTile);
        check(gradient.intact() && gradient == expected, "weight_gradient ",
              shape({rows, own.begin, own.end}), accumulate ? " accumulate" : "");
        check(own.size() == 0 || (asked >= 1 && asked <= own.size()), "weight_gradient asks ",
              asked);
        if (asked < 2) continue;
        Buffer<T> stopped(kIn * kOut * kTile, T(-1));
        int again = 0;
        cpu::weight_gradient(
            kernels, rows, kIn, own, false, stopped.data(), [&] { return ++again > 1; }, make);
        int64_t made = 0;
        for (int64_t t = 0; t < kIn * kOut; ++t) made += stopped[t * kTile] != T(-1);
        check(again == 2 && made > 0 && made < own.size(), "weight_gradient stops after ", made);
      }
    }
  }
}

// ---- elementwise

template <class T>
void test_elementwise(const Kernels<T>& kernels) {
  Random random(11);
  for (const int64_t width : {int64_t{1}, int64_t{32}, int64_t{45}, int64_t{64}}) {
    const int64_t rows = 67;
    Matrix<T> x(rows, width);
    Matrix<T> other(rows, width);
    x.fill_normal(random, 2.0);
    other.fill_normal(random);
    const std::vector<Range> row_cuts = cuts(rows, 20);
    const Range panels = x.all_panels();
    const auto close = [](double value) { return 8.0 * kEpsilon<T> * (1.0 + std::abs(value)); };

    for (int id = 0; id < kActivationCount; ++id) {
      const cpu::Activation phi{id, default_parameter(id)};
      const std::string name = concat("activation ", activation_name(id), " ", width);
      Matrix<T> y(rows, width);
      for (const Range r : row_cuts) {
        kernels.activation(std::as_const(x).panels(), y.panels(), phi, r, panels);
      }
      const auto value = [&](int64_t r, int64_t c) {
        return activate(phi, std::as_const(x).at(r, c));
      };
      check_matrix(name, y, value, [&](int64_t r, int64_t c) { return close(value(r, c)); });
      Matrix<T> in_place = x;
      kernels.activation(std::as_const(in_place).panels(), in_place.panels(), phi, {0, rows},
                         panels);
      check(in_place.memory == y.memory, name, ": in place differs");

      const bool from_output = dispatch_activation(
          id, [](auto f) { return decltype(f)::backward_needs == ActivationNeeds::output; });
      const Matrix<T>& at = from_output ? y : x;
      const auto gradient = [&](int64_t r, int64_t c) {
        return std::as_const(other).at(r, c) * derivative(phi, at.at(r, c));
      };
      const auto bound = [&](int64_t r, int64_t c) {
        return close(gradient(r, c)) * (2.0 + std::abs(std::as_const(other).at(r, c)));
      };
      Matrix<T> dz(rows, width);
      for (const Range r : row_cuts) {
        kernels.activation_backward(std::as_const(other).panels(), at.memory.data(), dz.panels(),
                                    phi, false, r, panels);
      }
      check_matrix(name + " backward", dz, gradient, bound);
      in_place = other;
      kernels.activation_backward(std::as_const(in_place).panels(), at.memory.data(),
                                  in_place.panels(), phi, false, {0, rows}, panels);
      check(in_place.memory == dz.memory, name, ": backward in place differs");
      kernels.activation_backward(std::as_const(other).panels(), at.memory.data(), dz.panels(), phi,
                                  true, {0, rows}, panels);
      check_matrix(
          name + " backward accumulate", dz,
          [&](int64_t r, int64_t c) { return 2.0 * gradient(r, c); },
          [&](int64_t r, int64_t c) { return 2.0 * bound(r, c); });
    }

    const auto exactly = [](int64_t, int64_t) { return 1e-300; };
    const auto sum = [&](int64_t r, int64_t c) {
      return static_cast<double>(
          static_cast<T>(std::as_const(x).at(r, c) + std::as_const(other).at(r, c)));
    };
    Matrix<T> out(rows, width);
    for (const Range r : row_cuts) {
      kernels.add(std::as_const(x).panels(), std::as_const(other).panels(), out.panels(), r,
                  panels);
    }
    check_matrix(concat("add ", width), out, sum, exactly);
    Matrix<T> copied(rows, width);
    for (const Range r : row_cuts) {
      kernels.copy(std::as_const(x).panels(), copied.panels(), r, panels);
    }
    check(copied.memory == x.memory, "copy ", width);
    for (const Range r : row_cuts) {
      kernels.accumulate(std::as_const(other).panels(), copied.panels(), r, panels);
    }
    check_matrix(concat("accumulate ", width), copied, sum, exactly);

    const cpu::Dropout dropout{.seed = 12345678901234567u,
                               .step = 77,
                               .stream = 3,
                               .threshold = static_cast<std::uint32_t>(0.3 * 0x1p32),
                               .scale = 1.0 / 0.7,
                               .first_row = 1000000007};
    const auto kept = [&](int64_t r, int64_t c) {
      const std::uint64_t element = static_cast<std::uint64_t>((dropout.first_row + r) * width + c);
      const std::uint32_t word = philox_word(dropout.seed, 3, dropout.step, element);
      return word >= dropout.threshold ? std::as_const(x).at(r, c) / 0.7 : 0.0;
    };
    Matrix<T> dropped(rows, width);
    for (const Range r : row_cuts) {
      kernels.dropout(std::as_const(x).panels(), dropped.panels(), dropout, false, r, panels);
    }
    check_matrix(concat("dropout ", width), dropped, kept,
                 [&](int64_t r, int64_t c) { return close(kept(r, c)); });
    kernels.dropout(std::as_const(x).panels(), dropped.panels(), dropout, true, {0, rows}, panels);
    check_matrix(
        concat("dropout accumulate ", width), dropped,
        [&](int64_t r, int64_t c) { return 2.0 * kept(r, c); },
        [&](int64_t r, int64_t c) { return close(4.0 * kept(r, c)); });
  }
}

template <class T>
void test_maxout(const Kernels<T>& kernels) {
  Random random(17);
  for (const int64_t pieces : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{7}}) {
    for (const int64_t units : {int64_t{1}, int64_t{31}, int64_t{32}, int64_t{70}}) {
      const std::string name = concat("maxout ", shape({units, pieces}));
      const int64_t rows = 9;
      Matrix<T> z(rows, units * pieces);
      z.fill([&](int64_t, int64_t) { return static_cast<double>(random.below(5)); });
      z.at(1, units * pieces / 2) = kNaN<T>;
      Matrix<T> dy(rows, units);
      dy.fill_normal(random);
      Matrix<T> y(rows, units);
      Matrix<T> dz(rows, units * pieces);
      for (const Range r : cuts(rows, 4)) {
        kernels.maxout(std::as_const(z).panels(), y.panels(), pieces, r);
        kernels.maxout_backward(std::as_const(z).panels(), std::as_const(dy).panels(), dz.panels(),
                                pieces, r);
      }
      const auto winner = [&](int64_t r, int64_t u) {
        int64_t best = 0;
        for (int64_t q = 0; q < pieces; ++q) {
          const double x = std::as_const(z).at(r, u * pieces + q);
          if (std::isnan(x)) return q;
          if (x > std::as_const(z).at(r, u * pieces + best)) best = q;
        }
        return best;
      };
      const auto exactly = [](int64_t, int64_t) { return 1e-300; };
      check_matrix(
          name, y,
          [&](int64_t r, int64_t u) { return std::as_const(z).at(r, u * pieces + winner(r, u)); },
          exactly);
      check_matrix(
          name + " backward", dz,
          [&](int64_t r, int64_t c) {
            return c % pieces == winner(r, c / pieces) ? std::as_const(dy).at(r, c / pieces) : 0.0;
          },
          exactly);
    }
  }
}

// ---- batch norm

template <class T>
void test_batch_norm(const Kernels<T>& kernels) {
  Random random(23);
  for (const int64_t rows : {int64_t{2}, int64_t{63}, int64_t{64}, int64_t{200}}) {
    for (const int64_t width : {int64_t{1}, int64_t{33}}) {
      for (const bool weighted : {false, true}) {
        const std::string name =
            concat("batch norm ", shape({rows, width}), weighted ? " weighted" : "");
        Matrix<T> z(rows, width);
        // Column 0 is constant, the others have a mean of 10^4 deviations.
        z.fill([&](int64_t, int64_t c) { return c == 0 ? 3.7 : 1e4 + random.normal(); });
        const Buffer<T> weights = row_weights<T>(rows, random);
        const auto weight = [&](int64_t r) {
          return weighted ? static_cast<double>(weights[r]) : 1.0;
        };
        const int64_t blocks = row_blocks_of(rows);
        const int64_t panels = panels_of(width);
        std::vector<BlockStatistics> statistics(static_cast<std::size_t>(blocks * panels));
        for (const Range b : cuts(blocks, 1)) {
          kernels.column_statistics(std::as_const(z).panels(), weighted ? weights.data() : nullptr,
                                    statistics.data(), b, {0, panels});
        }
        std::vector<double> block_weights(static_cast<std::size_t>(blocks), 0.0);
        double total = 0.0;
        for (int64_t r = 0; r < rows; ++r) {
          block_weights[static_cast<std::size_t>(r / kRowBlock)] += weight(r);
          total += weight(r);
        }
        std::vector<double> mean(static_cast<std::size_t>(panels * kPanel));
        std::vector<double> m2(mean.size());
        for (int64_t p = 0; p < panels; ++p) {
          kernels.merge_statistics(statistics.data(), block_weights.data(), blocks, panels, p,
                                   mean.data() + p * kPanel, m2.data() + p * kPanel);
        }
        Buffer<T> mean_t(panels * kPanel, T(0));
        Buffer<T> inv_std(panels * kPanel, T(0));
        for (int64_t c = 0; c < width; ++c) {
          const auto value = [&](int64_t r) { return std::as_const(z).at(r, c); };
          long double exact_mean = 0.0;
          for (int64_t r = 0; r < rows; ++r) exact_mean += weight(r) * value(r);
          exact_mean /= total;
          long double exact_m2 = 0.0;
          for (int64_t r = 0; r < rows; ++r) {
            exact_m2 += weight(r) * (value(r) - exact_mean) * (value(r) - exact_mean);
          }
          const std::size_t i = static_cast<std::size_t>(c);
          check(std::abs(mean[i] - static_cast<double>(exact_mean)) <=
                    1e-6 * std::abs(mean[i]) * (c == 0 ? 1e-9 : 1.0),
                name, ": mean of column ", c, " is ", mean[i], ", not ",
                static_cast<double>(exact_mean));
          check(std::abs(m2[i] - static_cast<double>(exact_m2)) <=
                    (c == 0 ? 0.0 : 1e-5 * static_cast<double>(exact_m2)) + (c == 0 ? 1e-25 : 0.0),
                name, ": m2 of column ", c, " is ", m2[i], ", not ", static_cast<double>(exact_m2));
          mean_t[c] = static_cast<T>(mean[i]);
          inv_std[c] = static_cast<T>(1.0 / std::sqrt(m2[i] / total + 1e-5));
        }

        const Buffer<T> gamma = columns<T>(width, [&](int64_t) { return random.normal(); });
        const Buffer<T> beta = columns<T>(width, [&](int64_t) { return random.normal(); });
        const auto xhat = [&](int64_t r, int64_t c) {
          return (std::as_const(z).at(r, c) - static_cast<double>(mean_t[c])) *
                 static_cast<double>(inv_std[c]);
        };
        const auto affine = [&](int64_t r, int64_t c) {
          return xhat(r, c) * static_cast<double>(gamma[c]) + static_cast<double>(beta[c]);
        };
        const auto close = [](int64_t, int64_t) { return 64.0 * kEpsilon<T>; };
        for (const int id :
             {int{kActivationIdentity}, int{kActivationRelu}, int{kActivationTanh}}) {
          for (const bool keep : {false, true}) {
            Matrix<T> y(rows, width);
            Matrix<T> pre(rows, width);
            for (const Range r : cuts(rows, 30)) {
              kernels.batch_norm({.z = std::as_const(z).panels(),
                                  .y = y.panels(),
                                  .mean = mean_t.data(),
                                  .inv_std = inv_std.data(),
                                  .gamma = gamma.data(),
                                  .beta = beta.data(),
                                  .activation = {id, 0.0},
                                  .pre = keep ? pre.memory.data() : nullptr},
                                 r, {0, panels});
            }
            check_matrix(
                name + " forward", y,
                [&](int64_t r, int64_t c) { return activate({id, 0.0}, affine(r, c)); }, close);
            if (keep) check_matrix(name + " pre", pre, affine, close);
            for (int64_t r = 0; r < rows && id == kActivationIdentity; ++r) {
              check(std::as_const(y).at(r, 0) == static_cast<double>(beta[0]), name,
                    ": a constant column does not give beta");
            }
          }
        }

        Matrix<T> dy(rows, width);
        Matrix<T> at(rows, width);
        dy.fill_normal(random);
        at.fill([&](int64_t, int64_t) { return std::max(0.0, random.normal()); });
        Matrix<T> g = dy;
        std::vector<BlockSums> sums(static_cast<std::size_t>(blocks * panels));
        for (const Range b : cuts(blocks, 1)) {
          kernels.batch_norm_backward_sums({.z = std::as_const(z).panels(),
                                            .mean = mean_t.data(),
                                            .inv_std = inv_std.data(),
                                            .dy = g.panels(),
                                            .activation = {kActivationRelu, 0.0},
                                            .derivative_at = at.memory.data(),
                                            .sums = sums.data()},
                                           b, {0, panels});
        }
        const auto exact_g = [&](int64_t r, int64_t c) {
          return std::as_const(at).at(r, c) > 0.0 ? std::as_const(dy).at(r, c) : 0.0;
        };
        check_matrix(name + " g", g, exact_g, [](int64_t, int64_t) { return 1e-300; });
        Buffer<T> mean_g(panels * kPanel, T(0));
        Buffer<T> mean_g_xhat(panels * kPanel, T(0));
        for (int64_t c = 0; c < width; ++c) {
          double sum = 0.0;
          double sum_xhat = 0.0;
          double got = 0.0;
          double got_xhat = 0.0;
          for (int64_t r = 0; r < rows; ++r) {
            sum += exact_g(r, c);
            sum_xhat += exact_g(r, c) * xhat(r, c);
          }
          for (int64_t b = 0; b < blocks; ++b) {
            const BlockSums& part = sums[static_cast<std::size_t>(b * panels + c / kPanel)];
            got += part.g[c % kPanel];
            got_xhat += part.g_xhat[c % kPanel];
          }
          const double slack = 64.0 * kEpsilon<T> * static_cast<double>(rows);
          check(std::abs(got - sum) <= slack && std::abs(got_xhat - sum_xhat) <= slack, name,
                ": backward sums of column ", c);
          mean_g[c] = static_cast<T>(got / total);
          mean_g_xhat[c] = static_cast<T>(got_xhat / total);
        }
        for (const bool frozen : {false, true}) {
          for (const bool accumulate : {false, true}) {
            Matrix<T> dz(rows, width);
            if (accumulate) dz.fill([](int64_t, int64_t) { return 1.0; });
            for (const Range r : cuts(rows, 50)) {
              kernels.batch_norm_backward({.z = std::as_const(z).panels(),
                                           .mean = mean_t.data(),
                                           .inv_std = inv_std.data(),
                                           .gamma = gamma.data(),
                                           .mean_g = frozen ? nullptr : mean_g.data(),
                                           .mean_g_xhat = frozen ? nullptr : mean_g_xhat.data(),
                                           .row_weights = weighted ? weights.data() : nullptr,
                                           .g = std::as_const(g).panels(),
                                           .dz = dz.panels(),
                                           .accumulate = accumulate},
                                          r, {0, panels});
            }
            const auto exact = [&](int64_t r, int64_t c) {
              const double correction =
                  frozen ? 0.0
                         : weight(r) * (static_cast<double>(mean_g[c]) +
                                        xhat(r, c) * static_cast<double>(mean_g_xhat[c]));
              return (accumulate ? 1.0 : 0.0) + static_cast<double>(gamma[c]) *
                                                    static_cast<double>(inv_std[c]) *
                                                    (exact_g(r, c) - correction);
            };
            check_matrix(name + " backward", dz, exact, [&](int64_t r, int64_t c) {
              return 64.0 * kEpsilon<T> *
                     (1.0 + std::abs(exact(r, c)) + static_cast<double>(inv_std[c]));
            });
          }
        }
      }
    }
  }
}

// ---- losses

template <class T>
void test_cross_entropy(const Kernels<T>& kernels) {
  Random random(29);
  for (const int64_t classes : {int64_t{1}, int64_t{2}, int64_t{10}, int64_t{32}, int64_t{75}}) {
    for (const double spread : {3.0, 1e4}) {
      for (const double smoothing : {0.0, 0.1}) {
        for (const bool by_label : {true, false}) {
          for (const bool weighted : {false, true}) {
            const std::string name = concat(
                "softmax_cross_entropy ", classes, " classes, logits to ", spread, ", smoothing ",
                smoothing, by_label ? "" : ", probabilities", weighted ? ", weighted" : "");
            const int64_t rows = 70;
            Matrix<T> z(rows, classes);
            z.fill([&](int64_t, int64_t) { return spread * (2.0 * random.uniform() - 1.0); });
            if (classes > 4) z.at(2, 3) = z.at(2, 4) = static_cast<T>(2.0 * spread);
            std::vector<int64_t> labels(static_cast<std::size_t>(rows));
            for (int64_t& label : labels) label = random.below(classes);
            if (classes > 4) labels[2] = 3;
            Matrix<T> targets(rows, classes);
            targets.fill([&](int64_t r, int64_t c) {
              return (c == labels[static_cast<std::size_t>(r)] ? 0.6 : 0.0) +
                     0.4 / static_cast<double>(classes);
            });
            const Buffer<T> weights = row_weights<T>(rows, random);
            std::vector<PartLoss> losses(static_cast<std::size_t>(row_parts_of(rows)));
            Matrix<T> gradient(rows, classes);
            cpu::Loss<T> problem{.outputs = std::as_const(z).panels(),
                                 .labels = by_label ? labels.data() : nullptr,
                                 .row_weights = weighted ? weights.data() : nullptr,
                                 .label_smoothing = smoothing,
                                 .gradient_scale = 0.25,
                                 .gradient = gradient.panels(),
                                 .parts = losses.data()};
            if (!by_label) problem.targets = std::as_const(targets).panels();
            for (const Range r : cuts(rows, kRowPart)) kernels.softmax_cross_entropy(problem, r);

            Matrix<double> exact(rows, classes);
            std::vector<PartLoss> expected(losses.size());
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t label = labels[static_cast<std::size_t>(r)];
              const double weight = weighted ? static_cast<double>(weights[r]) : 1.0;
              long double m = -1e300;
              int64_t argmax = 0;
              for (int64_t c = 0; c < classes; ++c) {
                if (std::as_const(z).at(r, c) > m) {
                  m = std::as_const(z).at(r, c);
                  argmax = c;
                }
              }
              long double others = 0.0;
              for (int64_t c = 0; c < classes; ++c) {
                if (c != argmax) others += std::exp(std::as_const(z).at(r, c) - m);
              }
              const long double log_sum = std::log1p(others);
              long double loss = 0.0;
              long double target_sum = 0.0;
              const auto target = [&](int64_t c) {
                const double hard = by_label ? (c == label) : std::as_const(targets).at(r, c);
                return (1.0 - smoothing) * hard + smoothing / static_cast<double>(classes);
              };
              for (int64_t c = 0; c < classes; ++c) {
                loss += target(c) * (log_sum - (std::as_const(z).at(r, c) - m));
                target_sum += target(c);
              }
              for (int64_t c = 0; c < classes; ++c) {
                const long double p = std::exp(std::as_const(z).at(r, c) - m) / (1.0L + others);
                exact.at(r, c) = static_cast<double>(0.25L * weight * (p * target_sum - target(c)));
              }
              PartLoss& part = expected[static_cast<std::size_t>(r / kRowPart)];
              part.loss += weight * static_cast<double>(loss);
              part.hits += weight * (argmax == label);
              part.weight += weight;
            }
            for (std::size_t b = 0; b < losses.size(); ++b) {
              check(std::abs(losses[b].loss - expected[b].loss) <=
                        1e-6 * (sizeof(T) == 8 ? 1e-7 : 1.0) * std::abs(expected[b].loss) + 1e-30,
                    name, ": loss ", losses[b].loss, ", not ", expected[b].loss);
              check(std::abs(losses[b].hits - expected[b].hits) < 1e-9, name, ": hits ",
                    losses[b].hits, ", not ", expected[b].hits);
              check(std::abs(losses[b].weight - expected[b].weight) < 1e-9, name, ": weight");
            }
            check_matrix(
                name + " gradient", gradient,
                [&](int64_t r, int64_t c) { return std::as_const(exact).at(r, c); },
                [](int64_t, int64_t) { return 4.0 * kEpsilon<T>; });
            const std::vector<PartLoss> before = losses;
            problem.gradient = {};
            kernels.softmax_cross_entropy(problem, {0, rows});
            check(std::memcmp(before.data(), losses.data(), losses.size() * sizeof(PartLoss)) == 0,
                  name, ": value alone differs");
          }
        }
      }
    }
    // Small losses keep their digits; NaN and labels of a NaN row.
    if (classes < 2) continue;
    Matrix<T> z(3, classes);
    z.fill([](int64_t r, int64_t c) { return c == 1 ? 0.0 : r == 0 ? -60.0 : -5.0; });
    z.at(2, 0) = kNaN<T>;
    const int64_t labels[] = {1, 1, 0};
    Matrix<T> gradient(3, classes);
    PartLoss part;
    cpu::Loss<T> problem{.outputs = std::as_const(z).panels(),
                         .labels = labels,
                         .gradient = gradient.panels(),
                         .parts = &part};
    problem.outputs.rows = 3;
    kernels.softmax_cross_entropy(problem, {0, 3});
    check(std::isnan(part.loss), "softmax_cross_entropy: NaN is hidden");
    check(gradient.padding_zero(), "softmax_cross_entropy: NaN in the padding");
    Matrix<T> one(1, classes);
    one.fill([](int64_t, int64_t c) { return c == 1 ? 0.0 : -60.0; });
    Matrix<T> one_gradient(1, classes);
    problem.outputs = std::as_const(one).panels();
    problem.gradient = one_gradient.panels();
    kernels.softmax_cross_entropy(problem, {0, 1});
    const double small = std::exp(-60.0) * static_cast<double>(classes - 1);
    check(std::abs(part.loss - small) <= 1e-6 * small, "softmax_cross_entropy: small loss ",
          part.loss, ", not ", small);
    check(std::abs(std::as_const(one_gradient).at(0, 1) + small) <= 1e-6 * small,
          "softmax_cross_entropy: small gradient");

    Matrix<T> probabilities(1, classes);
    kernels.softmax(std::as_const(one).panels(), probabilities.panels(), {0, 1});
    check_matrix(
        concat("softmax ", classes), probabilities,
        [&](int64_t, int64_t c) { return c == 1 ? 1.0 - small : std::exp(-60.0); },
        [](int64_t, int64_t c) { return 4.0 * kEpsilon<T> * (c == 1 ? 1.0 : std::exp(-60.0)); });
  }
}

template <class T>
void test_elementwise_losses(const Kernels<T>& kernels) {
  Random random(31);
  for (int id = 0; id < kLossCount; ++id) {
    for (const int64_t width : {int64_t{1}, int64_t{40}}) {
      for (const bool weighted : {false, true}) {
        const std::string name = concat("elementwise_loss ", loss_name(id), " ", width);
        const int64_t rows = 66;
        Matrix<T> z(rows, width);
        Matrix<T> t(rows, width);
        z.fill_normal(random, 2.0);
        const TargetKind kind = dispatch_loss(id, [](auto rule) { return decltype(rule)::target; });
        t.fill([&](int64_t, int64_t) {
          if (kind == TargetKind::sign) return random.below(2) * 2.0 - 1.0;
          return kind == TargetKind::unit_interval ? random.uniform() : random.normal();
        });
        const double parameter =
            dispatch_loss(id, [](auto rule) { return decltype(rule)::default_parameter; });
        const Buffer<T> weights = row_weights<T>(rows, random);
        Matrix<T> gradient(rows, width);
        std::vector<PartLoss> losses(static_cast<std::size_t>(row_parts_of(rows)));
        const cpu::Loss<T> problem{.outputs = std::as_const(z).panels(),
                                   .targets = std::as_const(t).panels(),
                                   .row_weights = weighted ? weights.data() : nullptr,
                                   .parameter = parameter,
                                   .gradient_scale = 0.5,
                                   .gradient = gradient.panels(),
                                   .parts = losses.data()};
        for (const Range r : cuts(rows, kRowPart)) kernels.elementwise_loss(id, problem, r);
        std::vector<PartLoss> expected(losses.size());
        const auto weight = [&](int64_t r) {
          return weighted ? static_cast<double>(weights[r]) : 1.0;
        };
        for (int64_t r = 0; r < rows; ++r) {
          PartLoss& part = expected[static_cast<std::size_t>(r / kRowPart)];
          part.weight += weight(r);
          for (int64_t c = 0; c < width; ++c) {
            const double output = std::as_const(z).at(r, c);
            const double target = std::as_const(t).at(r, c);
            part.loss += weight(r) * dispatch_loss(id, [&](auto rule) {
                           return decltype(rule)::value(output, target, parameter);
                         });
            const bool hit = kind == TargetKind::sign            ? output * target > 0.0
                             : kind == TargetKind::unit_interval ? (output > 0.0) == (target > 0.5)
                                                                 : false;
            part.hits += hit ? weight(r) / static_cast<double>(width) : 0.0;
          }
        }
        for (std::size_t b = 0; b < losses.size(); ++b) {
          check(std::abs(losses[b].loss - expected[b].loss) <=
                    64.0 * kEpsilon<T> * (1.0 + std::abs(expected[b].loss)),
                name, ": loss ", losses[b].loss, ", not ", expected[b].loss);
          check(std::abs(losses[b].hits - expected[b].hits) < 1e-9, name, ": hits ", losses[b].hits,
                ", not ", expected[b].hits);
          check(std::abs(losses[b].weight - expected[b].weight) < 1e-9, name, ": weight");
        }
        const auto slope = [&](int64_t r, int64_t c) {
          return 0.5 * weight(r) * dispatch_loss(id, [&](auto rule) {
                   return decltype(rule)::gradient(std::as_const(z).at(r, c),
                                                   std::as_const(t).at(r, c), parameter);
                 });
        };
        check_matrix(name + " gradient", gradient, slope, [&](int64_t r, int64_t c) {
          return 16.0 * kEpsilon<T> * (1.0 + std::abs(slope(r, c)));
        });
      }
    }
  }
}

// ---- tangents

double second_derivative(cpu::Activation phi, double s) {
  return dispatch_activation(
      phi.id, [&](auto f) { return decltype(f)::second_derivative(s, phi.parameter); });
}

template <class T>
void test_activation_tangents(const Kernels<T>& kernels) {
  Random random(41);
  for (int id = 0; id < kActivationCount; ++id) {
    const cpu::Activation phi{id, default_parameter(id)};
    for (const bool accumulate : {false, true}) {
      const std::string name = concat("tangent of ", activation_name(id));
      const int64_t rows = 67;
      const int64_t width = 37;
      Matrix<T> z(rows, width), at(rows, width), dy(rows, width), q(rows, width), dq(rows, width);
      for (Matrix<T>* matrix : {&z, &dy, &q, &dq}) matrix->fill_normal(random);
      const bool input = dispatch_activation(
          id, [](auto f) { return decltype(f)::backward_needs == ActivationNeeds::input; });
      at.fill([&](int64_t r, int64_t c) {
        return input ? std::as_const(z).at(r, c) : activate(phi, std::as_const(z).at(r, c));
      });
      Matrix<T> out(rows, width);
      if (accumulate) out.fill([](int64_t, int64_t) { return 1.0; });
      for (const Range r : cuts(rows, 30)) {
        for (const Range p : cuts(panels_of(width), 1)) {
          kernels.activation_backward_tangent({.dy = std::as_const(dy).panels(),
                                               .dy_tangent = std::as_const(dq).panels(),
                                               .at = at.memory.data(),
                                               .z_tangent = q.memory.data(),
                                               .activation = phi,
                                               .dz_tangent = out.panels(),
                                               .accumulate = accumulate},
                                              r, p);
        }
      }
      const auto exact = [&](int64_t r, int64_t c) {
        const double s = std::as_const(at).at(r, c);
        return (accumulate ? 1.0 : 0.0) + std::as_const(dq).at(r, c) * derivative(phi, s) +
               std::as_const(dy).at(r, c) * second_derivative(phi, s) * std::as_const(q).at(r, c);
      };
      check_matrix(name, out, exact, [&](int64_t r, int64_t c) {
        return 32.0 * kEpsilon<T> *
               (1.0 + std::abs(std::as_const(dq).at(r, c)) +
                std::abs(std::as_const(dy).at(r, c) * std::as_const(q).at(r, c)));
      });
    }
  }
}

template <class T>
void test_maxout_tangent(const Kernels<T>& kernels) {
  Random random(43);
  for (const int64_t pieces : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}}) {
    const int64_t rows = 9;
    const int64_t units = 45;
    Matrix<T> z(rows, units * pieces), q(rows, units * pieces), out(rows, units);
    z.fill([&](int64_t, int64_t) { return static_cast<double>(random.below(5)); });
    q.fill_normal(random);
    for (const Range r : cuts(rows, 4)) {
      kernels.maxout_tangent(std::as_const(z).panels(), std::as_const(q).panels(), out.panels(),
                             pieces, r);
    }
    check_matrix(
        concat("maxout tangent ", pieces), out,
        [&](int64_t r, int64_t u) {
          int64_t best = u * pieces;
          for (int64_t c = best; c < (u + 1) * pieces; ++c) {
            if (std::as_const(z).at(r, c) > std::as_const(z).at(r, best)) best = c;
          }
          return std::as_const(q).at(r, best);
        },
        [](int64_t, int64_t) { return 1e-300; });
  }
}

// Against the formulas with the statistics spelled out as sums over rows in long double.
template <class T>
void test_batch_norm_tangents(const Kernels<T>& kernels) {
  Random random(47);
  for (const int64_t rows : {int64_t{2}, int64_t{64}, int64_t{150}}) {
    for (const bool weighted : {false, true}) {
      for (const bool frozen : {false, true}) {
        const int64_t width = 35;
        const int64_t blocks = row_blocks_of(rows);
        const int64_t panels = panels_of(width);
        const std::string name = concat("batch norm tangent ", shape({rows, width}),
                                        weighted ? " weighted" : "", frozen ? " frozen" : "");
        Matrix<T> z(rows, width), q(rows, width), g(rows, width), dq(rows, width);
        for (Matrix<T>* matrix : {&z, &q, &g, &dq}) matrix->fill_normal(random);
        const Buffer<T> weights = row_weights<T>(rows, random);
        const auto w = [&](int64_t r) { return weighted ? static_cast<double>(weights[r]) : 1.0; };
        double total = 0.0;
        for (int64_t r = 0; r < rows; ++r) total += w(r);
        // f(row) summed over rows and divided by the total weight.
        const auto mean = [&](auto&& f) {
          long double sum = 0.0;
          for (int64_t r = 0; r < rows; ++r) sum += static_cast<long double>(f(r));
          return static_cast<double>(sum / total);
        };
        const auto normal = [&](int64_t) { return random.normal(); };
        const Buffer<T> gamma =
            columns<T>(width, [&](int64_t c) { return c == 3 ? 0.0 : normal(c); });
        const Buffer<T> gamma_tangent = columns<T>(width, normal);
        const Buffer<T> beta_tangent = columns<T>(width, normal);
        const Buffer<T> mean_z = columns<T>(width, [&](int64_t c) {
          return mean([&](int64_t r) { return w(r) * std::as_const(z).at(r, c); });
        });
        const Buffer<T> inv_std = columns<T>(width, [&](int64_t c) {
          const double variance = mean([&](int64_t r) {
            const double d = std::as_const(z).at(r, c) - static_cast<double>(mean_z[c]);
            return w(r) * d * d;
          });
          return 1.0 / std::sqrt(variance + 1e-3);
        });
        const auto xhat = [&](int64_t r, int64_t c) {
          return (std::as_const(z).at(r, c) - static_cast<double>(mean_z[c])) *
                 static_cast<double>(inv_std[c]);
        };

        cpu::BatchNormPoint<T> point{.z = std::as_const(z).panels(),
                                     .z_tangent = std::as_const(q).panels(),
                                     .mean = mean_z.data(),
                                     .inv_std = inv_std.data()};
        std::vector<BlockSums> sums(static_cast<std::size_t>(blocks * panels));
        // The sums of both kinds over all blocks, divided by the total weight.
        const auto merged = [&](bool second) {
          return columns<T>(width, [&](int64_t c) {
            double sum = 0.0;
            for (int64_t b = 0; b < blocks; ++b) {
              const BlockSums& part = sums[static_cast<std::size_t>(b * panels + c / kPanel)];
              sum += second ? part.g_xhat[c % kPanel] : part.g[c % kPanel];
            }
            return sum / total;
          });
        };
        const auto compare = [&](const char* what, const Buffer<T>& got, auto&& want) {
          for (int64_t c = 0; c < width; ++c) {
            check(std::abs(static_cast<double>(got[c]) - want(c)) <=
                      256.0 * kEpsilon<T> * static_cast<double>(rows),
                  name, ": ", what, " of column ", c);
          }
        };
        for (const Range b : cuts(blocks, 1)) {
          kernels.batch_norm_tangent_sums(point, weighted ? weights.data() : nullptr, sums.data(),
                                          b, {0, panels});
        }
        const Buffer<T> mean_q = merged(false);
        const Buffer<T> mean_q_xhat = merged(true);
        compare("mean tangent", mean_q, [&](int64_t c) {
          return mean([&](int64_t r) { return w(r) * std::as_const(q).at(r, c); });
        });
        compare("deviation tangent", mean_q_xhat, [&](int64_t c) {
          return mean([&](int64_t r) { return w(r) * std::as_const(q).at(r, c) * xhat(r, c); });
        });
        if (!frozen) {
          point.mean_tangent = mean_q.data();
          point.std_tangent = mean_q_xhat.data();
        }
        const auto mq = [&](int64_t c) { return frozen ? 0.0 : static_cast<double>(mean_q[c]); };
        const auto mqx = [&](int64_t c) {
          return frozen ? 0.0 : static_cast<double>(mean_q_xhat[c]);
        };
        const auto xhat_tangent = [&](int64_t r, int64_t c) {
          return (std::as_const(q).at(r, c) - mq(c) - xhat(r, c) * mqx(c)) *
                 static_cast<double>(inv_std[c]);
        };

        Matrix<T> y(rows, width);
        for (const Range r : cuts(rows, 40)) {
          kernels.batch_norm_tangent({.point = point,
                                      .gamma = gamma.data(),
                                      .gamma_tangent = gamma_tangent.data(),
                                      .beta_tangent = beta_tangent.data(),
                                      .y_tangent = y.panels()},
                                     r, {0, panels});
        }
        const auto loose = [](int64_t, int64_t) { return 512.0 * kEpsilon<T>; };
        check_matrix(
            name + " forward", y,
            [&](int64_t r, int64_t c) {
              return static_cast<double>(gamma_tangent[c]) * xhat(r, c) +
                     static_cast<double>(gamma[c]) * xhat_tangent(r, c) +
                     static_cast<double>(beta_tangent[c]);
            },
            loose);

        const Buffer<T> mean_g = columns<T>(width, [&](int64_t c) {
          return mean([&](int64_t r) { return std::as_const(g).at(r, c); });
        });
        const Buffer<T> mean_g_xhat = columns<T>(width, [&](int64_t c) {
          return mean([&](int64_t r) { return std::as_const(g).at(r, c) * xhat(r, c); });
        });
        cpu::BatchNormBackwardTangent<T> problem{.point = point,
                                                 .gamma = gamma.data(),
                                                 .gamma_tangent = gamma_tangent.data(),
                                                 .row_weights = weighted ? weights.data() : nullptr,
                                                 .g = std::as_const(g).panels(),
                                                 .g_tangent = std::as_const(dq).panels(),
                                                 .dz_tangent = {}};
        for (const Range b : cuts(blocks, 1)) {
          kernels.batch_norm_backward_tangent_sums(problem, sums.data(), b, {0, panels});
        }
        const Buffer<T> mean_dq = merged(false);
        const Buffer<T> mean_dq_xhat = merged(true);
        compare("gradient tangent", mean_dq, [&](int64_t c) {
          return mean([&](int64_t r) { return std::as_const(dq).at(r, c); });
        });
        compare("gradient times xhat tangent", mean_dq_xhat, [&](int64_t c) {
          return mean([&](int64_t r) {
            return std::as_const(dq).at(r, c) * xhat(r, c) +
                   std::as_const(g).at(r, c) * xhat_tangent(r, c);
          });
        });
        problem.mean_g = mean_g.data();
        problem.mean_g_xhat = mean_g_xhat.data();
        problem.mean_g_tangent = mean_dq.data();
        problem.mean_g_xhat_tangent = mean_dq_xhat.data();
        for (const bool accumulate : {false, true}) {
          Matrix<T> dz(rows, width);
          if (accumulate) dz.fill([](int64_t, int64_t) { return 1.0; });
          problem.dz_tangent = dz.panels();
          problem.accumulate = accumulate;
          for (const Range r : cuts(rows, 40)) {
            kernels.batch_norm_backward_tangent(problem, r, {0, panels});
          }
          check_matrix(
              name + " backward", dz,
              [&](int64_t r, int64_t c) {
                const double share = frozen ? 0.0 : w(r);
                const double s = static_cast<double>(inv_std[c]);
                const double x = xhat(r, c);
                const double projected =
                    std::as_const(g).at(r, c) - share * (static_cast<double>(mean_g[c]) +
                                                         x * static_cast<double>(mean_g_xhat[c]));
                const double tangent =
                    std::as_const(dq).at(r, c) -
                    share * (static_cast<double>(mean_dq[c]) +
                             xhat_tangent(r, c) * static_cast<double>(mean_g_xhat[c]) +
                             x * static_cast<double>(mean_dq_xhat[c]));
                const double scale = static_cast<double>(gamma[c]) * s;
                const double slope = static_cast<double>(gamma_tangent[c]) * s - scale * s * mqx(c);
                return (accumulate ? 1.0 : 0.0) + slope * projected + scale * tangent;
              },
              [](int64_t, int64_t) { return 4096.0 * kEpsilon<T>; });
        }
      }
    }
  }
}

template <class T>
void test_loss_tangents(const Kernels<T>& kernels) {
  Random random(53);
  const int64_t rows = 70;
  const int64_t blocks = row_blocks_of(rows);
  for (const int64_t width : {int64_t{2}, int64_t{10}, int64_t{75}}) {
    for (const bool weighted : {false, true}) {
      Matrix<T> z(rows, width), q(rows, width), t(rows, width), out(rows, width);
      z.fill_normal(random, 2.0);
      q.fill_normal(random);
      t.fill([&](int64_t, int64_t) { return random.uniform(); });
      const Buffer<T> weights = row_weights<T>(rows, random);
      const auto w = [&](int64_t r) {
        return 0.25 * (weighted ? static_cast<double>(weights[r]) : 1.0);
      };
      cpu::LossTangent<T> problem{.outputs = std::as_const(z).panels(),
                                  .output_tangent = std::as_const(q).panels(),
                                  .row_weights = weighted ? weights.data() : nullptr,
                                  .label_smoothing = 0.1,
                                  .gradient_scale = 0.25,
                                  .gradient_tangent = out.panels()};
      for (const bool by_label : {true, false}) {
        problem.targets = by_label ? Panels<const T>{} : std::as_const(t).panels();
        for (const Range b : cuts(blocks, 1)) kernels.softmax_cross_entropy_tangent(problem, b);
        check_matrix(
            concat("cross_entropy tangent ", width, by_label ? "" : ", probabilities"), out,
            [&](int64_t r, int64_t c) {
              double sum = 0.0;
              double mean = 0.0;
              double target = 0.0;
              for (int64_t k = 0; k < width; ++k) {
                const double e = std::exp(std::as_const(z).at(r, k));
                sum += e;
                mean += e * std::as_const(q).at(r, k);
                target += by_label
                              ? 1.0 / static_cast<double>(width)
                              : 0.9 * std::as_const(t).at(r, k) + 0.1 / static_cast<double>(width);
              }
              return w(r) * target * std::exp(std::as_const(z).at(r, c)) / sum *
                     (std::as_const(q).at(r, c) - mean / sum);
            },
            [&](int64_t, int64_t) {
              return 32.0 * kEpsilon<T> * (by_label ? 1.0 : static_cast<double>(width));
            });
      }
      problem.targets = std::as_const(t).panels();
      for (int id = 0; id < kLossCount; ++id) {
        problem.parameter =
            dispatch_loss(id, [](auto rule) { return decltype(rule)::default_parameter; });
        for (const Range b : cuts(blocks, 1)) kernels.elementwise_loss_tangent(id, problem, b);
        const auto exact = [&](int64_t r, int64_t c) {
          return w(r) * std::as_const(q).at(r, c) * dispatch_loss(id, [&](auto rule) {
                   return decltype(rule)::second_derivative(
                       std::as_const(z).at(r, c), std::as_const(t).at(r, c), problem.parameter);
                 });
        };
        check_matrix(concat("tangent of ", loss_name(id)), out, exact, [&](int64_t r, int64_t c) {
          return 32.0 * kEpsilon<T> * (1.0 + std::abs(exact(r, c)));
        });
      }
    }
  }
}

template <class T>
void test_tangents(const Kernels<T>& kernels) {
  test_activation_tangents(kernels);
  test_maxout_tangent(kernels);
  test_batch_norm_tangents(kernels);
  test_loss_tangents(kernels);
}

// ---- arenas

template <class T>
void test_optimizers(const Kernels<T>& kernels) {
  Random random(37);
  const int64_t count = 5 * kGroupBlock + 3 * kPanel;  // vectors are updated panel by panel
  const std::uint8_t groups[] = {0, 0, 1, 2, 2, 0};
  const bool frozen[] = {false, true, false};
  for (int id = 0; id < kOptimizerCount; ++id) {
    const std::string name = concat("optimizer_step ", optimizer_name(id));
    double hyper[3][kMaxHyperParameters];
    double coefficients[3 * kMaxCoefficients] = {};
    const HyperTable table = optimizer_hyper(id);
    Buffer<T> p(count);
    Buffer<T> g(count);
    Buffer<T> s0(count, T(0));
    Buffer<T> s1(count, T(0));
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(random.normal());
    std::vector<double> want(p.data(), p.data() + count);
    std::vector<double> w0(want.size(), 0.0);
    std::vector<double> w1(want.size(), 0.0);
    const int slots = optimizer_slots(id);
    cpu::OptimizerStep<T> step{.p = p.data(),
                               .g = g.data(),
                               .s0 = slots > 0 ? s0.data() : nullptr,
                               .s1 = slots > 1 ? s1.data() : nullptr,
                               .groups = groups,
                               .coefficients = coefficients,
                               .frozen = frozen,
                               .count = count};
    for (int64_t t = 1; t <= 5; ++t) {
      for (int group = 0; group < 3; ++group) {
        for (int i = 0; i < table.count; ++i) hyper[group][i] = table[i].default_value;
        hyper[group][0] *= 1.0 + group;
        optimizer_coefficients(id, hyper[group], hyper[group], t,
                               coefficients + group * kMaxCoefficients);
      }
      for (int64_t i = 0; i < count; ++i) g[i] = static_cast<T>(random.normal());
      int64_t bad = 0;
      if (t == 3) {
        g[5] = kNaN<T>;
        g[300] = std::numeric_limits<T>::infinity();
        g[2 * kGroupBlock + 1] = kNaN<T>;  // frozen
        bad = 2;
      }
      const int64_t skipped = kernels.optimizer_step(id, step);
      check(skipped == bad, name, ": skipped ", skipped, ", not ", bad);
      for (int64_t i = 0; i < count; ++i) {
        const int group = groups[i / kGroupBlock];
        if (frozen[group] || !std::isfinite(g[i])) continue;
        const std::size_t j = static_cast<std::size_t>(i);
        dispatch_optimizer(id, [&](auto optimizer) {
          const typename decltype(optimizer)::template Update<double> rule(
              coefficients + group * kMaxCoefficients);
          rule(want[j], static_cast<double>(g[i]), w0[j], w1[j]);
        });
      }
    }
    double worst = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const double difference =
          std::abs(static_cast<double>(p[i]) - want[static_cast<std::size_t>(i)]);
      worst = difference <= worst ? worst : difference;
    }
    check(worst <= 64.0 * kEpsilon<T>, name, ": error ", worst);
    check(p.intact() && s0.intact() && s1.intact(), name, ": guard band overwritten");

    Buffer<T> theta(count);
    kernels.optimizer_theta(id, step, theta.data());
    bool good = theta.intact();
    for (int64_t i = 0; i < count; ++i) {
      const double* const c = coefficients + groups[i / kGroupBlock] * kMaxCoefficients;
      double expected = static_cast<double>(p[i]);
      dispatch_optimizer(id, [&](auto optimizer) {
        using Optimizer = decltype(optimizer);
        if constexpr (Optimizer::look_ahead) {
          expected = Optimizer::template theta<double>(expected, static_cast<double>(s0[i]),
                                                       static_cast<double>(s1[i]), c);
        }
      });
      good = good && std::abs(static_cast<double>(theta[i]) - expected) <=
                         8.0 * kEpsilon<T> * (1.0 + std::abs(expected));
    }
    check(good, "optimizer_theta ", optimizer_name(id));
  }
}

template <class T>
void test_arena_operations(const Kernels<T>& kernels) {
  Random random(41);
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{31}, int64_t{1000}}) {
    Buffer<T> x(count);
    Buffer<T> y(count);
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<T>(random.normal());
      y[i] = static_cast<T>(random.normal());
    }
    Buffer<T> mean = y;
    kernels.average(mean.data(), x.data(), 0.25, count);
    Buffer<T> sum = y;
    kernels.axpy(-1.5, x.data(), sum.data(), count);
    Buffer<T> scaled = x;
    kernels.scale(scaled.data(), 3.5, count);
    double squares = 0.0;
    bool good = mean.intact() && sum.intact() && scaled.intact();
    for (int64_t i = 0; i < count; ++i) {
      const double a = static_cast<double>(x[i]);
      const double b = static_cast<double>(y[i]);
      const auto close = [](T got, double want) {
        return std::abs(static_cast<double>(got) - want) <=
               8.0 * kEpsilon<T> * (1.0 + std::abs(want));
      };
      squares += a * a;
      good = good && close(mean[i], 0.75 * b + 0.25 * a) && close(sum[i], b - 1.5 * a) &&
             close(scaled[i], 3.5 * a);
    }
    check(good, "average, axpy or scale of ", count);
    check(std::abs(kernels.sum_of_squares(x.data(), count) - squares) <= 1e-13 * (1.0 + squares),
          "sum_of_squares of ", count);
    check(kernels.finite(x.data(), count), "finite of ", count);
    if (count == 0) continue;
    for (const T bad :
         {kNaN<T>, std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()}) {
      Buffer<T> spoiled = x;
      spoiled[count - 1] = bad;
      check(!kernels.finite(spoiled.data(), count), "finite of ", count, " with ", double(bad));
    }
  }
}

// ---- data movement

template <class T>
void test_gather(const Kernels<T>& kernels) {
  Random random(43);
  const auto half_bits = [](double x) -> std::uint16_t {
    // Multiples of 1/4 below 64, infinity and NaN are all that is needed here.
    if (std::isnan(x)) return 0x7e00;
    if (std::isinf(x)) return x > 0 ? 0x7c00 : 0xfc00;
    if (x == 0.0) return 0;
    int exponent = 0;
    const double fraction = std::frexp(std::abs(x), &exponent);
    const auto mantissa = static_cast<std::uint16_t>(fraction * 2048.0 - 1024.0);
    return static_cast<std::uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa);
  };
  for (int code = 0; code <= static_cast<int>(DType::kFloat64); ++code) {
    const auto dtype = static_cast<DType>(code);
    const int64_t item = item_size(dtype);
    for (const int64_t width : {int64_t{1}, int64_t{32}, int64_t{47}}) {
      // Layouts: contiguous, Fortran order, every second column reversed, unaligned rows.
      for (int layout = 0; layout < 4; ++layout) {
        const std::string name =
            concat("gather ", dtype_name(dtype), " width ", width, " layout ", layout);
        const int64_t source_rows = 50;
        const int64_t rows = 33;
        const int64_t row_stride = layout == 1   ? item
                                   : layout == 2 ? 2 * width * item
                                                 : width * item + (layout == 3 ? 1 : 0);
        const int64_t col_stride = layout == 1   ? source_rows * item
                                   : layout == 2 ? -2 * item
                                                 : item;
        std::vector<unsigned char> bytes(
            static_cast<std::size_t>(source_rows * width * 2 * item + 64 + source_rows));
        unsigned char* const origin = bytes.data() + (layout == 2   ? (2 * width - 1) * item
                                                      : layout == 3 ? 1
                                                                    : 0);
        std::vector<double> values(static_cast<std::size_t>(source_rows * width));
        for (int64_t r = 0; r < source_rows; ++r) {
          for (int64_t c = 0; c < width; ++c) {
            double x = static_cast<double>(random.below(128)) / 4.0 - 16.0;
            if (dtype == DType::kBool) x = static_cast<double>(random.below(2));
            if (is_integer(dtype)) x = std::floor(x);
            if (dtype >= DType::kUInt8 && dtype <= DType::kUInt64) x = std::abs(x);
            if (dtype == DType::kUInt64 && r == 4) x = 0x1.8p63;
            if (dtype == DType::kFloat16 && r == 5) x = std::numeric_limits<double>::infinity();
            unsigned char* const to = origin + r * row_stride + c * col_stride;
            const auto put = [&](auto typed) { std::memcpy(to, &typed, sizeof(typed)); };
            switch (dtype) {
              case DType::kBool:
                put(static_cast<unsigned char>(x != 0 ? 1 : 0));
                break;
              case DType::kInt8:
                put(static_cast<std::int8_t>(x));
                break;
              case DType::kInt16:
                put(static_cast<std::int16_t>(x));
                break;
              case DType::kInt32:
                put(static_cast<std::int32_t>(x));
                break;
              case DType::kInt64:
                put(static_cast<std::int64_t>(x));
                break;
              case DType::kUInt8:
                put(static_cast<std::uint8_t>(x));
                break;
              case DType::kUInt16:
                put(static_cast<std::uint16_t>(x));
                break;
              case DType::kUInt32:
                put(static_cast<std::uint32_t>(x));
                break;
              case DType::kUInt64:
                put(static_cast<std::uint64_t>(x));
                break;
              case DType::kFloat16:
                put(half_bits(x));
                break;
              case DType::kBFloat16: {
                const float f = static_cast<float>(x);
                std::uint32_t bits = 0;
                std::memcpy(&bits, &f, 4);
                put(static_cast<std::uint16_t>(bits >> 16));
                break;
              }
              case DType::kFloat32:
                put(static_cast<float>(x));
                break;
              case DType::kFloat64:
                put(x);
                break;
            }
            values[static_cast<std::size_t>(r * width + c)] = x;
          }
        }
        const ArrayView view{origin, dtype,      width == 1 ? 1 : 2, source_rows,
                             width,  row_stride, col_stride};
        std::vector<int64_t> index(static_cast<std::size_t>(rows));
        for (int64_t& i : index) i = random.below(source_rows);
        for (const bool indexed : {true, false}) {
          Matrix<T> out(rows, width);
          for (const Range r : cuts(rows, 10)) {
            kernels.gather(view, indexed ? index.data() : nullptr, 17, r, out.panels());
          }
          const auto expected = [&](int64_t r, int64_t c) {
            const int64_t row = indexed ? index[static_cast<std::size_t>(r)] : 17 + r;
            return values[static_cast<std::size_t>(row * width + c)];
          };
          check_matrix(name, out, expected, [](int64_t, int64_t) { return 1e-300; });
          if (!indexed) {
            Buffer<T> dense(rows * (width + 3));
            kernels.scatter(std::as_const(out).panels(), {0, 20}, dense.data(), width + 3);
            kernels.scatter(std::as_const(out).panels(), {20, rows}, dense.data(), width + 3);
            bool good = dense.intact();
            for (int64_t r = 0; r < rows; ++r) {
              for (int64_t c = 0; c < width; ++c) {
                good = good && static_cast<double>(dense[r * (width + 3) + c]) == expected(r, c);
              }
              good = good && std::isnan(dense[r * (width + 3) + width]);
            }
            check(good, "scatter width ", width);
          }
        }
        check(kernels.all_finite(view, {6, source_rows}), name, ": all_finite of finite rows");
        check(kernels.all_finite(view, {0, source_rows}) == (dtype != DType::kFloat16), name,
              ": all_finite");
      }
    }
  }
  // All float16 values.
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  Matrix<T> out(65536, 1);
  kernels.gather({all.data(), DType::kFloat16, 1, 65536, 1, 2, 2}, nullptr, 0, {0, 65536},
                 out.panels());
  check_matrix(
      "gather of every float16", out,
      [&](int64_t r, int64_t) {
        const int exponent = static_cast<int>(r >> 10 & 31);
        const double mantissa = static_cast<double>(r & 1023);
        double value = exponent == 0 ? std::ldexp(mantissa, -24)
                                     : std::ldexp(1024.0 + mantissa, exponent - 25);
        if (exponent == 31) value = mantissa == 0 ? HUGE_VAL : kNaN<double>;
        return r >> 15 != 0 ? -value : value;
      },
      [](int64_t, int64_t) { return 1e-300; });
}

// ---- products of bfloat16 numbers

// The nearest bfloat16 number by the definition: 8 significant bits, ties to even.
double nearest_bfloat16(double x) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 8, -133));
  const double nearest = std::nearbyint(x / unit) * unit;
  return std::clamp(nearest, -0x1.fep127, 0x1.fep127);
}

// The upper half of the bits of a float.
std::uint32_t bfloat_bits(double x) {
  return std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16;
}

// Random values, and their pairs as round_to_bfloat16 leaves them.
struct Factors {
  Matrix<float> values;
  std::vector<BfloatPair> columns, rows, transposed;
  Factors(const Kernels<float>& kernels, int64_t count, int64_t width, Random& random,
          const std::string& name)
      : values(count, width) {
    constexpr BfloatPair kNotANumber{0x7fc07fc0};
    const int64_t size = panels_of(width) * round_up(count, kPanel) * kPanel / 2;
    // Rows beyond the end of `columns` may be read.
    columns.assign(static_cast<std::size_t>(size + kTile), kNotANumber);
    rows.assign(static_cast<std::size_t>(size), kNotANumber);
    transposed = rows;
    values.fill([&](int64_t, int64_t) { return random.normal(); });
    const Matrix<float> before = values;
    for (const Range part : cuts(count, kRowBlock))
      kernels.round_to_bfloat16({columns.data(), rows.data(), transposed.data()}, values.panels(),
                                part, {0, panels_of(width)});
    check_matrix(
        name + " rounding", values,
        [&](int64_t r, int64_t c) { return nearest_bfloat16(before.at(r, c)); },
        [](int64_t, int64_t) { return 1e-300; });
  }
};

void test_bfloat16(const Kernels<float>& kernels) {
  Random random(11);
  for (const double special : {0.0, -0.0, 1e-40, 0x1.01p0, 0x1.03p0, -0x1.01p0, 3.4e38, -3.4e38,
                               HUGE_VAL, -HUGE_VAL, kNaN<double>}) {
    Matrix<float> x(1, 1);
    x.fill([&](int64_t, int64_t) { return special; });
    std::vector<BfloatPair> pairs(kTile);
    kernels.round_to_bfloat16({.columns = pairs.data()}, x.panels(), {0, 1}, {0, 1});
    const double want = nearest_bfloat16(static_cast<double>(static_cast<float>(special)));
    const double got = std::as_const(x).at(0, 0);
    check(want == got || (std::isnan(want) && std::isnan(got)), "rounding of ", special, " gave ",
          got);
  }
  for (const auto& [rows, depth, width] : {std::array<int64_t, 3>{1, 1, 1},
                                           {2, 33, 31},
                                           {65, 64, 32},
                                           {130, 257, 70},
                                           {33, 784, 10},
                                           {7, 1030, 45},
                                           {128, 10, 512}}) {
    const std::string size = shape({rows, depth, width});
    const Factors a(kernels, rows, depth, random, "a " + size),
        dy(kernels, rows, width, random, "dy " + size);
    Weights<float> w(depth, width);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t n = 0; n < width; ++n) w.at(k, n) = static_cast<float>(random.normal());
    std::vector<BfloatPair> pairs(static_cast<std::size_t>(w.memory.size() / 2));
    for (int64_t tile = 0; tile < w.memory.size(); tile += kTile) {
      // Both copies at once are those made one by one.
      std::vector<BfloatPair> transposed(kTile / 2), only_transposed = transposed,
                                                     only_pairs(pairs);
      kernels.pair_tile(w.memory.data() + tile, pairs.data() + tile / 2, transposed.data());
      kernels.pair_tile(w.memory.data() + tile, nullptr, only_transposed.data());
      kernels.pair_tile(w.memory.data() + tile, only_pairs.data() + tile / 2, nullptr);
      for (int64_t i = 0; i < kPanel; ++i) {
        for (int64_t j = 0; j < kPanel; j += 2) {
          const auto at = static_cast<std::size_t>(j / 2 * kPanel + i);
          const float* const values = w.memory.data() + tile + i * kPanel + j;
          const std::uint32_t want = bfloat_bits(nearest_bfloat16(values[0])) |
                                     bfloat_bits(nearest_bfloat16(values[1])) << 16;
          check(transposed[at].bits == want && only_transposed[at].bits == want,
                "transposed pairs ", size, ": row ", i, ", column ", j);
        }
      }
      check(std::equal(only_pairs.begin() + tile / 2, only_pairs.begin() + (tile + kTile) / 2,
                       pairs.begin() + tile / 2,
                       [](BfloatPair x, BfloatPair y) { return x.bits == y.bits; }),
            "pairs alone ", size);
    }

    const auto bound = [](int64_t depth_, double absolute) {
      return (16.0 + std::sqrt(static_cast<double>(depth_)) / 16.0) * kEpsilon<float> * absolute +
             1e-300;
    };
    double absolute = 0.0;
    Matrix<float> c(rows, width);
    for (const Range part : cuts(rows, kRowBlock))
      kernels.gemm({.a = a.values.panels(),
                    .a_pairs = a.columns.data(),
                    .b_pairs = pairs.data(),
                    .c = c.panels()},
                   part, {0, panels_of(width)});
    check_matrix(
        "bfloat16 gemm " + size, c,
        [&](int64_t r, int64_t n) {
          long double sum = absolute = 0.0;
          for (int64_t k = 0; k < depth; ++k) {
            const double product = a.values.at(r, k) * nearest_bfloat16(std::as_const(w).at(k, n));
            sum += product;
            absolute += std::abs(product);
          }
          return static_cast<double>(sum);
        },
        [&](int64_t, int64_t) { return bound(depth, absolute); });

    const int64_t panel = panels_of(depth) - 1, lanes = depth - panel * kPanel;
    const int64_t dy_lanes = std::min(width, kPanel), stride = round_up(rows, kPanel) / 2 * kPanel;
    for (const bool accumulate : {false, true}) {
      Matrix<float> tile(kPanel, dy_lanes);
      if (accumulate) tile.fill([&](int64_t i, int64_t) { return i < lanes ? 1.0 : 0.0; });
      kernels.wgrad_tile_bfloat16(a.transposed.data() + panel * stride, lanes, dy.rows.data(),
                                  dy_lanes, rows, accumulate, tile.memory.data());
      check_matrix(
          "bfloat16 wgrad_tile " + size, tile,
          [&](int64_t i, int64_t j) {
            if (i >= lanes) return 0.0;
            long double sum = absolute = accumulate ? 1.0 : 0.0;
            for (int64_t r = 0; r < rows; ++r) {
              const double product = a.values.at(r, panel * kPanel + i) * dy.values.at(r, j);
              sum += product;
              absolute += std::abs(product);
            }
            return static_cast<double>(sum);
          },
          [&](int64_t, int64_t) { return bound(rows, absolute); });
    }
  }
}

template <class T>
void test_kernels(InstructionSet isa) {
  path = concat(instruction_set_name(isa), " ", dtype_name(dtype_of<T>()));
  const Kernels<T>& kernels = cpu::kernels<T>(isa);
  test_gemms(kernels);
  test_gemm_special_values(kernels);
  test_wgrad(kernels);
  test_weight_gradient(kernels);
  test_elementwise(kernels);
  test_maxout(kernels);
  test_batch_norm(kernels);
  test_cross_entropy(kernels);
  test_elementwise_losses(kernels);
  test_tangents(kernels);
  test_optimizers(kernels);
  test_arena_operations(kernels);
  test_gather(kernels);
  if constexpr (std::is_same_v<T, float>) test_bfloat16(kernels);
}

}  // namespace

int main() {
  for (const InstructionSet isa : {InstructionSet::kBaseline, InstructionSet::kV3,
                                   InstructionSet::kV4, InstructionSet::kV4Bfloat16}) {
    if (isa > detect_instruction_set()) continue;
    test_kernels<float>(isa);
    test_kernels<double>(isa);
    std::printf("%s: done\n", instruction_set_name(isa));
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
