// Descriptions from and to JSON, with every value checked. The names and ranges of activations,
// losses and optimizers come from the lists of math/.
#include "network/description.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "minimize/method.h"

namespace thalweg {
namespace {

constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
// Widths stay in 31 bits, so that no product of two of them leaves 64 bits.
constexpr std::int64_t kMaxWidth = std::numeric_limits<std::int32_t>::max();
// The largest scale, time constant or variance guard: far from where a double loses its range.
constexpr double kLargest = 1e30;

struct Bounds {
  double lowest;
  double highest;
  bool lowest_excluded = false;
  bool highest_excluded = false;

  bool contain(double x) const {
    return (lowest_excluded ? x > lowest : x >= lowest) &&
           (highest_excluded ? x < highest : x <= highest);
  }
  std::string text() const {
    return concat("a number in ", lowest_excluded ? "(" : "[", lowest, ", ", highest,
                  highest_excluded ? ")" : "]");
  }
};

constexpr Bounds kPositive{0.0, kLargest, true};
constexpr Bounds kNotNegative{0.0, kLargest};
// Networks may flush subnormal numbers, and 1 / eps has to stay in the range of float32.
constexpr Bounds kVarianceGuard{1e-30, kLargest};
constexpr Bounds kFraction{0.0, 1.0};
constexpr Bounds kBelowOneFraction{0.0, 1.0, false, true};

// In the order of MatmulPrecision.
constexpr const char* kMatmulPrecisions[] = {"highest", "high", "medium"};

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += out.empty() ? word : ", " + word;
  return out;
}

std::string shown(const Json& json) {
  if (const std::string* text = json.string()) return quoted(*text);
  return json.array() || json.object() ? json.kind() : json.text();
}

[[noreturn]] void fail(std::string_view path, std::string_view expected, std::string_view actual) {
  throw ValueError(concat("[description] ", path, path.empty() ? "" : ": ", "expected ", expected,
                          ", got ", actual));
}

// The members of one object. Every key is asked for, known or not; finish() finds the others.
class Members {
 public:
  // A string stands for an object that has only `naming_key`.
  Members(const Json& json, std::string path, const std::string& naming_key = "type")
      : path_(std::move(path)), object_(json.object() ? &json : nullptr) {
    if (json.string()) {
      name_only_ = json_object(naming_key, json);
      object_ = &name_only_;
    }
    if (object_ == nullptr) fail(path_, "an object", shown(json));
  }

  Members(const Members&) = delete;  // may point into itself
  Members& operator=(const Members&) = delete;

  std::string path_of(std::string_view key) const {
    return path_.empty() ? std::string(key) : concat(path_, ".", key);
  }

  // Null when the key is missing or its value is null.
  const Json* optional(std::string_view key) {
    known_.emplace_back(key);
    const Json* value = object_->find(key);
    return value != nullptr && !value->is_null() ? value : nullptr;
  }

  const Json& required(std::string_view key, std::string_view expected) {
    const Json* value = optional(key);
    if (value == nullptr)
      fail(path_of(key), expected, object_->find(key) != nullptr ? "null" : "nothing");
    return *value;
  }

  bool has(std::string_view key) const { return object_->find(key) != nullptr; }

  double real(std::string_view key, double otherwise, const Bounds& bounds) {
    const Json* value = optional_but_not_null(key, bounds.text());
    return value == nullptr ? otherwise : checked(*value, key, bounds);
  }
  double real(std::string_view key, const Bounds& bounds) {
    return checked(required(key, bounds.text()), key, bounds);
  }
  std::optional<double> real_or_null(std::string_view key, std::optional<double> otherwise,
                                     const Bounds& bounds) {
    const Json* value = optional(key);
    if (value == nullptr) return has(key) ? std::nullopt : otherwise;
    return checked(*value, key, bounds);
  }

  std::int64_t integer(std::string_view key, std::optional<std::int64_t> otherwise,
                       std::int64_t lowest, std::int64_t highest) {
    const std::string expected = concat("a whole number from ", lowest, " to ", highest);
    if (otherwise && !has(key)) {
      known_.emplace_back(key);
      return *otherwise;
    }
    const Json& json = required(key, expected);
    const std::optional<std::int64_t> value = json.int64();
    if (!value || *value < lowest || *value > highest) fail(path_of(key), expected, shown(json));
    return *value;
  }

  bool boolean(std::string_view key, bool otherwise) {
    const Json* value = optional_but_not_null(key, "true or false");
    if (value == nullptr) return otherwise;
    if (value->boolean() == nullptr) fail(path_of(key), "true or false", shown(*value));
    return *value->boolean();
  }
  std::optional<bool> boolean_or_null(std::string_view key) {
    const Json* value = optional(key);
    if (value == nullptr) return std::nullopt;
    if (value->boolean() == nullptr) fail(path_of(key), "true, false or null", shown(*value));
    return *value->boolean();
  }

  // The position of a string in a list of allowed ones.
  std::size_t choice(std::string_view key, const std::vector<std::string>& choices,
                     std::optional<std::size_t> otherwise = std::nullopt) {
    const std::string expected = "one of " + joined(choices);
    if (otherwise && !has(key)) {
      known_.emplace_back(key);
      return *otherwise;
    }
    const Json& json = required(key, expected);
    const std::string* value = json.string();
    const auto found = value ? std::find(choices.begin(), choices.end(), *value) : choices.end();
    if (found == choices.end()) fail(path_of(key), expected, shown(json));
    return static_cast<std::size_t>(found - choices.begin());
  }

  const std::string& string(std::string_view key) {
    const Json& json = required(key, "a string");
    if (json.string() == nullptr || json.string()->empty())
      fail(path_of(key), "a string that is not empty", shown(json));
    return *json.string();
  }

  // Ends the reading: unknown keys are errors.
  void finish() const {
    for (const Json::Member& member : *object_->object()) {
      if (std::find(known_.begin(), known_.end(), member.key) == known_.end())
        fail(path_, "only the keys " + joined(known_), quoted(member.key));
    }
  }

 private:
  const Json* optional_but_not_null(std::string_view key, std::string_view expected) {
    const Json* value = optional(key);
    if (value == nullptr && has(key)) fail(path_of(key), expected, "null");
    return value;
  }

  double checked(const Json& json, std::string_view key, const Bounds& bounds) const {
    const std::optional<double> value = json.number();
    if (!value || !bounds.contain(*value)) fail(path_of(key), bounds.text(), shown(json));
    return *value;
  }

  std::string path_;
  Json name_only_;
  const Json* object_;
  std::vector<std::string> known_;
};

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

std::vector<std::string> names_of(int count, const char* (*name)(int)) {
  std::vector<std::string> names;
  for (int id = 0; id < count; ++id) names.emplace_back(name(id));
  return names;
}

// ---- Initializers

struct InitializerType {
  const char* name;
  const char* parameter;
  std::optional<double> default_value;
};

constexpr InitializerType kInitializers[] = {
    {"auto", nullptr, {}},         {"deck", nullptr, {}},         {"glorot_uniform", nullptr, {}},
    {"he_normal", nullptr, {}},    {"lecun_normal", nullptr, {}}, {"zeros", nullptr, {}},
    {"orthogonal", "gain", {1.0}}, {"normal", "std", {}},         {"uniform", "bound", {}},
};

const InitializerType& initializer_type(const std::string& name) {
  for (const InitializerType& type : kInitializers) {
    if (name == type.name) return type;
  }
  throw InternalError(concat("[description] unknown initializer '", name, "'"));
}

Initializer parse_initializer(Members& owner) {
  const Json* json = owner.optional("init");
  if (json == nullptr) return {};
  Members members(*json, owner.path_of("init"));
  std::vector<std::string> names;
  for (const InitializerType& type : kInitializers) names.emplace_back(type.name);
  const InitializerType& type = kInitializers[members.choice("type", names)];
  Initializer init;
  init.type = type.name;
  if (type.parameter != nullptr) {
    init.value = type.default_value ? members.real(type.parameter, *type.default_value, kPositive)
                                    : members.real(type.parameter, kPositive);
  }
  members.finish();
  return init;
}

Json initializer_json(const Initializer& init) {
  const InitializerType& type = initializer_type(init.type);
  if (type.parameter == nullptr) return init.type;
  return json_object("type", init.type, type.parameter, init.value);
}

// ---- Layers

// The types that are not activations.
constexpr std::pair<const char*, LayerKind> kLayerTypes[] = {
    {"dense", LayerKind::kDense},       {"batch_norm", LayerKind::kBatchNorm},
    {"dropout", LayerKind::kDropout},   {"maxout", LayerKind::kMaxout},
    {"residual", LayerKind::kResidual}, {"sequential", LayerKind::kSequential},
};

const std::vector<std::string>& layer_type_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& [name, kind] : kLayerTypes) all.emplace_back(name);
    for (int id = 0; id < kActivationCount; ++id) all.emplace_back(activation_name(id));
    return all;
  }();
  return names;
}

// What every struct of a list declares about its one optional parameter.
struct ParameterRow {
  const char* name;
  double otherwise;
  Bounds bounds;
};

ParameterRow activation_parameter(int id) {
  return dispatch_activation(id, [](auto activation) {
    using S = decltype(activation);
    return ParameterRow{S::parameter, S::default_parameter,
                        Bounds{S::lowest_parameter, S::highest_parameter}};
  });
}

ParameterRow loss_parameter(int id) {
  return dispatch_loss(id, [](auto loss) {
    using S = decltype(loss);
    return ParameterRow{S::parameter, S::default_parameter,
                        Bounds{S::lowest_parameter, S::highest_parameter}};
  });
}

double parse_parameter(Members& members, const ParameterRow& row) {
  return row.name == nullptr ? row.otherwise : members.real(row.name, row.otherwise, row.bounds);
}

std::vector<Layer> parse_layers(Members& owner);

Layer parse_layer(const Json& json, const std::string& path) {
  Members members(json, path);
  const std::size_t type = members.choice("type", layer_type_names());
  Layer layer;
  layer.kind = LayerKind::kActivation;
  if (type < std::size(kLayerTypes)) layer.kind = kLayerTypes[type].second;
  switch (layer.kind) {
    case LayerKind::kDense:
    case LayerKind::kMaxout:
      layer.units = members.integer("units", std::nullopt, 1, kMaxWidth);
      if (layer.kind == LayerKind::kMaxout)
        layer.pieces = members.integer("pieces", 2, 1, kMaxWidth / layer.units);
      layer.bias = members.boolean_or_null("bias");
      layer.init = parse_initializer(members);
      break;
    case LayerKind::kBatchNorm:
      layer.eps = members.real("eps", layer.eps, kVarianceGuard);
      layer.momentum = members.real_or_null("momentum", layer.momentum, kFraction);
      layer.weighted = members.boolean("weighted", false);
      break;
    case LayerKind::kActivation:
      layer.activation = static_cast<int>(type - std::size(kLayerTypes));
      layer.parameter = parse_parameter(members, activation_parameter(layer.activation));
      break;
    case LayerKind::kDropout:
      layer.rate = members.real("p", layer.rate, kBelowOneFraction);
      break;
    case LayerKind::kResidual:
      layer.layers = parse_layers(members);
      layer.zero_init = members.boolean("zero_init", true);
      break;
    case LayerKind::kSequential:
      layer.layers = parse_layers(members);
      break;
  }
  members.finish();
  return layer;
}

std::vector<Layer> parse_layers(Members& owner) {
  const Json& json = owner.required("layers", "an array of layers");
  const Json::Array* elements = json.array();
  if (elements == nullptr) fail(owner.path_of("layers"), "an array of layers", shown(json));
  if (elements->empty()) fail(owner.path_of("layers"), "at least one layer", "none");
  std::vector<Layer> layers;
  for (std::size_t i = 0; i < elements->size(); ++i)
    layers.push_back(parse_layer((*elements)[i], concat(owner.path_of("layers"), "[", i, "]")));
  return layers;
}

Json layers_json(const std::vector<Layer>& layers);

Json layer_json(const Layer& layer) {
  Json::Object out;
  if (layer.kind == LayerKind::kActivation) {
    out.push_back({"type", activation_name(layer.activation)});
    const ParameterRow row = activation_parameter(layer.activation);
    if (row.name != nullptr) out.push_back({row.name, layer.parameter});
    return out;
  }
  for (const auto& [name, kind] : kLayerTypes) {
    if (kind == layer.kind) out.push_back({"type", name});
  }
  switch (layer.kind) {
    case LayerKind::kDense:
    case LayerKind::kMaxout:
      out.push_back({"units", layer.units});
      if (layer.kind == LayerKind::kMaxout) out.push_back({"pieces", layer.pieces});
      out.push_back({"bias", or_null(layer.bias)});
      out.push_back({"init", initializer_json(layer.init)});
      break;
    case LayerKind::kBatchNorm:
      out.push_back({"eps", layer.eps});
      out.push_back({"momentum", or_null(layer.momentum)});
      out.push_back({"weighted", layer.weighted});
      break;
    case LayerKind::kDropout:
      out.push_back({"p", layer.rate});
      break;
    case LayerKind::kResidual:
      out.push_back({"layers", layers_json(layer.layers)});
      out.push_back({"zero_init", layer.zero_init});
      break;
    case LayerKind::kSequential:
      out.push_back({"layers", layers_json(layer.layers)});
      break;
    case LayerKind::kActivation:
      break;
  }
  return out;
}

Json layers_json(const std::vector<Layer>& layers) {
  Json::Array out;
  for (const Layer& layer : layers) out.push_back(layer_json(layer));
  return out;
}

// ---- Loss

constexpr const char* kReductions[] = {"batch_mean", "sum", "element_mean"};

LossDescription parse_loss(const Json& json) {
  using Kind = LossDescription::Kind;
  Members members(json, "loss");
  std::vector<std::string> names = names_of(kLossCount, loss_name);
  names.insert(names.end(), {"cross_entropy", "custom"});
  const int type = static_cast<int>(members.choice("type", names));
  LossDescription loss;
  if (type == kLossCount) {
    loss.label_smoothing = members.real("label_smoothing", 0.0, kBelowOneFraction);
  } else if (type == kLossCount + 1) {
    loss.kind = Kind::kCustom;
  } else {
    loss.kind = Kind::kElementwise;
    loss.elementwise = type;
    loss.parameter = parse_parameter(members, loss_parameter(type));
    // Margin losses are sums over the data by definition.
    const bool margin =
        dispatch_loss(type, [](auto l) { return decltype(l)::target == TargetKind::sign; });
    const Reduction otherwise = margin ? Reduction::kSum : Reduction::kBatchMean;
    loss.reduction = static_cast<Reduction>(
        members.choice("reduction", {std::begin(kReductions), std::end(kReductions)},
                       static_cast<std::size_t>(otherwise)));
  }
  members.finish();
  return loss;
}

Json loss_json(const LossDescription& loss) {
  switch (loss.kind) {
    case LossDescription::Kind::kCrossEntropy:
      return json_object("type", "cross_entropy", "label_smoothing", loss.label_smoothing);
    case LossDescription::Kind::kCustom:
      return json_object("type", "custom");
    case LossDescription::Kind::kElementwise:
      break;
  }
  Json::Object out = json_object("type", loss_name(loss.elementwise));
  const ParameterRow row = loss_parameter(loss.elementwise);
  if (row.name != nullptr) out.push_back({row.name, loss.parameter});
  out.push_back({"reduction", kReductions[static_cast<int>(loss.reduction)]});
  return out;
}

// ---- Schedules. Values stay in the range of the hyper-parameter that they drive.

Schedule parse_schedule(const Json& json, const std::string& path, const HyperParameter& row) {
  constexpr const char* kTypes[] = {"constant", "linear", "robbins_monro", "step",
                                    "cosine",   "warmup", "one_cycle",     "nesterov_convex"};
  const Bounds range{row.lowest, row.highest};
  Members members(json, path, "schedule");
  Schedule schedule;
  schedule.type = kTypes[members.choice("schedule", {std::begin(kTypes), std::end(kTypes)})];
  const auto steps = [&] { return members.integer("steps", std::nullopt, 1, kMaxInt64); };
  if (schedule.type == "constant") {
    schedule.value = members.real("value", range);
  } else if (schedule.type == "linear") {
    schedule.start = members.real("start", range);
    const double otherwise = std::max(0.01 * schedule.start, row.lowest);
    schedule.end = members.real_or_null("end", otherwise, range).value_or(otherwise);
    schedule.tau = members.real_or_null("tau", std::nullopt, kPositive);
    schedule.tau_epochs = members.real_or_null("tau_epochs", std::nullopt, kPositive);
    if (schedule.tau.has_value() == schedule.tau_epochs.has_value())
      fail(path, "exactly one of tau (updates) and tau_epochs", schedule.tau ? "both" : "none");
  } else if (schedule.type == "robbins_monro") {
    schedule.start = members.real("start", range);
    schedule.k0 = members.real("k0", kPositive);
    schedule.power = members.real("power", schedule.power, kFraction);
  } else if (schedule.type == "step") {
    schedule.start = members.real("start", range);
    schedule.factor = members.real("factor", Bounds{0.0, row.highest < 1.0 ? 1.0 : 1e6});
    schedule.every = members.integer("every", std::nullopt, 1, kMaxInt64);
  } else if (schedule.type == "cosine") {
    schedule.start = members.real("start", range);
    schedule.end = members.real("end", std::max(0.0, row.lowest), range);
    schedule.steps = steps();
  } else if (schedule.type == "warmup") {
    schedule.steps = steps();
    schedule.then = std::make_shared<const Schedule>(
        parse_schedule(members.required("then", "a schedule"), members.path_of("then"), row));
  } else if (schedule.type == "one_cycle") {
    constexpr Bounds kDivisor{1.0, kLargest};
    schedule.peak = members.real("peak", range);
    schedule.steps = steps();
    schedule.start_fraction = members.real("start_fraction", schedule.start_fraction, kFraction);
    schedule.initial_divisor = members.real("initial_divisor", schedule.initial_divisor, kDivisor);
    schedule.final_divisor = members.real("final_divisor", schedule.final_divisor, kDivisor);
  }
  members.finish();
  return schedule;
}

Json schedule_json(const Schedule& schedule) {
  Json::Object out = json_object("schedule", schedule.type);
  if (schedule.type == "constant") {
    out.push_back({"value", schedule.value});
  } else if (schedule.type == "linear") {
    out.push_back({"start", schedule.start});
    out.push_back({"end", schedule.end});
    out.push_back({"tau", or_null(schedule.tau)});
    out.push_back({"tau_epochs", or_null(schedule.tau_epochs)});
  } else if (schedule.type == "robbins_monro") {
    out.push_back({"start", schedule.start});
    out.push_back({"k0", schedule.k0});
    out.push_back({"power", schedule.power});
  } else if (schedule.type == "step") {
    out.push_back({"start", schedule.start});
    out.push_back({"factor", schedule.factor});
    out.push_back({"every", schedule.every});
  } else if (schedule.type == "cosine") {
    out.push_back({"start", schedule.start});
    out.push_back({"end", schedule.end});
    out.push_back({"steps", schedule.steps});
  } else if (schedule.type == "warmup") {
    out.push_back({"steps", schedule.steps});
    out.push_back({"then", schedule_json(*schedule.then)});
  } else if (schedule.type == "one_cycle") {
    out.push_back({"peak", schedule.peak});
    out.push_back({"steps", schedule.steps});
    out.push_back({"start_fraction", schedule.start_fraction});
    out.push_back({"initial_divisor", schedule.initial_divisor});
    out.push_back({"final_divisor", schedule.final_divisor});
  }
  return out;
}

// ---- Optimizer

constexpr std::size_t kMaxGroups = 255;  // one byte names the group of a block of parameters

bool may_have_schedule(const HyperParameter& row) {
  return same_name(row.name, "lr") || same_name(row.name, "momentum");
}

HyperValue parse_hyper(Members& members, const HyperParameter& row) {
  if (row.kind == HyperKind::flag)
    return {members.boolean(row.name, row.default_value != 0.0) ? 1.0 : 0.0, std::nullopt};
  const Json* json = members.optional(row.name);
  if (json == nullptr || !may_have_schedule(row) || json->number())
    return {members.real(row.name, row.default_value, {row.lowest, row.highest}), std::nullopt};
  return {row.default_value, parse_schedule(*json, members.path_of(row.name), row)};
}

// ---- Methods

using minimize::MethodInfo;
using minimize::MethodParameter;
using minimize::ParameterKind;

HyperValue parse_parameter_of(Members& members, const MethodParameter& row) {
  const std::string name(row.name);
  switch (row.kind) {
    case ParameterKind::kFlag:
      return {members.boolean(name, row.default_value != 0.0) ? 1.0 : 0.0, std::nullopt};
    case ParameterKind::kChoice:
      return {static_cast<double>(members.choice(name, {row.choices.begin(), row.choices.end()},
                                                 static_cast<std::size_t>(row.default_value))),
              std::nullopt};
    case ParameterKind::kInteger:
      return {static_cast<double>(members.integer(
                  name, static_cast<std::int64_t>(row.default_value),
                  static_cast<std::int64_t>(row.lowest), static_cast<std::int64_t>(row.highest))),
              std::nullopt};
    case ParameterKind::kReal:
      break;
  }
  return parse_hyper(members,
                     {name.c_str(), row.default_value, row.lowest, row.highest, HyperKind::real});
}

MethodDescription parse_method(Members& members, int id) {
  MethodDescription method;
  method.method = id;
  for (const MethodParameter& row : minimize::methods()[id].parameters)
    method.values.push_back(parse_parameter_of(members, row));
  members.finish();
  return method;
}

Json method_json(const MethodDescription& method) {
  const MethodInfo& info = minimize::methods()[method.method];
  Json::Object out = json_object("type", info.name);
  for (std::size_t i = 0; i < info.parameters.size(); ++i) {
    const MethodParameter& row = info.parameters[i];
    const HyperValue& value = method.values[i];
    Json json(value.value);
    if (value.schedule) {
      json = schedule_json(*value.schedule);
    } else if (row.kind == ParameterKind::kFlag) {
      json = Json(value.value != 0.0);
    } else if (row.kind == ParameterKind::kChoice) {
      json = Json(row.choices[static_cast<std::size_t>(value.value)]);
    } else if (row.kind == ParameterKind::kInteger) {
      json = Json(static_cast<std::int64_t>(value.value));
    }
    out.push_back({std::string(row.name), std::move(json)});
  }
  return out;
}

ParameterGroup parse_group(const Json& json, const std::string& path) {
  Members members(json, path, "match");
  ParameterGroup group;
  group.match = members.string("match");
  group.lr_scale = members.real("lr_scale", 1.0, kNotNegative);
  group.weight_decay = members.real_or_null("weight_decay", std::nullopt,
                                            {kWeightDecay.lowest, kWeightDecay.highest});
  group.frozen = members.boolean("frozen", false);
  members.finish();
  return group;
}

OptimizerDescription parse_optimizer(const Json& json) {
  Members members(json, "optimizer");
  OptimizerDescription optimizer;
  std::vector<std::string> names = names_of(kOptimizerCount, optimizer_name);
  for (const MethodInfo& info : minimize::methods())
    if (!info.elementwise) names.emplace_back(info.name);
  const std::size_t type = members.choice("type", names);
  if (type >= std::size_t{kOptimizerCount}) {
    optimizer.optimizer = kOptimizerSgd;
    optimizer.hyper.assign(static_cast<std::size_t>(optimizer_hyper(kOptimizerSgd).count), {});
    optimizer.method = parse_method(members, minimize::method_id(names[type]));
    return optimizer;
  }
  optimizer.optimizer = static_cast<int>(type);
  for (const HyperParameter& row : optimizer_hyper(optimizer.optimizer))
    optimizer.hyper.push_back(parse_hyper(members, row));
  if (const Json* json_groups = members.optional("groups")) {
    const std::string path = members.path_of("groups");
    const Json::Array* groups = json_groups->array();
    if (groups == nullptr || groups->size() > kMaxGroups) {
      fail(path, concat("an array of at most ", kMaxGroups, " parameter groups"),
           groups ? concat(groups->size(), " groups") : shown(*json_groups));
    }
    for (std::size_t i = 0; i < groups->size(); ++i)
      optimizer.groups.push_back(parse_group((*groups)[i], concat(path, "[", i, "]")));
  }
  members.finish();
  return optimizer;
}

OptimizerDescription default_optimizer() { return parse_optimizer(json_object("type", "adam")); }

Json optimizer_json(const OptimizerDescription& optimizer) {
  if (optimizer.method) return method_json(*optimizer.method);
  Json::Object out = json_object("type", optimizer_name(optimizer.optimizer));
  std::size_t i = 0;
  for (const HyperParameter& row : optimizer_hyper(optimizer.optimizer)) {
    const HyperValue value =
        i < optimizer.hyper.size() ? optimizer.hyper[i] : HyperValue{row.default_value, {}};
    ++i;
    out.push_back({row.name, value.schedule                ? schedule_json(*value.schedule)
                             : row.kind == HyperKind::flag ? Json(value.value != 0.0)
                                                           : Json(value.value)});
  }
  Json::Array groups;
  for (const ParameterGroup& group : optimizer.groups) {
    Json::Object row = json_object("match", group.match, "lr_scale", group.lr_scale);
    row.push_back({"weight_decay", or_null(group.weight_decay)});
    row.push_back({"frozen", group.frozen});
    groups.push_back(std::move(row));
  }
  out.push_back({"groups", std::move(groups)});
  return out;
}

// ---- Averaging

Averaging parse_averaging(const Json& json) {
  Members members(json, "averaging");
  Averaging averaging;
  if (members.choice("type", {"polyak", "ema"}) == 0) {
    averaging.kind = Averaging::Kind::kPolyak;
    averaging.start = members.integer("start", 0, 0, kMaxInt64);
  } else {
    averaging.kind = Averaging::Kind::kEma;
    averaging.decay = members.real("decay", averaging.decay, kBelowOneFraction);
  }
  members.finish();
  return averaging;
}

Json averaging_json(const Averaging& averaging) {
  switch (averaging.kind) {
    case Averaging::Kind::kNone:
      break;
    case Averaging::Kind::kPolyak:
      return json_object("type", "polyak", "start", averaging.start);
    case Averaging::Kind::kEma:
      return json_object("type", "ema", "decay", averaging.decay);
  }
  return nullptr;
}

}  // namespace

Description parse_description(std::string_view json) {
  const Json root = Json::parse(json);
  if (root.object() == nullptr) fail("", "an object", shown(root));
  Members members(root, "");
  Description description;
  description.in_features = members.integer("in_features", std::nullopt, 1, kMaxWidth);
  description.dtype =
      members.choice("dtype", {"float32", "float64"}, 0) == 0 ? DType::kFloat32 : DType::kFloat64;
  if (const Json* seed = members.optional("seed")) {
    const std::optional<std::uint64_t> value = seed->uint64();
    if (!value) fail("seed", "a whole number from 0 to 18446744073709551615", shown(*seed));
    description.seed = *value;
  }
  description.layers = parse_layers(members);
  if (const Json* loss = members.optional("loss")) description.loss = parse_loss(*loss);
  const Json* optimizer = members.optional("optimizer");
  description.optimizer = optimizer ? parse_optimizer(*optimizer) : default_optimizer();
  if (const Json* averaging = members.optional("averaging"))
    description.averaging = parse_averaging(*averaging);
  description.clip_norm = members.real_or_null("clip_norm", std::nullopt, kPositive);
  if (description.optimizer.method) {
    const std::string_view name = minimize::methods()[description.optimizer.method->method].name;
    const std::string expected = concat("null beside the method '", name, "'");
    if (description.averaging.kind != Averaging::Kind::kNone)
      fail("averaging", expected, "an average");
    if (description.clip_norm) fail("clip_norm", expected, concat(*description.clip_norm));
  }
  description.check_finite =
      static_cast<CheckFinite>(members.choice("check_finite", {"loss", "gradients"}, 0));
  description.matmul_precision = static_cast<MatmulPrecision>(members.choice(
      "matmul_precision", {std::begin(kMatmulPrecisions), std::end(kMatmulPrecisions)}, 0));
  members.finish();
  return description;
}

MethodDescription parse_method(std::string_view json) {
  const Json root = Json::parse(json);
  Members members(root, "method");
  std::vector<std::string> names;
  for (const MethodInfo& info : minimize::methods()) names.emplace_back(info.name);
  const auto id = static_cast<int>(members.choice("type", names));
  return parse_method(members, id);
}

std::string to_json(const Description& description) {
  Json::Object out;
  out.push_back({"in_features", description.in_features});
  out.push_back({"dtype", dtype_name(description.dtype)});
  out.push_back({"seed", description.seed});
  out.push_back({"layers", layers_json(description.layers)});
  out.push_back({"loss", loss_json(description.loss)});
  out.push_back({"optimizer", optimizer_json(description.optimizer)});
  out.push_back({"averaging", averaging_json(description.averaging)});
  out.push_back({"clip_norm", or_null(description.clip_norm)});
  out.push_back(
      {"check_finite", description.check_finite == CheckFinite::kLoss ? "loss" : "gradients"});
  out.push_back(
      {"matmul_precision", kMatmulPrecisions[static_cast<int>(description.matmul_precision)]});
  return Json(std::move(out)).text();
}

}  // namespace thalweg
