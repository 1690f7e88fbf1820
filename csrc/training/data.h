// Checks of a caller's data before anything is written, and the gathering of minibatches from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "network/plan.h"
#include "network/workspace.h"
#include "training/model.h"

namespace thalweg {

enum class Targets { kNone, kLabels, kDense };

// Throws ValueError or TypeError that begins with [operation]. require_finite scans x.
void check_input(const Plan& plan, const ArrayView& x, const std::string& operation,
                 bool require_finite);
Targets check_data(const Plan& plan, const Data& data, const std::string& operation,
                   bool require_finite);
// Class weights go with integer labels; one finite weight >= 0 per output.
void check_class_weights(const Plan& plan, const std::vector<double>& weights, Targets targets,
                         const std::string& operation);

// One minibatch of a data set.
struct Batch {
  const Data* data = nullptr;
  Targets targets = Targets::kNone;
  const std::vector<double>* class_weights = nullptr;  // null: ones
  const std::int64_t* index = nullptr;                 // rows of the data set, or
  std::int64_t first = 0;                              // its first row when they are consecutive
  std::int64_t rows = 0;
  bool fill_weights = false;  // fill the row weights even when they are all one

  bool weighted() const { return data->weights.present() || class_weights != nullptr; }
};

// Weight of row r of the data set, as training uses it (rounded to T).
template <class T>
double row_weight(const Batch& batch, std::int64_t row);

// Collective: fills value(0), labels or targets, and row weights of the workspace.
template <class T>
void gather(Team& team, const Batch& batch, const cpu::Kernels<T>& kernels,
            Workspace<T>& workspace);

}  // namespace thalweg
