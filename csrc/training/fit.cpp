// Training: the update, the epoch, the fit.
//
// An update leaves the model either as it was or complete: everything before Team::commit writes
// only to the workspace, the gradient arena and staged copies.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "training/typed_model.h"

namespace thalweg {
namespace {

// Updates of more flops than this per thread (about 100 ms) keep gradient and optimizer apart, so
// that an interrupt can still discard them.
constexpr double kFusedFlops = 5e9;

double improvement(const EarlyStopping& rule, const EpochRecord& epoch) {
  switch (rule.monitor) {
    case Monitor::kValidationLoss:
      return -epoch.validation->loss;
    case Monitor::kValidationAccuracy:
      return epoch.validation->accuracy;
    case Monitor::kLoss:
      return -epoch.train.loss;
    case Monitor::kAccuracy:
      break;
  }
  return epoch.train.accuracy;
}

}  // namespace

template <class T>
void TypedModel<T>::check_batch(std::int64_t rows, const char* operation) const {
  expect<ValueError>(rows >= 2 || !plan_.has_batch_norm(), "[", operation,
                     "] expected at least 2 rows in a training batch with batch norm (the variance "
                     "of one row is zero), got ",
                     rows);
}

template <class T>
void TypedModel<T>::check_total_weight(double weight, const char* operation) const {
  expect<ValueError>(weight > 1.0 || !plan_.has_weighted_batch_norm(), "[", operation,
                     "] expected a total weight above 1 in a batch with weighted batch norm, got ",
                     weight);
}

template <class T>
void TypedModel<T>::reserve_workspace(std::int64_t rows) {
  if (!workspace_ || workspace_->capacity() < rows) {
    workspace_.reset();
    workspace_ = std::make_unique<Workspace<T>>(plan_, rows, true);
  }
}

template <class T>
std::int64_t TypedModel<T>::arena_offset(const UpdateTask& task) const {
  const Tensor& tensor = plan_.tensors[task.tensor];
  if (!tensor.is_weight()) return tensor.offset;
  return tensor.offset + (task.out_panel * panels_of(tensor.in) + task.in_panel) * kTile;
}

template <class T>
std::int64_t TypedModel<T>::arena_count(const UpdateTask& task) const {
  const Tensor& tensor = plan_.tensors[task.tensor];
  return tensor.is_weight() ? kTile : tensor.padded;
}

// Optimizer, average and transposed copy of one task's elements; without a gradient they are
// frozen.
template <class T>
std::int64_t TypedModel<T>::apply(const UpdateTask& task, const T* gradient) {
  const Tensor& tensor = plan_.tensors[task.tensor];
  const std::int64_t offset = arena_offset(task);
  const std::int64_t count = arena_count(task);
  T* values = parameters_.values.data();
  const std::int64_t skipped =
      gradient != nullptr ? optimizer_.step(kernels_, values, gradient, offset, count) : 0;
  if (average_weight_ > 0.0)
    optimizer_.average(kernels_, values, average_.data(), average_weight_, offset, count);
  if (tensor.is_weight() && keeps_transposed_[task.tensor])
    kernels_.transpose_tile(values + offset,
                            parameters_.transposed.data() + tensor.transposed_offset +
                                (task.in_panel * panels_of(tensor.out) + task.out_panel) * kTile);
  return skipped;
}

// Running statistics after one more training batch, kept aside until the update commits.
template <class T>
void TypedModel<T>::stage_running_statistics(const Pass& pass) {
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

template <class T>
void TypedModel<T>::fail_loss(double loss) const {
  std::string layer = "loss";
  for (const Node& node : plan_.nodes) {
    const Panels<T> value = workspace_->value(node.output);
    if (kernels_.finite(value.data, value.size())) continue;
    layer = node.layer;
    break;
  }
  throw NonFiniteError(
      concat("[fit] expected a finite loss, got ", loss, " at step ", cursor_.steps + 1,
             "; the first non-finite values come out of ", layer,
             ". Parameters and optimizer state are those of step ", cursor_.steps,
             ": lower the learning rate, set clip_norm, or look at the data"),
      cursor_.steps + 1, layer);
}

template <class T>
void TypedModel<T>::fail_gradient() const {
  std::string layer;
  for (std::size_t i = 0; i < updates_.size() && layer.empty(); ++i) {
    const UpdateTask& task = updates_[i];
    if (!optimizer_.frozen(task.tensor) &&
        !kernels_.finite(gradients_.data() + arena_offset(task), arena_count(task)))
      layer = plan_.nodes[task.node].layer;
  }
  if (layer.empty()) layer = "the gradient norm";
  throw NonFiniteError(
      concat("[fit] expected finite gradients, got non-finite ones at step ", cursor_.steps + 1,
             "; the first belong to ", layer, ". Parameters and optimizer state are those of step ",
             cursor_.steps, ": lower the learning rate or look at the data"),
      cursor_.steps + 1, layer);
}

template <class T>
void TypedModel<T>::raise_after(const Outcome& outcome) const {
  if (outcome.skipped > 0)
    throw NonFiniteError(concat("[fit] expected finite gradients, got ", outcome.skipped,
                                " non-finite elements at step ", cursor_.steps,
                                "; their parameters were left alone, the others updated. Use "
                                "check_finite=\"gradients\" to keep the whole update back"),
                         cursor_.steps, "gradient");
  if (outcome.interrupted) throw Interrupted("[fit] interrupted after a complete update");
}

template <class T>
auto TypedModel<T>::update(const Data& data, Targets targets,
                           const std::vector<double>* class_weights, const Order& order,
                           const std::vector<Part>& parts, const Interrupt& interrupt,
                           const CustomLoss& custom_loss) -> Outcome {
  Outcome outcome;
  batches_.assign(parts.size(), {});
  part_weights_.assign(parts.size(), 0.0);
  std::int64_t rows = 0;
  std::int64_t most_rows = 0;
  for (const Part& part : parts) most_rows = std::max(most_rows, part.rows);
  reserve_workspace(most_rows);
  double weight = 0.0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Batch& batch = batches_[i];
    batch.data = &data;
    batch.targets = targets;
    batch.class_weights = class_weights;
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
  if (!(weight > 0.0)) return outcome;  // nothing counts: nothing to learn from
  for (const double part : part_weights_) check_total_weight(part, "fit");

  const bool custom = static_cast<bool>(custom_loss);
  const bool keep_gradients = plan_.description.clip_norm.has_value() ||
                              plan_.description.check_finite == CheckFinite::kGradients;
  const int team_size = threads_for(most_rows, 3.0);
  const double flops = 3.0 * plan_.flops_per_row * static_cast<double>(rows);
  const bool fused = parts.size() == 1 && !keep_gradients && flops < kFusedFlops * team_size;
  if (!fused && gradients_.size() == 0) gradients_ = Arena<T>(plan_.arena_size);

  std::copy(parameters_.state.begin(), parameters_.state.end(), staged_state_.begin());
  staged_batches_ = parameters_.batches;
  outcome.lr = optimizer_.prepare(cursor_.updates + 1, cursor_.steps_per_epoch);
  const Averaging& averaging = plan_.description.averaging;
  average_weight_ = 0.0;
  if (averaging.kind == Averaging::Kind::kEma)
    average_weight_ = averaged_ == 0 ? 1.0 : 1.0 - averaging.decay;
  else if (averaging.kind == Averaging::Kind::kPolyak && cursor_.steps >= averaging.start)
    average_weight_ = 1.0 / static_cast<double>(averaged_ + 1);

  const auto tasks = static_cast<std::int64_t>(updates_.size());
  ThreadPool& pool = ThreadPool::shared();
  std::atomic<std::int64_t> skipped{0};
  bool committed = false;
  const auto commit = [&](Team& team) {
    if (!team.commit()) return false;
    if (team.rank() == 0) committed = true;
    return true;
  };
  const auto update_range = [&](const UpdateTask& task, const T* gradient) {
    const std::int64_t bad = apply(task, gradient);
    if (bad > 0) skipped.fetch_add(bad, std::memory_order_relaxed);
  };
  const auto stop_if = [&](bool interrupted) {
    if (interrupted && !committed) throw Interrupted("[fit] interrupted; the update was discarded");
    outcome.interrupted = outcome.interrupted || interrupted;
  };

  const double gradient_scale = loss_scale(weight);
  std::int64_t first_row = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Batch& batch = batches_[i];
    Workspace<T>& workspace = *workspace_;
    workspace.set_rows(batch.rows);
    Pass pass;
    pass.mode = Mode::kTraining;
    pass.seed = plan_.description.seed;
    pass.step = static_cast<std::uint64_t>(cursor_.steps);
    pass.first_row = first_row;
    pass.total_weight = part_weights_[i];
    first_row += batch.rows;
    LossTotals totals;

    const auto ahead = [&](Team& team) {
      if (!order.sequential() || custom) {
        team.for_each(row_blocks_of(batch.rows), [&](std::int64_t block) {
          const Range range = row_block(block, batch.rows);
          for (std::int64_t r = range.begin; r < range.end; ++r)
            workspace.row_index[r] = order(batch.first + r);
        });
      }
      gather(team, batch, kernels_, workspace);
      CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team);
      Executor(backend).forward(pass);
    };
    const auto back = [&](Team& team) {
      CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team);
      Executor executor(backend);
      executor.backward(pass);
      team.single([&] { stage_running_statistics(pass); });
      if (!fused) {
        executor.gradients(gradients_.data(), i > 0,
                           [&](int tensor) { return !optimizer_.frozen(tensor); });
        return;
      }
      if (!commit(team)) return;
      alignas(64) T tile[kTile];
      team.for_each(tasks, [&](std::int64_t u) {
        const UpdateTask& task = updates_[u];
        if (optimizer_.frozen(task.tensor)) {
          update_range(task, nullptr);
        } else if (plan_.tensors[task.tensor].is_weight()) {
          backend.tile_gradient(task, tile);
          update_range(task, tile);
        } else {
          update_range(task, backend.vector_gradient(task));
        }
      });
    };
    if (!order.sequential() || custom) batch.index = workspace.row_index.data();

    if (custom) {
      stop_if(pool.run(team_size, ahead, interrupt));
      const double share = static_cast<double>(batch.rows) / static_cast<double>(rows);
      const double value = call_custom_loss(workspace, plan_.output, custom_loss, share);
      if (!std::isfinite(value)) fail_loss(value);
      totals.loss = value * static_cast<double>(batch.rows);
      totals.weight = static_cast<double>(batch.rows);
      stop_if(pool.run(team_size, back, interrupt));
    } else {
      stop_if(pool.run(
          team_size,
          [&](Team& team) {
            ahead(team);
            CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team);
            Executor(backend).loss(
                pass, {gradient_scale, batch.weighted(), targets == Targets::kDense}, &totals);
            if (team.stopped() || !std::isfinite(totals.loss)) return;
            back(team);
          },
          interrupt));
      if (!std::isfinite(totals.loss)) fail_loss(totals.loss);
    }
    outcome.totals.loss += totals.loss;
    outcome.totals.hits += totals.hits;
    outcome.totals.weight += totals.weight;
  }

  if (!fused) {
    double squares = 0.0;
    stop_if(pool.run(
        team_size,
        [&](Team& team) {
          if (keep_gradients) {
            team.for_each(tasks, [&](std::int64_t u) {
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
          if (!commit(team)) return;
          const double norm = std::sqrt(squares);
          const double limit = plan_.description.clip_norm.value_or(0.0);
          const bool clip = plan_.description.clip_norm.has_value() && norm > limit;
          team.for_each(tasks, [&](std::int64_t u) {
            const UpdateTask& task = updates_[u];
            const bool frozen = optimizer_.frozen(task.tensor);
            T* gradient = frozen ? nullptr : gradients_.data() + arena_offset(task);
            if (clip && !frozen) kernels_.scale(gradient, limit / norm, arena_count(task));
            update_range(task, gradient);
          });
        },
        interrupt));
    if (!std::isfinite(squares)) fail_gradient();
    if (keep_gradients) outcome.norm = std::sqrt(squares);
  }

  std::swap(parameters_.state, staged_state_);
  parameters_.batches = staged_batches_;
  transposed_stale_ = true;
  if (average_weight_ > 0.0) ++averaged_;
  ++cursor_.steps;
  ++cursor_.updates;
  outcome.skipped = skipped.load();
  return outcome;
}

template <class T>
StepRecord TypedModel<T>::step(const Data& data, const Interrupt& interrupt,
                               const CustomLoss& custom_loss) {
  const Targets targets = check_data(data_check("step", true, interrupt), data);
  check_batch(data.x.rows, "step");
  const CustomLoss& custom = custom_loss ? custom_loss : custom_loss_;
  expect<ValueError>(plan_.description.loss.kind != LossDescription::Kind::kCustom || custom,
                     "[step] expected a loss callable for a model with a custom loss, got none");
  const Order order(Shuffle::kNone, data.x.rows, plan_.description.seed, 0);
  const Outcome outcome =
      update(data, targets, nullptr, order, {{0, data.x.rows}}, interrupt, custom);
  StepRecord record;
  record.step = cursor_.steps;
  record.metrics = metrics_of(outcome.totals);
  record.lr = outcome.lr;
  record.gradient_norm = outcome.norm;
  raise_after(outcome);
  return record;
}

template <class T>
Targets TypedModel<T>::checked_targets(const Data& data, const FitOptions& options) const {
  const auto check = [&](const char* operation, const Data& checked) {
    DataCheck run = data_check(operation, true, options.interrupt);
    run.elements = !options.data_checked;
    return check_data(run, checked);
  };
  const Targets targets = check("fit", data);
  expect<ValueError>(options.epochs >= 0, "[fit] expected epochs >= 0, got ", options.epochs);
  expect<ValueError>(options.batch_size >= 0, "[fit] expected batch_size >= 1, or 0 for all rows, ",
                     "got ", options.batch_size);
  expect<ValueError>(options.accumulate >= 1, "[fit] expected accumulate >= 1, got ",
                     options.accumulate);
  expect<ValueError>(!options.max_steps || *options.max_steps >= 0,
                     "[fit] expected max_steps >= 0, got ", options.max_steps.value_or(0));
  check_batch(options.batch_size == 0 ? data.x.rows : std::min(options.batch_size, data.x.rows),
              "fit");
  check_class_weights(plan_, options.class_weights, targets, "fit");
  const bool validate = options.validation.x.present();
  if (validate) check("fit, validation data", options.validation);
  if (options.early_stopping) {
    const EarlyStopping& rule = *options.early_stopping;
    expect<ValueError>(rule.patience >= 0, "[fit] expected patience >= 0, got ", rule.patience);
    expect<ValueError>(
        validate || rule.monitor == Monitor::kLoss || rule.monitor == Monitor::kAccuracy,
        "[fit] expected validation_data to monitor a validation metric, got none");
    expect<ValueError>(has_accuracy() || rule.monitor == Monitor::kLoss ||
                           rule.monitor == Monitor::kValidationLoss,
                       "[fit] expected a loss with classes to monitor accuracy; monitor the loss");
  }
  expect<ValueError>(plan_.description.loss.kind != LossDescription::Kind::kCustom || custom_loss_,
                     "[fit] expected a loss callable for a model with a custom loss, got none");
  return targets;
}

template <class T>
FitResult TypedModel<T>::fit(const Data& data, const FitOptions& options) {
  const Targets targets = checked_targets(data, options);  // before anything is written
  const std::int64_t rows = data.x.rows;
  const std::int64_t batch_size =
      options.batch_size == 0 ? rows : std::min(options.batch_size, rows);
  const std::int64_t accumulate = std::min(options.accumulate, ceil_div(rows, batch_size));
  const bool validate = options.validation.x.present();
  const CustomLoss& custom =
      plan_.description.loss.kind == LossDescription::Kind::kCustom ? custom_loss_ : CustomLoss();
  const std::vector<double>* class_weights =
      options.class_weights.empty() ? nullptr : &options.class_weights;

  // A custom loss sees the caller's row numbers, so it reads through the order instead of a copy.
  const bool stack = options.shuffle == Shuffle::kStack && !custom;
  const Order stacking(Shuffle::kStack, rows, plan_.description.seed, 0);
  const auto stacked = [&](const ArrayView& array) {
    return RowCopy(stack ? array : ArrayView{}, rows, stacking, threads_, options.interrupt);
  };
  const RowCopy x = stacked(data.x), y = stacked(data.y), w = stacked(data.weights);
  const Data source = stack ? Data{x.view(), y.view(), w.view()} : data;
  reserve_workspace(batch_size);

  if (cursor_.rows != rows || cursor_.batch_size != batch_size ||
      cursor_.accumulate != accumulate || cursor_.shuffle != options.shuffle)
    cursor_.position = 0;
  if (cursor_.position == 0) {
    cursor_.loss = cursor_.hits = cursor_.weight = 0.0;
    cursor_.skipped_rows = 0;
  }
  cursor_.rows = rows;
  cursor_.batch_size = batch_size;
  cursor_.accumulate = accumulate;
  cursor_.shuffle = options.shuffle;
  cursor_.steps_per_epoch = static_cast<double>(ceil_div(ceil_div(rows, batch_size), accumulate));

  FitResult result;
  result.stopped_because = "epochs";
  std::int64_t steps_left = options.max_steps.value_or(std::numeric_limits<std::int64_t>::max());
  std::optional<double> best;
  std::int64_t waits_since = cursor_.epochs;  // the epoch of the best score, or the start
  std::unique_ptr<Parameters<T>> best_parameters;
  std::vector<Part> parts;
  bool go_on = true;
  const auto stop = [&](const char* reason) {  // the first reason counts
    if (std::exchange(go_on, false)) result.stopped_because = reason;
  };

  for (std::int64_t e = 0; e < options.epochs && go_on; ++e) {
    if (steps_left == 0) {
      stop("max_steps");
      break;
    }
    const auto start = std::chrono::steady_clock::now();
    const std::int64_t first_position = cursor_.position;
    EpochRecord record;
    record.epoch = cursor_.epochs + 1;
    const Order order(stack ? Shuffle::kNone : options.shuffle, rows, plan_.description.seed,
                      cursor_.epochs);

    while (cursor_.position < rows && go_on) {
      parts.clear();
      std::int64_t position = cursor_.position;
      std::int64_t lone_rows = 0;
      while (position < rows && static_cast<std::int64_t>(parts.size()) < accumulate) {
        const std::int64_t size = std::min(batch_size, rows - position);
        if (size == 1 && plan_.has_batch_norm())
          ++lone_rows;
        else
          parts.push_back({position, size});
        position += size;
      }
      Outcome outcome;
      if (!parts.empty())
        outcome = update(source, targets, class_weights, order, parts, options.interrupt, custom);
      const bool updated = outcome.totals.weight > 0.0;
      cursor_.position = position;
      cursor_.skipped_rows += lone_rows;
      if (updated) {
        cursor_.loss += outcome.totals.loss;
        cursor_.hits += outcome.totals.hits;
        cursor_.weight += outcome.totals.weight;
        record.lr = outcome.lr;
        ++record.steps;
        --steps_left;
        raise_after(outcome);
        if (options.on_step && options.every > 0 && cursor_.steps % options.every == 0) {
          StepRecord step;
          step.step = cursor_.steps;
          step.metrics = metrics_of(outcome.totals);
          step.lr = outcome.lr;
          step.gradient_norm = outcome.norm;
          if (!options.on_step(step)) stop("callback");
        }
      } else {
        for (const Part& part : parts) cursor_.skipped_rows += part.rows;
      }
      if (steps_left == 0 && cursor_.position < rows) stop("max_steps");
    }

    const std::int64_t visited = cursor_.position - first_position;
    record.train = metrics_of({cursor_.loss, cursor_.hits, cursor_.weight});
    record.skipped_rows = cursor_.skipped_rows;
    const bool complete = cursor_.position >= rows;
    if (complete) {
      ++cursor_.epochs;
      cursor_.position = 0;
      cursor_.loss = cursor_.hits = cursor_.weight = 0.0;
      cursor_.skipped_rows = 0;
    }
    record.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    record.samples_per_second = static_cast<double>(visited) / std::max(record.seconds, 1e-9);
    if (validate) record.validation = evaluate(options.validation, 1024, options.interrupt);
    result.epochs.push_back(record);
    if (options.on_epoch && !options.on_epoch(record)) stop("callback");
    if (!complete) break;

    if (options.early_stopping) {
      const EarlyStopping& rule = *options.early_stopping;
      const double score = improvement(rule, record);
      // NaN is no score to compare with.
      if (!std::isnan(score) && (!best || score > *best + rule.min_delta)) {
        best = score;
        result.best_epoch = waits_since = record.epoch;
        if (rule.restore_best) {
          if (!best_parameters) best_parameters = std::make_unique<Parameters<T>>(plan_);
          with_fresh_transposed();
          best_parameters->copy_from(parameters_);
        }
      } else if (record.epoch - waits_since >= std::max<std::int64_t>(1, rule.patience)) {
        stop("early_stopping");
      }
    }
    if (options.stop_at_loss && record.train.loss < *options.stop_at_loss) stop("stop_at_loss");
  }
  if (best_parameters) parameters_.copy_from(*best_parameters);
  return result;
}

template <class T>
void TypedModel<T>::recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                                           const Interrupt& interrupt) {
  check_input(data_check("recalibrate_batch_norm", true, interrupt), x);
  expect<ValueError>(batch_size >= 1, "[recalibrate_batch_norm] expected batch_size >= 1, got ",
                     batch_size);
  if (!plan_.has_batch_norm()) return;
  check_batch(std::min(x.rows, batch_size), "recalibrate_batch_norm");
  // The mean over batches of each batch's mean and unbiased variance (Ioffe and Szegedy 2015, alg.
  // 2).
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
    pass.step = static_cast<std::uint64_t>(cursor_.steps);
    pass.first_row = first;
    pass.total_weight = static_cast<double>(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        threads_for(batch.rows, 1.0),
        [&](Team& team) {
          gather(team, batch, kernels_, *workspace_);
          CpuBackend<T> backend(plan_, parameters_, *workspace_, kernels_, team);
          Executor(backend).forward(pass);
        },
        interrupt);
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

#define TW_INSTANTIATE(T)                                                                    \
  template FitResult TypedModel<T>::fit(const Data&, const FitOptions&);                     \
  template Targets TypedModel<T>::checked_targets(const Data&, const FitOptions&) const;     \
  template StepRecord TypedModel<T>::step(const Data&, const Interrupt&, const CustomLoss&); \
  template void TypedModel<T>::recalibrate_batch_norm(const ArrayView&, std::int64_t,        \
                                                      const Interrupt&);                     \
  template void TypedModel<T>::check_batch(std::int64_t, const char*) const;                 \
  template void TypedModel<T>::check_total_weight(double, const char*) const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
