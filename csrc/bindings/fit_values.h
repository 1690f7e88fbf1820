// Options of a fit from Python, and what it reports, as Python values.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "core/error.h"
#include "training/model.h"

namespace thalweg::bindings {

namespace py = pybind11;

inline Shuffle shuffle_of(const std::string& name) {
  if (name == "epoch") return Shuffle::kEpoch;
  if (name == "stack") return Shuffle::kStack;
  if (name == "iid") return Shuffle::kIid;
  expect<ValueError>(name == "none",
                     "[fit] expected shuffle 'epoch', 'stack', 'iid' or 'none', got '", name, "'");
  return Shuffle::kNone;
}

inline Monitor monitor_of(const std::string& name) {
  if (name == "validation_loss") return Monitor::kValidationLoss;
  if (name == "validation_accuracy") return Monitor::kValidationAccuracy;
  if (name == "loss") return Monitor::kLoss;
  expect<ValueError>(name == "accuracy",
                     "[fit] expected monitor 'validation_loss', 'validation_accuracy', 'loss' or "
                     "'accuracy', got '",
                     name, "'");
  return Monitor::kAccuracy;
}

// monitor, patience, min_delta, restore_best
using StoppingTuple = std::tuple<std::string, std::int64_t, double, bool>;

inline FitOptions fit_options(std::int64_t epochs, std::int64_t batch_size,
                              const std::string& shuffle, std::int64_t accumulate,
                              const std::optional<StoppingTuple>& stopping,
                              std::optional<std::int64_t> max_steps,
                              std::optional<double> stop_at_loss) {
  FitOptions options;
  options.epochs = epochs;
  options.batch_size = batch_size;
  options.shuffle = shuffle_of(shuffle);
  options.accumulate = accumulate;
  if (stopping) {
    const auto& [monitor, patience, min_delta, restore_best] = *stopping;
    options.early_stopping = EarlyStopping{monitor_of(monitor), patience, min_delta, restore_best};
  }
  options.max_steps = max_steps;
  options.stop_at_loss = stop_at_loss;
  return options;
}

// Accuracy is left out where the loss has no classes.
inline void put_metrics(py::dict& row, const Metrics& metrics, const std::string& prefix = "") {
  row[py::str(prefix + "loss")] = metrics.loss;
  if (!std::isnan(metrics.accuracy)) row[py::str(prefix + "accuracy")] = metrics.accuracy;
}

inline py::dict epoch_row(const EpochRecord& record) {
  py::dict row;
  row["epoch"] = record.epoch;
  put_metrics(row, record.train);
  if (record.validation) put_metrics(row, *record.validation, "validation_");
  row["lr"] = record.lr;
  row["seconds"] = record.seconds;
  row["samples_per_second"] = record.samples_per_second;
  row["steps"] = record.steps;
  row["skipped_rows"] = record.skipped_rows;
  return row;
}

inline py::dict fit_row(const FitResult& result) {
  py::list rows;
  for (const EpochRecord& record : result.epochs) rows.append(epoch_row(record));
  py::dict out;
  out["epochs"] = rows;
  out["stopped_because"] = result.stopped_because;
  out["best_epoch"] = result.best_epoch;
  return out;
}

}  // namespace thalweg::bindings
