// The model of one element type on the CPU. The methods are spread by subject: typed_model.cpp
// (values), fit.cpp (training), evaluate.cpp (pure passes), checkpoint.cpp (files).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "math/order.h"
#include "network/cpu_backend.h"
#include "network/parameters.h"
#include "network/plan.h"
#include "network/workspace.h"
#include "training/data.h"
#include "training/model.h"
#include "training/optimizer.h"

namespace thalweg {

struct CheckpointFile;

// Where training stands in the data.
struct Cursor {
  std::int64_t steps = 0;    // updates done
  std::int64_t updates = 0;  // of them by the present optimizer: its t and its schedules' k
  std::int64_t epochs = 0;   // complete epochs
  // Of the epoch in progress; valid for the same rows, batch size and order only.
  std::int64_t position = 0;  // rows already visited
  std::int64_t rows = 0;
  std::int64_t batch_size = 0;
  std::int64_t accumulate = 1;
  Shuffle shuffle = Shuffle::kEpoch;
  double loss = 0.0;  // partial sums of the epoch's metrics
  double hits = 0.0;
  double weight = 0.0;
  std::int64_t skipped_rows = 0;
  double steps_per_epoch = 0.0;  // of the last fit
};

// What a caller asked for, or the default for 0; ValueError out of range.
int resolve_threads(int threads);

template <class T>
class TypedModel final : public Model {
 public:
  TypedModel(const Description& description, int threads);
  std::unique_ptr<Model> copy() const override;

  const Description& description() const override { return plan_.description; }
  std::string device() const override { return "cpu"; }
  int threads() const override { return threads_; }
  int useful_threads(std::int64_t rows) const override { return threads_for(rows, 3.0); }
  std::int64_t out_features() const override { return plan_.out_features; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  std::int64_t num_parameters() const override { return plan_.num_parameters; }
  std::int64_t steps_done() const override { return cursor_.steps; }
  std::int64_t epochs_done() const override { return cursor_.epochs; }
  std::string plan_summary() const override { return plan_.summary(); }

  FitResult fit(const Data& data, const FitOptions& options) override;
  void check_fit(const Data& data, const FitOptions& options) const override {
    checked_targets(data, options);
  }
  StepRecord step(const Data& data, const Interrupt& interrupt,
                  const CustomLoss& custom_loss) override;
  void set_custom_loss(CustomLoss loss) override { custom_loss_ = std::move(loss); }
  void reset() override;
  void set_optimizer(const OptimizerDescription& optimizer) override;
  void recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                              const Interrupt& interrupt) override;

  Metrics evaluate(const Data& data, std::int64_t batch_size,
                   const Interrupt& interrupt) const override;
  void predict(const ArrayView& x, std::int64_t batch_size, void* out,
               const Interrupt& interrupt) const override;
  void predict_probabilities(const ArrayView& x, std::int64_t batch_size, void* out,
                             const Interrupt& interrupt) const override;
  void activations(const ArrayView& x, bool training, const std::vector<void*>& out,
                   const Interrupt& interrupt) const override;
  Metrics loss_and_gradient(const Data& data, const GradientOptions& options, void* gradient,
                            void* input_gradient) const override;

  void release_workspaces() const override {
    const std::lock_guard lock(pool_mutex_);
    pool_.clear();
  }

  void get_parameters(void* out) const override;
  void set_parameters(const void* in) override;
  void get_theta(void* out) const override;
  bool get_average(void* out) const override;
  std::vector<std::string> slot_names() const override;
  void get_slot(int slot, void* out) const override;
  const std::vector<TensorInfo>& state_tensors() const override { return state_tensors_; }
  void get_state(void* out) const override;
  void set_state(const void* in) override;
  std::vector<std::int64_t> batches_tracked() const override { return parameters_.batches; }
  void set_batches_tracked(const std::vector<std::int64_t>& counts) override;

  void save(const std::string& path) const override;
  void load_weights(const std::string& path) override;
  // Restores everything that save() wrote.
  void restore(const CheckpointFile& file);

 private:
  // One minibatch of an update: consecutive positions of the epoch's order.
  struct Part {
    std::int64_t position = 0;
    std::int64_t rows = 0;
  };
  struct Outcome {
    LossTotals totals;
    double lr = 0.0;
    double norm = std::numeric_limits<double>::quiet_NaN();
    std::int64_t skipped = 0;  // parameters left alone for a non-finite gradient
    bool interrupted = false;  // asked to stop, but the update was complete
  };

  // fit.cpp
  // The kind of the targets, after all checks of fit.
  Targets checked_targets(const Data& data, const FitOptions& options) const;
  Outcome update(const Data& data, Targets targets, const std::vector<double>* class_weights,
                 const Order& order, const std::vector<Part>& parts, const Interrupt& interrupt,
                 const CustomLoss& custom_loss);
  // Reports what an update that changed the model still has to report.
  void raise_after(const Outcome& outcome) const;
  void reserve_workspace(std::int64_t rows);
  std::int64_t apply(const UpdateTask& task, const T* gradient);
  std::int64_t arena_offset(const UpdateTask& task) const;
  std::int64_t arena_count(const UpdateTask& task) const;
  void stage_running_statistics(const Pass& pass);
  // Batch norm in training wants two rows, and a total weight above 1 when it is weighted.
  void check_batch(std::int64_t rows, const char* operation) const;
  void check_total_weight(double weight, const char* operation) const;
  [[noreturn]] void fail_loss(double loss) const;
  [[noreturn]] void fail_gradient() const;

  // typed_model.cpp
  // What multiplies sum(w loss) of rows with that total weight to give the reduced loss.
  double loss_scale(double weight) const;
  Metrics metrics_of(const LossTotals& totals) const;
  bool has_accuracy() const;

  // evaluate.cpp
  class Lease;                                         // a workspace out of the pool
  static constexpr std::size_t kPooledWorkspaces = 8;  // kept for later calls
  // visit(team, workspace, batch) after the inference pass over each chunk of rows.
  template <class Visit>
  void infer(const ArrayView& x, std::int64_t batch_size, const Interrupt& interrupt,
             const char* operation, Visit&& visit) const;

  // The caller's loss on the buffer `output`; its gradient times `scale` goes to the output's
  // gradient when the workspace has gradients.
  double call_custom_loss(Workspace<T>& workspace, int output, const CustomLoss& loss,
                          double scale) const;
  DataCheck data_check(const char* operation, bool require_finite,
                       const Interrupt& interrupt) const {
    return {plan_, operation, require_finite, threads_, interrupt};
  }
  int threads_for(std::int64_t rows, double passes) const;
  const Parameters<T>& with_fresh_transposed() const;

  Plan plan_;
  int threads_;
  const cpu::Kernels<T>& kernels_;
  mutable Parameters<T> parameters_;  // mutable: the transposed copies are refreshed on demand
  Optimizer<T> optimizer_;
  std::vector<UpdateTask> updates_;
  Cursor cursor_;
  CustomLoss custom_loss_;
  Arena<T> average_;
  std::int64_t averaged_ = 0;    // updates that entered the average
  double average_weight_ = 0.0;  // of the update in progress; 0: none
  std::vector<TensorInfo> tensors_;
  std::vector<TensorInfo> state_tensors_;
  std::vector<LayerInfo> layers_;

  // Of a training step, kept between steps.
  std::unique_ptr<Workspace<T>> workspace_;
  Arena<T> gradients_;  // only when the optimizer is not fused with the weight gradients
  Arena<double> task_norms_;
  std::vector<Batch> batches_;
  std::vector<double> part_weights_;
  Arena<T> staged_state_;
  std::vector<std::int64_t> staged_batches_;
  std::vector<bool> keeps_transposed_;  // by tensor: maintained by every step

  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Workspace<T>>> pool_;  // never grows past its capacity
  mutable std::mutex transposed_mutex_;
  mutable bool transposed_stale_ = false;
};

}  // namespace thalweg
