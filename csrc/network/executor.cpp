// The passes over a plan. Phases of independent chunks are separated by the team's barriers.
#include "network/executor.h"

#include <algorithm>
#include <cmath>

#include "math/activations.h"
#include "math/philox.h"

namespace thalweg {
namespace {

// A chunk between two looks at the interrupt stays below this many multiply-adds (5 ms with
// AVX-512, 100 ms in float64 on a loaded processor without AVX).
constexpr double kChunkProducts = 2e8;

// f(block, panels) over a grid of row blocks x panels: each thread takes a contiguous share in
// block-major order, in runs of at most max_panels.
template <class F>
void grid(Team& team, std::int64_t blocks, std::int64_t panels, std::int64_t max_panels, F&& f) {
  const std::int64_t total = blocks * panels;
  std::int64_t begin = total * team.rank() / team.size();
  const std::int64_t end = total * (team.rank() + 1) / team.size();
  while (begin < end && !team.stop_requested()) {
    const std::int64_t first = begin % panels;
    const std::int64_t last = std::min({panels, first + (end - begin), first + max_panels});
    f(begin / panels, Range{first, last});
    begin += last - first;
  }
  team.barrier();
}

template <class T, class F>
void grid(Team& team, const Panels<T>& matrix, F&& f) {
  grid(team, row_blocks_of(matrix.rows), matrix.panels(), matrix.panels(),
       [&](std::int64_t block, Range panels) { f(row_block(block, matrix.rows), panels); });
}

std::int64_t panels_per_chunk(std::int64_t depth) {
  const double products = static_cast<double>(kRowBlock * kPanel) * static_cast<double>(depth + 1);
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(kChunkProducts / products));
}

cpu::Dropout dropout_of(const Pass& pass, const Node& node) {
  cpu::Dropout dropout;
  dropout.seed = pass.seed;
  dropout.step = pass.step;
  dropout.stream = node.stream;
  dropout.threshold = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bernoulli_threshold(node.rate), 0xffffffffu));
  dropout.scale = 1.0 / (1.0 - node.rate);
  dropout.first_row = pass.first_row;
  return dropout;
}

}  // namespace

template <class T>
int Executor<T>::resolve(int buffer, Mode mode) const {
  if (mode != Mode::kInference) return buffer;
  while (plan_.buffers[buffer].inference_alias >= 0) buffer = plan_.buffers[buffer].inference_alias;
  return buffer;
}

template <class T>
void Executor<T>::prepare_statistics(Team& team, const Pass& pass) {
  if (plan_.states.empty()) return;
  team.single([&] {
    if (pass.mode == Mode::kTraining) {
      const std::int64_t rows = workspace_.rows();
      for (std::int64_t b = 0; b < row_blocks_of(rows); ++b) {
        const Range range = row_block(b, rows);
        workspace_.block_rows[b] = static_cast<double>(range.size());
        double weight = 0.0;
        if (plan_.has_weighted_batch_norm())
          for (std::int64_t r = range.begin; r < range.end; ++r)
            weight += static_cast<double>(workspace_.row_weights[r]);
        workspace_.block_weights[b] = weight;
      }
      return;
    }
    for (const Node& node : plan_.nodes) {
      if (node.state < 0) continue;
      const BatchNormState& state = plan_.states[node.state];
      const T* running_mean = parameters_.running_mean(state);
      const T* running_var = parameters_.running_var(state);
      for (std::int64_t c = 0; c < state.width; ++c) {
        workspace_.mean(node.state)[c] = running_mean[c];
        workspace_.inv_std(node.state)[c] =
            static_cast<T>(1.0 / std::sqrt(static_cast<double>(running_var[c]) + state.eps));
      }
    }
    if (pass.mode != Mode::kInference) return;
    for (const Node& node : plan_.nodes) {
      if (node.batch_norm < 0) continue;
      const Node& bn = plan_.nodes[node.batch_norm];
      const BatchNormState& state = plan_.states[bn.state];
      for (std::int64_t c = 0; c < state.width; ++c) {
        const double scale =
            static_cast<double>(tensor(bn.gamma)[c]) /
            std::sqrt(static_cast<double>(parameters_.running_var(state)[c]) + state.eps);
        const double bias = node.bias >= 0 ? static_cast<double>(tensor(node.bias)[c]) : 0.0;
        workspace_.fold_scale(bn.state)[c] = static_cast<T>(scale);
        workspace_.fold_shift(bn.state)[c] = static_cast<T>(
            static_cast<double>(tensor(bn.beta)[c]) +
            (bias - static_cast<double>(parameters_.running_mean(state)[c])) * scale);
      }
    }
  });
}

template <class T>
void Executor<T>::forward(Team& team, const Pass& pass) {
  prepare_statistics(team, pass);
  for (const Node& node : plan_.nodes) {
    const Panels<T> in = workspace_.value(resolve(node.input, pass.mode));
    const Panels<T> out = workspace_.value(node.output);
    switch (node.kind) {
      case NodeKind::kDense:
        forward_dense(team, pass, node);
        break;
      case NodeKind::kBatchNorm:
        forward_batch_norm(team, pass, node);
        break;
      case NodeKind::kActivation:
        grid(team, out, [&](Range rows, Range panels) {
          kernels_.activation(in, out, node.activation, rows, panels);
        });
        break;
      case NodeKind::kDropout:
        if (pass.mode == Mode::kTraining) {
          const cpu::Dropout dropout = dropout_of(pass, node);
          grid(team, out, [&](Range rows, Range panels) {
            kernels_.dropout(in, out, dropout, false, rows, panels);
          });
        } else if (pass.mode == Mode::kFrozen) {
          grid(team, out, [&](Range rows, Range panels) { kernels_.copy(in, out, rows, panels); });
        }
        break;
      case NodeKind::kAdd: {
        const Panels<T> branch = workspace_.value(resolve(node.second, pass.mode));
        grid(team, out,
             [&](Range rows, Range panels) { kernels_.add(in, branch, out, rows, panels); });
        break;
      }
      case NodeKind::kMaxout:
        team.for_each(row_blocks_of(out.rows), [&](std::int64_t block) {
          kernels_.maxout(in, out, node.pieces, row_block(block, out.rows));
        });
        break;
    }
  }
}

template <class T>
void Executor<T>::forward_dense(Team& team, const Pass& pass, const Node& node) {
  cpu::Gemm<T> problem;
  problem.a = workspace_.value(resolve(node.input, pass.mode));
  problem.b = tensor(node.weight);
  problem.c = workspace_.value(node.output);
  problem.shift = node.bias >= 0 ? tensor(node.bias) : nullptr;
  problem.activation = node.activation;
  if (node.pre >= 0 && pass.mode != Mode::kInference) problem.pre = workspace_.value(node.pre).data;
  if (node.batch_norm >= 0) {
    const Node& bn = plan_.nodes[node.batch_norm];
    if (pass.mode == Mode::kTraining) {
      problem.statistics = workspace_.block_statistics.data();
      if (plan_.states[bn.state].weighted) problem.row_weights = workspace_.row_weights.data();
    } else if (pass.mode == Mode::kInference) {
      problem.c = workspace_.value(bn.output);
      problem.scale = workspace_.fold_scale(bn.state);
      problem.shift = workspace_.fold_shift(bn.state);
      problem.activation = bn.activation;
    }
  }
  grid(team, row_blocks_of(problem.c.rows), problem.c.panels(), panels_per_chunk(problem.a.width),
       [&](std::int64_t block, Range panels) {
         kernels_.gemm(problem, row_block(block, problem.c.rows), panels);
       });
}

template <class T>
void Executor<T>::forward_batch_norm(Team& team, const Pass& pass, const Node& node) {
  if (pass.mode == Mode::kInference && node.statistics_from_dense) return;
  const BatchNormState& state = plan_.states[node.state];
  const Panels<T> z = workspace_.value(resolve(node.input, pass.mode));
  const std::int64_t blocks = row_blocks_of(z.rows);
  cpu::BlockStatistics* statistics = workspace_.block_statistics.data();

  if (pass.mode == Mode::kTraining) {
    if (!node.statistics_from_dense) {
      const T* weights = state.weighted ? workspace_.row_weights.data() : nullptr;
      grid(team, blocks, z.panels(), z.panels(), [&](std::int64_t block, Range panels) {
        kernels_.column_statistics(z, weights, statistics, {block, block + 1}, panels);
      });
    }
    const double* block_weights =
        state.weighted ? workspace_.block_weights.data() : workspace_.block_rows.data();
    const double total = state.weighted ? pass.total_weight : static_cast<double>(z.rows);
    team.for_each(z.panels(), [&](std::int64_t panel) {
      double* mean = workspace_.batch_mean(node.state) + panel * kPanel;
      double* var = workspace_.batch_var(node.state) + panel * kPanel;
      kernels_.merge_statistics(statistics, block_weights, blocks, z.panels(), panel, mean, var);
      for (std::int64_t j = 0; j < kPanel; ++j) {
        var[j] /= total;
        workspace_.mean(node.state)[panel * kPanel + j] = static_cast<T>(mean[j]);
        workspace_.inv_std(node.state)[panel * kPanel + j] =
            static_cast<T>(1.0 / std::sqrt(var[j] + state.eps));
      }
    });
  }

  cpu::BatchNormApply<T> problem;
  problem.z = z;
  problem.y = workspace_.value(node.output);
  problem.mean = workspace_.mean(node.state);
  problem.inv_std = workspace_.inv_std(node.state);
  problem.gamma = tensor(node.gamma);
  problem.beta = tensor(node.beta);
  problem.activation = node.activation;
  if (node.pre >= 0 && pass.mode != Mode::kInference) problem.pre = workspace_.value(node.pre).data;
  grid(team, problem.y,
       [&](Range rows, Range panels) { kernels_.batch_norm(problem, rows, panels); });
}

template <class T>
void Executor<T>::loss(Team& team, Mode mode, double gradient_scale, bool weighted,
                       bool dense_targets, LossTotals* totals) {
  cpu::Loss<T> problem;
  problem.outputs = workspace_.value(resolve(plan_.output, mode));
  if (dense_targets)
    problem.targets = {workspace_.targets.data(), workspace_.rows(), plan_.out_features};
  else
    problem.labels = workspace_.labels.data();
  if (weighted) problem.row_weights = workspace_.row_weights.data();
  problem.label_smoothing = plan_.description.loss.label_smoothing;
  problem.parameter = plan_.description.loss.parameter;
  problem.gradient_scale = gradient_scale;
  if (gradient_scale != 0.0) problem.gradient = workspace_.gradient(plan_.output);
  problem.blocks = workspace_.block_losses.data();
  const bool cross_entropy = plan_.description.loss.kind == LossDescription::Kind::kCrossEntropy;
  const std::int64_t blocks = row_blocks_of(workspace_.rows());
  team.for_each(blocks, [&](std::int64_t block) {
    if (cross_entropy)
      kernels_.softmax_cross_entropy(problem, {block, block + 1});
    else
      kernels_.elementwise_loss(plan_.description.loss.elementwise, problem, {block, block + 1});
  });
  team.single([&] {
    for (std::int64_t b = 0; b < blocks; ++b) {
      totals->loss += workspace_.block_losses[b].loss;
      totals->hits += workspace_.block_losses[b].hits;
      totals->weight += workspace_.block_losses[b].weight;
    }
  });
}

template <class T>
void Executor<T>::backward(Team& team, const Pass& pass) {
  for (std::size_t i = plan_.nodes.size(); i-- > 0;) {
    const Node& node = plan_.nodes[i];
    const Panels<T> dy = workspace_.gradient(node.output);
    const Panels<T> dx = workspace_.gradient(node.input);
    const bool wanted = wants_gradient(pass, node.input);
    switch (node.kind) {
      case NodeKind::kDense:
        backward_dense(team, pass, node);
        break;
      case NodeKind::kBatchNorm:
        backward_batch_norm(team, pass, node);
        break;
      case NodeKind::kActivation:
        if (!wanted) break;
        grid(team, dx, [&](Range rows, Range panels) {
          const T* at = derivative_at(node);
          kernels_.activation_backward(dy, at, dx, node.activation, node.accumulate_input, rows,
                                       panels);
        });
        break;
      case NodeKind::kDropout: {
        if (!wanted) break;
        const cpu::Dropout dropout = dropout_of(pass, node);
        grid(team, dx, [&](Range rows, Range panels) {
          if (pass.mode == Mode::kTraining)
            kernels_.dropout(dy, dx, dropout, node.accumulate_input, rows, panels);
          else if (node.accumulate_input)
            kernels_.accumulate(dy, dx, rows, panels);
          else
            kernels_.copy(dy, dx, rows, panels);
        });
        break;
      }
      case NodeKind::kAdd: {
        const Panels<T> branch = workspace_.gradient(node.second);
        grid(team, dy, [&](Range rows, Range panels) {
          const auto pass_on = [&](const Panels<T>& to, bool accumulate) {
            if (accumulate)
              kernels_.accumulate(dy, to, rows, panels);
            else
              kernels_.copy(dy, to, rows, panels);
          };
          if (wanted) pass_on(dx, node.accumulate_input);
          if (wants_gradient(pass, node.second) && branch.data != dy.data)
            pass_on(branch, node.accumulate_second);
        });
        break;
      }
      case NodeKind::kMaxout:
        if (!wanted) break;
        team.for_each(row_blocks_of(dy.rows), [&](std::int64_t block) {
          kernels_.maxout_backward(workspace_.value(node.input), dy, dx, node.pieces,
                                   row_block(block, dy.rows));
        });
        break;
    }
  }
}

template <class T>
void Executor<T>::backward_dense(Team& team, const Pass& pass, const Node& node) {
  const Panels<T> dy = workspace_.gradient(node.output);
  if (node.activation.id != kActivationIdentity && !node.derivative_applied) {
    const T* at = derivative_at(node);
    grid(team, dy, [&](Range rows, Range panels) {
      kernels_.activation_backward(dy, at, dy, node.activation, false, rows, panels);
    });
  }
  if (!wants_gradient(pass, node.input)) return;
  const Tensor& weight = plan_.tensors[node.weight];
  cpu::Gemm<T> problem;
  problem.a = dy;
  problem.b = parameters_.transposed.data() + weight.transposed_offset;
  problem.c = workspace_.gradient(node.input);
  problem.accumulate = node.accumulate_input;
  if (node.applies_input_derivative) {
    const Node& producer = plan_.nodes[plan_.buffers[node.input].producer];
    problem.has_derivative = true;
    problem.derivative = producer.activation;
    problem.derivative_at = derivative_at(producer);
  }
  grid(team, row_blocks_of(problem.c.rows), problem.c.panels(), panels_per_chunk(problem.a.width),
       [&](std::int64_t block, Range panels) {
         kernels_.gemm(problem, row_block(block, problem.c.rows), panels);
       });
}

template <class T>
void Executor<T>::backward_batch_norm(Team& team, const Pass& pass, const Node& node) {
  const BatchNormState& state = plan_.states[node.state];
  const Panels<T> z = workspace_.value(node.input);
  const Panels<T> dy = workspace_.gradient(node.output);
  const std::int64_t blocks = row_blocks_of(z.rows);

  cpu::BatchNormBackwardSums<T> sums;
  sums.z = z;
  sums.mean = workspace_.mean(node.state);
  sums.inv_std = workspace_.inv_std(node.state);
  sums.dy = dy;
  sums.activation = node.activation;
  sums.derivative_at = derivative_at(node);
  sums.sums = workspace_.block_sums.data();
  grid(team, blocks, z.panels(), z.panels(), [&](std::int64_t block, Range panels) {
    kernels_.batch_norm_backward_sums(sums, {block, block + 1}, panels);
  });

  const bool weighted = state.weighted && pass.mode == Mode::kTraining;
  const double total = weighted ? pass.total_weight : static_cast<double>(z.rows);
  T* dgamma = workspace_.vector_gradients() + plan_.tensors[node.gamma].vector_offset;
  T* dbeta = workspace_.vector_gradients() + plan_.tensors[node.beta].vector_offset;
  team.for_each(z.panels(), [&](std::int64_t panel) {
    for (std::int64_t j = 0; j < z.lanes(panel); ++j) {
      double g = 0.0;
      double g_xhat = 0.0;
      for (std::int64_t b = 0; b < blocks; ++b) {
        const cpu::BlockSums& block = workspace_.block_sums[b * z.panels() + panel];
        g += block.g[j];
        g_xhat += block.g_xhat[j];
      }
      const std::int64_t c = panel * kPanel + j;
      dbeta[c] = static_cast<T>(g);
      dgamma[c] = static_cast<T>(g_xhat);
      workspace_.mean_g(node.state)[c] = static_cast<T>(g / total);
      workspace_.mean_g_xhat(node.state)[c] = static_cast<T>(g_xhat / total);
    }
  });

  if (!wants_gradient(pass, node.input)) return;
  cpu::BatchNormBackwardApply<T> apply;
  apply.z = z;
  apply.mean = sums.mean;
  apply.inv_std = sums.inv_std;
  apply.gamma = tensor(node.gamma);
  if (pass.mode == Mode::kTraining) {
    apply.mean_g = workspace_.mean_g(node.state);
    apply.mean_g_xhat = workspace_.mean_g_xhat(node.state);
  }
  if (weighted) apply.row_weights = workspace_.row_weights.data();
  apply.g = dy;
  apply.dz = workspace_.gradient(node.input);
  apply.accumulate = node.accumulate_input;
  grid(team, apply.dz,
       [&](Range rows, Range panels) { kernels_.batch_norm_backward(apply, rows, panels); });
}

template <class T>
void Executor<T>::weight_gradient(const UpdateTask& task, bool accumulate, T* tile) {
  const Node& node = plan_.nodes[task.node];
  const Panels<T> x = workspace_.value(node.input);
  const Panels<T> dy = workspace_.gradient(node.output);
  kernels_.wgrad_tile(x.panel(task.in_panel), x.lanes(task.in_panel), dy.panel(task.out_panel),
                      dy.lanes(task.out_panel), x.rows, accumulate, tile);
}

template <class T>
const T* Executor<T>::vector_gradient(const UpdateTask& task) {
  const Node& node = plan_.nodes[task.node];
  T* gradient = workspace_.vector_gradients() + plan_.tensors[task.tensor].vector_offset;
  if (task.tensor == node.bias) {
    const Panels<T> dy = workspace_.gradient(node.output);
    for (std::int64_t p = 0; p < dy.panels(); ++p)
      kernels_.column_sum(dy.panel(p), dy.rows, dy.lanes(p), false, gradient + p * kPanel);
  }
  return gradient;
}

template class Executor<float>;
template class Executor<double>;

}  // namespace thalweg
