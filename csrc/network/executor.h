// The walk over a plan: which node reads and writes which buffers, with which flags. Written once
// for all devices; what a node computes is a primitive of the backend.
//
// A Backend offers
// - handles: Matrix (of a buffer's value or gradient; present() is false for the default one),
//   Weight (of a weight tensor), Vector (of the other tensors, null when absent), from value(b),
//   gradient(b), weight(t) and vector(t);
// - plan();
// - one operation on whole matrices for each primitive that is called below. What a primitive reads
//   was written by the primitives before it, in the order of the calls. dense() answers whether it
//   has taken the loss along, and fuses_dropout() whether dense() drops its output itself and
//   dense_input_gradient() multiplies by the mask; gates_batch_norm(), whether the latter
//   applies the derivative of a batch norm's activation too. What is marked as a tensor's gradient
//   may be taken along as well; the walk asks for it later in any case.
//
// On the CPU every thread of a team walks with a backend of its own, and a primitive is a phase of
// the parallel region (network/cpu_backend.h); on a device one thread walks and a primitive queues
// launches.
#pragma once

#include <cstddef>

#include "math/activations.h"
#include "network/pass.h"
#include "network/plan.h"

namespace thalweg {

// y = phi(x W' + bias), or y = phi((x W') * scale + shift) with batch norm folded in.
template <class Backend>
struct DenseForward {
  typename Backend::Matrix x, y;
  typename Backend::Weight weight;
  typename Backend::Vector bias{};
  Activation activation{};
  typename Backend::Matrix pre{};  // where to keep the value before the activation, if anywhere
  const Node* dropout = nullptr;   // applied to y, where the backend fuses_dropout()
  int buffer = 0;                  // of the value before it
  int statistics = -1;             // batch-norm state whose block statistics of y are wanted
  int folded = -1;                 // batch-norm state whose scale and shift replace the bias
  // The loss that will be asked for when y is the network's output; null: none that is known.
  const LossRequest* loss = nullptr;
  typename Backend::Matrix loss_gradient{};
  int loss_bias = -1;  // tensor whose gradient the column sums of loss_gradient are
};

// dx (+)= dy W, then dx *= mask of `dropout`, and when `at` is present, dx *= phi'(at).
template <class Backend>
struct DenseInputGradient {
  typename Backend::Matrix dy, dx;
  typename Backend::Weight weight;
  bool accumulate = false;
  Activation derivative{};
  typename Backend::Matrix at{};
  const Node* dropout = nullptr;  // where the backend fuses_dropout()
  int buffer = 0;                 // whose gradient dx is
  int bias = -1;                  // tensor whose gradient the column sums of the finished dx are
  bool to_batch_norm = false;     // whose backward pass is what reads dx next
};

// y = phi(gamma * (z - mean) / std + beta)
template <class Backend>
struct BatchNormForward {
  typename Backend::Matrix z, y;
  int state = 0;
  typename Backend::Vector gamma{}, beta{};
  Activation activation{};
  typename Backend::Matrix pre{};
};

// From dy to the gradients of gamma and beta (tensors), and to dz where it is present. dy may be
// overwritten.
template <class Backend>
struct BatchNormBackward {
  typename Backend::Matrix z, dy, at, dz{};
  int state = 0;
  int gamma = 0, beta = 0;
  Activation activation{};
  bool accumulate = false;
};

template <class Backend>
class Executor {
 public:
  using Matrix = typename Backend::Matrix;

  // Borrows the backend.
  explicit Executor(Backend& backend) : plan_(backend.plan()), backend_(backend) {}

  // From the input in value(0), [rows, in_features]. `next`: what loss() will be asked for, if
  // anything, so that the backend may take it along with the last product.
  void forward(const Pass& pass, const LossRequest* next = nullptr);

  // Of the forward pass's output; gradient(output) is written when the request has a scale.
  // `totals` receives the sums where the backend has them at hand.
  void loss(const Pass& pass, const LossRequest& request, LossTotals* totals);

  // From gradient(output) to the gradients of all buffers and of batch norm's gamma and beta.
  void backward(const Pass& pass);

  // After backward: the gradient of each tensor with wanted(tensor), written or added to its place
  // in an arena.
  template <class Wanted>
  void gradients(typename Backend::Element* arena, bool accumulate, Wanted&& wanted);

 private:
  Matrix input(const Pass& pass, int buffer) const {
    return backend_.value(plan_.value_holder(buffer, pass.mode == Mode::kInference));
  }
  typename Backend::Vector vector(int tensor) const {
    return tensor >= 0 ? backend_.vector(tensor) : typename Backend::Vector{};
  }
  // Where to keep the value before the activation of `node`.
  Matrix pre(const Pass& pass, const Node& node) const {
    return node.pre >= 0 && pass.mode != Mode::kInference ? backend_.value(node.pre) : Matrix{};
  }
  bool derivative_applied(const Node& node) const {
    return node.derivative_applied &&
           (node.kind == NodeKind::kDense || backend_.gates_batch_norm());
  }
  // The dropout that runs in the epilogues of this dense node and of its consumer, or null.
  const Node* fused_dropout(const Pass& pass, const Node& dense) const {
    const bool fused = dense.dropout >= 0 && pass.drops() && backend_.fuses_dropout(dense);
    return fused ? &plan_.nodes[dense.dropout] : nullptr;
  }
  // The dense node whose epilogue is this dropout's, or null.
  const Node* fused_producer(const Pass& pass, const Node& dropout) const {
    const int producer = plan_.buffers[dropout.input].producer;
    if (producer < 0) return nullptr;
    const Node& dense = plan_.nodes[producer];
    return fused_dropout(pass, dense) == &dropout ? &dense : nullptr;
  }
  // What phi' of `node` is evaluated at.
  Matrix derivative_at(const Node& node) const {
    return backend_.value(node.pre >= 0 ? node.pre : node.output);
  }
  bool wants_gradient(const Pass& pass, int buffer) const {
    return plan_.buffers[buffer].needs_gradient || pass.input_gradient;
  }
  void pass_on(const Matrix& from, const Matrix& to, bool accumulate) {
    if (accumulate)
      backend_.accumulate(from, to);
    else
      backend_.copy(from, to);
  }
  Matrix loss_gradient(const LossRequest& request) const {
    return request.gradient_scale != 0.0 ? backend_.gradient(plan_.output) : Matrix{};
  }
  void forward_dense(const Pass& pass, const Node& node, const LossRequest* next);
  void forward_batch_norm(const Pass& pass, const Node& node);
  void backward_dense(const Pass& pass, const Node& node);
  void backward_batch_norm(const Pass& pass, const Node& node);
  void backward_add(const Pass& pass, const Node& node);

  const Plan& plan_;
  Backend& backend_;
  bool loss_taken_ = false;
};

template <class Backend>
void Executor<Backend>::forward(const Pass& pass, const LossRequest* next) {
  backend_.begin_forward(pass);
  loss_taken_ = false;
  for (const Node& node : plan_.nodes) {
    switch (node.kind) {
      case NodeKind::kDense:
        forward_dense(pass, node, next);
        break;
      case NodeKind::kBatchNorm:
        forward_batch_norm(pass, node);
        break;
      case NodeKind::kActivation:
        backend_.activation(input(pass, node.input), backend_.value(node.output), node.activation);
        break;
      case NodeKind::kDropout:
        if (fused_producer(pass, node) != nullptr) break;
        if (pass.drops())
          backend_.dropout(pass, node, input(pass, node.input), backend_.value(node.output), false);
        else if (pass.mode != Mode::kInference)
          backend_.copy(input(pass, node.input), backend_.value(node.output));
        break;
      case NodeKind::kAdd:
        backend_.add(input(pass, node.input), input(pass, node.second),
                     backend_.value(node.output));
        break;
      case NodeKind::kMaxout:
        backend_.maxout(input(pass, node.input), backend_.value(node.output), node.pieces);
        break;
    }
  }
}

template <class Backend>
void Executor<Backend>::forward_dense(const Pass& pass, const Node& node, const LossRequest* next) {
  DenseForward<Backend> problem;
  problem.x = input(pass, node.input);
  problem.y = backend_.value(node.output);
  problem.weight = backend_.weight(node.weight);
  problem.bias = vector(node.bias);
  problem.activation = node.activation;
  problem.pre = pre(pass, node);
  problem.buffer = node.output;
  problem.dropout = fused_dropout(pass, node);
  if (problem.dropout != nullptr) problem.y = backend_.value(problem.dropout->output);
  if (node.batch_norm >= 0) {
    const Node& norm = plan_.nodes[node.batch_norm];
    if (pass.mode == Mode::kTraining) {
      problem.statistics = norm.state;
    } else if (pass.mode == Mode::kInference) {
      problem.y = backend_.value(norm.output);
      problem.folded = norm.state;
      problem.activation = norm.activation;
    }
  }
  if (next != nullptr && node.output == plan_.output) {
    problem.loss = next;
    problem.loss_gradient = loss_gradient(*next);
    if (node.activation.id == kActivationIdentity) problem.loss_bias = node.bias;
  }
  if (backend_.dense(pass, problem)) loss_taken_ = true;
}

template <class Backend>
void Executor<Backend>::forward_batch_norm(const Pass& pass, const Node& node) {
  if (pass.mode == Mode::kInference && node.statistics_from_dense) return;
  BatchNormForward<Backend> problem;
  problem.z = input(pass, node.input);
  problem.y = backend_.value(node.output);
  problem.state = node.state;
  problem.gamma = vector(node.gamma);
  problem.beta = vector(node.beta);
  problem.activation = node.activation;
  problem.pre = pre(pass, node);
  if (pass.mode == Mode::kTraining)
    backend_.batch_statistics(pass, node.state, problem.z, node.statistics_from_dense);
  backend_.batch_norm(problem);
}

template <class Backend>
void Executor<Backend>::loss(const Pass& pass, const LossRequest& request, LossTotals* totals) {
  if (loss_taken_) return;
  backend_.loss(request, input(pass, plan_.output), loss_gradient(request), totals);
}

template <class Backend>
void Executor<Backend>::backward(const Pass& pass) {
  for (std::size_t i = plan_.nodes.size(); i-- > 0;) {
    const Node& node = plan_.nodes[i];
    const Matrix dy = backend_.gradient(node.output);
    const Matrix dx = backend_.gradient(node.input);
    const bool wanted = wants_gradient(pass, node.input);
    switch (node.kind) {
      case NodeKind::kDense:
        backward_dense(pass, node);
        break;
      case NodeKind::kBatchNorm:
        backward_batch_norm(pass, node);
        break;
      case NodeKind::kActivation:
        if (wanted)
          backend_.activation_backward(dy, derivative_at(node), dx, node.activation,
                                       node.accumulate_input);
        break;
      case NodeKind::kDropout:
        if (!wanted || fused_producer(pass, node) != nullptr) break;
        if (pass.drops())
          backend_.dropout(pass, node, dy, dx, node.accumulate_input);
        else
          pass_on(dy, dx, node.accumulate_input);
        break;
      case NodeKind::kAdd:
        backward_add(pass, node);
        break;
      case NodeKind::kMaxout:
        if (wanted) backend_.maxout_backward(backend_.value(node.input), dy, dx, node.pieces);
        break;
    }
  }
}

template <class Backend>
void Executor<Backend>::backward_dense(const Pass& pass, const Node& node) {
  const Matrix dy = backend_.gradient(node.output);
  if (node.activation.id != kActivationIdentity && !derivative_applied(node) &&
      fused_dropout(pass, node) == nullptr)
    backend_.activation_backward(dy, derivative_at(node), dy, node.activation, false);
  if (!wants_gradient(pass, node.input)) return;
  DenseInputGradient<Backend> problem;
  problem.dy = dy;
  problem.dx = backend_.gradient(node.input);
  problem.weight = backend_.weight(node.weight);
  problem.accumulate = node.accumulate_input;
  problem.buffer = node.input;
  const Buffer& source = plan_.buffers[node.input];
  if (source.producer >= 0 && source.consumers == 1) {
    const Node* producer = &plan_.nodes[source.producer];
    bool applies = node.applies_input_derivative && derivative_applied(*producer);
    problem.to_batch_norm = producer->kind == NodeKind::kBatchNorm;
    if (producer->kind == NodeKind::kDropout) {
      if (const Node* dense = fused_producer(pass, *producer)) {
        problem.dropout = producer;
        problem.buffer = producer->input;
        problem.dx = backend_.gradient(problem.buffer);
        applies = dense->activation.id != kActivationIdentity;
        producer = dense;
      }
    }
    if (applies) {
      problem.derivative = producer->activation;
      problem.at = derivative_at(*producer);
    }
    // Then dx is the gradient of what the bias was added to.
    if (applies || producer->activation.id == kActivationIdentity) problem.bias = producer->bias;
  }
  backend_.dense_input_gradient(pass, problem);
}

template <class Backend>
void Executor<Backend>::backward_batch_norm(const Pass& pass, const Node& node) {
  BatchNormBackward<Backend> problem;
  problem.z = backend_.value(node.input);
  problem.dy = backend_.gradient(node.output);
  problem.at = derivative_at(node);
  if (wants_gradient(pass, node.input)) problem.dz = backend_.gradient(node.input);
  problem.state = node.state;
  problem.gamma = node.gamma;
  problem.beta = node.beta;
  if (!derivative_applied(node)) problem.activation = node.activation;
  problem.accumulate = node.accumulate_input;
  backend_.batch_norm_backward(pass, problem);
}

template <class Backend>
void Executor<Backend>::backward_add(const Pass& pass, const Node& node) {
  const Matrix dy = backend_.gradient(node.output);
  if (wants_gradient(pass, node.input))
    pass_on(dy, backend_.gradient(node.input), node.accumulate_input);
  if (wants_gradient(pass, node.second) &&
      plan_.gradient_holder(node.second) != plan_.gradient_holder(node.output))
    pass_on(dy, backend_.gradient(node.second), node.accumulate_second);
}

template <class Backend>
template <class Wanted>
void Executor<Backend>::gradients(typename Backend::Element* arena, bool accumulate,
                                  Wanted&& wanted) {
  for (const Node& node : plan_.nodes) {
    if (node.weight >= 0 && wanted(node.weight))
      backend_.weight_gradient(node.weight, backend_.value(node.input),
                               backend_.gradient(node.output), accumulate, arena);
    if (node.bias >= 0 && wanted(node.bias))
      backend_.bias_gradient(node.bias, backend_.gradient(node.output), accumulate, arena);
    for (const int tensor : {node.gamma, node.beta})
      if (tensor >= 0 && wanted(tensor)) backend_.norm_gradient(tensor, accumulate, arena);
  }
  backend_.end_gradients();
}

}  // namespace thalweg
