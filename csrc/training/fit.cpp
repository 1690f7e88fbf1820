// Training: the loop over epochs. What an update is stands in the engines.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "core/error.h"
#include "training/typed_model.h"

namespace thalweg {
namespace {

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

// The time from begin_fit to end_fit.
template <class T>
class Fitting {
 public:
  Fitting(Engine<T>& engine, MethodUpdates<T>* method, const FitSource& source,
          std::int64_t batch_size, const Interrupt& interrupt)
      : engine_(engine), method_(method) {
    engine_.begin_fit(source, batch_size, interrupt);
    if (method_ != nullptr) method_->begin_fit(source);
  }
  ~Fitting() {
    if (method_ != nullptr) method_->end_fit();
    engine_.end_fit();
  }
  Fitting(const Fitting&) = delete;
  Fitting& operator=(const Fitting&) = delete;

 private:
  Engine<T>& engine_;
  MethodUpdates<T>* method_;
};

}  // namespace

template <class T>
void TypedModel<T>::check_batch(std::int64_t rows, const char* operation) const {
  expect<ValueError>(rows >= 2 || !plan_.has_batch_norm(), "[", operation,
                     "] expected at least 2 rows in a training batch with batch norm (the variance "
                     "of one row is zero), got ",
                     rows);
}

template <class T>
const CustomLoss& TypedModel<T>::checked_custom_loss(const CustomLoss& given,
                                                     const char* operation) const {
  const CustomLoss& loss = given ? given : custom_loss_;
  expect<ValueError>(!has_custom_loss() || loss, "[", operation,
                     "] expected a loss callable for a model with a custom loss, got none");
  return loss;
}

template <class T>
void TypedModel<T>::raise(const RunResult& result) const {
  const std::int64_t next = cursor_.steps + 1;
  switch (result.end) {
    case RunEnd::kComplete:
      return;
    case RunEnd::kDiscarded:
      throw Interrupted("[fit] interrupted; the update was discarded");
    case RunEnd::kInterrupted:
      throw Interrupted("[fit] interrupted after a complete update");
    case RunEnd::kLossNotFinite:
      throw NonFiniteError(
          concat("[fit] expected a finite loss, got ", result.loss, " at step ", next,
                 "; the first non-finite values come out of ", result.layer,
                 ". Parameters and optimizer state are those of step ", cursor_.steps,
                 ": lower the learning rate, set clip_norm, or look at the data"),
          next, result.layer);
    case RunEnd::kGradientNotFinite:
      throw NonFiniteError(concat("[fit] expected finite gradients, got non-finite ones at step ",
                                  next, "; the first belong to ", result.layer,
                                  ". Parameters and optimizer state are those of step ",
                                  cursor_.steps, ": lower the learning rate or look at the data"),
                           next, result.layer);
    case RunEnd::kElementsNotFinite:
      throw NonFiniteError(concat("[fit] expected finite gradients, got ", result.skipped_elements,
                                  " non-finite elements at step ", cursor_.steps,
                                  "; their parameters were left alone, the others updated. Use "
                                  "check_finite=\"gradients\" to keep the whole update back"),
                           cursor_.steps, "gradient");
  }
}

template <class T>
StepRecord TypedModel<T>::record_of(const RunResult& result) const {
  StepRecord record;
  record.step = cursor_.steps;
  record.metrics = metrics_of(result.totals);
  record.lr = result.lr;
  record.gradient_norm = result.norm;
  return record;
}

template <class T>
RunResult TypedModel<T>::run_updates(const Order& order, std::int64_t updates,
                                     const Interrupt& interrupt, Cursor* cursor) {
  return method_ ? method_->run(order, updates, interrupt, cursor)
                 : engine_->run(order, updates, interrupt, cursor);
}

template <class T>
StepRecord TypedModel<T>::step(const Data& data, const Interrupt& interrupt,
                               const CustomLoss& custom_loss) {
  FitSource source;
  source.data = data;
  source.targets = check_data(data_check("step", true, interrupt), data);
  const std::int64_t rows = data.x.rows;
  check_batch(rows, "step");
  source.custom_loss = checked_custom_loss(custom_loss, "step");
  const Fitting<T> fitting(*engine_, method_.get(), source, rows, interrupt);
  Cursor cursor = cursor_;  // the place in an epoch stays
  cursor.position = 0;
  cursor.rows = cursor.batch_size = rows;
  cursor.accumulate = 1;
  const Order order(Shuffle::kNone, rows, plan_.description.seed, 0);
  const auto count_updates = [&] {
    cursor_.steps = cursor.steps;
    cursor_.updates = cursor.updates;
    cursor_.averaged = cursor.averaged;
  };
  RunResult result;
  try {
    result = run_updates(order, 1, interrupt, &cursor);
  } catch (...) {
    count_updates();  // an update may be complete
    throw;
  }
  count_updates();
  const StepRecord record = record_of(result);
  raise(result);
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
  expect<ValueError>(options.accumulate == 1 || !method_,
                     "[fit] expected accumulate=1 with a method on the whole objective, got ",
                     options.accumulate, "; a larger batch_size is the same");
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
  checked_custom_loss({}, "fit");
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
  FitSource source;
  source.data = data;
  source.targets = targets;
  source.shuffle = options.shuffle;
  source.class_weights = options.class_weights;
  if (has_custom_loss()) source.custom_loss = custom_loss_;
  const Fitting<T> fitting(*engine_, method_.get(), source, batch_size, options.interrupt);

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
  const bool steps_called = options.on_step && options.every > 0;
  std::int64_t steps_left = options.max_steps.value_or(std::numeric_limits<std::int64_t>::max());
  std::optional<double> best;
  std::int64_t waits_since = cursor_.epochs;  // the epoch of the best score, or the start
  std::optional<Snapshot> best_values;
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
    const Order order(options.shuffle, rows, plan_.description.seed, cursor_.epochs);

    while (cursor_.position < rows && go_on) {
      std::int64_t updates = steps_left;
      if (steps_called) updates = std::min(updates, options.every - cursor_.steps % options.every);
      const RunResult run = run_updates(order, updates, options.interrupt, &cursor_);
      if (run.updates > 0) record.lr = run.lr;
      record.steps += run.updates;
      steps_left -= run.updates;
      raise(run);
      if (steps_called && run.updates > 0 && cursor_.steps % options.every == 0 &&
          !options.on_step(record_of(run)))
        stop("callback");
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
          if (!best_values) best_values.emplace();
          take(&*best_values);
        }
      } else if (record.epoch - waits_since >= std::max<std::int64_t>(1, rule.patience)) {
        stop("early_stopping");
      }
    }
    if (options.stop_at_loss && record.train.loss < *options.stop_at_loss) stop("stop_at_loss");
  }
  if (best_values) put(*best_values);
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
  engine_->recalibrate_batch_norm(x, batch_size, static_cast<std::uint64_t>(cursor_.steps),
                                  interrupt);
}

#define TW_INSTANTIATE(T)                                                                       \
  template FitResult TypedModel<T>::fit(const Data&, const FitOptions&);                        \
  template Targets TypedModel<T>::checked_targets(const Data&, const FitOptions&) const;        \
  template RunResult TypedModel<T>::run_updates(const Order&, std::int64_t, const Interrupt&,   \
                                                Cursor*);                                       \
  template StepRecord TypedModel<T>::step(const Data&, const Interrupt&, const CustomLoss&);    \
  template void TypedModel<T>::recalibrate_batch_norm(const ArrayView&, std::int64_t,           \
                                                      const Interrupt&);                        \
  template void TypedModel<T>::check_batch(std::int64_t, const char*) const;                    \
  template const CustomLoss& TypedModel<T>::checked_custom_loss(const CustomLoss&, const char*) \
      const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
