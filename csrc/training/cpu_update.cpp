// Training on the CPU: the update and the run of updates.
//
// An update leaves the model either as it was or complete: everything before Team::commit writes
// only to the workspace, the gradient arena and staged copies.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "cpu/weight_gradient.h"
#include "network/cpu_phases.h"
#include "training/cpu_engine.h"

namespace thalweg {
namespace {

// Updates of more flops than this per thread (about 100 ms) keep gradient and optimizer apart, so
// that an interrupt can still discard them. With more rows than a tile of a gradient is made from
// at once, groups of tiles gain more than the fusion.
constexpr double fused_flops(std::int64_t rows) { return rows > cpu::kTileRows ? 3e9 : 5e9; }
// Updates of fewer flops (about 1 ms of one thread) find out by time how many threads make them.
constexpr double kTimedFlops = 1e8;
// Another thread may be tried for as much work (about 2 microseconds).
constexpr double kThreadFlops = 2e5;

}  // namespace

template <class T>
CpuEngine<T>::Fit::Fit(const CpuEngine& engine, const FitSource& source_,
                       const Interrupt& interrupt)
    : source(source_),
      // A custom loss sees the caller's row numbers, so it reads through the order instead of a
      // copy.
      stacked(source.shuffle == Shuffle::kStack && !source.custom_loss),
      order(Shuffle::kStack, source.data.x.rows, engine.plan_.description.seed, 0),
      x(stacked ? source.data.x : ArrayView{}, order.rows(), order, engine.threads_, interrupt),
      y(stacked ? source.data.y : ArrayView{}, order.rows(), order, engine.threads_, interrupt),
      weights(stacked ? source.data.weights : ArrayView{}, order.rows(), order, engine.threads_,
              interrupt),
      data(stacked ? Data{x.view(), y.view(), weights.view()} : source.data) {}

template <class T>
void CpuEngine<T>::begin_fit(const FitSource& source, std::int64_t batch_size,
                             const Interrupt& interrupt) {
  fit_.emplace(*this, source, interrupt);
  reserve_workspace(batch_size);
}

template <class T>
void CpuEngine<T>::reserve_workspace(std::int64_t rows) {
  if (!workspace_ || workspace_->capacity() < rows) {
    workspace_.reset();
    workspace_ = std::make_unique<Workspace<T>>(plan_, rows, true);
  }
}

template <class T>
std::int64_t CpuEngine<T>::arena_offset(const UpdateTask& task) const {
  const Tensor& tensor = plan_.tensors[task.tensor];
  if (!tensor.is_weight()) return tensor.offset;
  return tensor.offset + (task.out_panel * panels_of(tensor.in) + task.in_panel) * kTile;
}

template <class T>
std::int64_t CpuEngine<T>::arena_count(const UpdateTask& task) const {
  const Tensor& tensor = plan_.tensors[task.tensor];
  return tensor.is_weight() ? kTile : tensor.padded;
}

template <class T>
template <class F>
void CpuEngine<T>::for_tensors(F&& f) const {
  const auto tasks = static_cast<std::int64_t>(updates_.size());
  for (std::int64_t first = 0, count; first < tasks; first += count) {
    const int index = updates_[first].tensor;
    count = plan_.tensors[index].tiles();
    f(index, first, count);
  }
}

template <class T>
template <class F>
void CpuEngine<T>::for_own_parts(Team& team, F&& f) const {
  for_tensors([&](int index, std::int64_t first, std::int64_t count) {
    const Tensor& tensor = plan_.tensors[index];
    if (tensor.is_weight()) {
      const Range own = update_share(team, index, count);
      for (std::int64_t t = own.begin; t < own.end; ++t) f(first + t, Range{});
    } else {
      const Range own = update_share(team, index, panels_of(tensor.out));
      if (own.size() > 0) f(first, own);
    }
  });
}

template <class T>
template <class F>
void CpuEngine<T>::for_own_tasks(Team& team, F&& f) const {
  for_tensors([&](int index, std::int64_t first, std::int64_t count) {
    const Range own = update_share(team, index, count);
    for (std::int64_t t = own.begin; t < own.end && !team.stop_requested(); ++t) f(first + t);
  });
  team.barrier();
}

// This thread's parts of all gradients. Meanwhile it takes the tiles that it will update from the
// caches of the others, which have read them.
template <class T>
void CpuEngine<T>::partial_gradients(Team& team, CpuBackend<T>& backend) {
  T* const part = gradient_parts_.part(team.rank());
  for_tensors([&](int index, std::int64_t first, std::int64_t count) {
    if (optimizer_.frozen(index)) return;
    const Tensor& tensor = plan_.tensors[index];
    const Range own = tensor.is_weight() ? update_share(team, index, count) : Range{};
    for (std::int64_t t = 0; t < count; ++t) {
      const UpdateTask& task = updates_[first + t];
      if (t >= own.begin && t < own.end)
        parameters_.claim(tensor, task.in_panel, task.out_panel, keeps_transposed_[index]);
      backend.partial_gradient(task, part + arena_offset(task));
    }
  });
  team.barrier();
}

// Optimizer, average and copies of one task's elements; without a gradient they are
// frozen.
template <class T>
std::int64_t CpuEngine<T>::apply(const UpdateTask& task, Range panels, const T* gradient) {
  const Tensor& tensor = plan_.tensors[task.tensor];
  const std::int64_t offset = arena_offset(task) + panels.begin * kPanel;
  const std::int64_t count = tensor.is_weight() ? kTile : panels.size() * kPanel;
  T* values = parameters_.values.data();
  const std::int64_t skipped =
      gradient != nullptr ? optimizer_.step(kernels_, values, gradient, offset, count) : 0;
  if (average_weight_ > 0.0)
    optimizer_.average(kernels_, values, average_.data(), average_weight_, offset, count);
  if (tensor.is_weight())
    parameters_.refresh_copies(kernels_, tensor, task.in_panel, task.out_panel, true,
                               keeps_transposed_[task.tensor]);
  return skipped;
}

// Running statistics after one more training batch, kept aside until the update commits.
template <class T>
void CpuEngine<T>::stage_running_statistics(const Pass& pass) {
  const auto rows = static_cast<double>(workspace_->rows());
  for (std::size_t s = 0; s < plan_.states.size(); ++s) {
    const BatchNormState& state = plan_.states[s];
    const double count = ++staged_batches_[s];
    const double weight = state.momentum.value_or(1.0 / count);
    const double total = state.weighted ? pass.total_weight : rows;
    const double unbias = total / (total - 1.0);
    T* mean = staged_state_.data() + state.offset;
    T* var = mean + state.padded;
    const double* batch_mean = workspace_->batch_mean(static_cast<int>(s));
    const double* batch_var = workspace_->batch_var(static_cast<int>(s));
    for (std::int64_t c = 0; c < state.width; ++c) {
      mean[c] = static_cast<T>((1.0 - weight) * mean[c] + weight * batch_mean[c]);
      var[c] = static_cast<T>((1.0 - weight) * var[c] + weight * unbias * batch_var[c]);
    }
  }
}

// Of the workspace's last forward pass.
template <class T>
std::string CpuEngine<T>::first_layer_not_finite() const {
  for (const Node& node : plan_.nodes) {
    const Panels<T> value = workspace_->value(node.output);
    if (!kernels_.finite(value.data, value.size())) return node.layer;
  }
  return "loss";
}

template <class T>
std::string CpuEngine<T>::first_gradient_not_finite() const {
  for (const UpdateTask& task : updates_)
    if (!optimizer_.frozen(task.tensor) &&
        !kernels_.finite(gradients_.data() + arena_offset(task), arena_count(task)))
      return plan_.nodes[task.node].layer;
  return "the gradient norm";
}

template <class T>
int CpuEngine<T>::team_size_for(std::int64_t rows) {
  const int useful = threads_for(rows, 3.0);
  const double flops = 3.0 * plan_.flops_per_row * static_cast<double>(rows);
  if (flops > kTimedFlops) return useful;
  const double most = std::clamp(flops / kThreadFlops, 1.0, static_cast<double>(threads_));
  return sizer_.threads(rows, useful, std::max(useful, static_cast<int>(most)));
}

template <class T>
bool CpuEngine<T>::update(const Order& order, const Cursor& cursor, const Interrupt& interrupt,
                          RunResult* result) {
  const FitSource& source = fit_->source;
  const std::vector<Part>& parts = parts_.parts;
  const CustomLoss& custom_loss = source.custom_loss;
  batches_.assign(parts.size(), {});
  part_weights_.assign(parts.size(), 0.0);
  std::int64_t rows = 0;
  std::int64_t most_rows = 0;
  for (const Part& part : parts) most_rows = std::max(most_rows, part.rows);
  reserve_workspace(most_rows);
  double weight = 0.0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Batch& batch = batches_[i];
    batch.data = &fit_->data;
    batch.targets = source.targets;
    batch.class_weights = source.class_weights.empty() ? nullptr : &source.class_weights;
    batch.first = parts[i].position;
    batch.rows = parts[i].rows;
    batch.fill_weights = plan_.has_weighted_batch_norm();
    batch.classes = plan_.out_features;
    rows += batch.rows;
    part_weights_[i] = static_cast<double>(batch.rows);
    if (batch.weighted())
      part_weights_[i] = total_weight<T>(
          batch, [&](std::int64_t r) { return order(batch.first + r); },
          workspace_->block_weights.data(), threads_, interrupt, "fit");
    weight += part_weights_[i];
  }
  if (!(weight > 0.0)) return false;  // nothing counts: nothing to learn from
  for (const double part : part_weights_) check_total_weight(plan_, part, "fit");

  const bool custom = static_cast<bool>(custom_loss);
  const bool keep_gradients = plan_.description.clip_norm.has_value() ||
                              plan_.description.check_finite == CheckFinite::kGradients;
  const int team_size = team_size_for(most_rows);
  const double flops = 3.0 * plan_.flops_per_row * static_cast<double>(rows);
  const bool fused = parts.size() == 1 && !keep_gradients && flops < fused_flops(rows) * team_size;
  if (!fused && gradients_.size() == 0) gradients_ = Arena<T>(plan_.arena_size);
  if (fused) gradient_parts_.reserve(rows, team_size);

  std::copy(parameters_.state.begin(), parameters_.state.end(), staged_state_.begin());
  staged_batches_ = parameters_.batches;
  const double lr = optimizer_.prepare(cursor.updates + 1, cursor.steps_per_epoch);
  average_weight_ = average_weight(plan_, cursor);

  const auto tasks = static_cast<std::int64_t>(updates_.size());
  ThreadPool& pool = ThreadPool::shared();
  std::atomic<std::int64_t> skipped{0};
  bool committed = false;
  const auto update_part = [&](const UpdateTask& task, Range panels, const T* gradient) {
    const std::int64_t bad = apply(task, panels, gradient);
    if (bad > 0) skipped.fetch_add(bad, std::memory_order_relaxed);
  };
  bool interrupted = false;
  const auto discarded = [&](bool stopped) {
    interrupted = interrupted || stopped;
    if (!interrupted || committed) return false;
    result->end = RunEnd::kDiscarded;
    return true;
  };
  const auto loss_fails = [&](double loss) {
    if (std::isfinite(loss)) return false;
    result->end = RunEnd::kLossNotFinite;
    result->loss = loss;
    result->layer = first_layer_not_finite();
    return true;
  };

  LossTotals sum;
  double gradient_norm = std::numeric_limits<double>::quiet_NaN();
  const double gradient_scale = loss_scale(plan_, weight);
  std::int64_t first_row = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Batch& batch = batches_[i];
    Workspace<T>& workspace = *workspace_;
    workspace.set_rows(batch.rows);
    Pass pass;
    pass.mode = Mode::kTraining;
    pass.seed = plan_.description.seed;
    pass.step = static_cast<std::uint64_t>(cursor.steps);
    pass.first_row = first_row;
    pass.total_weight = part_weights_[i];
    first_row += batch.rows;
    LossTotals totals;

    const auto own_rows = [&](const Team& team) {
      if (!fused || !gradient_parts_.has(team.size())) return Range{};
      return gradient_parts_.rows_of(batch.rows, team.rank(), team.size());
    };
    const auto ahead = [&](Team& team) {
      const Range own = own_rows(team);
      gather(team, batch, kernels_, workspace, own);
      CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team, own);
      Executor(backend).forward(pass);
    };
    // The gradient of the loss is in the workspace. The losses too unless they are the caller's.
    const auto back = [&](Team& team) {
      const bool apart = own_rows(team).size() > 0;
      CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team, own_rows(team));
      Executor executor(backend);
      executor.backward(pass);
      if (team.rank() == 0) stage_running_statistics(pass);
      if (fused ? !team.commit() : team.stopped()) return;
      if (!custom) {
        LossTotals sums;  // every thread has them, and judges alike
        backend.add_losses(&sums);
        if (team.rank() == 0) totals = sums;
        if (!std::isfinite(sums.loss)) return;
      }
      if (!fused) {
        executor.gradients(gradients_.data(), i > 0,
                           [&](int tensor) { return !optimizer_.frozen(tensor); });
        return;
      }
      if (team.rank() == 0) committed = true;
      if (apart) partial_gradients(team, backend);
      alignas(64) T tile[kTile];
      for_own_parts(team, [&](std::int64_t u, Range panels) {
        const UpdateTask& task = updates_[u];
        const Node& node = plan_.nodes[task.node];
        const bool is_weight = task.tensor == node.weight;
        const std::int64_t column = panels.begin * kPanel;
        T* const gradient = is_weight ? tile : backend.vector_place(task.tensor) + column;
        if (optimizer_.frozen(task.tensor)) return update_part(task, panels, nullptr);
        if (apart && (is_weight || task.tensor == node.bias))
          gradient_parts_.add_up(kernels_, {0, team.size()}, arena_offset(task) + column,
                                 is_weight ? kTile : panels.size() * kPanel, gradient);
        else if (is_weight)
          backend.tile_gradient(task, tile);
        else if (task.tensor == node.bias)
          backend.bias_gradient(task, panels);
        update_part(task, panels, gradient);
      });
    };
    if (!order.sequential() || custom) batch.order = &order;

    if (custom) {
      if (discarded(pool.run(team_size, ahead, interrupt, Subnormals::kFlush))) return false;
      const double share = static_cast<double>(batch.rows) / static_cast<double>(rows);
      const double value = call_custom_loss(workspace, plan_.output, custom_loss, share);
      if (loss_fails(value)) return false;
      totals.loss = value * static_cast<double>(batch.rows);
      totals.weight = static_cast<double>(batch.rows);
      if (discarded(pool.run(team_size, back, interrupt, Subnormals::kFlush))) return false;
    } else {
      const bool stopped = pool.run(
          team_size,
          [&](Team& team) {
            ahead(team);
            CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team, own_rows(team));
            Executor(backend).loss(
                pass, {gradient_scale, batch.weighted(), source.targets == Targets::kDense},
                nullptr);
            back(team);
          },
          interrupt, Subnormals::kFlush);
      if (discarded(stopped) || loss_fails(totals.loss)) return false;
    }
    sum.loss += totals.loss;
    sum.hits += totals.hits;
    sum.weight += totals.weight;
  }

  if (!fused) {
    double squares = 0.0;
    const bool stopped = pool.run(
        team_size,
        [&](Team& team) {
          if (keep_gradients) {
            for_own_tasks(team, [&](std::int64_t u) {
              const UpdateTask& task = updates_[u];
              task_norms_[u] = optimizer_.frozen(task.tensor)
                                   ? 0.0
                                   : kernels_.sum_of_squares(gradients_.data() + arena_offset(task),
                                                             arena_count(task));
            });
            team.single([&] {
              for (std::int64_t u = 0; u < tasks; ++u) squares += task_norms_[u];
            });
            if (!std::isfinite(squares)) return;
          }
          if (!team.commit()) return;
          if (team.rank() == 0) committed = true;
          const double norm = std::sqrt(squares);
          const double limit = plan_.description.clip_norm.value_or(0.0);
          const bool clip = plan_.description.clip_norm.has_value() && norm > limit;
          for_own_tasks(team, [&](std::int64_t u) {
            const UpdateTask& task = updates_[u];
            const bool frozen = optimizer_.frozen(task.tensor);
            T* gradient = frozen ? nullptr : gradients_.data() + arena_offset(task);
            if (clip && !frozen) kernels_.scale(gradient, limit / norm, arena_count(task));
            const Tensor& tensor = plan_.tensors[task.tensor];
            const Range panels{0, tensor.is_weight() ? 0 : panels_of(tensor.out)};
            update_part(task, panels, gradient);
          });
        },
        interrupt, Subnormals::kFlush);
    if (discarded(stopped)) return false;
    if (!std::isfinite(squares)) {
      result->end = RunEnd::kGradientNotFinite;
      result->layer = first_gradient_not_finite();
      return false;
    }
    if (keep_gradients) gradient_norm = std::sqrt(squares);
  }

  std::swap(parameters_.state, staged_state_);
  parameters_.batches = staged_batches_;
  transposed_stale_ = true;
  result->totals = sum;
  result->lr = lr;
  result->norm = gradient_norm;
  result->skipped_elements = skipped.load();
  if (result->skipped_elements > 0)
    result->end = RunEnd::kElementsNotFinite;
  else if (interrupted)
    result->end = RunEnd::kInterrupted;
  return true;
}

template <class T>
RunResult CpuEngine<T>::run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                            Cursor* cursor) {
  const Order consecutive(Shuffle::kNone, order.rows(), plan_.description.seed, 0);
  RunResult result;
  while (result.end == RunEnd::kComplete && result.updates < updates &&
         cursor->position < cursor->rows) {
    next_parts(plan_, *cursor, &parts_);
    const auto start = std::chrono::steady_clock::now();
    const bool updated = !parts_.parts.empty() &&
                         update(fit_->stacked ? consecutive : order, *cursor, interrupt, &result);
    if (updated)
      sizer_.add(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    if (!updated && result.end != RunEnd::kComplete) break;
    cursor->position = parts_.end;
    cursor->skipped_rows += parts_.lone_rows;
    if (!updated) {
      for (const Part& part : parts_.parts) cursor->skipped_rows += part.rows;
      continue;
    }
    ++result.updates;
    ++cursor->steps;
    ++cursor->updates;
    if (average_weight_ > 0.0) ++cursor->averaged;
    cursor->loss += result.totals.loss;
    cursor->hits += result.totals.hits;
    cursor->weight += result.totals.weight;
  }
  return result;
}

template <class T>
void CpuEngine<T>::recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                                          std::uint64_t step, const Interrupt& interrupt) {
  reserve_workspace(std::min(x.rows, batch_size));
  std::vector<double> mean(static_cast<std::size_t>(plan_.state_size), 0.0);
  std::int64_t batches = 0;
  Data data;
  data.x = x;
  for (std::int64_t first = 0; first < x.rows; first += batch_size) {
    Batch batch;
    batch.data = &data;
    batch.first = first;
    batch.rows = std::min(batch_size, x.rows - first);
    batch.fill_weights = plan_.has_weighted_batch_norm();
    if (batch.rows < 2) break;
    workspace_->set_rows(batch.rows);
    Pass pass;
    pass.mode = Mode::kTraining;
    pass.seed = plan_.description.seed;
    pass.step = step;
    pass.first_row = first;
    pass.total_weight = static_cast<double>(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        threads_for(batch.rows, 1.0),
        [&](Team& team) {
          gather(team, batch, kernels_, *workspace_);
          CpuBackend<T> backend(plan_, parameters_, *workspace_, kernels_, team);
          Executor(backend).forward(pass);
        },
        interrupt, Subnormals::kFlush);
    if (interrupted) throw Interrupted("[recalibrate_batch_norm] interrupted; nothing was changed");
    ++batches;
    const double unbias = pass.total_weight / (pass.total_weight - 1.0);
    for (std::size_t s = 0; s < plan_.states.size(); ++s) {
      const BatchNormState& state = plan_.states[s];
      double* to = mean.data() + state.offset;
      for (std::int64_t c = 0; c < state.width; ++c) {
        to[c] += workspace_->batch_mean(static_cast<int>(s))[c];
        to[state.padded + c] += unbias * workspace_->batch_var(static_cast<int>(s))[c];
      }
    }
  }
  for (std::size_t i = 0; i < mean.size(); ++i)
    parameters_.state[static_cast<std::int64_t>(i)] =
        static_cast<T>(mean[i] / static_cast<double>(batches));
  std::fill(parameters_.batches.begin(), parameters_.batches.end(), batches);
}

#define TW_INSTANTIATE(T)                                                                      \
  template void CpuEngine<T>::begin_fit(const FitSource&, std::int64_t, const Interrupt&);     \
  template RunResult CpuEngine<T>::run(const Order&, std::int64_t, const Interrupt&, Cursor*); \
  template void CpuEngine<T>::recalibrate_batch_norm(const ArrayView&, std::int64_t,           \
                                                     std::uint64_t, const Interrupt&);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
