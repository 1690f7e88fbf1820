// The primitives: problems for the kernels of csrc/cuda.
#include "network/cuda_backend.h"

#include <algorithm>

#include "cuda/activation.h"
#include "cuda/batch_norm.h"
#include "cuda/dropout.h"
#include "cuda/gemm.h"
#include "cuda/loss.h"
#include "cuda/maxout.h"
#include "math/philox.h"

namespace thalweg {

template <class T>
void CudaBackend<T>::begin_forward(const Pass& pass) {
  if (pass.mode == Mode::kTraining) return;
  std::vector<cuda::BatchNormFold<T>> folds;
  std::vector<const T*> bias(plan_.states.size(), nullptr);
  for (const Node& node : plan_.nodes) {
    if (node.batch_norm >= 0 && node.bias >= 0)
      bias[plan_.nodes[node.batch_norm].state] = vector(node.bias);
    if (node.state < 0) continue;
    const BatchNormState& norm = plan_.states[node.state];
    cuda::BatchNormFold<T> fold;
    fold.width = norm.width;
    fold.eps = norm.eps;
    fold.running_mean = parameters_.running_mean(norm);
    fold.running_var = parameters_.running_var(norm);
    fold.gamma = vector(node.gamma);
    fold.beta = vector(node.beta);
    fold.bias = bias[node.state];
    fold.mean = workspace_.mean(node.state);
    fold.inv_std = workspace_.inv_std(node.state);
    fold.scale = workspace_.scale(node.state);
    fold.shift = workspace_.shift(node.state);
    folds.push_back(fold);
  }
  const auto count = static_cast<int>(folds.size());
  for (int i = 0; i < count; i += cuda::kBatchNormFolds)
    run(0, [&](const cuda::Scratch&) {
      cuda::fold_batch_norm(folds.data() + i, std::min(count - i, cuda::kBatchNormFolds), stream_);
    });
}

template <class T>
cuda::BatchStatistics<T> CudaBackend<T>::statistics(int state) const {
  return {.eps = plan_.states[state].eps,
          .batch_mean = workspace_.batch_mean(state),
          .batch_var = workspace_.batch_var(state),
          .mean = workspace_.mean(state),
          .inv_std = workspace_.inv_std(state)};
}

template <class T>
cuda::Loss<T> CudaBackend<T>::loss_problem(const LossRequest& request,
                                           const Matrix& gradient) const {
  const LossDescription& description = plan_.description.loss;
  cuda::Loss<T> loss;
  if (request.dense_targets)
    loss.targets = workspace_.targets();
  else
    loss.labels = workspace_.labels.data();
  if (request.weighted) loss.row_weights = workspace_.row_weights.data();
  loss.label_smoothing = description.label_smoothing;
  loss.parameter = description.parameter;
  loss.gradient = gradient;
  loss.gradient_scale = request.gradient_scale;
  loss.accumulate = results_.accumulate;
  if (results_.state != nullptr) {
    loss.gradient_scale_at = &results_.state->gradient_scale;
    loss.state = results_.state;
  } else {
    loss.sums = workspace_.losses.data();
  }
  return loss;
}

template <class T>
std::optional<double> CudaBackend<T>::slope_of_the_rest(const Activation& activation) {
  if (activation.id == kActivationRelu) return 0.0;
  if (activation.id == kActivationLeakyRelu) return activation.parameter;
  return std::nullopt;
}

// Of a value that is dropped in the epilogue only the result is kept. That is enough for the
// identity, for ReLU, whose sign it has, and for an activation that keeps its input.
template <class T>
bool CudaBackend<T>::fuses_dropout(const Node& dense) {
  return dense.activation.id == kActivationIdentity || dense.pre >= 0 ||
         slope_of_the_rest(dense.activation) == 0.0;
}

template <class T>
cuda::Dropout CudaBackend<T>::dropout_of(const Pass& pass, const Node& node) const {
  cuda::Dropout dropout;
  dropout.seed = pass.seed;
  dropout.state = results_.state;
  dropout.step = pass.step;
  dropout.stream = node.stream;
  dropout.threshold = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bernoulli_threshold(node.rate), 0xffffffffu));
  dropout.scale = 1.0 / (1.0 - node.rate);
  dropout.first_row = pass.first_row;
  return dropout;
}

template <class T>
bool CudaBackend<T>::dense(const Pass& pass, const DenseForward<CudaBackend>& problem) {
  cuda::DenseForward<T> product;
  product.precision = static_cast<cuda::Precision>(problem.weight.plane_count);
  product.x = problem.x;
  product.weight = problem.weight;
  product.y = problem.y;
  product.shift = problem.bias;
  product.activation = problem.activation;
  product.pre = problem.pre;
  if (pass.mode != Mode::kInference) product.signs = workspace_.signs(problem.buffer);
  if (problem.dropout != nullptr) {
    product.drops = true;
    product.dropout = dropout_of(pass, *problem.dropout);
  }
  if (problem.statistics >= 0) {
    product.takes_statistics = true;
    product.row_weights = row_weights(problem.statistics);
    product.statistics = statistics(problem.statistics);
  }
  if (problem.folded >= 0) {
    product.scale = workspace_.scale(problem.folded);
    product.shift = workspace_.shift(problem.folded);
  }
  product.takes_loss = problem.loss != nullptr && !problem.loss->dense_targets &&
                       plan_.description.loss.kind == LossDescription::Kind::kCrossEntropy &&
                       problem.activation.id == kActivationIdentity &&
                       problem.y.width <= cuda::kFusedClasses<T>;
  if (product.takes_loss) {
    product.loss = loss_problem(*problem.loss, problem.loss_gradient);
    if (problem.loss_gradient.present() && problem.loss_bias >= 0 && results_.gradients) {
      product.loss_bias_gradient = gradient_of(problem.loss_bias);
      product.accumulate_bias = results_.accumulate;
      bias_taken_[problem.loss_bias] = true;
    }
  }
  run(cuda::scratch_bytes(product), [&](const cuda::Scratch& scratch) {
    product.scratch = scratch;
    cuda::dense_forward(product, stream_);
  });
  return product.takes_loss;
}

template <class T>
void CudaBackend<T>::activation(const Matrix& z, const Matrix& y, const Activation& phi) {
  run(0, [&](const cuda::Scratch&) { cuda::activation<T>(z, y, phi, stream_); });
}

template <class T>
void CudaBackend<T>::dropout(const Pass& pass, const Node& node, const Matrix& x, const Matrix& y,
                             bool accumulate) {
  const cuda::Dropout dropout = dropout_of(pass, node);
  run(0, [&](const cuda::Scratch&) { cuda::dropout<T>(x, y, dropout, accumulate, stream_); });
}

template <class T>
void CudaBackend<T>::copy(const Matrix& x, const Matrix& y) {
  run(0, [&](const cuda::Scratch&) { cuda::copy<T>(x, y, stream_); });
}

template <class T>
void CudaBackend<T>::accumulate(const Matrix& x, const Matrix& y) {
  run(0, [&](const cuda::Scratch&) { cuda::accumulate<T>(x, y, stream_); });
}

template <class T>
void CudaBackend<T>::add(const Matrix& a, const Matrix& b, const Matrix& y) {
  run(0, [&](const cuda::Scratch&) { cuda::add<T>(a, b, y, stream_); });
}

template <class T>
void CudaBackend<T>::maxout(const Matrix& z, const Matrix& y, std::int64_t pieces) {
  run(0, [&](const cuda::Scratch&) { cuda::maxout<T>(z, y, pieces, stream_); });
}

template <class T>
void CudaBackend<T>::batch_statistics(const Pass&, int, const Matrix&, bool ready) {
  statistics_wanted_ = !ready;
}

template <class T>
void CudaBackend<T>::batch_norm(const BatchNormForward<CudaBackend>& problem) {
  cuda::BatchNormApply<T> apply;
  apply.z = problem.z;
  apply.y = problem.y;
  apply.mean = workspace_.mean(problem.state);
  apply.inv_std = workspace_.inv_std(problem.state);
  apply.gamma = problem.gamma;
  apply.beta = problem.beta;
  apply.activation = problem.activation;
  apply.pre = problem.pre;
  if (!std::exchange(statistics_wanted_, false)) {
    run(0, [&](const cuda::Scratch&) { cuda::batch_norm(apply, stream_); });
    return;
  }
  run(cuda::column_statistics_scratch_bytes(problem.z.rows, problem.z.width),
      [&](const cuda::Scratch& scratch) {
        cuda::batch_norm_forward(apply, row_weights(problem.state), statistics(problem.state),
                                 scratch, stream_);
      });
}

template <class T>
void CudaBackend<T>::loss(const LossRequest& request, const Matrix& outputs, const Matrix& gradient,
                          LossTotals*) {
  const LossDescription& description = plan_.description.loss;
  cuda::Loss<T> problem = loss_problem(request, gradient);
  problem.outputs = outputs;
  run(cuda::loss_scratch_bytes(outputs.rows), [&](const cuda::Scratch& scratch) {
    if (description.kind == LossDescription::Kind::kCrossEntropy)
      cuda::softmax_cross_entropy(problem, scratch, stream_);
    else
      cuda::elementwise_loss(description.elementwise, problem, scratch, stream_);
  });
}

template <class T>
void CudaBackend<T>::activation_backward(const Matrix& dy, const Matrix& at, const Matrix& dz,
                                         const Activation& phi, bool accumulate) {
  run(0, [&](const cuda::Scratch&) {
    cuda::activation_backward<T>(dy, at, dz, phi, accumulate, stream_);
  });
}

template <class T>
void CudaBackend<T>::dense_input_gradient(const Pass& pass,
                                          const DenseInputGradient<CudaBackend>& problem) {
  cuda::DenseInputGradient<T> product;
  product.precision = static_cast<cuda::Precision>(problem.weight.plane_count);
  product.dy = problem.dy;
  product.weight = problem.weight;
  product.dx = problem.dx;
  product.accumulate = problem.accumulate;
  const std::uint32_t* const signs =
      problem.at.present() ? workspace_.signs(problem.buffer) : nullptr;
  if (signs != nullptr) {
    const double kept = problem.dropout ? 1.0 / (1.0 - problem.dropout->rate) : 1.0;
    product.signs = signs;
    product.if_positive = kept;
    product.otherwise = *slope_of_the_rest(problem.derivative);
  } else {
    product.derivative = problem.derivative;
    product.at = problem.at;
    if (problem.dropout != nullptr) {
      product.drops = true;
      product.dropout = dropout_of(pass, *problem.dropout);
    }
  }
  if (problem.bias >= 0 && results_.gradients != nullptr) {
    product.bias_gradient = gradient_of(problem.bias);
    product.accumulate_bias = results_.accumulate;
    bias_taken_[problem.bias] = true;
  }
  run(cuda::scratch_bytes(product), [&](const cuda::Scratch& scratch) {
    product.scratch = scratch;
    cuda::dense_input_gradient(product, stream_);
  });
}

template <class T>
void CudaBackend<T>::maxout_backward(const Matrix& z, const Matrix& dy, const Matrix& dz,
                                     std::int64_t pieces) {
  run(0, [&](const cuda::Scratch&) { cuda::maxout_backward<T>(z, dy, dz, pieces, stream_); });
}

template <class T>
void CudaBackend<T>::batch_norm_backward(const Pass& pass,
                                         const BatchNormBackward<CudaBackend>& problem) {
  const bool wanted = results_.gradients != nullptr;
  cuda::BatchNormBackward<T> backward;
  backward.z = problem.z;
  backward.dy = problem.dy;
  backward.mean = workspace_.mean(problem.state);
  backward.inv_std = workspace_.inv_std(problem.state);
  backward.gamma = vector(problem.gamma);
  backward.beta = vector(problem.beta);
  backward.activation = problem.activation;
  if (pass.mode == Mode::kTraining)
    backward.weights = row_weights(problem.state);
  else
    backward.frozen = true;
  backward.dgamma = wanted ? gradient_of(problem.gamma) : workspace_.unwanted(0);
  backward.dbeta = wanted ? gradient_of(problem.beta) : workspace_.unwanted(1);
  backward.accumulate_parameters = wanted && results_.accumulate;
  backward.dz = problem.dz;
  backward.accumulate = problem.accumulate;
  run(cuda::batch_norm_backward_scratch_bytes(problem.z.rows, problem.z.width),
      [&](const cuda::Scratch& scratch) { cuda::batch_norm_backward(backward, scratch, stream_); });
}

template <class T>
void CudaBackend<T>::weight_gradient(int tensor, const Matrix& x, const Matrix& dy, bool accumulate,
                                     T* arena) {
  cuda::DenseWeightGradient<T> product;
  product.precision = parameters_.precision.of(plan_.tensors[tensor]);
  product.dy = dy;
  product.x = x;
  product.dw = parameters_.layout.matrix(plan_, tensor, arena);
  product.accumulate = accumulate;
  if (results_.squares != nullptr) product.squares = results_.squares + tensor;
  run(cuda::scratch_bytes(product), [&](const cuda::Scratch& scratch) {
    product.scratch = scratch;
    cuda::dense_weight_gradient(product, stream_);
  });
}

template <class T>
void CudaBackend<T>::sum_columns(const Matrix& x, bool accumulate, T* sums) {
  cuda::ColumnSums<T> problem;
  problem.x = x;
  problem.sums = sums;
  problem.accumulate = accumulate;
  run(cuda::scratch_bytes(problem), [&](const cuda::Scratch& scratch) {
    problem.scratch = scratch;
    cuda::column_sums(problem, stream_);
  });
}

template <class T>
void CudaBackend<T>::bias_gradient(int tensor, const Matrix& dy, bool accumulate, T* arena) {
  if (bias_taken_[tensor]) return;
  sum_columns(dy, accumulate, arena + parameters_.layout.tensors[tensor].offset);
}

// batch_norm_backward() has written it.
template <class T>
void CudaBackend<T>::norm_gradient(int, bool, T*) {}

template <class T>
void CudaBackend<T>::end_gradients() {
  std::fill(bias_taken_.begin(), bias_taken_.end(), false);
}

template <class T>
void CudaBackend<T>::running_statistics(const Pass& pass, const T* from, T* to,
                                        std::int64_t* batches, const cuda::StepState* state) {
  if (pass.mode != Mode::kTraining) return;
  std::vector<cuda::RunningStatistics<T>> layers;
  for (std::size_t s = 0; s < plan_.states.size(); ++s) {
    const BatchNormState& norm = plan_.states[s];
    cuda::RunningStatistics<T> layer;
    layer.width = norm.width;
    layer.batch_mean = workspace_.batch_mean(static_cast<int>(s));
    layer.batch_var = workspace_.batch_var(static_cast<int>(s));
    layer.rows = static_cast<double>(workspace_.rows());
    if (norm.weighted) layer.total_weight = workspace_.total_weight.data();
    layer.momentum = norm.momentum.value_or(-1.0);
    layer.mean_in = from + norm.offset;
    layer.var_in = layer.mean_in + norm.padded;
    layer.mean = to + norm.offset;
    layer.var = layer.mean + norm.padded;
    layer.batches = batches + s;
    layers.push_back(layer);
  }
  const auto count = static_cast<int>(layers.size());
  for (int i = 0; i < count; i += cuda::kRunningStatistics)
    run(0, [&](const cuda::Scratch&) {
      cuda::update_running_statistics(
          layers.data() + i, std::min(count - i, cuda::kRunningStatistics), state, stream_);
    });
}

template <class T>
std::size_t CudaBackend<T>::scratch_bytes(const Plan& plan, const CudaParameters<T>& parameters,
                                          CudaWorkspace<T>& workspace) {
  const bool gradients = workspace.has_gradients();
  CudaResults<T> results;
  std::vector<double> squares(plan.tensors.size());
  results.gradients = gradients ? parameters.values.data() : nullptr;  // nothing is launched
  results.squares = squares.data();
  CudaBackend backend(plan, parameters, workspace, results, nullptr);
  backend.sizing_ = true;
  Executor<CudaBackend> executor(backend);
  Pass pass;
  pass.input_gradient = true;
  for (const Mode mode : {Mode::kInference, Mode::kTraining}) {
    pass.mode = mode;
    const LossRequest request{gradients && mode == Mode::kTraining ? 1.0 : 0.0, true, false};
    executor.forward(pass, &request);
    executor.forward(pass);
    executor.loss(pass, request, nullptr);
  }
  if (gradients) {
    executor.backward(pass);
    backend.end_gradients();
    executor.gradients(results.gradients, false, [](int) { return true; });
  }
  return backend.most_scratch_;
}

template class CudaBackend<float>;
template class CudaBackend<double>;
template class Executor<CudaBackend<float>>;
template class Executor<CudaBackend<double>>;

}  // namespace thalweg
