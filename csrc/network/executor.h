// Runs a plan: forward, loss, backward and the gradient of each tensor.
//
// Every method is collective: all threads of the team call it with the same arguments (see
// core/thread_pool.h), and a pass may be left unfinished only when the team was stopped. An
// executor borrows everything and owns nothing.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "network/parameters.h"
#include "network/plan.h"
#include "network/workspace.h"

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
};

struct LossTotals {
  double loss = 0.0;  // sum of weight * loss
  double hits = 0.0;  // sum of weight * hit
  double weight = 0.0;
};

template <class T>
class Executor {
 public:
  Executor(const Plan& plan, const Parameters<T>& parameters, Workspace<T>& workspace,
           const cpu::Kernels<T>& kernels)
      : plan_(plan), parameters_(parameters), workspace_(workspace), kernels_(kernels) {}

  // From the input in value(0), [workspace.rows(), in_features].
  void forward(Team& team, const Pass& pass);

  // Loss of value(output) against the workspace's labels or targets. gradient_scale 0 computes the
  // value alone; otherwise gradient(output) receives gradient_scale * w * dloss/doutput. Uses the
  // workspace's row weights when `weighted`. One thread adds to `totals`, block by block.
  void loss(Team& team, Mode mode, double gradient_scale, bool weighted, bool dense_targets,
            LossTotals* totals);

  // From gradient(output) to the gradients of all buffers and of batch norm's gamma and beta.
  void backward(Team& team, const Pass& pass);

  // One thread: the gradient of one update task. Weights: (+)= into tile[kTile]; vectors: into the
  // workspace's vector gradients, whose place is returned.
  void weight_gradient(const UpdateTask& task, bool accumulate, T* tile);
  const T* vector_gradient(const UpdateTask& task);

  // The buffer in which a pass of this mode leaves `buffer`'s value.
  int resolve(int buffer, Mode mode) const;

 private:
  void forward_dense(Team& team, const Pass& pass, const Node& node);
  void forward_batch_norm(Team& team, const Pass& pass, const Node& node);
  void backward_dense(Team& team, const Pass& pass, const Node& node);
  void backward_batch_norm(Team& team, const Pass& pass, const Node& node);
  void prepare_statistics(Team& team, const Pass& pass);
  const T* tensor(int index) const {
    return parameters_.values.data() + plan_.tensors[index].offset;
  }
  bool wants_gradient(const Pass& pass, int buffer) const {
    return plan_.buffers[buffer].needs_gradient || pass.input_gradient;
  }
  // What phi' of `node` is evaluated at.
  const T* derivative_at(const Node& node) {
    return workspace_.value(node.pre >= 0 ? node.pre : node.output).data;
  }

  const Plan& plan_;
  const Parameters<T>& parameters_;
  Workspace<T>& workspace_;
  const cpu::Kernels<T>& kernels_;
};

}  // namespace thalweg
