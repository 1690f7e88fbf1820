// What a user describes: the layers, the loss, the optimizer. Plain values, parsed from and written
// as JSON (the same text in Python, in the C interface and in checkpoints); the plan is compiled
// from it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/array_view.h"
#include "core/export.h"

namespace thalweg {

// "auto", "deck", "glorot_uniform", "he_normal", "lecun_normal", "orthogonal" (gain), "zeros",
// "normal" (std), "uniform" (bound).
struct Initializer {
  std::string type = "auto";
  double value = 1.0;  // gain, std or bound
};

enum class LayerKind {
  kDense,
  kBatchNorm,
  kActivation,
  kDropout,
  kMaxout,
  kResidual,
  kSequential,
};

struct Layer {
  LayerKind kind = LayerKind::kDense;
  // dense, maxout
  std::int64_t units = 0;
  std::int64_t pieces = 2;
  std::optional<bool> bias;  // unset: false when a batch norm follows, true otherwise
  Initializer init;
  // batch norm
  double eps = 1e-5;
  std::optional<double> momentum = 0.1;  // unset: cumulative average
  bool weighted = false;
  // activation
  int activation = 0;  // position in math/activations.inc
  double parameter = 0.0;
  // dropout
  double rate = 0.5;
  // residual
  bool zero_init = true;
  // residual, sequential
  std::vector<Layer> layers;
};

enum class Reduction { kBatchMean, kSum, kElementMean };

struct LossDescription {
  enum class Kind { kCrossEntropy, kElementwise, kCustom };
  Kind kind = Kind::kCrossEntropy;
  int elementwise = 0;  // position in math/losses.inc
  double parameter = 0.0;
  double label_smoothing = 0.0;
  Reduction reduction = Reduction::kBatchMean;
};

// A function of k, the number of updates already done.
struct Schedule {
  std::string type = "constant";
  double value = 0.0;                // constant
  double start = 0.0, end = 0.0;     // linear, robbins_monro, step, cosine
  std::optional<double> tau;         // linear, in updates
  std::optional<double> tau_epochs;  // linear, in epochs
  double k0 = 1.0, power = 1.0;      // robbins_monro
  double factor = 1.0;               // step
  std::int64_t every = 1;            // step
  std::int64_t steps = 1;            // cosine, warmup, one_cycle
  double peak = 0.0, start_fraction = 0.3, initial_divisor = 25.0,
         final_divisor = 1e4;            // one_cycle
  std::shared_ptr<const Schedule> then;  // warmup
};

struct HyperValue {
  double value = 0.0;
  std::optional<Schedule> schedule;
};

struct ParameterGroup {
  std::string match;  // shell pattern over parameter names, e.g. "*.bias"; the first match wins
  double lr_scale = 1.0;
  std::optional<double> weight_decay;
  bool frozen = false;
};

// A method of minimize/ that sees the objective itself, not one element of a gradient.
struct MethodDescription {
  int method = 0;                  // position in minimize::methods()
  std::vector<HyperValue> values;  // in the order of the method's table; flags are 0 or 1, choices
                                   // positions
};

struct OptimizerDescription {
  int optimizer = 0;              // position in math/optimizers.inc
  std::vector<HyperValue> hyper;  // in the order of the optimizer's table; flags are 0 or 1
  std::vector<ParameterGroup> groups;
  // In place of an elementwise optimizer, which then is `sgd` with a learning rate of 0: an update
  // of the engines that leaves the parameters alone.
  std::optional<MethodDescription> method;
};

struct Averaging {
  enum class Kind { kNone, kPolyak, kEma };
  Kind kind = Kind::kNone;
  double decay = 0.999;    // ema
  std::int64_t start = 0;  // polyak: first averaged update
};

enum class CheckFinite { kLoss, kGradients };

// Accuracy of float32 matrix products; float64 ones are always in float64.
enum class MatmulPrecision {
  kHighest,  // as of float32 arithmetic
  kHigh,     // operands rounded to 16 significant bits, or better
  kMedium,   // operands and activations rounded to bfloat16
};

struct Description {
  std::int64_t in_features = 0;
  DType dtype = DType::kFloat32;
  std::uint64_t seed = 0;
  std::vector<Layer> layers;
  LossDescription loss;
  OptimizerDescription optimizer;
  Averaging averaging;
  std::optional<double> clip_norm;
  CheckFinite check_finite = CheckFinite::kLoss;
  MatmulPrecision matmul_precision = MatmulPrecision::kHighest;
};

// ValueError names the path of what is wrong ("[description] layers[2].units: expected ...").
// Unknown keys are errors; missing optional keys take the defaults.
TW_INTERNAL_API Description parse_description(std::string_view json);
// A method alone, elementwise optimizers included: {"type": "lbfgs", "history": 20}.
TW_INTERNAL_API MethodDescription parse_method(std::string_view json);
// Canonical text: all keys, fixed order, shortest round-trip numbers; parse(to_json(d)) == d.
TW_INTERNAL_API std::string to_json(const Description& description);

}  // namespace thalweg
