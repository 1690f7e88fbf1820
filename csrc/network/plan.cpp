// Compiles a description into a plan.
#include "network/plan.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/error.h"
#include "math/activations.h"

namespace thalweg {
namespace {

static_assert(kActivationIdentity == 0, "an activation that nobody set is the identity");

bool activation_needs_input(int id) {
  return dispatch_activation(
      id, [](auto phi) { return decltype(phi)::backward_needs == ActivationNeeds::input; });
}

const char* layer_type(const Layer& layer) {
  switch (layer.kind) {
    case LayerKind::kDense:
      return "dense";
    case LayerKind::kBatchNorm:
      return "batch_norm";
    case LayerKind::kActivation:
      return activation_name(layer.activation);
    case LayerKind::kDropout:
      return "dropout";
    case LayerKind::kMaxout:
      return "maxout";
    case LayerKind::kResidual:
      return "residual";
    case LayerKind::kSequential:
      return "sequential";
  }
  return "";
}

class Compiler {
 public:
  Compiler(const Description& description, bool fuse) : fuse_(fuse) {
    plan_.description = description;
    plan_.in_features = description.in_features;
  }

  Plan run() {
    const Description& description = plan_.description;
    expect<ValueError>(description.in_features >= 1, "[model] expected in_features >= 1, got ",
                       description.in_features);
    expect<ValueError>(!description.layers.empty(),
                       "[model] expected at least one layer, got none; add a Dense layer");
    new_buffer(description.in_features, -1);
    plan_.output = build(description.layers, "", 0, true);
    plan_.out_features = plan_.buffers[plan_.output].width;
    place_tensors();
    link_backward();
    return std::move(plan_);
  }

 private:
  int new_buffer(std::int64_t width, int producer) {
    Buffer buffer;
    buffer.width = width;
    buffer.producer = producer;
    plan_.buffers.push_back(buffer);
    return static_cast<int>(plan_.buffers.size()) - 1;
  }
  std::int64_t width(int buffer) const { return plan_.buffers[buffer].width; }

  // Adds a node whose output has `out` columns; returns the node's index.
  int add_node(NodeKind kind, const std::string& layer, int input, std::int64_t out) {
    Node node;
    node.kind = kind;
    node.layer = layer;
    node.input = input;
    const int index = static_cast<int>(plan_.nodes.size());
    node.output = new_buffer(out, index);
    plan_.nodes.push_back(node);
    ++plan_.buffers[input].consumers;
    return index;
  }

  int add_tensor(const std::string& name, Tensor::Kind kind, std::int64_t out, std::int64_t in,
                 const Initializer& init = {}) {
    Tensor tensor;
    tensor.name = name;
    tensor.kind = kind;
    tensor.out = out;
    tensor.in = in;
    tensor.init = init;
    plan_.tensors.push_back(tensor);
    return static_cast<int>(plan_.tensors.size()) - 1;
  }

  void set_activation(int node, const Layer& layer) {
    plan_.nodes[node].activation = {layer.activation, layer.parameter};
    if (activation_needs_input(layer.activation))
      plan_.nodes[node].pre = new_buffer(width(plan_.nodes[node].output), node);
  }

  // Whether the next activation after position i belongs to the He family.
  static bool he_follows(const std::vector<Layer>& layers, std::size_t i) {
    for (std::size_t next = i + 1; next < layers.size(); ++next) {
      if (layers[next].kind == LayerKind::kActivation)
        return dispatch_activation(layers[next].activation,
                                   [](auto phi) { return decltype(phi)::he_family; });
      if (layers[next].kind != LayerKind::kBatchNorm && layers[next].kind != LayerKind::kDropout)
        return false;
    }
    return false;
  }

  int dense(const std::vector<Layer>& layers, std::size_t i, const std::string& name, int input,
            std::int64_t out) {
    const Layer& layer = layers[i];
    const bool norm_follows = i + 1 < layers.size() && layers[i + 1].kind == LayerKind::kBatchNorm;
    const int node = add_node(NodeKind::kDense, name, input, out);
    const int weight =
        add_tensor(name + ".weight", Tensor::Kind::kWeight, out, width(input), layer.init);
    plan_.tensors[weight].he = layer.kind == LayerKind::kMaxout || he_follows(layers, i);
    plan_.nodes[node].weight = weight;
    if (layer.bias.value_or(layer.kind == LayerKind::kMaxout || !norm_follows))
      plan_.nodes[node].bias = add_tensor(name + ".bias", Tensor::Kind::kBias, out, 1);
    plan_.flops_per_row += 2.0 * static_cast<double>(out) * static_cast<double>(width(input));
    plan_.phases += 3;
    return node;
  }

  int batch_norm(const Layer& layer, const std::string& name, int input) {
    const int node = add_node(NodeKind::kBatchNorm, name, input, width(input));
    Node& n = plan_.nodes[node];
    n.gamma = add_tensor(name + ".weight", Tensor::Kind::kGamma, width(input), 1);
    n.beta = add_tensor(name + ".bias", Tensor::Kind::kBeta, width(input), 1);
    n.state = static_cast<int>(plan_.states.size());
    BatchNormState state;
    state.name = name;
    state.width = width(input);
    state.padded = round_up(state.width, kPanel);
    state.offset = plan_.state_size;
    state.eps = layer.eps;
    state.momentum = layer.momentum;
    state.weighted = layer.weighted;
    plan_.state_size += 2 * state.padded;
    plan_.states.push_back(state);
    plan_.max_batch_norm_panels = std::max(plan_.max_batch_norm_panels, panels_of(state.width));
    plan_.phases += 5;
    return node;
  }

  // A layer whose nodes and tensors are complete.
  void record(const Layer& layer, const std::string& name, int buffer, bool top) {
    if (!top) return;
    std::int64_t parameters = 0;
    for (; recorded_ < plan_.tensors.size(); ++recorded_)
      parameters += plan_.tensors[recorded_].size();
    plan_.layers.push_back({name, layer_type(layer), buffer, parameters});
  }

  // Appends the nodes of `layers` to the plan; returns the buffer of their result.
  int build(const std::vector<Layer>& layers, const std::string& prefix, int current, bool top) {
    const auto name_of = [&](std::size_t i) { return concat(prefix, "layers.", i); };
    const auto activation_at = [&](std::size_t i) {
      return fuse_ && i < layers.size() && layers[i].kind == LayerKind::kActivation;
    };
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      const std::string name = name_of(i);
      switch (layer.kind) {
        case LayerKind::kDense: {
          const int node = dense(layers, i, name, current, layer.units);
          current = plan_.nodes[node].output;
          record(layer, name, current, top);
          if (fuse_ && i + 1 < layers.size() && layers[i + 1].kind == LayerKind::kBatchNorm) {
            const int norm = batch_norm(layers[i + 1], name_of(i + 1), current);
            plan_.nodes[node].batch_norm = norm;
            plan_.nodes[norm].statistics_from_dense = true;
            // dz overwrites dy.
            plan_.buffers[current].gradient_alias = plan_.nodes[norm].output;
            current = plan_.nodes[norm].output;
            ++i;
            record(layers[i], name_of(i), current, top);
            if (activation_at(i + 1)) {
              set_activation(norm, layers[++i]);
              record(layers[i], name_of(i), current, top);
            }
          } else if (activation_at(i + 1)) {
            set_activation(node, layers[++i]);
            record(layers[i], name_of(i), current, top);
          }
          break;
        }
        case LayerKind::kBatchNorm: {
          const int node = batch_norm(layer, name, current);
          current = plan_.nodes[node].output;
          record(layer, name, current, top);
          if (activation_at(i + 1)) {
            set_activation(node, layers[++i]);
            record(layers[i], name_of(i), current, top);
          }
          break;
        }
        case LayerKind::kActivation: {
          const int node = add_node(NodeKind::kActivation, name, current, width(current));
          plan_.nodes[node].activation = {layer.activation, layer.parameter};
          if (activation_needs_input(layer.activation)) plan_.nodes[node].pre = current;
          current = plan_.nodes[node].output;
          plan_.phases += 2;
          record(layer, name, current, top);
          break;
        }
        case LayerKind::kDropout: {
          const int node = add_node(NodeKind::kDropout, name, current, width(current));
          plan_.nodes[node].rate = layer.rate;
          plan_.nodes[node].stream = dropouts_++;
          plan_.buffers[plan_.nodes[node].output].inference_alias = current;
          current = plan_.nodes[node].output;
          plan_.phases += 2;
          record(layer, name, current, top);
          break;
        }
        case LayerKind::kMaxout: {
          const int affine = dense(layers, i, name, current, layer.units * layer.pieces);
          const int node =
              add_node(NodeKind::kMaxout, name, plan_.nodes[affine].output, layer.units);
          plan_.nodes[node].pieces = layer.pieces;
          current = plan_.nodes[node].output;
          plan_.phases += 2;
          record(layer, name, current, top);
          break;
        }
        case LayerKind::kResidual: {
          expect<ValueError>(!layer.layers.empty(), "[", name,
                             "] expected at least one layer inside Residual, got none");
          const std::size_t first_tensor = plan_.tensors.size();
          const int branch = build(layer.layers, name + ".", current, false);
          expect<ValueError>(
              width(branch) == width(current), "[", name,
              "] expected the residual branch to end with the width it starts with (",
              width(current), "), got ", width(branch), "; end the branch with Dense(",
              width(current), ")");
          if (layer.zero_init) zero_last_layer(first_tensor);
          const int node = add_node(NodeKind::kAdd, name, current, width(current));
          plan_.nodes[node].second = branch;
          ++plan_.buffers[branch].consumers;
          if (branch != current && plan_.buffers[branch].consumers == 1 && branch_is_inner(branch))
            plan_.buffers[branch].gradient_alias = plan_.nodes[node].output;
          current = plan_.nodes[node].output;
          plan_.phases += 2;
          record(layer, name, current, top);
          break;
        }
        case LayerKind::kSequential:
          current = build(layer.layers, name + ".", current, false);
          record(layer, name, current, top);
          break;
      }
    }
    return current;
  }

  // A buffer whose gradient already lives elsewhere is not aliased again.
  bool branch_is_inner(int branch) const { return plan_.buffers[branch].gradient_alias < 0; }

  // The last layer with parameters among the tensors from `first` on starts at zero.
  void zero_last_layer(std::size_t first) {
    if (plan_.tensors.size() == first) return;
    const std::string& last = plan_.tensors.back().name;
    const std::string layer = last.substr(0, last.rfind('.') + 1);
    for (std::size_t t = first; t < plan_.tensors.size(); ++t)
      if (plan_.tensors[t].name.rfind(layer, 0) == 0) plan_.tensors[t].zero = true;
  }

  void place_tensors() {
    for (Tensor& tensor : plan_.tensors) {
      tensor.flat_offset = plan_.num_parameters;
      plan_.num_parameters += tensor.size();
      tensor.offset = plan_.arena_size;
      tensor.padded = tensor.is_weight() ? panels_of(tensor.out) * panels_of(tensor.in) * kTile
                                         : round_up(tensor.out, kGroupBlock);
      // A width has 31 bits, and one tensor therefore 63.
      if (__builtin_add_overflow(plan_.arena_size, tensor.padded, &plan_.arena_size))
        throw std::bad_array_new_length();
      if (tensor.is_weight()) {
        tensor.transposed_offset = plan_.transposed_size;
        plan_.transposed_size += tensor.padded;
      } else {
        tensor.vector_offset = plan_.vector_size;
        plan_.vector_size += tensor.padded;
      }
    }
  }

  void link_backward() {
    std::vector<Buffer>& buffers = plan_.buffers;
    for (Node& node : plan_.nodes) {
      const bool trainable = node.weight >= 0 || node.gamma >= 0;
      const bool upstream = buffers[node.input].needs_gradient ||
                            (node.second >= 0 && buffers[node.second].needs_gradient);
      buffers[node.output].needs_gradient = trainable || upstream;
    }
    std::vector<bool> written(buffers.size(), false);
    for (std::size_t i = plan_.nodes.size(); i-- > 0;) {
      Node& node = plan_.nodes[i];
      node.accumulate_input = written[node.input];
      written[node.input] = true;
      if (node.second >= 0) {
        node.accumulate_second = written[node.second];
        written[node.second] = true;
      }
      const Buffer& input = buffers[node.input];
      if (node.kind != NodeKind::kDense || input.producer < 0 || input.consumers != 1) continue;
      Node& producer = plan_.nodes[input.producer];
      if (fuse_ && producer.kind == NodeKind::kDropout) {
        const Buffer& dropped = buffers[producer.input];
        if (dropped.producer >= 0 && dropped.consumers == 1 &&
            plan_.nodes[dropped.producer].kind == NodeKind::kDense)
          plan_.nodes[dropped.producer].dropout = input.producer;
      }
      const bool activates =
          producer.kind == NodeKind::kDense || producer.kind == NodeKind::kBatchNorm;
      if (activates && producer.activation.id != kActivationIdentity) {
        node.applies_input_derivative = true;
        producer.derivative_applied = true;
      }
    }
  }

  bool fuse_;
  std::uint32_t dropouts_ = 0;
  std::size_t recorded_ = 0;  // tensors of the top-level layers so far
  Plan plan_;
};

}  // namespace

bool Plan::has_weighted_batch_norm() const {
  return std::any_of(states.begin(), states.end(),
                     [](const BatchNormState& state) { return state.weighted; });
}

int Plan::value_holder(int buffer, bool inference) const {
  if (!inference) return buffer;
  while (buffers[buffer].inference_alias >= 0) buffer = buffers[buffer].inference_alias;
  return buffer;
}

int Plan::gradient_holder(int buffer) const {
  while (buffers[buffer].gradient_alias >= 0) buffer = buffers[buffer].gradient_alias;
  return buffer;
}

std::string Plan::summary(bool gates_batch_norm) const {
  std::string text;
  for (const Node& node : nodes) {
    static constexpr const char* kKinds[] = {"dense",   "batch_norm", "activation",
                                             "dropout", "add",        "maxout"};
    text += concat(node.layer, ": ", kKinds[static_cast<int>(node.kind)], " ",
                   buffers[node.input].width, " -> ", buffers[node.output].width);
    if (node.bias >= 0) text += " + bias";
    if (node.batch_norm >= 0) text += " + batch-norm statistics";
    if (node.activation.id != kActivationIdentity)
      text += concat(" + ", activation_name(node.activation.id));
    if (node.applies_input_derivative &&
        (gates_batch_norm || nodes[buffers[node.input].producer].kind != NodeKind::kBatchNorm))
      text += "; dgrad applies the input's activation derivative";
    text += "\n";
  }
  return text;
}

Plan compile(const Description& description, bool fuse) {
  return Compiler(description, fuse).run();
}

std::vector<UpdateTask> list_updates(const Plan& plan) {
  std::vector<UpdateTask> updates;
  for (std::size_t n = 0; n < plan.nodes.size(); ++n) {
    const Node& node = plan.nodes[n];
    const int index = static_cast<int>(n);
    if (node.weight >= 0) {
      const Tensor& weight = plan.tensors[node.weight];
      for (std::int64_t o = 0; o < panels_of(weight.out); ++o)
        for (std::int64_t k = 0; k < panels_of(weight.in); ++k)
          updates.push_back({node.weight, index, k, o});
    }
    for (const int tensor : {node.bias, node.gamma, node.beta})
      if (tensor >= 0) updates.push_back({tensor, index, 0, 0});
  }
  return updates;
}

}  // namespace thalweg
