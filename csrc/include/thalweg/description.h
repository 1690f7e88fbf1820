// What a model is made of, as plain structs with the names, defaults and meaning that they have in
// Python: layers, initializers, losses, optimizers and schedules. Each knows its JSON, which is all
// that the library sees of it. Ranges are checked when a model is made of them.
//
//   thalweg::Dense{512}
//   thalweg::Dense{.units = 512, .bias = false, .init = thalweg::init::Orthogonal{}}
//   thalweg::Momentum{.lr = thalweg::schedules::Linear{.start = 0.1, .tau_epochs = 20.0}}
#pragma once

#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "thalweg/error.h"

namespace thalweg {
inline namespace wrapper {
namespace detail {

inline std::string json_text(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      out += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out += '"';
}

// The shortest text that reads back as the same number, in every locale.
template <class Number>
std::string json_number(Number number) {
  if constexpr (std::floating_point<Number>) {
    if (!std::isfinite(number)) throw ValueError("[description] expected finite numbers");
  }
  char buffer[64];
  return {buffer, std::to_chars(buffer, buffer + sizeof(buffer), number).ptr};
}

class JsonObject {
 public:
  JsonObject() = default;
  JsonObject(std::string_view key, std::string_view name) { text(key, name); }

  JsonObject& json(std::string_view key, std::string_view value) {
    members_ += members_.empty() ? "" : ", ";
    members_ += json_text(key);
    members_ += ": ";
    members_ += value;
    return *this;
  }
  template <class Number>
  JsonObject& number(std::string_view key, Number value) {
    return json(key, json_number(value));
  }
  template <class Number>
  JsonObject& number(std::string_view key, const std::optional<Number>& value) {
    return json(key, value ? json_number(*value) : "null");
  }
  JsonObject& flag(std::string_view key, bool value) { return json(key, value ? "true" : "false"); }
  JsonObject& flag(std::string_view key, std::optional<bool> value) {
    return value ? flag(key, *value) : json(key, "null");
  }
  JsonObject& text(std::string_view key, std::string_view value) {
    return json(key, json_text(value));
  }
  // An array of descriptions.
  template <class Elements>
  JsonObject& array(std::string_view key, const Elements& elements) {
    std::string out = "[";
    for (const auto& element : elements) out += (out.size() > 1 ? ", " : "") + element.json();
    return json(key, out + "]");
  }
  operator std::string() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

inline JsonObject typed(std::string_view type) { return {"type", type}; }
inline JsonObject scheduled(std::string_view schedule) { return {"schedule", schedule}; }

// Any description of one category.
template <class Kind>
class Any {
 public:
  template <class D>
    requires std::same_as<typename D::Category, Kind>
  Any(const D& description) : json_(description.json()) {}
  const std::string& json() const { return json_; }

 private:
  std::string json_;
};

struct LayerCategory {};
struct InitializerCategory {};
struct LossCategory {};
struct ScheduleCategory {};
struct OptimizerCategory {};
struct AveragingCategory {};

}  // namespace detail

using Layer = detail::Any<detail::LayerCategory>;
using Initializer = detail::Any<detail::InitializerCategory>;
using Loss = detail::Any<detail::LossCategory>;
using Schedule = detail::Any<detail::ScheduleCategory>;
using Optimizer = detail::Any<detail::OptimizerCategory>;
using Averaging = detail::Any<detail::AveragingCategory>;

// ---- Initializers of weights; biases start at zero

namespace init {

// He normal when a rectifier follows, Glorot uniform otherwise.
struct Auto {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("auto"); }
};
// U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))
struct Deck {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("deck"); }
};
struct GlorotUniform {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("glorot_uniform"); }
};
struct HeNormal {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("he_normal"); }
};
struct LecunNormal {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("lecun_normal"); }
};
struct Orthogonal {
  using Category = detail::InitializerCategory;
  double gain = 1.0;
  std::string json() const { return detail::typed("orthogonal").number("gain", gain); }
};
struct Zeros {
  using Category = detail::InitializerCategory;
  std::string json() const { return detail::typed("zeros"); }
};
struct Normal {
  using Category = detail::InitializerCategory;
  double std;
  std::string json() const { return detail::typed("normal").number("std", std); }
};
struct Uniform {
  using Category = detail::InitializerCategory;
  double bound;
  std::string json() const { return detail::typed("uniform").number("bound", bound); }
};

}  // namespace init

// ---- Layers

// y = x W^T + b. Without a statement on `bias` there is one unless batch norm follows.
struct Dense {
  using Category = detail::LayerCategory;
  std::int64_t units;
  std::optional<bool> bias = {};
  Initializer init = init::Auto{};
  std::string json() const {
    return detail::typed("dense")
        .number("units", units)
        .flag("bias", bias)
        .json("init", init.json());
  }
};

// The largest of `pieces` affine functions per unit.
struct Maxout {
  using Category = detail::LayerCategory;
  std::int64_t units;
  std::int64_t pieces = 2;
  std::optional<bool> bias = {};
  Initializer init = init::Auto{};
  std::string json() const {
    return detail::typed("maxout")
        .number("units", units)
        .number("pieces", pieces)
        .flag("bias", bias)
        .json("init", init.json());
  }
};

// Without momentum the running statistics are the average over all batches so far.
struct BatchNorm {
  using Category = detail::LayerCategory;
  double eps = 1e-5;  // at least 1e-30
  std::optional<double> momentum = 0.1;
  bool weighted = false;  // sample weights enter the batch statistics
  std::string json() const {
    return detail::typed("batch_norm")
        .number("eps", eps)
        .number("momentum", momentum)
        .flag("weighted", weighted);
  }
};

struct Identity {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("identity"); }
};
struct ReLU {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("relu"); }
};
struct LeakyReLU {
  using Category = detail::LayerCategory;
  double slope = 0.01;
  std::string json() const { return detail::typed("leaky_relu").number("slope", slope); }
};
struct ELU {
  using Category = detail::LayerCategory;
  double alpha = 1.0;
  std::string json() const { return detail::typed("elu").number("alpha", alpha); }
};
struct GELU {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("gelu"); }
};
struct SiLU {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("silu"); }
};
struct Sigmoid {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("sigmoid"); }
};
struct Tanh {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("tanh"); }
};
struct Softplus {
  using Category = detail::LayerCategory;
  std::string json() const { return detail::typed("softplus"); }
};

// Zeroes each element with probability p in training and scales the others by 1 / (1 - p).
struct Dropout {
  using Category = detail::LayerCategory;
  double p = 0.5;
  std::string json() const { return detail::typed("dropout").number("p", p); }
};

struct Sequential {
  using Category = detail::LayerCategory;
  std::vector<Layer> layers;
  Sequential(std::initializer_list<Layer> list) : layers(list) {}
  explicit Sequential(std::vector<Layer> list) : layers(std::move(list)) {}
  std::string json() const { return detail::typed("sequential").array("layers", layers); }
};

// x + F(x), where F is the sequence of layers. zero_init starts the last one at zero: F(x) = 0.
struct Residual {
  using Category = detail::LayerCategory;
  std::vector<Layer> layers;
  bool zero_init = true;
  Residual(std::initializer_list<Layer> list) : layers(list) {}
  explicit Residual(std::vector<Layer> list, bool zero = true)
      : layers(std::move(list)), zero_init(zero) {}
  std::string json() const {
    return detail::typed("residual").array("layers", layers).flag("zero_init", zero_init);
  }
};

// ---- Losses

enum class Reduction { kBatchMean, kSum, kElementMean };

namespace detail {
inline JsonObject reduced(std::string_view type, Reduction reduction) {
  constexpr const char* kNames[] = {"batch_mean", "sum", "element_mean"};
  return typed(type).text("reduction", kNames[static_cast<int>(reduction)]);
}
}  // namespace detail

struct CrossEntropy {
  using Category = detail::LossCategory;
  double label_smoothing = 0.0;
  std::string json() const {
    return detail::typed("cross_entropy").number("label_smoothing", label_smoothing);
  }
};
struct SquaredError {
  using Category = detail::LossCategory;
  Reduction reduction = Reduction::kBatchMean;
  std::string json() const { return detail::reduced("squared_error", reduction); }
};
struct Huber {
  using Category = detail::LossCategory;
  double delta = 1.0;
  Reduction reduction = Reduction::kBatchMean;
  std::string json() const { return detail::reduced("huber", reduction).number("delta", delta); }
};
struct BinaryCrossEntropy {
  using Category = detail::LossCategory;
  Reduction reduction = Reduction::kBatchMean;
  std::string json() const { return detail::reduced("binary_cross_entropy", reduction); }
};
struct Logistic {
  using Category = detail::LossCategory;
  Reduction reduction = Reduction::kSum;
  std::string json() const { return detail::reduced("logistic", reduction); }
};
struct Exponential {
  using Category = detail::LossCategory;
  Reduction reduction = Reduction::kSum;
  std::string json() const { return detail::reduced("exponential", reduction); }
};
// The function given to Model::set_custom_loss.
struct CustomLoss {
  using Category = detail::LossCategory;
  std::string json() const { return detail::typed("custom"); }
};

// ---- Schedules: functions of k, the number of updates already done

namespace schedules {

struct Constant {
  using Category = detail::ScheduleCategory;
  double value;
  std::string json() const { return detail::scheduled("constant").number("value", value); }
};
// From start to end (0.01 start) over tau updates, or tau_epochs epochs, then constant.
struct Linear {
  using Category = detail::ScheduleCategory;
  double start;
  std::optional<double> end = {};
  std::optional<double> tau = {};
  std::optional<double> tau_epochs = {};
  std::string json() const {
    return detail::scheduled("linear")
        .number("start", start)
        .number("end", end)
        .number("tau", tau)
        .number("tau_epochs", tau_epochs);
  }
};
// start / (1 + k / k0)^power
struct RobbinsMonro {
  using Category = detail::ScheduleCategory;
  double start;
  double k0;
  double power = 1.0;
  std::string json() const {
    return detail::scheduled("robbins_monro")
        .number("start", start)
        .number("k0", k0)
        .number("power", power);
  }
};
// start * factor^floor(k / every)
struct Step {
  using Category = detail::ScheduleCategory;
  double start;
  double factor;
  std::int64_t every;
  std::string json() const {
    return detail::scheduled("step")
        .number("start", start)
        .number("factor", factor)
        .number("every", every);
  }
};
struct Cosine {
  using Category = detail::ScheduleCategory;
  double start;
  std::int64_t steps;
  double end = 0.0;
  std::string json() const {
    return detail::scheduled("cosine")
        .number("start", start)
        .number("end", end)
        .number("steps", steps);
  }
};
// Grows linearly to `then` over so many updates.
struct Warmup {
  using Category = detail::ScheduleCategory;
  Schedule then;
  std::int64_t steps;
  std::string json() const {
    return detail::scheduled("warmup").number("steps", steps).json("then", then.json());
  }
};
struct OneCycle {
  using Category = detail::ScheduleCategory;
  double peak;
  std::int64_t steps;
  double start_fraction = 0.3;
  double initial_divisor = 25.0;
  double final_divisor = 1e4;
  std::string json() const {
    return detail::scheduled("one_cycle")
        .number("peak", peak)
        .number("steps", steps)
        .number("start_fraction", start_fraction)
        .number("initial_divisor", initial_divisor)
        .number("final_divisor", final_divisor);
  }
};
// k / (k + 3), a momentum that keeps the O(1 / k^2) bound of convex problems.
struct NesterovConvex {
  using Category = detail::ScheduleCategory;
  std::string json() const { return detail::scheduled("nesterov_convex"); }
};

}  // namespace schedules

// A learning rate or momentum: a number or a schedule.
class Hyper {
 public:
  Hyper(double value) : json_(detail::json_number(value)) {}
  template <class S>
    requires std::same_as<typename S::Category, detail::ScheduleCategory>
  Hyper(const S& schedule) : json_(schedule.json()) {}
  Hyper(const Schedule& schedule) : json_(schedule.json()) {}
  const std::string& json() const { return json_; }

 private:
  std::string json_;
};

// ---- Optimizers

// Parameters whose names match a shell pattern ("*.bias"); the first match wins.
struct Group {
  std::string match;
  double lr_scale = 1.0;
  std::optional<double> weight_decay = {};  // unset: the optimizer's
  bool frozen = false;
  std::string json() const {
    return detail::JsonObject("match", match)
        .number("lr_scale", lr_scale)
        .number("weight_decay", weight_decay)
        .flag("frozen", frozen);
  }
};

struct SGD {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.1;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("sgd")
        .json("lr", lr.json())
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct Momentum {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.1;
  Hyper momentum = 0.9;
  bool torch_compat = false;  // the learning rate outside the velocity
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("momentum")
        .json("lr", lr.json())
        .json("momentum", momentum.json())
        .flag("torch_compat", torch_compat)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct Nesterov {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.1;
  Hyper momentum = 0.9;
  bool torch_compat = false;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("nesterov")
        .json("lr", lr.json())
        .json("momentum", momentum.json())
        .flag("torch_compat", torch_compat)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct AdaGrad {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.01;
  double delta = 1e-7;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("adagrad")
        .json("lr", lr.json())
        .number("delta", delta)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct RMSProp {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1e-3;
  double rho = 0.9;
  double delta = 1e-6;
  bool delta_inside = false;  // delta under the root
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("rmsprop")
        .json("lr", lr.json())
        .number("rho", rho)
        .number("delta", delta)
        .flag("delta_inside", delta_inside)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct RMSPropNesterov {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1e-3;
  double rho = 0.9;
  Hyper momentum = 0.9;
  double delta = 1e-6;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("rmsprop_nesterov")
        .json("lr", lr.json())
        .number("rho", rho)
        .json("momentum", momentum.json())
        .number("delta", delta)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct AdaDelta {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1.0;
  double rho = 0.95;
  double delta = 1e-6;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("adadelta")
        .json("lr", lr.json())
        .number("rho", rho)
        .number("delta", delta)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
struct Adam {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double delta = 1e-8;
  double weight_decay = 0.0;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("adam")
        .json("lr", lr.json())
        .number("beta1", beta1)
        .number("beta2", beta2)
        .number("delta", delta)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};
// Adam with decoupled weight decay.
struct AdamW {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double delta = 1e-8;
  double weight_decay = 0.01;
  std::vector<Group> groups = {};
  std::string json() const {
    return detail::typed("adamw")
        .json("lr", lr.json())
        .number("beta1", beta1)
        .number("beta2", beta2)
        .number("delta", delta)
        .number("weight_decay", weight_decay)
        .array("groups", groups);
  }
};

// ---- Methods on the whole objective: one step per update, on the loss of its minibatch

// norm: "l1", "l2", "linf"; step: "fixed", "exact", "wolfe".
struct SteepestDescent {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.1;
  std::string norm = "l2";
  bool normalized = false;
  std::string step = "fixed";
  double c1 = 1e-4;
  double c2 = 0.9;
  std::string json() const {
    return detail::typed("steepest_descent")
        .json("lr", lr.json())
        .text("norm", norm)
        .flag("normalized", normalized)
        .text("step", step)
        .number("c1", c1)
        .number("c2", c2);
  }
};
// order: "greedy", "cyclic"; step: "exact", "fixed".
struct CoordinateDescent {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.1;
  std::string order = "greedy";
  std::string step = "exact";
  std::string json() const {
    return detail::typed("coordinate_descent")
        .json("lr", lr.json())
        .text("order", order)
        .text("step", step);
  }
};
struct NonlinearCG {
  using Category = detail::OptimizerCategory;
  double c1 = 1e-4;
  double c2 = 0.1;
  std::int64_t restart_every = 0;  // 0: the number of parameters
  std::string json() const {
    return detail::typed("nonlinear_cg")
        .number("c1", c1)
        .number("c2", c2)
        .number("restart_every", restart_every);
  }
};
// For losses that are quadratic in the parameters.
struct LinearCG {
  using Category = detail::OptimizerCategory;
  std::string json() const { return detail::typed("linear_cg"); }
};
struct BFGS {
  using Category = detail::OptimizerCategory;
  double c1 = 1e-4;
  double c2 = 0.9;
  std::string json() const { return detail::typed("bfgs").number("c1", c1).number("c2", c2); }
};
struct LBFGS {
  using Category = detail::OptimizerCategory;
  std::int64_t history = 10;
  double c1 = 1e-4;
  double c2 = 0.9;
  std::string json() const {
    return detail::typed("lbfgs").number("history", history).number("c1", c1).number("c2", c2);
  }
};
// curvature: "hessian", "gauss_newton".
struct Newton {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1.0;
  double damping = 0.0;
  bool damping_search = false;
  std::string curvature = "hessian";
  std::int64_t krylov = 50;
  std::int64_t exact_below = 300;
  std::string json() const {
    return detail::typed("newton")
        .json("lr", lr.json())
        .number("damping", damping)
        .flag("damping_search", damping_search)
        .text("curvature", curvature)
        .number("krylov", krylov)
        .number("exact_below", exact_below);
  }
};
// Newton with the eigenvalues' magnitudes.
struct SaddleFreeNewton {
  using Category = detail::OptimizerCategory;
  Hyper lr = 1.0;
  double damping = 0.0;
  bool damping_search = false;
  std::string curvature = "hessian";
  std::int64_t krylov = 50;
  std::int64_t exact_below = 300;
  std::string json() const {
    return detail::typed("saddle_free_newton")
        .json("lr", lr.json())
        .number("damping", damping)
        .flag("damping_search", damping_search)
        .text("curvature", curvature)
        .number("krylov", krylov)
        .number("exact_below", exact_below);
  }
};
struct DampedNewton {
  using Category = detail::OptimizerCategory;
  double damping = 1e-3;
  std::string curvature = "hessian";
  std::int64_t exact_below = 300;
  std::int64_t cg_iterations = 100;
  double cg_tolerance = 1e-6;
  std::string json() const {
    return detail::typed("damped_newton")
        .number("damping", damping)
        .text("curvature", curvature)
        .number("exact_below", exact_below)
        .number("cg_iterations", cg_iterations)
        .number("cg_tolerance", cg_tolerance);
  }
};
struct PathSGD {
  using Category = detail::OptimizerCategory;
  Hyper lr = 0.01;
  std::string json() const { return detail::typed("path_sgd").json("lr", lr.json()); }
};

// ---- Averages of the parameters

// The mean over all updates from the update `start` on.
struct Polyak {
  using Category = detail::AveragingCategory;
  std::int64_t start = 0;
  std::string json() const { return detail::typed("polyak").number("start", start); }
};
struct EMA {
  using Category = detail::AveragingCategory;
  double decay = 0.999;
  std::string json() const { return detail::typed("ema").number("decay", decay); }
};

}  // namespace wrapper
}  // namespace thalweg
