// The model of one element type, over an engine of any device. The methods are spread by subject:
// typed_model.cpp (values), fit.cpp (training), evaluate.cpp (pure passes), checkpoint.cpp (files).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "network/plan.h"
#include "training/data.h"
#include "training/engine.h"
#include "training/method_updates.h"
#include "training/model.h"

namespace thalweg {

struct CheckpointFile;

// What a caller asked for, or the default for 0; ValueError out of range.
int resolve_threads(int threads);

template <class T>
class TypedModel final : public Model {
 public:
  TypedModel(const Description& description, const std::string& device, int threads, void* stream);
  std::unique_ptr<Model> copy() const override;

  const Description& description() const override { return plan_.description; }
  std::string device() const override { return engine_->device(); }
  const DeviceExchange* exchange() const override { return engine_->exchange(); }
  int threads() const override { return threads_; }
  int useful_threads(std::int64_t rows) const override { return engine_->useful_threads(rows); }
  std::int64_t out_features() const override { return plan_.out_features; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::vector<LayerInfo>& layers() const override { return layers_; }
  std::int64_t num_parameters() const override { return plan_.num_parameters; }
  std::int64_t steps_done() const override { return cursor_.steps; }
  std::int64_t epochs_done() const override { return cursor_.epochs; }
  std::string plan_summary() const override { return plan_.summary(device() == "cpu"); }
  std::vector<std::int64_t> graph_nodes() const override { return engine_->graph_nodes(); }

  std::size_t workspace_bytes(std::int64_t batch_size) const override;
  void set_workspace(void* memory, std::size_t bytes) override;

  FitResult fit(const Data& data, const FitOptions& options) override;
  void check_fit(const Data& data, const FitOptions& options) const override {
    checked_targets(data, options);
  }
  StepRecord step(const Data& data, const Interrupt& interrupt,
                  const CustomLoss& custom_loss) override;
  void set_custom_loss(CustomLoss loss) override { custom_loss_ = std::move(loss); }
  void reset() override;
  void set_optimizer(const OptimizerDescription& optimizer) override;
  std::vector<std::pair<std::string, std::int64_t>> fallbacks() const override;
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

  void release_workspaces() const override { engine_->release_workspaces(); }

  void get_parameters(void* out) const override { engine_->get_parameters(static_cast<T*>(out)); }
  void set_parameters(const void* in) override {
    engine_->set_parameters(static_cast<const T*>(in));
  }
  void get_theta(void* out) const override;
  bool get_average(void* out) const override;
  std::vector<std::string> slot_names() const override;
  void get_slot(int slot, void* out) const override;
  const std::vector<TensorInfo>& state_tensors() const override { return state_tensors_; }
  void get_state(void* out) const override { engine_->get_state(static_cast<T*>(out)); }
  void set_state(const void* in) override { engine_->set_state(static_cast<const T*>(in)); }
  std::vector<std::int64_t> batches_tracked() const override { return engine_->batches(); }
  void set_batches_tracked(const std::vector<std::int64_t>& counts) override;

  void save(const std::string& path) const override;
  void load_weights(const std::string& path) override;
  // Restores everything that save() wrote.
  void restore(const CheckpointFile& file);

 private:
  // All that passes read: what early stopping keeps.
  struct Snapshot {
    std::vector<T> parameters, state;
    std::vector<std::int64_t> batches;
  };
  void take(Snapshot* snapshot) const;
  void put(const Snapshot& snapshot);

  // fit.cpp
  // The kind of the targets, after all checks of fit.
  Targets checked_targets(const Data& data, const FitOptions& options) const;
  // Of a model whose loss is a callable.
  const CustomLoss& checked_custom_loss(const CustomLoss& given, const char* operation) const;
  // Batch norm in training wants two rows.
  void check_batch(std::int64_t rows, const char* operation) const;
  // Throws what the end of a run calls for.
  void raise(const RunResult& result) const;
  StepRecord record_of(const RunResult& result) const;
  // By the engine, or by the method of the optimizer.
  RunResult run_updates(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                        Cursor* cursor);

  // typed_model.cpp
  // Of a model on a device.
  const DeviceExchange& required_exchange() const;
  // The method of the optimizer with an empty state, if there is one.
  void make_method();
  Metrics metrics_of(const LossTotals& totals) const;
  bool has_accuracy() const;
  bool has_custom_loss() const {
    return plan_.description.loss.kind == LossDescription::Kind::kCustom;
  }
  bool averages() const { return plan_.description.averaging.kind != Averaging::Kind::kNone; }
  std::vector<T> flat() const { return std::vector<T>(static_cast<std::size_t>(num_parameters())); }
  std::vector<T> flat_state() const;
  DataCheck data_check(const char* operation, bool require_finite,
                       const Interrupt& interrupt) const {
    return {plan_, operation, require_finite, threads_, interrupt, true, exchange()};
  }

  Plan plan_;
  int threads_;
  void* stream_;  // the caller's, or null
  std::unique_ptr<Engine<T>> engine_;
  std::unique_ptr<MethodUpdates<T>> method_;  // null: the optimizer is elementwise
  Cursor cursor_;
  CustomLoss custom_loss_;
  std::vector<TensorInfo> tensors_;
  std::vector<TensorInfo> state_tensors_;
  std::vector<LayerInfo> layers_;
};

}  // namespace thalweg
