// What a device does for a model. TypedModel owns what is the same everywhere: checks, epochs,
// callbacks, metrics, messages, files. An Engine owns the values of a model on one device and runs
// passes and updates there.
//
// Calls are coarse. Values cross as canonical flat vectors, bit for bit, so that copies,
// checkpoints and snapshots need to know no layout. They lie in host memory or, where the engine
// has an exchange(), in memory of its device, as do the data and the results of passes. Calls that
// change the model are exclusive; const calls may run from many threads at once.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "math/order.h"
#include "network/pass.h"
#include "network/plan.h"
#include "training/data.h"
#include "training/model.h"

namespace thalweg {

// Where training stands. The epoch's part is valid for the same rows, batch size and order only.
struct Cursor {
  std::int64_t steps = 0;     // updates done
  std::int64_t updates = 0;   // of them by the present optimizer: its t and its schedules' k
  std::int64_t averaged = 0;  // updates that entered the average
  std::int64_t epochs = 0;    // complete epochs
  std::int64_t position = 0;  // rows already visited in the epoch in progress
  std::int64_t rows = 0;
  std::int64_t batch_size = 0;
  std::int64_t accumulate = 1;  // minibatches per update
  Shuffle shuffle = Shuffle::kEpoch;
  double loss = 0.0;  // partial sums of the epoch's metrics
  double hits = 0.0;
  double weight = 0.0;
  std::int64_t skipped_rows = 0;
  double steps_per_epoch = 0.0;  // of the last fit
};

// What updates read; checked, borrowed until end_fit.
struct FitSource {
  Data data;
  Targets targets = Targets::kNone;
  Shuffle shuffle = Shuffle::kNone;
  std::vector<double> class_weights;  // by label; empty: ones
  CustomLoss custom_loss;             // in place of the description's loss
};

// How a run of updates ended.
enum class RunEnd {
  kComplete,           // all updates were made, or the epoch is over
  kDiscarded,          // interrupted before the update in progress wrote anything
  kInterrupted,        // interrupted after a complete update
  kLossNotFinite,      // nothing of the last update was written
  kGradientNotFinite,  // nothing of the last update was written
  kElementsNotFinite,  // the last update is complete but for some elements
};

struct RunResult {
  RunEnd end = RunEnd::kComplete;
  std::int64_t updates = 0;  // made; may be fewer than were asked for
  // Of the last of them.
  LossTotals totals;
  double lr = 0.0;
  double norm = std::numeric_limits<double>::quiet_NaN();  // before clipping; when computed
  // Of a failure.
  double loss = 0.0;                  // that is not finite
  std::string layer;                  // the first whose values, or gradients, are not finite
  std::int64_t skipped_elements = 0;  // parameters left alone for a non-finite gradient
};

// What becomes of the outputs of a prediction.
enum class OutputMap { kIdentity, kSoftmax, kSigmoid, kSigmoidOfTwice };

template <class T>
struct GradientRequest {
  bool training = true;    // batch statistics and dropout, or the evaluation network
  std::uint64_t step = 0;  // keys dropout
  CustomLoss custom_loss;
  T* gradient = nullptr;        // canonical flat; null: not wanted
  T* input_gradient = nullptr;  // [rows, in]; null: not wanted
  Interrupt interrupt;
};

template <class T>
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string device() const = 0;
  // Host threads that a training step on that many rows makes use of.
  virtual int useful_threads(std::int64_t rows) const = 0;
  // Null on the CPU.
  virtual const DeviceExchange* exchange() const { return nullptr; }

  // ---- values
  virtual void get_parameters(T* flat) const = 0;
  virtual void set_parameters(const T* flat) = 0;
  // theta of the look-ahead methods, from the coefficients of update `updates`.
  virtual void get_theta(std::int64_t updates, double steps_per_epoch, T* flat) const = 0;
  virtual void get_slot(int slot, T* flat) const = 0;
  virtual void set_slot(int slot, const T* flat) = 0;
  // Of models with averaging only.
  virtual void get_average(T* flat) const = 0;
  virtual void set_average(const T* flat) = 0;
  // Running mean and variance of each batch norm in turn, [width] each.
  virtual void get_state(T* flat) const = 0;
  virtual void set_state(const T* flat) = 0;
  virtual std::vector<std::int64_t> batches() const = 0;  // num_batches_tracked
  virtual void set_batches(const std::vector<std::int64_t>& counts) = 0;
  // Slots and average to zero.
  virtual void reset_optimizer() = 0;
  // With slots of zero. When it throws, nothing has changed.
  virtual void set_optimizer(const OptimizerDescription& optimizer) = 0;

  // ---- training
  // Between begin_fit and end_fit, run makes updates from `source`.
  virtual void begin_fit(const FitSource& source, std::int64_t batch_size,
                         const Interrupt& interrupt) = 0;
  // At most `updates` >= 1 updates from cursor->position on, to the end of the epoch at most; stops
  // early where it is convenient, but not before one is made or the epoch is over. Moves the
  // cursor, but not to the next epoch, with every update that is complete, whatever is thrown.
  virtual RunResult run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                        Cursor* cursor) = 0;
  virtual void end_fit() noexcept = 0;
  // Device memory that minibatches of so many rows take in training, and memory of the caller's for
  // it, checked and left alone by others until it is replaced; null: the engine allocates. Of
  // engines with an exchange.
  virtual std::size_t workspace_bytes(std::int64_t) const { return 0; }
  virtual void set_workspace(void*, std::size_t) {}
  // Nodes of the graphs that updates are replayed from, the latest used first; none on the CPU.
  virtual std::vector<std::int64_t> graph_nodes() const { return {}; }
  // Sets the running statistics to the mean over batches of each batch's mean and unbiased variance
  // (Ioffe and Szegedy 2015, algorithm 2).
  virtual void recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                                      std::uint64_t step, const Interrupt& interrupt) = 0;

  // ---- pure passes, on checked data. Errors and interrupts name the operation.
  virtual void predict(const ArrayView& x, std::int64_t batch_size, OutputMap map, T* out,
                       const Interrupt& interrupt, const char* operation) const = 0;
  virtual LossTotals evaluate(const Data& data, Targets targets, std::int64_t batch_size,
                              const CustomLoss& custom_loss, const Interrupt& interrupt) const = 0;
  virtual void activations(const ArrayView& x, bool training, std::uint64_t step,
                           const std::vector<void*>& out, const Interrupt& interrupt) const = 0;
  virtual LossTotals loss_and_gradient(const Data& data, Targets targets,
                                       const GradientRequest<T>& request) const = 0;
  // Frees the memory that pure passes keep for later ones.
  virtual void release_workspaces() const = 0;
};

// The plan outlives the engine, and its optimizer description changes only with set_optimizer. The
// stream is the caller's, or null.
template <class T>
std::unique_ptr<Engine<T>> make_engine(const std::string& device, const Plan& plan, int threads,
                                       void* stream);

// ---- rules that every engine follows

// Of `threads`, those that `passes` passes over that many rows make use of on the CPU.
int useful_threads(const Plan& plan, std::int64_t rows, double passes, int threads);
// The same for one inference pass, whose threads keep to rows of their own where shares_rows().
int inference_threads(const Plan& plan, std::int64_t rows, int threads);
// Whether so many threads get nearly equal shares of the row blocks.
bool shares_rows(std::int64_t rows, int threads);
// What multiplies sum(w loss) of rows with that total weight to give the reduced loss.
double loss_scale(const Plan& plan, double weight);
// It is 1 / (weight * divisor), or 1 for the divisor 0.
double loss_scale_divisor(const Plan& plan);
// Of the next update that enters the average; 0: none does.
double average_weight(const Plan& plan, const Cursor& cursor);
// Weighted batch norm in training wants a total weight above 1.
void check_total_weight(const Plan& plan, double weight, const char* operation);

// One minibatch of an update: consecutive positions of the epoch's order.
struct Part {
  std::int64_t position = 0;
  std::int64_t rows = 0;
};

// The minibatches of the update at cursor.position: none when all that is left is a row that batch
// norm cannot use.
struct UpdateParts {
  std::vector<Part> parts;
  std::int64_t end = 0;        // position after the update
  std::int64_t lone_rows = 0;  // left out
};
void next_parts(const Plan& plan, const Cursor& cursor, UpdateParts* update);

}  // namespace thalweg
