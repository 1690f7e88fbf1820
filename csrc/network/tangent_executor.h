// The walk of tangents over a plan: how all values and all gradients of a pass change as the
// parameters move along a direction (the R-operator of Pearlmutter 1994). Written once for all
// devices, like the walk of the values (network/executor.h).
//
// The plan is compiled without fusion: then every value and every gradient that a tangent depends
// on has a buffer of its own and outlives the pass. Tangents of values and of gradients have the
// layout of the values and gradients, the direction that of the parameters.
//
// A Backend offers what executor.h asks for, and
// - value_tangent(b), gradient_tangent(b), weight_tangent(t), vector_tangent(t);
// - one operation on whole matrices for each primitive that is called below.
#pragma once

#include <cstddef>

#include "network/executor.h"

namespace thalweg {

// Which matrix multiplies the direction: the Hessian H of the loss, or the Gauss-Newton matrix
// J' L J, with the Jacobian J of the outputs and the Hessian L of the loss in the outputs: H
// without the second derivatives of the network (Schraudolph 2002).
enum class Curvature { kHessian, kGaussNewton };

// y' = x' W + x W' + b'
template <class Backend>
struct DenseTangent {
  typename Backend::Matrix x, y_tangent;
  typename Backend::Matrix x_tangent{};  // absent when x does not move
  typename Backend::Weight weight, weight_tangent;
  typename Backend::Vector bias_tangent{};
};

// dx' (+)= dy' W + dy W'
template <class Backend>
struct DenseInputGradientTangent {
  typename Backend::Matrix dy{};  // absent for Gauss-Newton
  typename Backend::Matrix dy_tangent, dx_tangent;
  typename Backend::Weight weight, weight_tangent;
  bool accumulate = false;
};

// y' = gamma' xhat + gamma xhat' + beta'
template <class Backend>
struct BatchNormTangent {
  typename Backend::Matrix z, z_tangent, y_tangent;
  int state = 0;
  typename Backend::Vector gamma{}, gamma_tangent{}, beta_tangent{};
};

// From dy' to the tangents of the gradients of gamma and beta (tensors), and to dz' where it is
// present.
template <class Backend>
struct BatchNormBackwardTangent {
  typename Backend::Matrix z, z_tangent;
  typename Backend::Matrix dy{};  // absent for Gauss-Newton
  typename Backend::Matrix dy_tangent, dz_tangent{};
  int state = 0;
  int gamma = 0, beta = 0;
  bool accumulate = false;
};

// dW' (+)= x'^T dy + x^T dy'
template <class Backend>
struct WeightGradientTangent {
  typename Backend::Matrix x, dy_tangent;
  typename Backend::Matrix x_tangent{}, dy{};  // absent: that term is zero
  int tensor = 0;
};

template <class Backend>
class TangentExecutor {
 public:
  using Matrix = typename Backend::Matrix;

  // Borrows the backend.
  explicit TangentExecutor(Backend& backend) : plan_(backend.plan()), backend_(backend) {}

  // After Executor::forward of the same pass: the tangents of all values.
  void forward(const Pass& pass);

  // After forward: gradient_tangent(output) = L value_tangent(output). Of the request, the scale
  // counts.
  void loss(const LossRequest& request);

  // From gradient_tangent(output) to those of all buffers. The Hessian needs Executor::backward
  // before it, Gauss-Newton the forward passes only.
  void backward(const Pass& pass, Curvature curvature);

  // After backward: the product with the direction, in the parameters' layout.
  void gradients(Curvature curvature, typename Backend::Element* arena);

 private:
  // Whether a value depends on the parameters. The tangents of the others are zero, always.
  bool moves(int buffer) const { return plan_.buffers[buffer].needs_gradient; }
  Matrix moving_tangent(int buffer) const {
    return moves(buffer) ? backend_.value_tangent(buffer) : Matrix{};
  }
  typename Backend::Vector vector_tangent(int tensor) const {
    return tensor >= 0 ? backend_.vector_tangent(tensor) : typename Backend::Vector{};
  }
  Matrix derivative_at(const Node& node) const {
    return backend_.value(node.pre >= 0 ? node.pre : node.output);
  }
  void pass_on(const Matrix& from, const Matrix& to, bool accumulate) {
    if (accumulate)
      backend_.accumulate(from, to);
    else
      backend_.copy(from, to);
  }
  void backward_dense(const Node& node, Curvature curvature);
  void backward_batch_norm(const Pass& pass, const Node& node, Curvature curvature);
  void backward_activation(const Node& node, Curvature curvature);

  const Plan& plan_;
  Backend& backend_;
};

template <class Backend>
void TangentExecutor<Backend>::forward(const Pass& pass) {
  for (const Node& node : plan_.nodes) {
    if (!moves(node.output)) continue;
    const Matrix in = backend_.value_tangent(node.input);
    const Matrix out = backend_.value_tangent(node.output);
    switch (node.kind) {
      case NodeKind::kDense: {
        DenseTangent<Backend> problem;
        problem.x = backend_.value(node.input);
        problem.x_tangent = moving_tangent(node.input);
        problem.y_tangent = out;
        problem.weight = backend_.weight(node.weight);
        problem.weight_tangent = backend_.weight_tangent(node.weight);
        problem.bias_tangent = vector_tangent(node.bias);
        backend_.dense_tangent(problem);
        break;
      }
      case NodeKind::kBatchNorm: {
        BatchNormTangent<Backend> problem;
        problem.z = backend_.value(node.input);
        problem.z_tangent = in;
        problem.y_tangent = out;
        problem.state = node.state;
        problem.gamma = backend_.vector(node.gamma);
        problem.gamma_tangent = backend_.vector_tangent(node.gamma);
        problem.beta_tangent = backend_.vector_tangent(node.beta);
        backend_.batch_norm_tangent(pass, problem);
        break;
      }
      case NodeKind::kActivation:
        backend_.activation_backward(in, derivative_at(node), out, node.activation, false);
        break;
      case NodeKind::kDropout:
        if (pass.drops())
          backend_.dropout(pass, node, in, out, false);
        else
          backend_.copy(in, out);
        break;
      case NodeKind::kAdd:
        backend_.add(in, backend_.value_tangent(node.second), out);
        break;
      case NodeKind::kMaxout:
        backend_.maxout_tangent(backend_.value(node.input), in, out, node.pieces);
        break;
    }
  }
}

template <class Backend>
void TangentExecutor<Backend>::loss(const LossRequest& request) {
  backend_.loss_tangent(request, backend_.value(plan_.output), backend_.value_tangent(plan_.output),
                        backend_.gradient_tangent(plan_.output));
}

template <class Backend>
void TangentExecutor<Backend>::backward(const Pass& pass, Curvature curvature) {
  for (std::size_t i = plan_.nodes.size(); i-- > 0;) {
    const Node& node = plan_.nodes[i];
    if (!moves(node.output)) continue;
    const Matrix dy = backend_.gradient_tangent(node.output);
    const Matrix dx = backend_.gradient_tangent(node.input);
    const bool wanted = moves(node.input);
    switch (node.kind) {
      case NodeKind::kDense:
        if (wanted) backward_dense(node, curvature);
        break;
      case NodeKind::kBatchNorm:
        backward_batch_norm(pass, node, curvature);
        break;
      case NodeKind::kActivation:
        backward_activation(node, curvature);
        break;
      case NodeKind::kDropout:
        if (pass.drops())
          backend_.dropout(pass, node, dy, dx, node.accumulate_input);
        else
          pass_on(dy, dx, node.accumulate_input);
        break;
      case NodeKind::kAdd:
        if (wanted) pass_on(dy, dx, node.accumulate_input);
        if (moves(node.second) &&
            plan_.gradient_holder(node.second) != plan_.gradient_holder(node.output))
          pass_on(dy, backend_.gradient_tangent(node.second), node.accumulate_second);
        break;
      case NodeKind::kMaxout:
        backend_.maxout_backward(backend_.value(node.input), dy, dx, node.pieces);
        break;
    }
  }
}

template <class Backend>
void TangentExecutor<Backend>::backward_dense(const Node& node, Curvature curvature) {
  DenseInputGradientTangent<Backend> problem;
  if (curvature == Curvature::kHessian) problem.dy = backend_.gradient(node.output);
  problem.dy_tangent = backend_.gradient_tangent(node.output);
  problem.dx_tangent = backend_.gradient_tangent(node.input);
  problem.weight = backend_.weight(node.weight);
  problem.weight_tangent = backend_.weight_tangent(node.weight);
  problem.accumulate = node.accumulate_input;
  backend_.dense_input_gradient_tangent(problem);
}

template <class Backend>
void TangentExecutor<Backend>::backward_batch_norm(const Pass& pass, const Node& node,
                                                   Curvature curvature) {
  BatchNormBackwardTangent<Backend> problem;
  problem.z = backend_.value(node.input);
  problem.z_tangent = backend_.value_tangent(node.input);
  if (curvature == Curvature::kHessian) problem.dy = backend_.gradient(node.output);
  problem.dy_tangent = backend_.gradient_tangent(node.output);
  if (moves(node.input)) problem.dz_tangent = backend_.gradient_tangent(node.input);
  problem.state = node.state;
  problem.gamma = node.gamma;
  problem.beta = node.beta;
  problem.accumulate = node.accumulate_input;
  backend_.batch_norm_backward_tangent(pass, problem);
}

template <class Backend>
void TangentExecutor<Backend>::backward_activation(const Node& node, Curvature curvature) {
  const Matrix dy_tangent = backend_.gradient_tangent(node.output);
  const Matrix dz_tangent = backend_.gradient_tangent(node.input);
  if (curvature == Curvature::kHessian)
    backend_.activation_backward_tangent(backend_.gradient(node.output), dy_tangent,
                                         derivative_at(node), backend_.value_tangent(node.input),
                                         dz_tangent, node.activation, node.accumulate_input);
  else
    backend_.activation_backward(dy_tangent, derivative_at(node), dz_tangent, node.activation,
                                 node.accumulate_input);
}

template <class Backend>
void TangentExecutor<Backend>::gradients(Curvature curvature, typename Backend::Element* arena) {
  for (const Node& node : plan_.nodes) {
    if (node.weight >= 0) {
      WeightGradientTangent<Backend> problem;
      problem.tensor = node.weight;
      problem.x = backend_.value(node.input);
      problem.dy_tangent = backend_.gradient_tangent(node.output);
      if (curvature == Curvature::kHessian && moves(node.input)) {
        problem.x_tangent = backend_.value_tangent(node.input);
        problem.dy = backend_.gradient(node.output);
      }
      backend_.weight_gradient_tangent(problem, arena);
    }
    if (node.bias >= 0)
      backend_.bias_gradient_tangent(node.bias, backend_.gradient_tangent(node.output), arena);
    for (const int tensor : {node.gamma, node.beta})
      if (tensor >= 0) backend_.norm_gradient_tangent(tensor, arena);
  }
  backend_.end_gradients();
}

}  // namespace thalweg
