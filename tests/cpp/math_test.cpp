// Tests csrc/math on its own: elementary functions against long double libm, formulas against
// central differences or their textbook form, random numbers against known answers. Prints every
// failure and the largest error of each elementary function; the exit code is 1 if anything failed.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "math/activations.h"
#include "math/batch_norm.h"
#include "math/clip.h"
#include "math/elementary.h"
#include "math/loss/cross_entropy.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "math/permutation.h"
#include "math/philox.h"

namespace tw = thalweg;
using Real = long double;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  if (failures <= 100) std::printf("FAILED %s\n", what.c_str());
}

void expect_near(double got, double want, double tolerance, const std::string& what) {
  const double error = std::fabs(got - want);
  expect(error <= tolerance, what + ": got " + std::to_string(got) + ", want " +
                                 std::to_string(want) + ", error " +
                                 std::to_string(error / tolerance) + " tolerances");
}

// --- elementary functions
// --------------------------------------------------------------------------

// Distance in units of the last place of T at `want`; an infinite result counts as the first number
// beyond the finite range.
template <class T>
double ulp_error(T got, Real want) {
  using Limits = std::numeric_limits<T>;
  if (std::isnan(want)) return std::isnan(got) ? 0.0 : HUGE_VAL;
  if (std::isnan(got)) return HUGE_VAL;
  const Real edge = std::ldexp(Real(1), Limits::max_exponent);
  if (std::isinf(got) && std::fabs(want) >= edge) return (got > 0) == (want > 0) ? 0.0 : HUGE_VAL;
  const Real value = std::isinf(got) ? std::copysign(edge, Real(got)) : Real(got);
  if (want == 0) {
    return value == 0 && std::signbit(got) == std::signbit(want) ? 0.0 : HUGE_VAL;
  }
  int exponent = 0;
  std::frexp(std::fmin(std::fabs(want), Real(Limits::max())), &exponent);
  exponent = std::max(exponent, Limits::min_exponent) - Limits::digits;
  return static_cast<double>(std::fabs(value - want) / std::ldexp(Real(1), exponent));
}

template <class T>
std::vector<T> elementary_inputs() {
  using Bits = tw::FloatBits<T>;
  using Limits = std::numeric_limits<T>;
  std::vector<T> inputs = {T(0),
                           T(1),
                           T(0.5),
                           T(2),
                           Limits::infinity(),
                           Limits::max(),
                           Limits::min(),
                           Limits::denorm_min(),
                           Limits::epsilon(),
                           Limits::quiet_NaN()};
  std::mt19937_64 random(1);
  const auto uniform = [&](double low, double high) {
    return static_cast<T>(std::uniform_real_distribution<double>(low, high)(random));
  };
  // The whole range of bit patterns, then the ranges where something happens.
  for (int i = 0; i < 300000; ++i) inputs.push_back(tw::from_bits<T>(static_cast<Bits>(random())));
  for (int i = 0; i < 100000; ++i) {
    inputs.push_back(uniform(-2, 2));
    inputs.push_back(uniform(-12, 12));
    inputs.push_back(static_cast<T>(std::ldexp(uniform(0.5, 1), -(i % 200))));
    inputs.push_back(static_cast<T>(1 + std::ldexp(uniform(-1, 1), -(i % 60))));
    inputs.push_back(sizeof(T) == 4 ? uniform(-110, 95) : uniform(-750, 715));
  }
  // Neighbours of the ends of reduction intervals and of polynomial pieces.
  std::vector<double> edges = {0.55,
                               1.0,
                               std::sqrt(0.5),
                               std::sqrt(2.0),
                               std::sqrt(2.0) - 1,
                               std::sqrt(0.5) - 1,
                               -1.0,
                               20.0,
                               10.0,
                               87.0,
                               88.7228390520,
                               -87.3365447506,
                               -103.972077083,
                               709.782712893384,
                               -708.396418532264,
                               -745.13321910194};
  for (int n = -2160; n <= 2160; ++n) edges.push_back(n * 0.34657359027997264);
  for (const double edge : edges) {
    T below = static_cast<T>(edge);
    T above = below;
    for (int i = 0; i < 20; ++i) {
      inputs.push_back(below);
      inputs.push_back(above);
      below = std::nextafter(below, -Limits::infinity());
      above = std::nextafter(above, Limits::infinity());
    }
  }
  for (std::size_t i = 0, n = inputs.size(); i < n; ++i) inputs.push_back(-inputs[i]);
  return inputs;
}

template <class T, class Function, class Reference>
void check_elementary(const char* name, const std::vector<T>& inputs, Function function,
                      Reference reference) {
  std::vector<T> outputs(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) outputs[i] = function(inputs[i]);
  double worst = 0;
  T worst_input = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const double error = ulp_error(outputs[i], reference(static_cast<Real>(inputs[i])));
    if (error > worst) {
      worst = error;
      worst_input = inputs[i];
    }
  }
  char text[160];
  std::snprintf(text, sizeof text, "%s<%s>: %.4f ulp at %a", name,
                sizeof(T) == 4 ? "float" : "double", worst, static_cast<double>(worst_input));
  std::printf("%s\n", text);
  expect(worst <= 2.0, text);
}

template <class T>
void test_elementary() {
  const std::vector<T> inputs = elementary_inputs<T>();
  const auto reference_sigmoid = [](Real x) {
    return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
  };
  const auto reference_softplus = [](Real x) {
    return (x < 0 ? 0 : x) + std::log1p(std::exp(-std::fabs(x)));
  };
  check_elementary<T>(
      "exp", inputs, [](T x) { return tw::exp(x); }, [](Real x) { return std::exp(x); });
  check_elementary<T>(
      "expm1", inputs, [](T x) { return tw::expm1(x); }, [](Real x) { return std::expm1(x); });
  check_elementary<T>(
      "log", inputs, [](T x) { return tw::log(x); }, [](Real x) { return std::log(x); });
  check_elementary<T>(
      "log1p", inputs, [](T x) { return tw::log1p(x); }, [](Real x) { return std::log1p(x); });
  check_elementary<T>(
      "tanh", inputs, [](T x) { return tw::tanh(x); }, [](Real x) { return std::tanh(x); });
  check_elementary<T>(
      "erf", inputs, [](T x) { return tw::erf(x); }, [](Real x) { return std::erf(x); });
  check_elementary<T>(
      "sqrt", inputs, [](T x) { return tw::sqrt(x); }, [](Real x) { return std::sqrt(x); });
  check_elementary<T>("sigmoid", inputs, [](T x) { return tw::sigmoid(x); }, reference_sigmoid);
  check_elementary<T>("softplus", inputs, [](T x) { return tw::softplus(x); }, reference_softplus);

  const T epsilon = std::numeric_limits<T>::epsilon();
  for (const T x : inputs) {
    if (!(std::fabs(x) < 30)) continue;
    const Real want = std::erfc(-Real(x) * std::sqrt(Real(0.5))) / 2;
    const Real bound = want * epsilon * (3 + x * x) + std::numeric_limits<T>::denorm_min();
    if (!(std::fabs(tw::normal_distribution(x) - want) <= bound)) {
      expect(false, "normal_distribution at " + std::to_string(x));
      break;
    }
  }
}

// --- activations and losses
// ------------------------------------------------------------------------

template <class F>
double central_difference(F f, double x) {
  const double h = 1e-5;
  return (f(x + h) - f(x - h)) / (2 * h);
}

void test_activations() {
  for (int id = 0; id < tw::kActivationCount; ++id) {
    tw::dispatch_activation(id, [&](auto activation) {
      using A = decltype(activation);
      const std::string name = A::name;
      expect(tw::activation_id(A::name) == id, name + ": id of name");
      const double a = A::default_parameter;
      const auto value = [&](double z) { return A::value(z, a); };
      const auto saved = [&](double z) {
        return A::backward_needs == tw::ActivationNeeds::output ? A::value(z, a) : z;
      };
      const auto derivative = [&](double z) { return A::derivative(saved(z), a); };
      for (double z = -6.02; z < 6; z += 0.05) {
        expect_near(derivative(z), central_difference(value, z), 1e-8, name + " derivative");
        expect_near(A::second_derivative(saved(z), a), central_difference(derivative, z), 1e-8,
                    name + " second derivative");
      }
      const float not_a_number = std::numeric_limits<float>::quiet_NaN();
      expect(std::isnan(A::value(not_a_number, float(a))), name + " hides NaN");
    });
  }
  expect(tw::activation_id("reluu") == -1 && tw::activation_id("rel") == -1, "unknown activation");
  expect(tw::Relu::derivative(tw::Relu::value(0.0f, 0.0f), 0.0f) == 0.0f, "relu derivative at 0");
  expect(tw::Relu::derivative(tw::Relu::value(-1.0f, 0.0f), 0.0f) == 0.0f,
         "relu derivative below 0");
  expect(std::isnan(tw::Relu::derivative(std::nanf(""), 0.0f)), "relu derivative hides NaN");
  expect(tw::Gelu::value(-1e30, 0.0) == 0 && tw::Silu::value(-1e30, 0.0) == 0, "left tails");
}

void test_losses() {
  for (int id = 0; id < tw::kLossCount; ++id) {
    tw::dispatch_loss(id, [&](auto loss) {
      using L = decltype(loss);
      const std::string name = L::name;
      expect(tw::loss_id(L::name) == id, name + ": id of name");
      const double a = L::default_parameter;
      std::vector<double> targets = {-1, 1};
      if (L::target == tw::TargetKind::unit_interval) targets = {0, 0.3, 1};
      if (L::target == tw::TargetKind::real) targets = {-2.5, 0, 1.7};
      for (const double t : targets) {
        for (double z = -5.013; z < 5; z += 0.1) {
          const auto value = [&](double x) { return L::value(x, t, a); };
          const auto gradient = [&](double x) { return L::gradient(x, t, a); };
          const double scale = 1e-8 * (1 + std::fabs(value(z)));
          expect_near(gradient(z), central_difference(value, z), scale, name + " gradient");
          expect_near(L::second_derivative(z, t, a), central_difference(gradient, z), scale,
                      name + " second derivative");
        }
      }
    });
  }
  expect(tw::loss_id("l2") == -1, "unknown loss");
  for (const double z : {1e4, -1e4}) {
    expect(tw::BinaryCrossEntropy::value(z, z > 0 ? 1.0 : 0.0, 0.0) == 0, "bce, right and sure");
    expect(tw::BinaryCrossEntropy::value(z, z > 0 ? 0.0 : 1.0, 0.0) == 1e4, "bce, wrong and sure");
    expect(tw::Logistic::value(z, z > 0 ? -1.0 : 1.0, 0.0) == 1e4, "logistic, wrong and sure");
  }
  expect_near(tw::BinaryCrossEntropy::gradient(60.0, 1.0, 0.0) / -std::exp(-60.0), 1, 1e-12,
              "bce gradient keeps small values");
  expect(std::isfinite(tw::Exponential::value(-88.0f, 1.0f, 0.0f)) &&
             std::isinf(tw::Exponential::value(-89.0f, 1.0f, 0.0f)),
         "exponential loss overflows where the true value does");
}

struct SoftmaxRow {
  double maximum, sum, log_sum, shifted_sum;
};

SoftmaxRow softmax_row(const std::vector<double>& z) {
  SoftmaxRow row = {z[0], 0, 0, 0};
  for (const double x : z) row.maximum = tw::cross_entropy::row_maximum(row.maximum, x);
  for (const double x : z) {
    row.sum += tw::cross_entropy::shifted_exponential(x, row.maximum);
    row.shifted_sum += x - row.maximum;
  }
  row.log_sum = tw::log(row.sum);
  return row;
}

double label_loss(const std::vector<double>& z, std::size_t label, double smoothing) {
  namespace ce = tw::cross_entropy;
  const SoftmaxRow row = softmax_row(z);
  double others = 0;
  for (std::size_t j = 0; j < z.size(); ++j) {
    if (j != label) others += ce::shifted_exponential(z[j], row.maximum);
  }
  const double shifted = z[label] - row.maximum;
  const double loss = ce::label_loss(others, tw::exp(shifted), shifted);
  return ce::label_loss_smoothed(loss, smoothing, row.log_sum, row.shifted_sum, double(z.size()));
}

double probability_loss(const std::vector<double>& z, const std::vector<double>& y) {
  const SoftmaxRow row = softmax_row(z);
  double loss = 0;
  for (std::size_t j = 0; j < z.size(); ++j) {
    loss += tw::cross_entropy::probability_term(y[j], row.log_sum, z[j] - row.maximum);
  }
  return loss;
}

void test_cross_entropy() {
  namespace ce = tw::cross_entropy;
  const std::vector<double> z = {0.3, -1.2, 2.5, 0.0, -0.7};
  const std::vector<double> y = {0.2, 0.0, 0.9, 0.4, 0.1};
  const double target_sum = 1.6;
  const SoftmaxRow row = softmax_row(z);
  for (std::size_t j = 0; j < z.size(); ++j) {
    const double e = ce::shifted_exponential(z[j], row.maximum);
    const auto moved = [&](double x) {
      std::vector<double> copy = z;
      copy[j] = x;
      return copy;
    };
    for (std::size_t label = 0; label < z.size(); ++label) {
      for (const double smoothing : {0.0, 0.1}) {
        const double target = ce::smoothed_target(j == label, smoothing, double(z.size()));
        expect_near(ce::label_gradient(e, 1 / row.sum, target),
                    central_difference(
                        [&](double x) { return label_loss(moved(x), label, smoothing); }, z[j]),
                    1e-9, "cross_entropy label gradient");
      }
    }
    expect_near(ce::probability_gradient(e, 1 / row.sum, y[j], target_sum),
                central_difference([&](double x) { return probability_loss(moved(x), y); }, z[j]),
                1e-9, "cross_entropy probability gradient");
    expect_near(ce::label_gradient_at_label(row.sum - e, 1 / row.sum),
                ce::label_gradient(e, 1 / row.sum, 1.0), 1e-15,
                "cross_entropy gradient at the label");
  }
  expect_near(label_loss({0, 60}, 1, 0) / std::exp(-60.0), 1, 1e-14,
              "cross_entropy keeps small losses");
  expect(label_loss({1e4, -1e4}, 1, 0) == 2e4, "cross_entropy with large logits");
  const double infinite = -std::numeric_limits<double>::infinity();
  expect(probability_loss({infinite, 0}, {0, 1}) == 0, "a zero target contributes zero");
  expect(std::isnan(softmax_row({1, std::nan(""), 2}).maximum), "row_maximum hides NaN");
}

// --- optimizers
// ------------------------------------------------------------------------------------

template <class O>
std::vector<double> default_hyper() {
  std::vector<double> hyper;
  for (const tw::HyperParameter& row : O::hyper) hyper.push_back(row.default_value);
  return hyper;
}

template <class O, class T>
void check_zero_fixed_point() {
  const tw::HyperTable table = tw::optimizer_hyper(tw::optimizer_id(O::name));
  // Corners of the table: every hyper-parameter at its lowest, default and highest value.
  int corners = 1;
  for (int i = 0; i < table.count; ++i) corners *= 3;
  for (int corner = 0; corner < corners; ++corner) {
    std::vector<double> hyper;
    for (int i = 0, rest = corner; i < table.count; ++i, rest /= 3) {
      const double choice[] = {table[i].lowest, table[i].default_value, table[i].highest};
      hyper.push_back(choice[rest % 3]);
    }
    double c[tw::kMaxCoefficients] = {};
    for (const std::int64_t t : {std::int64_t(1), std::int64_t(1000000000)}) {
      O::coefficients(hyper.data(), hyper.data(), t, c);
      const typename O::template Update<T> update(c);
      T p = 0, s0 = 0, s1 = 0;
      update(p, T(0), s0, s1);
      expect(p == 0 && s0 == 0 && s1 == 0, std::string(O::name) + " moves zero");
    }
  }
}

// Textbook updates of theta in long double; the gradient is that of a quadratic plus a wave.
struct Textbook {
  Real theta = 1, first = 0, second = 0, product1 = 1, product2 = 1;

  void step(const std::string& name, const std::vector<double>& h, Real g) {
    const Real lr = h[0];
    if (name == "sgd") {
      theta -= lr * (g + h[1] * theta);
    } else if (name == "momentum") {
      first = h[1] * first - lr * g;
      theta += first;
    } else if (name == "nesterov") {
      first = h[1] * first - lr * g;
      theta += first;
    } else if (name == "adagrad") {
      first += g * g;
      theta -= lr * g / (h[1] + std::sqrt(first));
    } else if (name == "rmsprop") {
      first = h[1] * first + (1 - Real(h[1])) * g * g;
      theta -= lr * g / (h[3] != 0 ? std::sqrt(h[2] + first) : h[2] + std::sqrt(first));
    } else if (name == "rmsprop_nesterov") {
      first = h[1] * first + (1 - Real(h[1])) * g * g;
      second = h[2] * second - lr * g / (h[3] + std::sqrt(first));
      theta += second;
    } else if (name == "adadelta") {
      first = h[1] * first + (1 - Real(h[1])) * g * g;
      const Real d = std::sqrt(second + h[2]) / std::sqrt(first + h[2]) * g;
      second = h[1] * second + (1 - Real(h[1])) * d * d;
      theta -= lr * d;
    } else {
      if (name == "adamw") theta *= 1 - lr * h[4];
      product1 *= h[1];
      product2 *= h[2];
      first = h[1] * first + (1 - Real(h[1])) * g;
      second = h[2] * second + (1 - Real(h[2])) * g * g;
      theta -= lr * (first / (1 - product1)) / (std::sqrt(second / (1 - product2)) + h[3]);
    }
  }

  // The point at which a look-ahead method takes its gradient.
  Real look_ahead(const std::string& name, Real momentum) const {
    if (name == "nesterov") return theta + momentum * first;
    if (name == "rmsprop_nesterov") return theta + momentum * second;
    return theta;
  }
};

template <class O, class T>
void check_against_textbook(int steps, double tolerance, bool scheduled) {
  const std::string name = O::name;
  const int momentum = tw::optimizer_hyper_index(tw::optimizer_id(O::name), "momentum");
  std::vector<double> hyper = default_hyper<O>();
  std::vector<double> next = hyper;
  const auto schedule = [&](std::vector<double>& h, int k) {
    if (!scheduled) return;
    h[0] = O::hyper[0].default_value / (1 + 0.01 * k);
    if (momentum >= 0) h[static_cast<std::size_t>(momentum)] = k / (k + 3.0);
  };
  const auto momentum_of = [&](const std::vector<double>& h) {
    return momentum >= 0 ? Real(h[static_cast<std::size_t>(momentum)]) : Real(0);
  };
  Textbook textbook;
  T p = 1, s0 = 0, s1 = 0;
  double c[tw::kMaxCoefficients] = {};
  double worst = 0;
  for (int k = 0; k < steps; ++k) {
    schedule(hyper, k);
    schedule(next, k + 1);
    const Real point = textbook.look_ahead(name, momentum_of(hyper));
    const T g = static_cast<T>(0.3L * point + 0.1L * std::sin(Real(k) * k));
    textbook.step(name, hyper, g);
    O::coefficients(hyper.data(), next.data(), k + 1, c);
    typename O::template Update<T>{c}(p, g, s0, s1);
    T theta = p;
    if constexpr (O::look_ahead) theta = O::theta(p, s0, s1, c);
    worst = std::max(worst, static_cast<double>(std::fabs(theta - textbook.theta)));
  }
  char text[120];
  std::snprintf(text, sizeof text, "%s<%s>%s: error %.3g after %d steps", O::name,
                sizeof(T) == 4 ? "float" : "double", scheduled ? " scheduled" : "", worst, steps);
  expect(worst <= tolerance, text);
}

void test_optimizers() {
  for (int id = 0; id < tw::kOptimizerCount; ++id) {
    tw::dispatch_optimizer(id, [&](auto optimizer) {
      using O = decltype(optimizer);
      expect(tw::optimizer_id(O::name) == id, std::string(O::name) + ": id of name");
      const tw::HyperTable table = tw::optimizer_hyper(id);
      expect(table.count <= tw::kMaxHyperParameters, std::string(O::name) + ": too many rows");
      expect(tw::same_name(table[0].name, "lr"), std::string(O::name) + ": lr first");
      expect(tw::optimizer_hyper_index(id, "weight_decay") > 0, std::string(O::name) + ": decay");
      for (const tw::HyperParameter& row : table) {
        expect(row.lowest <= row.default_value && row.default_value <= row.highest, row.name);
      }
      for (int slot = 0; slot < O::slots; ++slot) {
        expect(tw::optimizer_slot_name(id, slot) != nullptr, std::string(O::name) + ": slot name");
      }
      check_zero_fixed_point<O, float>();
      check_zero_fixed_point<O, double>();
      for (const bool scheduled : {false, true}) {
        check_against_textbook<O, double>(100, 1e-12, scheduled);
        check_against_textbook<O, float>(2000, 48 * double(FLT_EPSILON), scheduled);
      }
    });
  }
  expect(tw::optimizer_id("adamm") == -1, "unknown optimizer");

  // Bias corrections against long double up to 1e9 updates.
  for (const double beta : {0.0, 0.5, 0.9, 0.999, 0.9999999, 1 - 1e-12}) {
    for (const std::int64_t t : {1, 2, 10, 1000, 16777217, 1000000000}) {
      const Real want = -std::expm1(Real(t) * std::log1p(Real(beta) - 1));
      expect_near(static_cast<double>(tw::bias_correction(beta, t) / want), 1, 1e-14,
                  "bias_correction");
    }
  }

  // PyTorch's convention holds v = -buffer lr and the same p while lr is constant.
  double deck[tw::kMaxCoefficients] = {};
  double torch[tw::kMaxCoefficients] = {};
  const double hyper[] = {0.1, 0.9, 0, 0.01};
  const double torch_hyper[] = {0.1, 0.9, 1, 0.01};
  const auto compare = [&](auto optimizer, const std::string& name) {
    using O = decltype(optimizer);
    O::coefficients(hyper, hyper, 1, deck);
    O::coefficients(torch_hyper, torch_hyper, 1, torch);
    double p = 1, v = 0, q = 1, buffer = 0, none = 0;
    for (int k = 0; k < 50; ++k) {
      typename O::template Update<double>{deck}(p, std::cos(k), v, none);
      typename O::template Update<double>{torch}(q, std::cos(k), buffer, none);
    }
    expect_near(q, p, 1e-14, name + " torch_compat parameters");
    expect_near(-0.1 * buffer, v, 1e-14, name + " torch_compat buffer");
    if constexpr (O::look_ahead) {
      expect_near(O::theta(q, buffer, none, torch), O::theta(p, v, none, deck), 1e-14,
                  name + " torch_compat theta");
    }
  };
  compare(tw::Momentum{}, "momentum");
  compare(tw::Nesterov{}, "nesterov");
}

// --- random numbers
// --------------------------------------------------------------------------------

void test_philox() {
  // Known answers published with the Random123 library.
  const struct {
    tw::PhiloxBlock counter;
    std::uint32_t key0, key1;
    tw::PhiloxBlock want;
  } cases[] = {
      {{{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       0xffffffff,
       0xffffffff,
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0xa4093822,
       0x299f31d0,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& known : cases) {
    const tw::PhiloxBlock got = tw::philox4x32_10(known.counter, known.key0, known.key1);
    for (int i = 0; i < 4; ++i) expect(got.word[i] == known.want.word[i], "philox known answer");
  }
  const tw::PhiloxBlock block =
      tw::philox(0x299f31d0a4093822u, 0x85a3, 0x0370734413198a2eu, 0x08d3243f6a88u);
  const tw::PhiloxBlock layout =
      tw::philox4x32_10({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0);
  expect(block.word[0] == layout.word[0] && block.word[3] == layout.word[3],
         "philox counter layout");
  for (std::uint64_t e = 0; e < 8; ++e) {
    const tw::PhiloxBlock want = tw::philox(5, 6, 7, e / 4);
    expect(tw::philox_word(5, 6, 7, e) == want.word[e % 4], "philox_word");
  }

  expect(tw::uniform_float(0) == 0 && tw::uniform_float(0xffffffff) == 1 - 0x1p-24f,
         "uniform_float");
  expect(tw::uniform_double((std::uint64_t(1) << 53) - 1) == 1 - 0x1p-53, "uniform_double");
  expect(tw::bernoulli_threshold(0) == 0 && tw::bernoulli_threshold(1) == std::uint64_t(1) << 32,
         "bernoulli_threshold");

  for (double u = 1e-300; u < 1; u = u < 0.01 ? u * 1.7 : u + 0.00137) {
    const Real x = tw::normal_quantile(u);
    const Real density = std::exp(-x * x / 2) / std::sqrt(2 * std::acos(Real(-1)));
    const Real residual = (std::erfc(-x / std::sqrt(Real(2))) / 2 - u) / density;
    expect(std::fabs(residual) <= 2e-15L * (1 + std::fabs(x)),
           "normal_quantile at " + std::to_string(u));
  }
  double moment[5] = {};
  const int count = 400000;
  for (int e = 0; e < count; ++e) {
    const double x = tw::standard_normal(tw::philox_bits53(3, 1, 0, static_cast<std::uint64_t>(e)));
    for (int k = 1; k <= 4; ++k) moment[k] += std::pow(x, k) / count;
  }
  expect_near(moment[1], 0, 0.007, "normal mean");
  expect_near(moment[2], 1, 0.01, "normal variance");
  expect_near(moment[3], 0, 0.03, "normal skewness");
  expect_near(moment[4], 3, 0.08, "normal kurtosis");
}

// Deviation of a chi-square statistic in standard deviations.
double chi_square_score(const std::vector<double>& counts, double expected, double freedom,
                        double factor) {
  double sum = 0;
  for (const double count : counts) sum += (count - expected) * (count - expected) / expected;
  return (sum * factor - freedom) / std::sqrt(2 * freedom);
}

void test_permutation() {
  for (std::uint64_t n = 1; n <= 1000; ++n) {
    for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
      const tw::Permutation permutation(n, 11, epoch);
      std::vector<bool> seen(n, false);
      for (std::uint64_t i = 0; i < n; ++i) {
        const std::uint64_t image = permutation(i);
        expect(image < n && !seen[image] && permutation.inverse(image) == i,
               "permutation of " + std::to_string(n));
        if (image < n) seen[image] = true;
      }
      std::vector<std::int64_t> filled(n + 1, -1);
      const std::uint64_t middle = n / 3;
      permutation.fill(0, static_cast<std::int64_t>(middle), filled.data());
      permutation.fill(middle, static_cast<std::int64_t>(n - middle), filled.data() + middle);
      for (std::uint64_t i = 0; i < n; ++i)
        expect(filled[i] == static_cast<std::int64_t>(permutation(i)), "many positions at a time");
      expect(filled[n] == -1, "and no more than were asked for");
    }
  }
  std::mt19937_64 random(2);
  for (const std::uint64_t n : {std::uint64_t(1) << 48, (std::uint64_t(1) << 48) - 1,
                                (std::uint64_t(1) << 47) + 12345, std::uint64_t(60000)}) {
    const tw::Permutation permutation(n, 5, 9);
    for (int i = 0; i < 2000; ++i) {
      const std::uint64_t x = i == 0 ? n - 1 : random() % n;
      expect(permutation(x) < n && permutation.inverse(permutation(x)) == x, "large permutation");
      std::int64_t filled = -1;
      permutation.fill(x, 1, &filled);
      expect(filled == static_cast<std::int64_t>(permutation(x)),
             "filled from a large permutation");
    }
  }
  for (const int n : {2, 3, 4, 5, 6, 7, 10, 31, 33, 64, 100}) {
    const std::size_t m = static_cast<std::size_t>(n);
    const int epochs = n < 20 ? 100000 : 20000;
    std::vector<double> places(m * m, 0.0), pairs, pair_counts(m * m, 0.0);
    for (int epoch = 0; epoch < epochs; ++epoch) {
      const tw::Permutation permutation(m, 1, static_cast<std::uint64_t>(epoch));
      for (std::size_t i = 0; i < m; ++i) ++places[i * m + permutation(i)];
      ++pair_counts[permutation(0) * m + permutation(1)];
    }
    for (std::size_t i = 0; i < m * m; ++i) {
      if (i / m != i % m) pairs.push_back(pair_counts[i]);
    }
    const double d = n;
    const double place_score = chi_square_score(places, epochs / d, (d - 1) * (d - 1), (d - 1) / d);
    const double pair_score = chi_square_score(pairs, epochs / (d * (d - 1)), d * (d - 1) - 1, 1);
    expect(std::fabs(place_score) < 4.5, "places of permutation of " + std::to_string(n));
    expect(std::fabs(pair_score) < 4.5, "pairs of permutation of " + std::to_string(n));
  }
}

// --- batch normalization, clipping
// -----------------------------------------------------------------

void test_batch_norm() {
  std::mt19937_64 random(3);
  std::normal_distribution<double> normal;
  // Float sums of shifted tiles of 64 rows at mean/std = 1e4.
  const int rows = 64 * 400;
  std::vector<float> column;
  for (int i = 0; i < rows; ++i) column.push_back(static_cast<float>(1e4 + normal(random)));
  tw::Moments moments = {0, 0, 0, 0};
  for (int start = 0; start < rows; start += 64) {
    const float shift = column[static_cast<std::size_t>(start)];
    float sum = 0, squares = 0;
    for (int i = start; i < start + 64; ++i) {
      const float d = column[static_cast<std::size_t>(i)] - shift;
      sum += d;
      squares += d * d;
    }
    moments = tw::merge_moments(
        moments, tw::shifted_moments(64, 64, double(shift), double(sum), double(squares)));
  }
  Real mean = 0, variance = 0;
  for (const float x : column) mean += Real(x) / rows;
  for (const float x : column) variance += (x - mean) * (x - mean) / rows;
  expect_near(moments.mean, static_cast<double>(mean), 1e-7, "batch mean");
  expect_near(tw::biased_variance(moments) / static_cast<double>(variance), 1, 1e-5,
              "batch variance");
  expect_near(tw::unbiased_variance(moments) / static_cast<double>(variance),
              double(rows) / (rows - 1), 1e-5, "unbiased variance");
  const tw::Moments constant = tw::merge_moments(tw::shifted_moments(64, 64, 0.1, 0, 0),
                                                 tw::shifted_moments(7, 7, 0.1, 0, 0));
  expect(constant.mean == 0.1 && constant.m2 == 0, "constant column");
  const tw::Moments single = tw::shifted_moments(1, 1, 3, 0, 0);
  expect(tw::unbiased_variance(single) == 0, "variance of a single row");
  expect(tw::biased_variance({0, 0, 0, 0}) == 0 && tw::unbiased_variance({0, 0, 0, 0}) == 0,
         "variance of no rows");

  // Backward and tangent of a weighted batch against central differences.
  const std::vector<double> z = {0.3, -1.1, 2.0, 0.4, 5.0}, w = {1, 0.5, 2, 0, 1.5},
                            dy = {0.7, -0.2, 0.1, 1.3, -0.5}, q = {1, -2, 0.3, 0.6, 0.1};
  const double gamma = 1.7, beta = -0.3, epsilon = 1e-5;
  const auto forward = [&](const std::vector<double>& x) {
    tw::Moments m = {0, 0, 0, 0};
    for (std::size_t i = 0; i < x.size(); ++i) {
      m = tw::merge_moments(m, tw::shifted_moments(w[i], w[i] * w[i], x[i], 0, 0));
    }
    const double inverse_std = tw::inverse_deviation(tw::biased_variance(m), epsilon);
    std::vector<double> y;
    for (const double xi : x) y.push_back(tw::normalize(xi, m.mean, inverse_std));
    y.push_back(inverse_std);
    return y;
  };
  const auto objective = [&](const std::vector<double>& x) {
    const std::vector<double> y = forward(x);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += dy[i] * tw::scale_shift(y[i], gamma, beta);
    return sum;
  };
  const std::vector<double> xhat = forward(z);
  double mean_dy = 0, mean_dy_xhat = 0, mean_q = 0, mean_q_xhat = 0;
  for (std::size_t i = 0; i < z.size(); ++i) {
    mean_dy += dy[i] / 5;
    mean_dy_xhat += dy[i] * xhat[i] / 5;
    mean_q += w[i] * q[i] / 5;
    mean_q_xhat += w[i] * q[i] * xhat[i] / 5;
  }
  for (std::size_t i = 0; i < z.size(); ++i) {
    const auto moved = [&](double x) {
      std::vector<double> copy = z;
      copy[i] = x;
      return objective(copy);
    };
    expect_near(
        tw::normalize_backward(dy[i], xhat[i], w[i], mean_dy, mean_dy_xhat, gamma, xhat.back()),
        central_difference(moved, z[i]), 1e-9, "batch_norm backward");
    const auto along = [&](double t) {
      std::vector<double> copy = z;
      for (std::size_t j = 0; j < z.size(); ++j) copy[j] += t * q[j];
      return forward(copy)[i];
    };
    expect_near(tw::normalize_tangent(q[i], xhat[i], mean_q, mean_q_xhat, xhat.back()),
                central_difference(along, 0), 1e-9, "batch_norm tangent");
  }
}

void test_clip() {
  expect(tw::clip_scale(4, 1) == 0.5 && tw::clip_scale(0.25, 1) == 1 && tw::clip_scale(0, 1) == 1,
         "clip_scale");
  expect(std::isnan(tw::clip_scale(HUGE_VAL, 1)) && std::isnan(tw::clip_scale(std::nan(""), 1)),
         "clip_scale of a non-finite norm");
}

}  // namespace

int main() {
  test_elementary<float>();
  test_elementary<double>();
  test_activations();
  test_losses();
  test_cross_entropy();
  test_optimizers();
  test_philox();
  test_permutation();
  test_batch_norm();
  test_clip();
  std::printf("%s: %d failures\n", failures == 0 ? "passed" : "FAILED", failures);
  return failures == 0 ? 0 : 1;
}
