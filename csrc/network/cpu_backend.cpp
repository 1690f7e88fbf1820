// The primitives: phases of independent chunks, separated by the team's barriers.
#include "network/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/weight_gradient.h"
#include "math/philox.h"
#include "network/cpu_phases.h"

namespace thalweg {

template <class T>
template <class F>
void CpuBackend<T>::spread(std::int64_t rows, std::int64_t panels, std::int64_t units, F&& f,
                           Reader reader) {
  if (!apart()) {
    walk_share(team_, rows, kRowBlock, panels, units, f);
    return end_phase(rows, panels, reader);
  }
  const std::int64_t first = own_rows_.begin / kRowBlock * panels;
  walk(team_, {false, panels, {first, row_blocks_of(own_rows_.end) * panels}}, units, f);
}

template <class T>
template <class F>
void CpuBackend<T>::spread(const Matrix& matrix, std::int64_t units, F&& f, Reader reader) {
  const std::int64_t rows = matrix.rows;
  if (apart() || !in_parts(row_blocks_of(rows) * matrix.panels(), matrix))
    return spread(
        rows, matrix.panels(), units,
        [&](Range blocks, Range panels) { f(rows_of_blocks(blocks, rows), panels); }, reader);
  walk_share(team_, rows, kRowPart, matrix.panels(), units, [&](Range parts, Range panels) {
    f(Range{parts.begin * kRowPart, std::min(parts.end * kRowPart, rows)}, panels);
  });
  end_phase(rows, matrix.panels(), reader);
}

template <class T>
template <class F>
void CpuBackend<T>::spread_rows(const Matrix& matrix, F&& f) {
  const std::int64_t rows = matrix.rows;
  if (!apart()) {
    const std::int64_t size = in_parts(row_blocks_of(rows), matrix) ? kRowPart : kRowBlock;
    return team_.for_each(ceil_div(rows, size), [&](std::int64_t block) {
      f(Range{block * size, std::min(block * size + size, rows)});
    });
  }
  for (std::int64_t block = own_rows_.begin / kRowBlock;
       block < row_blocks_of(own_rows_.end) && !team_.stop_requested(); ++block)
    f(row_block(block, rows));
}

template <class T>
template <class F>
void CpuBackend<T>::spread_columns(const Matrix& matrix, Reader reader, F&& f) {
  const Range own = team_.share(matrix.panels());
  for (std::int64_t panel = own.begin; panel < own.end && !team_.stop_requested(); ++panel)
    f(panel);
  end_phase(matrix.rows, matrix.panels(), reader);
}

template <class T>
void CpuBackend<T>::round(const Matrix& matrix, Range rows, Range panels) {
  if constexpr (std::is_same_v<T, float>) {
    if (matrix.pairs.columns) kernels_.round_to_bfloat16(matrix.pairs, matrix, rows, panels);
  }
}

// C of `problem`, in chunks.
template <class T>
void CpuBackend<T>::product(const cpu::Gemm<T>& problem, const Matrix& c, Reader reader) {
  const std::int64_t units = units_per_chunk(problem.a.width);
  const auto part = [&](Range rows, Range panels) {
    kernels_.gemm(problem, rows, panels);
    round(c, rows, panels);
  };
  if (!problem.statistics) return spread(c, units, part, reader);
  spread(
      c.rows, c.panels(), units,
      [&](Range blocks, Range panels) { part(rows_of_blocks(blocks, c.rows), panels); }, reader);
}

template <class T>
void CpuBackend<T>::begin_forward(const Pass& pass) {
  const Matrix input = value(0);
  if (input.pairs.columns)
    spread(input, kChunkUnits, [&](Range rows, Range panels) { round(input, rows, panels); });
  if (plan_.states.empty() || pass.prepared) return;
  if (plan_.has_weighted_batch_norm()) meet();  // the row weights of all threads
  team_.single([&] {
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
            static_cast<double>(vector(bn.gamma)[c]) /
            std::sqrt(static_cast<double>(parameters_.running_var(state)[c]) + state.eps);
        const double bias = node.bias >= 0 ? static_cast<double>(vector(node.bias)[c]) : 0.0;
        workspace_.fold_scale(bn.state)[c] = static_cast<T>(scale);
        workspace_.fold_shift(bn.state)[c] = static_cast<T>(
            static_cast<double>(vector(bn.beta)[c]) +
            (bias - static_cast<double>(parameters_.running_mean(state)[c])) * scale);
      }
    }
  });
}

template <class T>
bool CpuBackend<T>::dense(const Pass&, const DenseForward<CpuBackend>& problem) {
  cpu::Gemm<T> gemm;
  gemm.a = problem.x;
  gemm.b = problem.weight.values;
  gemm.a_pairs = problem.x.pairs.columns;
  gemm.b_pairs = problem.weight.pairs;
  gemm.c = problem.y;
  gemm.shift = problem.bias;
  gemm.activation = problem.activation;
  gemm.pre = problem.pre.data;
  if (problem.statistics >= 0) {
    gemm.statistics = workspace_.block_statistics.data();
    if (plan_.states[problem.statistics].weighted) gemm.row_weights = workspace_.row_weights.data();
  }
  if (problem.folded >= 0) {
    gemm.scale = workspace_.fold_scale(problem.folded);
    gemm.shift = workspace_.fold_shift(problem.folded);
  }
  product(gemm, problem.y, problem.statistics >= 0 ? Reader::kSameColumns : Reader::kAny);
  return false;
}

template <class T>
void CpuBackend<T>::activation(const Matrix& z, const Matrix& y, const Activation& activation) {
  spread(y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.activation(z, y, activation, rows, panels);
    round(y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::dropout(const Pass& pass, const Node& node, const Matrix& x, const Matrix& y,
                            bool accumulate) {
  cpu::Dropout dropout;
  dropout.seed = pass.seed;
  dropout.step = pass.step;
  dropout.stream = node.stream;
  dropout.threshold = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(bernoulli_threshold(node.rate), 0xffffffffu));
  dropout.scale = 1.0 / (1.0 - node.rate);
  dropout.first_row = pass.first_row;
  spread(y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.dropout(x, y, dropout, accumulate, rows, panels);
    round(y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::copy(const Matrix& x, const Matrix& y) {
  spread(y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.copy(x, y, rows, panels);
    round(y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::accumulate(const Matrix& x, const Matrix& y) {
  spread(y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.accumulate(x, y, rows, panels);
    round(y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::add(const Matrix& a, const Matrix& b, const Matrix& y) {
  spread(y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.add(a, b, y, rows, panels);
    round(y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::maxout(const Matrix& z, const Matrix& y, std::int64_t pieces) {
  spread_rows(y, [&](Range rows) {
    kernels_.maxout(z, y, pieces, rows);
    round(y, rows, {0, y.panels()});
  });
}

template <class T>
void CpuBackend<T>::batch_statistics(const Pass& pass, int state, const Matrix& z,
                                     bool blocks_ready) {
  const BatchNormState& norm = plan_.states[state];
  const std::int64_t blocks = row_blocks_of(z.rows);
  cpu::BlockStatistics* statistics = workspace_.block_statistics.data();
  if (!blocks_ready) {
    const T* weights = norm.weighted ? workspace_.row_weights.data() : nullptr;
    spread(
        z.rows, z.panels(), kChunkUnits,
        [&](Range parts, Range panels) {
          kernels_.column_statistics(z, weights, statistics, parts, panels);
        },
        Reader::kSameColumns);
  }
  meet();
  const double* block_weights =
      norm.weighted ? workspace_.block_weights.data() : workspace_.block_rows.data();
  const double total = norm.weighted ? pass.total_weight : static_cast<double>(z.rows);
  spread_columns(z, Reader::kSameColumns, [&](std::int64_t panel) {
    double* mean = workspace_.batch_mean(state) + panel * kPanel;
    double* var = workspace_.batch_var(state) + panel * kPanel;
    kernels_.merge_statistics(statistics, block_weights, blocks, z.panels(), panel, mean, var);
    for (std::int64_t j = 0; j < kPanel; ++j) {
      var[j] /= total;
      workspace_.mean(state)[panel * kPanel + j] = static_cast<T>(mean[j]);
      workspace_.inv_std(state)[panel * kPanel + j] =
          static_cast<T>(1.0 / std::sqrt(var[j] + norm.eps));
    }
  });
}

template <class T>
void CpuBackend<T>::batch_norm(const BatchNormForward<CpuBackend>& problem) {
  cpu::BatchNormApply<T> apply;
  apply.z = problem.z;
  apply.y = problem.y;
  apply.mean = workspace_.mean(problem.state);
  apply.inv_std = workspace_.inv_std(problem.state);
  apply.gamma = problem.gamma;
  apply.beta = problem.beta;
  apply.activation = problem.activation;
  apply.pre = problem.pre.data;
  spread(problem.y, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.batch_norm(apply, rows, panels);
    round(problem.y, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::loss(const LossRequest& request, const Matrix& outputs, const Matrix& gradient,
                         LossTotals* totals) {
  const LossDescription& description = plan_.description.loss;
  cpu::Loss<T> problem;
  problem.outputs = outputs;
  if (request.dense_targets)
    problem.targets = {workspace_.targets.data(), workspace_.rows(), plan_.out_features};
  else
    problem.labels = workspace_.labels.data();
  if (request.weighted) problem.row_weights = workspace_.row_weights.data();
  problem.label_smoothing = description.label_smoothing;
  problem.parameter = description.parameter;
  problem.gradient_scale = request.gradient_scale;
  problem.gradient = gradient;
  problem.parts = workspace_.part_losses.data();
  const bool cross_entropy = description.kind == LossDescription::Kind::kCrossEntropy;
  spread_rows(gradient.present() ? gradient : outputs, [&](Range rows) {
    if (cross_entropy)
      kernels_.softmax_cross_entropy(problem, rows);
    else
      kernels_.elementwise_loss(description.elementwise, problem, rows);
    if (gradient.present()) round(gradient, rows, {0, gradient.panels()});
  });
  if (totals == nullptr) return;
  meet();
  team_.single([&] { add_losses(totals); });
}

template <class T>
void CpuBackend<T>::add_losses(LossTotals* totals) const {
  for (std::int64_t block = 0; block < row_blocks_of(workspace_.rows()); ++block) {
    const Range parts = row_parts_of(row_block(block, workspace_.rows()));
    LossTotals sum;
    for (std::int64_t p = parts.begin; p < parts.end; ++p) {
      sum.loss += workspace_.part_losses[p].loss;
      sum.hits += workspace_.part_losses[p].hits;
      sum.weight += workspace_.part_losses[p].weight;
    }
    totals->loss += sum.loss;
    totals->hits += sum.hits;
    totals->weight += sum.weight;
  }
}

template <class T>
void CpuBackend<T>::activation_backward(const Matrix& dy, const Matrix& at, const Matrix& dz,
                                        const Activation& activation, bool accumulate) {
  spread(dz, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.activation_backward(dy, at.data, dz, activation, accumulate, rows, panels);
    round(dz, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::dense_input_gradient(const Pass&,
                                         const DenseInputGradient<CpuBackend>& problem) {
  cpu::Gemm<T> gemm;
  gemm.a = problem.dy;
  gemm.b = problem.weight.transposed;
  gemm.a_pairs = problem.dy.pairs.columns;
  gemm.b_pairs = problem.weight.transposed_pairs;
  gemm.c = problem.dx;
  gemm.accumulate = problem.accumulate;
  gemm.has_derivative = problem.at.present();
  gemm.derivative = problem.derivative;
  gemm.derivative_at = problem.at.data;
  product(gemm, problem.dx, problem.to_batch_norm ? Reader::kSameColumns : Reader::kAny);
}

template <class T>
void CpuBackend<T>::maxout_backward(const Matrix& z, const Matrix& dy, const Matrix& dz,
                                    std::int64_t pieces) {
  spread_rows(dz, [&](Range rows) {
    kernels_.maxout_backward(z, dy, dz, pieces, rows);
    round(dz, rows, {0, dz.panels()});
  });
}

template <class T>
void CpuBackend<T>::batch_norm_backward(const Pass& pass,
                                        const BatchNormBackward<CpuBackend>& problem) {
  const int state = problem.state;
  const Matrix& z = problem.z;
  const std::int64_t blocks = row_blocks_of(z.rows);

  cpu::BatchNormBackwardSums<T> sums;
  sums.z = z;
  sums.mean = workspace_.mean(state);
  sums.inv_std = workspace_.inv_std(state);
  sums.dy = problem.dy;
  sums.activation = problem.activation;
  sums.derivative_at = problem.at.data;
  sums.sums = workspace_.block_sums.data();
  spread(
      z.rows, z.panels(), kChunkUnits,
      [&](Range parts, Range panels) { kernels_.batch_norm_backward_sums(sums, parts, panels); },
      Reader::kSameColumns);

  meet();
  const bool weighted = plan_.states[state].weighted && pass.mode == Mode::kTraining;
  const double total = weighted ? pass.total_weight : static_cast<double>(z.rows);
  T* dgamma = vector_place(problem.gamma);
  T* dbeta = vector_place(problem.beta);
  const Reader reader = problem.dz.present() ? Reader::kSameColumns : Reader::kAny;
  spread_columns(z, reader, [&](std::int64_t panel) {
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
      workspace_.mean_g(state)[c] = static_cast<T>(g / total);
      workspace_.mean_g_xhat(state)[c] = static_cast<T>(g_xhat / total);
    }
  });

  if (!problem.dz.present()) return;
  cpu::BatchNormBackwardApply<T> apply;
  apply.z = z;
  apply.mean = sums.mean;
  apply.inv_std = sums.inv_std;
  apply.gamma = vector(problem.gamma);
  if (pass.mode == Mode::kTraining) {
    apply.mean_g = workspace_.mean_g(state);
    apply.mean_g_xhat = workspace_.mean_g_xhat(state);
  }
  if (weighted) apply.row_weights = workspace_.row_weights.data();
  apply.g = problem.dy;
  apply.dz = problem.dz;
  apply.accumulate = problem.accumulate;
  spread(problem.dz, kChunkUnits, [&](Range rows, Range panels) {
    kernels_.batch_norm_backward(apply, rows, panels);
    round(problem.dz, rows, panels);
  });
}

template <class T>
void CpuBackend<T>::multiply_tile(const Matrix& x, const Matrix& dy, Range rows,
                                  std::int64_t in_panel, std::int64_t out_panel, bool accumulate,
                                  T* tile) {
  if constexpr (std::is_same_v<T, float>) {
    if (x.pairs.transposed) {
      kernels_.wgrad_tile_bfloat16(x.chunks(x.pairs.transposed, in_panel, rows.begin),
                                   x.lanes(in_panel),
                                   dy.chunks(dy.pairs.rows, out_panel, rows.begin),
                                   dy.lanes(out_panel), rows.size(), accumulate, tile);
      return;
    }
  }
  kernels_.wgrad_tile(x.row(in_panel, rows.begin), x.lanes(in_panel), dy.row(out_panel, rows.begin),
                      dy.lanes(out_panel), rows.size(), accumulate, tile);
}

template <class T>
void CpuBackend<T>::weight_gradient(int tensor, const Matrix& x, const Matrix& dy, bool accumulate,
                                    T* arena) {
  cpu::weight_gradient(
      kernels_, x.rows, x.panels(), update_share(team_, tensor, x.panels() * dy.panels()),
      accumulate, arena + plan_.tensors[tensor].offset, [&] { return team_.stop_requested(); },
      [&](Range rows, std::int64_t in_panel, std::int64_t out_panel, bool add, T* tile) {
        multiply_tile(x, dy, rows, in_panel, out_panel, add, tile);
      });
}

template <class T>
void CpuBackend<T>::sum_columns(const Panels<T>& dy, Range rows, Range panels, T* sums) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p)
    kernels_.column_sum(dy.row(p, rows.begin), rows.size(), dy.lanes(p), false, sums + p * kPanel);
}

template <class T>
void CpuBackend<T>::store_vector(int tensor, bool accumulate, T* arena) {
  const Tensor& place = plan_.tensors[tensor];
  const T* from = vector_place(tensor);
  T* to = arena + place.offset;
  if (accumulate)
    kernels_.axpy(1.0, from, to, place.padded);
  else
    std::copy_n(from, place.padded, to);
}

template <class T>
void CpuBackend<T>::bias_gradient(int tensor, const Matrix& dy, bool accumulate, T* arena) {
  if (update_share(team_, tensor, 1).size() == 0 || team_.stop_requested()) return;
  sum_columns(dy, {0, dy.rows}, {0, dy.panels()}, vector_place(tensor));
  store_vector(tensor, accumulate, arena);
}

template <class T>
void CpuBackend<T>::norm_gradient(int tensor, bool accumulate, T* arena) {
  if (update_share(team_, tensor, 1).size() > 0) store_vector(tensor, accumulate, arena);
}

template <class T>
void CpuBackend<T>::tile_gradient(const UpdateTask& task, T* tile) {
  const Node& node = plan_.nodes[task.node];
  const Matrix x = value(node.input);
  multiply_tile(x, gradient(node.output), {0, x.rows}, task.in_panel, task.out_panel, false, tile);
}

template <class T>
void CpuBackend<T>::bias_gradient(const UpdateTask& task, Range panels) {
  sum_columns(gradient(plan_.nodes[task.node].output), {0, workspace_.rows()}, panels,
              vector_place(task.tensor));
}

template <class T>
void CpuBackend<T>::partial_gradient(const UpdateTask& task, T* to) {
  const Node& node = plan_.nodes[task.node];
  if (task.tensor == node.weight)
    multiply_tile(value(node.input), gradient(node.output), own_rows_, task.in_panel,
                  task.out_panel, false, to);
  else if (task.tensor == node.bias)
    sum_columns(gradient(node.output), own_rows_, {0, gradient(node.output).panels()}, to);
}

template class CpuBackend<float>;
template class CpuBackend<double>;
template class Executor<CpuBackend<float>>;
template class Executor<CpuBackend<double>>;

}  // namespace thalweg
