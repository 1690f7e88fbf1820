// The engine of the CPU. The methods are spread by subject: cpu_engine.cpp (values), cpu_update.cpp
// (training), cpu_passes.cpp (pure passes).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "network/cpu_backend.h"
#include "network/parameters.h"
#include "network/workspace.h"
#include "training/engine.h"
#include "training/gradient_parts.h"
#include "training/optimizer.h"
#include "training/team_sizer.h"

namespace thalweg {

template <class T>
class CpuEngine final : public Engine<T> {
 public:
  CpuEngine(const Plan& plan, int threads);

  std::string device() const override { return "cpu"; }
  int useful_threads(std::int64_t rows) const override { return threads_for(rows, 3.0); }

  void get_parameters(T* flat) const override;
  void set_parameters(const T* flat) override;
  void get_theta(std::int64_t updates, double steps_per_epoch, T* flat) const override;
  void get_slot(int slot, T* flat) const override;
  void set_slot(int slot, const T* flat) override;
  void get_average(T* flat) const override;
  void set_average(const T* flat) override;
  void get_state(T* flat) const override;
  void set_state(const T* flat) override;
  std::vector<std::int64_t> batches() const override { return parameters_.batches; }
  void set_batches(const std::vector<std::int64_t>& counts) override {
    parameters_.batches = counts;
  }
  void reset_optimizer() override;
  void set_optimizer(const OptimizerDescription& optimizer) override;

  void begin_fit(const FitSource& source, std::int64_t batch_size,
                 const Interrupt& interrupt) override;
  RunResult run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                Cursor* cursor) override;
  void end_fit() noexcept override { fit_.reset(); }
  void recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size, std::uint64_t step,
                              const Interrupt& interrupt) override;

  void predict(const ArrayView& x, std::int64_t batch_size, OutputMap map, T* out,
               const Interrupt& interrupt, const char* operation) const override;
  LossTotals evaluate(const Data& data, Targets targets, std::int64_t batch_size,
                      const CustomLoss& custom_loss, const Interrupt& interrupt) const override;
  void activations(const ArrayView& x, bool training, std::uint64_t step,
                   const std::vector<void*>& out, const Interrupt& interrupt) const override;
  LossTotals loss_and_gradient(const Data& data, Targets targets,
                               const GradientRequest<T>& request) const override;
  void release_workspaces() const override {
    const std::lock_guard lock(pool_mutex_);
    pool_.clear();
  }

 private:
  // What a fit reads, with its rows in order where they are copied once ("stack").
  struct Fit {
    FitSource source;
    bool stacked;
    Order order;  // that the copies are in
    RowCopy x, y, weights;
    Data data;

    Fit(const CpuEngine& engine, const FitSource& source_, const Interrupt& interrupt);
  };

  // cpu_update.cpp
  // Makes the update of parts_. False, with nothing changed, when all its rows weigh zero or
  // result->end says why not.
  bool update(const Order& order, const Cursor& cursor, const Interrupt& interrupt,
              RunResult* result);
  int team_size_for(std::int64_t rows);
  void reserve_workspace(std::int64_t rows);
  // Of a vector, only `panels`; the gradient begins with them.
  std::int64_t apply(const UpdateTask& task, Range panels, const T* gradient);
  // f(tensor, its first task, number of its tasks) for all tensors, in the order of the tasks.
  template <class F>
  void for_tensors(F&& f) const;
  // f(index of a task, panels) for this thread's tasks; the panels of a vector are shared, too.
  template <class F>
  void for_own_parts(Team& team, F&& f) const;
  // f(index of a task) for this thread's tasks, then a barrier, as Team::for_each.
  template <class F>
  void for_own_tasks(Team& team, F&& f) const;
  void partial_gradients(Team& team, CpuBackend<T>& backend);
  std::int64_t arena_offset(const UpdateTask& task) const;
  std::int64_t arena_count(const UpdateTask& task) const;
  void stage_running_statistics(const Pass& pass);
  std::string first_layer_not_finite() const;
  std::string first_gradient_not_finite() const;

  // cpu_passes.cpp
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

  // cpu_engine.cpp
  int inference_threads_for(std::int64_t rows) const {
    return inference_threads(plan_, rows, threads_);
  }
  int threads_for(std::int64_t rows, double passes) const {
    return thalweg::useful_threads(plan_, rows, passes, threads_);
  }
  const Parameters<T>& with_fresh_transposed() const;

  const Plan& plan_;
  const int threads_;
  const cpu::Kernels<T>& kernels_;
  mutable Parameters<T> parameters_;  // mutable: the transposed copies are refreshed on demand
  Optimizer<T> optimizer_;
  Arena<T> average_;
  GradientParts<T> gradient_parts_;
  std::vector<UpdateTask> updates_;
  std::vector<bool> keeps_transposed_;  // by tensor: maintained by every step

  // Of training, kept between steps.
  std::optional<Fit> fit_;
  std::unique_ptr<Workspace<T>> workspace_;
  UpdateParts parts_;
  TeamSizer sizer_;
  double average_weight_ = 0.0;  // of the update in progress; 0: none
  Arena<T> gradients_;           // only when the optimizer is not fused with the weight gradients
  Arena<double> task_norms_;
  std::vector<Batch> batches_;
  std::vector<double> part_weights_;
  Arena<T> staged_state_;
  std::vector<std::int64_t> staged_batches_;

  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Workspace<T>>> pool_;  // never grows past its capacity
  mutable std::mutex transposed_mutex_;
  mutable bool transposed_stale_ = false;
};

}  // namespace thalweg
