// What a training step on the device reads and advances without the host: one StepState per engine,
// in device memory. The host fills it before a run of updates, queues the steps (each a replayed
// graph) and reads it back after the run.
//
// Rules that make a failing step harmless, whatever is queued behind it:
// - `status` is set once, by the kernel that finds the failure, and stays until the host clears it.
//   While it is not kRunning no kernel writes parameters, optimizer slots, averages, running
//   statistics or the counters below; the passes still run, on the same minibatch, so that the host
//   can look for the layer.
// - The loss is complete, and checked, before any kernel of the step that writes the model.
// - The last kernel of the step (advance_step) adds the update's sums to the run's and moves on.
#pragma once

#include <cstdint>

#include "math/optimizer_kind.h"
#include "math/order.h"

namespace thalweg::cuda {

enum class StepStatus : int {
  kRunning = 0,
  kLossNotFinite = 1,      // nothing of this update was written
  kGradientNotFinite = 2,  // nothing of this update was written
  kElementsNotFinite = 3,  // the update is complete but for `skipped_elements`
  kInvalidLabel = 4,       // the caller changed its labels; nothing was written
};

struct StepState {
  // Where training stands.
  std::int64_t steps = 0;     // updates done over the model's life: keys dropout
  std::int64_t row = 0;       // next row of the coefficient table
  std::int64_t position = 0;  // of the next minibatch in the epoch
  Order order;                // of the epoch

  // The update in progress.
  double weight = 0.0;          // sum of row weights
  double gradient_scale = 0.0;  // multiplies w dloss/doutput
  double loss = 0.0;            // sums of weight * loss and weight * hit
  double hits = 0.0;
  double squares = 0.0;          // of all gradients that count for the norm
  double gradient_factor = 1.0;  // clipping

  // Of the last complete update, and sums over the run.
  double last_loss = 0.0;
  double last_hits = 0.0;
  double last_weight = 0.0;
  double last_squares = 0.0;
  double run_loss = 0.0;
  double run_hits = 0.0;
  double run_weight = 0.0;
  std::int64_t updates = 0;           // made in this run
  std::int64_t skipped_rows = 0;      // of updates whose rows all weigh zero
  std::int64_t skipped_elements = 0;  // parameters left alone for a non-finite gradient

  StepStatus status = StepStatus::kRunning;
};

// Whether this update writes the model: nothing has failed, and some row counts.
TW_HD bool updates_model(const StepState& state) {
  return state.status == StepStatus::kRunning && state.weight > 0.0;
}

}  // namespace thalweg::cuda
