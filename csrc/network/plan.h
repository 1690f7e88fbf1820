// The plan: a description compiled once into nodes over numbered buffers, with every tensor's place
// in the parameter arena and every fusion decided. Immutable; holds no values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/layout.h"
#include "cpu/kernels.h"
#include "network/description.h"

namespace thalweg {

struct Tensor {
  enum class Kind { kWeight, kBias, kGamma, kBeta };
  std::string name;  // "layers.0.weight"
  Kind kind = Kind::kWeight;
  std::int64_t out = 0;
  std::int64_t in = 1;                 // 1 for vectors
  std::int64_t offset = 0;             // in the arena, a multiple of kGroupBlock
  std::int64_t padded = 0;             // elements in the arena
  std::int64_t flat_offset = 0;        // in the canonical flat vector
  std::int64_t transposed_offset = 0;  // weights: in the arena of transposed copies
  std::int64_t vector_offset = 0;      // vectors: in the workspace's arena of vector gradients
  Initializer init;
  bool he = false;    // "auto" means He here
  bool zero = false;  // zero-initialized end of a residual branch

  bool is_weight() const { return kind == Kind::kWeight; }
  // As updates see it: a vector is one.
  std::int64_t tiles() const { return is_weight() ? panels_of(in) * panels_of(out) : 1; }
  std::int64_t size() const { return out * in; }
};

struct BatchNormState {
  std::string name;  // "layers.1"
  std::int64_t width = 0;
  std::int64_t offset = 0;  // of running_mean in the state arena; running_var follows at + padded
  std::int64_t padded = 0;  // width rounded up to panels
  double eps = 0.0;
  std::optional<double> momentum;
  bool weighted = false;
};

struct Buffer {
  std::int64_t width = 0;
  int producer = -1;  // node, -1 for the network's input
  int consumers = 0;
  // Buffer that holds this one's value in inference (dropout and identity copy nothing there).
  int inference_alias = -1;
  // Buffer whose gradient memory this one shares (in-place backward steps).
  int gradient_alias = -1;
  bool needs_gradient = false;  // something trainable lies upstream
};

enum class NodeKind { kDense, kBatchNorm, kActivation, kDropout, kAdd, kMaxout };

struct Node {
  NodeKind kind = NodeKind::kDense;
  std::string layer;  // name of the layer it comes from
  int input = 0;
  int second = -1;  // add: the branch
  int output = 0;
  cpu::Activation activation;
  int pre = -1;     // buffer of the value before the activation, when phi' needs it
  int weight = -1;  // tensors
  int bias = -1;
  int gamma = -1;
  int beta = -1;
  int state = -1;                      // batch-norm state
  int batch_norm = -1;                 // dense: the batch-norm node fed by its epilogue, or -1
  bool statistics_from_dense = false;  // batch norm: blocks are already there
  double rate = 0.0;                   // dropout
  std::uint32_t stream = 0;            // dropout: its number in the network
  std::int64_t pieces = 1;             // maxout
  // Backward, decided by the order of consumers:
  bool accumulate_input = false;  // the input's gradient already holds another consumer's part
  bool accumulate_second = false;
  bool applies_input_derivative = false;  // dense: dgrad multiplies by phi' of the input's producer
  bool derivative_applied = false;        // phi' of this node is applied by its consumer; that of a
                                          // batch norm where the backend gates_batch_norm()
  // Dense: the dropout between its output and the one dense node that reads it, or -1. A backend
  // may drop in the epilogues of the two.
  int dropout = -1;
};

struct LayerOutput {
  std::string name;  // "layers.0"
  std::string type;
  int buffer = 0;
  std::int64_t parameters = 0;
};

// One unit of the update phase: a 32 x 32 tile of a weight, or a whole vector tensor.
struct UpdateTask {
  int tensor = 0;
  int node = 0;
  std::int64_t in_panel = 0;  // weights
  std::int64_t out_panel = 0;
};

struct Plan {
  Description description;
  std::vector<Tensor> tensors;
  std::vector<BatchNormState> states;
  std::vector<Buffer> buffers;  // 0 is the input
  std::vector<Node> nodes;      // in order of execution
  std::vector<LayerOutput> layers;
  int output = 0;  // buffer of the network's output
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  std::int64_t arena_size = 0;
  std::int64_t transposed_size = 0;
  std::int64_t vector_size = 0;
  std::int64_t state_size = 0;
  std::int64_t num_parameters = 0;
  std::int64_t max_batch_norm_panels = 0;
  double flops_per_row = 0.0;  // multiply-adds count two; forward only
  int phases = 0;              // parallel phases of one training step, for choosing threads

  bool has_batch_norm() const { return !states.empty(); }
  bool has_weighted_batch_norm() const;
  // The buffer in whose memory a pass leaves `buffer`'s value, or its gradient.
  int value_holder(int buffer, bool inference) const;
  int gradient_holder(int buffer) const;
  // One line per node: what runs fused with what, on a backend with this gates_batch_norm().
  std::string summary(bool gates_batch_norm) const;
};

// Not dropout, nor a batch norm that inference folds into the dense node before it.
inline bool runs_in_inference(const Node& node) {
  return node.kind != NodeKind::kDropout && !node.statistics_from_dense;
}

// ValueError for shapes that do not fit, naming the layer.
// Without `fuse` every layer has a node and a buffer of its own, so that its output can be read;
// tensors and their places are the same either way.
Plan compile(const Description& description, bool fuse = true);

// All update tasks of a plan, in order: as many as its parameters have tiles.
std::vector<UpdateTask> list_updates(const Plan& plan);

}  // namespace thalweg
