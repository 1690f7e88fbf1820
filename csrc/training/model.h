// A trainable model: parameters, optimizer state and data cursor of one description on one device.
// This is what the C interface and the Python module hold; everything below it is typed and
// planned.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/array_view.h"
#include "core/export.h"
#include "core/thread_pool.h"
#include "math/order.h"
#include "network/description.h"
#include "training/device_exchange.h"

namespace thalweg {

// Rows of a data set, borrowed. Cross-entropy takes integer labels (one-dimensional) or
// probabilities [rows, out]; the other losses take values [rows, out] or [rows] when there is one
// output.
struct Data {
  ArrayView x;
  ArrayView y;        // absent for prediction
  ArrayView weights;  // optional, one-dimensional, >= 0
};

struct Metrics {
  double loss = 0.0;      // reduced as the description says, over all rows seen
  double accuracy = 0.0;  // weighted share of right decisions; NaN where the loss has no classes
  double weight = 0.0;    // total weight
};

struct EpochRecord {
  std::int64_t epoch = 0;  // counted from 1 over the life of the model
  Metrics train;
  std::optional<Metrics> validation;
  double lr = 0.0;  // of the last update
  double seconds = 0.0;
  double samples_per_second = 0.0;
  std::int64_t steps = 0;         // updates in this epoch
  std::int64_t skipped_rows = 0;  // a tail of one row under batch norm
};

struct StepRecord {
  std::int64_t step = 0;  // updates done over the life of the model
  Metrics metrics;        // of the minibatch
  double lr = 0.0;
  double gradient_norm =
      std::numeric_limits<double>::quiet_NaN();  // before clipping; when computed
};

enum class Monitor { kValidationLoss, kValidationAccuracy, kLoss, kAccuracy };

struct EarlyStopping {
  Monitor monitor = Monitor::kValidationLoss;
  std::int64_t patience = 10;  // epochs without improvement
  double min_delta = 0.0;
  bool restore_best = true;
};

struct FitOptions {
  std::int64_t epochs = 1;
  std::int64_t batch_size = 32;  // 0: all rows in one batch
  Shuffle shuffle = Shuffle::kEpoch;
  std::int64_t accumulate = 1;  // minibatches per update
  Data validation;
  std::vector<double> class_weights;  // by label; empty: ones
  std::optional<EarlyStopping> early_stopping;
  std::optional<std::int64_t> max_steps;  // updates in this call
  std::optional<double> stop_at_loss;     // stop after an epoch whose training loss is below
  // After each epoch, and after every `every` updates. Returning false stops training after it.
  std::function<bool(const EpochRecord&)> on_epoch;
  std::function<bool(const StepRecord&)> on_step;
  std::int64_t every = 0;
  Interrupt interrupt;
  bool data_checked = false;  // check_fit has looked at every element of the data before
};

struct FitResult {
  std::vector<EpochRecord> epochs;
  // "epochs", "max_steps", "early_stopping", "stop_at_loss", "callback"; of a member of a
  // population also "non_finite"
  std::string stopped_because;
  std::int64_t best_epoch = 0;  // with early stopping
};

// Value and gradient of a caller-supplied loss on a row-major minibatch of outputs [rows, out] in
// the model's element type. Writes the gradient of the returned value; throws CallbackFailed to
// stop.
using CustomLoss = std::function<double(const void* outputs, const std::int64_t* row_index,
                                        std::int64_t rows, void* gradient)>;

struct TensorInfo {
  std::string name;                 // "layers.0.weight"
  std::vector<std::int64_t> shape;  // canonical: [out, in], [width]
  std::int64_t offset = 0;          // in the canonical flat vector
  std::int64_t size = 0;
};

struct LayerInfo {
  std::string name;  // "layers.0"
  std::string type;  // "dense"
  std::int64_t out_features = 0;
  std::int64_t parameters = 0;
};

struct GradientOptions {
  bool training = true;  // batch statistics and dropout, or the evaluation network
  CustomLoss custom_loss;
  Interrupt interrupt;
};

class TW_INTERNAL_API Model {
 public:
  // device: "auto", "cpu", "cuda". threads 0: the default of the pool. stream: that of a model on
  // "cuda", the caller's, or null; copies run on it too.
  static std::unique_ptr<Model> create(const Description& description, const std::string& device,
                                       int threads, void* stream = nullptr);
  static std::unique_ptr<Model> load(const std::string& path, const std::string& device,
                                     int threads, void* stream = nullptr);
  virtual ~Model() = default;
  virtual std::unique_ptr<Model> copy() const = 0;

  virtual const Description& description() const = 0;
  virtual std::string device() const = 0;
  // Of a model on a device: its data and results, and vectors of num_parameters(), may lie there.
  // Null on the CPU.
  virtual const DeviceExchange* exchange() const = 0;
  virtual int threads() const = 0;
  // Of them, those that a training step on that many rows makes use of.
  virtual int useful_threads(std::int64_t rows) const = 0;
  virtual std::int64_t out_features() const = 0;
  virtual const std::vector<TensorInfo>& tensors() const = 0;  // trainable, checkpoint order
  virtual const std::vector<LayerInfo>& layers() const = 0;
  virtual std::int64_t num_parameters() const = 0;
  virtual std::int64_t steps_done() const = 0;
  virtual std::int64_t epochs_done() const = 0;
  virtual std::string plan_summary() const = 0;  // one line per planned node
  // Nodes of the CUDA graphs that updates are replayed from, the latest used first.
  virtual std::vector<std::int64_t> graph_nodes() const = 0;

  // ---- memory of the caller's for training on a device; DeviceError on the CPU
  // What minibatches of `batch_size` rows take.
  virtual std::size_t workspace_bytes(std::int64_t batch_size) const = 0;
  // Nobody else writes there until it is replaced; null: memory of the model's own. Exclusive.
  virtual void set_workspace(void* memory, std::size_t bytes) = 0;

  // ---- training. Calls that write are exclusive: the caller serializes them.
  virtual FitResult fit(const Data& data, const FitOptions& options) = 0;
  // Throws what fit would throw before it writes anything.
  virtual void check_fit(const Data& data, const FitOptions& options) const = 0;
  virtual StepRecord step(const Data& data, const Interrupt& interrupt = {},
                          const CustomLoss& custom_loss = {}) = 0;
  virtual void set_custom_loss(CustomLoss loss) = 0;  // for fit and evaluate
  virtual void reset() = 0;                           // parameters, state, counters as after create
  // Its slots, its count of updates and its schedules start at zero.
  virtual void set_optimizer(const OptimizerDescription& optimizer) = 0;
  // How often the method of the optimizer left its rule, by name; empty without a method.
  virtual std::vector<std::pair<std::string, std::int64_t>> fallbacks() const = 0;
  virtual void recalibrate_batch_norm(const ArrayView& x, std::int64_t batch_size,
                                      const Interrupt& interrupt = {}) = 0;

  // ---- pure evaluation; may run from many threads at once
  virtual Metrics evaluate(const Data& data, std::int64_t batch_size,
                           const Interrupt& interrupt = {}) const = 0;
  // Row-major [rows, out] in the model's element type.
  virtual void predict(const ArrayView& x, std::int64_t batch_size, void* out,
                       const Interrupt& interrupt = {}) const = 0;
  // Softmax, sigmoid or identity of the outputs, by the loss.
  virtual void predict_probabilities(const ArrayView& x, std::int64_t batch_size, void* out,
                                     const Interrupt& interrupt = {}) const = 0;
  // Outputs of every top-level layer for one batch: out[i] is row-major [rows, layer i's width].
  virtual void activations(const ArrayView& x, bool training, const std::vector<void*>& out,
                           const Interrupt& interrupt = {}) const = 0;
  // gradient (canonical flat) and input_gradient ([rows, in]) may be null.
  virtual Metrics loss_and_gradient(const Data& data, const GradientOptions& options,
                                    void* gradient, void* input_gradient) const = 0;

  // Frees the memory that pure calls keep for later ones.
  virtual void release_workspaces() const = 0;

  // ---- values, canonical flat vectors in the model's element type unless said otherwise
  virtual void get_parameters(void* out) const = 0;
  virtual void set_parameters(const void* in) = 0;
  virtual void get_theta(void* out) const = 0;    // the look-ahead methods' theta
  virtual bool get_average(void* out) const = 0;  // false: no averaging
  virtual std::vector<std::string> slot_names() const = 0;
  virtual void get_slot(int slot, void* out) const = 0;
  // Batch-norm buffers "layers.1.running_mean" ... (num_batches_tracked is int64 and apart).
  virtual const std::vector<TensorInfo>& state_tensors() const = 0;
  virtual void get_state(void* out) const = 0;  // canonical, in the order of state_tensors()
  virtual void set_state(const void* in) = 0;
  virtual std::vector<std::int64_t> batches_tracked() const = 0;  // per batch norm
  virtual void set_batches_tracked(const std::vector<std::int64_t>& counts) = 0;

  // ---- files
  virtual void save(const std::string& path) const = 0;
  // Parameters and batch-norm buffers by name from any safetensors file (PyTorch Sequential names).
  virtual void load_weights(const std::string& path) = 0;
};

}  // namespace thalweg
