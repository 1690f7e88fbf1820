// What a pass over a plan is asked for, and what it answers.
#pragma once

#include <cstdint>
#include <optional>

namespace thalweg {

enum class Mode {
  kTraining,   // batch statistics and dropout
  kFrozen,     // the evaluation network, with what a backward pass needs
  kInference,  // the evaluation network, nothing kept
};

struct Pass {
  Mode mode = Mode::kInference;
  std::uint64_t seed = 0;
  std::uint64_t step = 0;      // keys dropout
  std::int64_t first_row = 0;  // of this minibatch in the global one
  double total_weight = 0.0;   // sum of row weights, for weighted batch norm
  bool input_gradient = false;
  std::optional<bool> dropout;  // when it is not what the mode says; never in inference
  // Of inference on the CPU: the workspace has what follows from the parameters alone, from the
  // pass before.
  bool prepared = false;

  bool drops() const { return dropout.value_or(mode == Mode::kTraining); }
};

struct LossTotals {
  double loss = 0.0;  // sum of weight * loss
  double hits = 0.0;  // sum of weight * hit
  double weight = 0.0;
};

// The loss of the network's output against the targets that lie in the workspace.
struct LossRequest {
  double gradient_scale = 0.0;  // 0: the value alone; else times w * dloss/doutput
  bool weighted = false;        // use the workspace's row weights
  bool dense_targets = false;   // rows of values or probabilities instead of labels
};

}  // namespace thalweg
