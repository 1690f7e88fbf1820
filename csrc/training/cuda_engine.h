// The engine of CUDA. The methods are spread by subject: cuda_engine.cpp (values), cuda_update.cpp
// (training), cuda_passes.cpp (pure passes).
//
// Training runs on one stream. An update is a graph, captured once per shape and queued again for
// each update; what changes from one to the next is read from the StepState and from tables that
// are filled per run, so the host need not wait for any of them. Data sets lie on the device when
// there is room, otherwise minibatches pass through two slots that are filled while the device
// works. Pure passes have streams and workspaces of their own.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cuda/gather.h"
#include "cuda/idle_memory.h"
#include "cuda/optimizer_step.h"
#include "cuda/resources.h"
#include "cuda/step_state.h"
#include "network/cuda_backend.h"
#include "training/cuda_data.h"
#include "training/cuda_exchange.h"
#include "training/engine.h"
#include "training/optimizer_rules.h"

namespace thalweg {

template <class T>
class CudaEngine final : public Engine<T> {
 public:
  // Trains on a stream of its own when none is given.
  CudaEngine(const Plan& plan, int threads, cudaStream_t stream);
  ~CudaEngine() override;

  std::string device() const override { return "cuda"; }
  const DeviceExchange* exchange() const override { return &exchange_; }
  int useful_threads(std::int64_t) const override { return 1; }

  void get_parameters(T* flat) const override;
  void set_parameters(const T* flat) override;
  void get_theta(std::int64_t updates, double steps_per_epoch, T* flat) const override;
  void get_slot(int slot, T* flat) const override;
  void set_slot(int slot, const T* flat) override;
  void get_average(T* flat) const override;
  void set_average(const T* flat) override;
  void get_state(T* flat) const override;
  void set_state(const T* flat) override;
  std::vector<std::int64_t> batches() const override;
  void set_batches(const std::vector<std::int64_t>& counts) override;
  void reset_optimizer() override;
  void set_optimizer(const OptimizerDescription& optimizer) override;

  void begin_fit(const FitSource& source, std::int64_t batch_size,
                 const Interrupt& interrupt) override;
  RunResult run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                Cursor* cursor) override;
  void end_fit() noexcept override;
  std::size_t workspace_bytes(std::int64_t rows) const override;
  void set_workspace(void* memory, std::size_t bytes) override;
  void recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size, std::uint64_t step,
                              const Interrupt& interrupt) override;
  std::vector<std::int64_t> graph_nodes() const override;

  void predict(const ArrayView& x, std::int64_t batch_size, OutputMap map, T* out,
               const Interrupt& interrupt, const char* operation) const override;
  LossTotals evaluate(const Data& data, Targets targets, std::int64_t batch_size,
                      const CustomLoss& custom_loss, const Interrupt& interrupt) const override;
  void activations(const ArrayView& x, bool training, std::uint64_t step,
                   const std::vector<void*>& out, const Interrupt& interrupt) const override;
  LossTotals loss_and_gradient(const Data& data, Targets targets,
                               const GradientRequest<T>& request) const override;
  void release_workspaces() const override;

 private:
  // The optimizer on the device.
  struct Slots {
    OptimizerRules rules;
    std::array<cuda::DeviceArray<T>, kMaxSlots> values;
    cuda::DeviceArray<std::uint8_t> group_of_block, frozen;
    cuda::DeviceArray<std::int32_t> vector_blocks;  // of tensors that move and are no weights

    Slots(const Plan& plan, const CudaLayout& layout, const OptimizerDescription& description,
          cudaStream_t stream);
    cuda::ParameterGroups groups() const {
      return {group_of_block.data(), frozen.data(), rules.groups()};
    }
    T* slot(int index) const { return values[static_cast<std::size_t>(index)].data(); }
  };

  // What a fit reads.
  struct Fit {
    FitSource source;  // in host memory unless it is resident
    Data data;         // the resident form, in device memory
    bool resident = false;
    bool weighted = false;
    std::optional<HostTargets> host;  // when the host has to read targets that came on the device
  };

  // One minibatch of the update being queued.
  struct Minibatch {
    Data data;  // on the device
    cuda::RowOrder order;
    std::int64_t rows = 0;
    std::int64_t first_row = 0;  // in the update
    bool whole = true;           // the update has no other
  };

  // What makes two captured pieces of work the same.
  struct Shape {
    std::array<const void*, 3> data{};
    std::array<std::array<std::int64_t, 3>, 3> strides{};  // row, column, columns
    std::array<DType, 3> dtypes{};
    Targets targets = Targets::kNone;
    bool class_weights = false;
    bool resident = false;
    bool whole = false;
    std::int64_t first_row = 0;  // of the update
    std::int64_t batch = 0;      // rows of the first minibatch
    std::int64_t rows = 0;       // of the update; 0: it goes on
    bool operator==(const Shape&) const = default;
  };
  struct Step {
    Shape shape;
    cuda::Graph graph;
  };
  static constexpr std::size_t kMostSteps = 64;

  // Most updates of a run.
  static constexpr std::int64_t kRunUpdates = 256;
  struct Planned {
    UpdateParts parts;
    std::int64_t begin = 0;
    std::int64_t rows = 0;  // of the parts
    double weight = 0.0;    // of the parts
  };

  // A stream and a workspace for pure passes.
  struct Lane {
    cuda::Stream stream;
    CudaWorkspace<T> workspace;
    cuda::DeviceArray<cuda::StepState> state;
    std::optional<CudaStaging> staging;
    // Two slots each of [capacity, out_features].
    cuda::DeviceArray<T> outputs;
    cuda::PinnedArray<T> host_outputs;
    std::array<cuda::Event, CudaStaging::kSlots> finished;

    Lane(const Plan& plan, const CudaParameters<T>& parameters, std::int64_t rows, bool gradients);
  };
  class Lease;  // of a lane out of the pool
  static constexpr std::size_t kPooledLanes = 8;
  // Empties the pool; whether it had any lane.
  bool release_lanes() const noexcept;

  // cuda_engine.cpp
  T* slot(int index) const { return slots_.slot(index); }

  // cuda_update.cpp
  void reserve_workspace(std::int64_t rows);
  // What a region has to hold, in this order; of their own memory without one.
  cuda::DeviceArray<T> take_gradients(cuda::Region* region) const;
  std::unique_ptr<CudaWorkspace<T>> take_workspace(std::int64_t rows, cuda::Region* region) const;
  std::int64_t plan_run(const Cursor& cursor, std::int64_t updates);
  double weigh(const Order& order, const Part& part, const Interrupt& interrupt) const;
  std::int64_t weigh_updates(const Order& order, std::int64_t count, const Cursor& cursor,
                             const Interrupt& interrupt);
  void fill_tables(const Cursor& cursor, std::int64_t rows);
  void upload_state(const Order& order, const Cursor& cursor);
  void download_state();
  Minibatch resident_minibatch(const Planned& update, std::size_t part) const;
  Minibatch staged_minibatch(const Order& order, const Planned& update, std::size_t part);
  Shape shape_of(const Minibatch& first, std::int64_t rows) const;
  // Queues what queue(stream) queues, out of a graph.
  template <class Queue>
  void replay(const Shape& shape, Queue&& queue);
  Pass training_pass(const Minibatch& minibatch) const;
  CudaResults<T> training_results(const Minibatch& minibatch) const;
  void queue_gather(const Minibatch& minibatch, cudaStream_t stream);
  void queue_minibatch(const Minibatch& minibatch, cudaStream_t stream);
  void queue_backward(CudaBackend<T>& backend, const Minibatch& minibatch, cudaStream_t stream);
  void queue_finish(std::int64_t rows, bool whole, cudaStream_t stream);
  void queue_weight(double weight, double scale, std::int64_t index);
  void queue_update(const Order& order, const Planned& update, std::int64_t index);
  RunResult run_custom(const Order& order, const Interrupt& interrupt, Cursor* cursor);
  std::int64_t count_updates(std::int64_t queued, Cursor* cursor) const;
  RunResult finish_run(const Order& order, std::int64_t queued, bool stopped, Cursor* cursor);
  template <class After>
  void run_again(const Order& order, const Planned& update, After&& after);
  std::string first_layer_not_finite(const Order& order, const Planned& update);
  std::string first_gradient_not_finite(const Order& order, const Planned& update);
  std::string layer_not_finite() const;
  std::string gradient_not_finite() const;
  bool keeps_gradients() const {
    return plan_.description.clip_norm.has_value() ||
           plan_.description.check_finite == CheckFinite::kGradients;
  }

  // cuda_passes.cpp
  // Chunk by chunk: the inference pass, queue(lane, backend, slot, rows), and when the device is
  // done with them, finish(lane, slot, first, rows).
  template <class Queue, class Finish>
  void infer(Lane& lane, const Data& data, Targets targets, std::int64_t chunk, bool with_loss,
             const Interrupt& interrupt, const char* operation, Queue&& queue,
             Finish&& finish) const;
  // Whole arrays, staged where they lie in host memory.
  Data stage_all(Lane& lane, const Data& data, const Interrupt& interrupt) const;

  const Plan& plan_;
  const int threads_;
  const int device_;
  cuda::Stream stream_;   // the caller's, or its own
  cuda::Stream capture_;  // graphs are captured here: nobody else queues anything on it
  CudaExchange exchange_;
  CudaParameters<T> parameters_;
  Slots slots_;
  cuda::DeviceArray<T> average_;
  cuda::DeviceArray<T> gradients_;     // an arena like the parameters'
  cuda::DeviceArray<double> squares_;  // see CudaResults; zero where nothing moves

  // Of training, kept between steps.
  std::optional<Fit> fit_;
  std::unique_ptr<CudaWorkspace<T>> workspace_;
  void* workspace_memory_ = nullptr;  // the caller's, or null
  std::size_t workspace_memory_bytes_ = 0;
  cuda::DeviceArray<cuda::StepState> state_;
  cuda::PinnedArray<cuda::StepState> host_state_;
  cuda::PinnedArray<int> host_status_;  // of the state, looked at during a run
  // Tables with a row per update of a run.
  cuda::PinnedArray<double> host_coefficients_, host_average_weights_;
  cuda::DeviceArray<double> coefficients_, average_weights_;
  cuda::PinnedArray<double> update_weights_;  // weight and scale of the loss's gradient
  std::vector<double> lr_;
  std::vector<Planned> planned_;
  cuda::DeviceArray<T> staged_state_;  // running statistics of an update in several parts
  cuda::DeviceArray<std::int64_t> staged_batches_;
  cuda::DeviceArray<double> class_weights_;
  cuda::DeviceArray<std::byte> resident_;
  PlacedBatch placed_;
  std::optional<CudaStaging> staging_;
  int slot_ = 0;                                        // of the minibatch staged last
  std::list<Step> steps_;                               // the latest used first
  std::vector<std::unique_ptr<cuda::Event>> finished_;  // of updates in flight
  std::int64_t most_queued_ = 2;

  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Lane>> pool_;
  cuda::IdleMemory idle_lanes_;
};

}  // namespace thalweg
