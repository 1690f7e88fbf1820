// The C++ interface of thalweg: a header-only wrapper over the C interface.
//
//   #include <thalweg/thalweg.h>
//   namespace tw = thalweg;
//
//   tw::Model model({tw::Dense{512}, tw::BatchNorm{}, tw::ReLU{}, tw::Dense{10}},
//                   {.in_features = 784, .seed = 0});
//   model.fit(x, labels, {.epochs = 10, .batch_size = 128});
//   model.save("mnist.safetensors");
//
// Data come in as Array (array.h), which any contiguous range of numbers converts to; results come
// back as std::vector. Failures are exceptions (error.h); one that leaves a callback comes out of
// the call that ran it. Const member functions may run on one model from many threads at once; the
// others need exclusive use. Only C crosses the boundary of the library, so applications may use
// any C++20 compiler and standard library.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "thalweg/array.h"
#include "thalweg/description.h"
#include "thalweg/error.h"
#include "thalweg/thalweg_c.h"
#include "thalweg/version.h"

namespace thalweg {
inline namespace wrapper {

// Asked every few milliseconds; true stops the call with Interrupted within 250 ms.
using Interrupt = std::function<bool()>;

struct Placement {
  std::string device = "auto";  // "auto", "cpu" or "cuda"
  int threads = 0;              // 0: default_threads()
  void* stream = nullptr;       // the CUDA stream that a model on "cuda" trains on, or its own
};

enum class CheckFinite { kLoss, kGradients };

// Accuracy of float32 matrix products: as of float32 arithmetic; of operands rounded to 16
// significant bits; of operands and activations rounded to bfloat16. A device takes what is fastest
// at that accuracy or a better one.
enum class MatmulPrecision { kHighest, kHigh, kMedium };

struct ModelOptions {
  std::int64_t in_features;
  Loss loss = CrossEntropy{};
  Optimizer optimizer = Adam{};
  std::string device = "auto";
  std::uint64_t seed = 0;
  DType dtype = DType::kFloat32;
  std::optional<Averaging> averaging = {};
  std::optional<double> clip_norm = {};
  CheckFinite check_finite = CheckFinite::kLoss;
  MatmulPrecision matmul_precision = MatmulPrecision::kHighest;
  int threads = 0;
  void* stream = nullptr;
};

struct Metrics {
  double loss = 0.0;
  double accuracy = 0.0;  // NaN when the loss has no classes
  double weight = 0.0;    // total weight of the rows
};

struct EpochRecord {
  std::int64_t epoch = 0;  // from 1, over the life of the model
  Metrics train;
  std::optional<Metrics> validation = {};
  double lr = 0.0;
  double seconds = 0.0;
  double samples_per_second = 0.0;
  std::int64_t steps = 0;
  std::int64_t skipped_rows = 0;  // a last batch of one row under batch norm
};

struct StepRecord {
  std::int64_t step = 0;  // updates done, over the life of the model
  Metrics metrics;
  double lr = 0.0;
  double gradient_norm = std::numeric_limits<double>::quiet_NaN();  // when it was computed
};

struct History {
  std::vector<EpochRecord> epochs;
  std::string
      stopped_because;  // "epochs", "max_steps", "early_stopping", "stop_at_loss", "callback"
  std::int64_t best_epoch = 0;  // with early stopping
};

enum class Shuffle { kEpoch, kStack, kIid, kNone };
enum class Monitor { kValidationLoss, kValidationAccuracy, kLoss, kAccuracy };

struct Validation {
  Array x;
  Array y;
  std::optional<Array> sample_weight = {};
};

struct EarlyStopping {
  Monitor monitor = Monitor::kValidationLoss;
  std::int64_t patience = 10;  // epochs without improvement
  double min_delta = 0.0;
  bool restore_best = true;
};

struct FitOptions {
  std::int64_t epochs = 1;
  std::optional<std::int64_t> batch_size = 32;  // std::nullopt: all rows
  std::optional<Validation> validation_data = {};
  std::optional<Array> sample_weight = {};
  std::vector<double> class_weight = {};  // one factor per label
  Shuffle shuffle = Shuffle::kEpoch;
  std::int64_t accumulate = 1;  // batches per update
  std::optional<EarlyStopping> early_stopping = {};
  std::optional<std::int64_t> max_steps = {};  // updates in this call
  std::optional<double> stop_at_loss = {};
  // Answering true ends the training in good order.
  std::function<bool(const EpochRecord&)> on_epoch = {};
  std::function<bool(const StepRecord&)> on_step = {};
  std::int64_t callback_every = 1;  // updates between two calls of on_step
  Interrupt interrupt = {};
};

struct RunOptions {
  std::int64_t batch_size = 1024;
  Interrupt interrupt = {};
};

struct GradientOptions {
  std::optional<Array> sample_weight = {};
  bool training = true;         // batch statistics and dropout
  bool input_gradient = false;  // with respect to x as well
  Interrupt interrupt = {};
};

template <class T>
struct LossAndGradient {
  Metrics metrics;
  std::vector<T> gradient;        // [num_parameters]
  std::vector<T> input_gradient;  // [rows, in_features], or empty
};

// One tensor of a flat vector of values.
struct TensorInfo {
  std::string name;                 // "layers.0.weight"
  std::vector<std::int64_t> shape;  // [out, in] or [width]
  std::int64_t offset = 0;
  std::int64_t size = 0;
};

namespace detail {

// Results in the caller's element type; the library writes the model's.
template <class T>
concept Real = std::same_as<T, float> || std::same_as<T, double>;

struct ModelDeleter {
  void operator()(tw_model* model) const noexcept { tw_model_destroy(model); }
};
struct FitResultDeleter {
  void operator()(tw_fit_result* result) const noexcept { tw_fit_result_destroy(result); }
};

inline std::string take_string(char* owned) {
  const std::unique_ptr<char, void (*)(char*)> string(owned, tw_string_destroy);
  return string.get();
}

inline Metrics to_cpp(const tw_metrics& metrics) {
  return {metrics.loss, metrics.accuracy, metrics.weight};
}

inline EpochRecord to_cpp(const tw_epoch_record& record) {
  EpochRecord out;
  out.epoch = record.epoch;
  out.train = to_cpp(record.train);
  if (record.validation.weight > 0.0) out.validation = to_cpp(record.validation);
  out.lr = record.lr;
  out.seconds = record.seconds;
  out.samples_per_second = record.samples_per_second;
  out.steps = record.steps;
  out.skipped_rows = record.skipped_rows;
  return out;
}

inline StepRecord to_cpp(const tw_step_record& record) {
  return {record.step, to_cpp(record.metrics), record.lr, record.gradient_norm};
}

inline std::int64_t positive(std::int64_t value, const char* name) {
  if (value > 0) return value;
  throw ValueError(std::string("[options] expected ") + name + " > 0, got " +
                   std::to_string(value));
}

inline const tw_array* pointer_to(const std::optional<Array>& array) {
  return array ? &array->c_array() : nullptr;
}

// Callbacks of the C interface whose user_data is a pointer to the caller's options.
template <class Options>
std::int32_t ask_interrupt(void* options) {
  return contained(1, [&] { return static_cast<const Options*>(options)->interrupt() ? 1 : 0; });
}

inline std::int32_t call_on_epoch(const tw_epoch_record* record, void* options) {
  return contained(TW_FAIL, [&]() -> std::int32_t {
    return static_cast<const FitOptions*>(options)->on_epoch(to_cpp(*record)) ? TW_STOP
                                                                              : TW_CONTINUE;
  });
}

inline std::int32_t call_on_step(const tw_step_record* record, void* options) {
  return contained(TW_FAIL, [&]() -> std::int32_t {
    return static_cast<const FitOptions*>(options)->on_step(to_cpp(*record)) ? TW_STOP
                                                                             : TW_CONTINUE;
  });
}

// Sets interrupt and user_data of a C option structure.
template <class COptions, class Options>
void set_interrupt(COptions& out, const Options& options) {
  out.user_data = const_cast<Options*>(&options);
  if (options.interrupt) out.interrupt = &ask_interrupt<Options>;
}

inline tw_run_options to_c(const RunOptions& options) {
  tw_run_options out{};
  out.struct_size = sizeof(out);
  out.batch_size = positive(options.batch_size, "batch_size");
  set_interrupt(out, options);
  return out;
}

inline tw_model_options to_c(const Placement& placement) {
  tw_model_options out{};
  out.struct_size = sizeof(out);
  out.device = placement.device.c_str();
  out.threads = placement.threads;
  out.stream = placement.stream;
  return out;
}

}  // namespace detail

inline std::string version() { return tw_version(); }
inline int default_threads() { return tw_default_threads(); }
inline bool cuda_available() { return tw_cuda_available() != 0; }
inline std::string describe_system() {
  char* text = nullptr;
  detail::check(tw_describe_system(&text));
  return detail::take_string(text);
}

class Model {
 public:
  Model(const std::vector<Layer>& layers, const ModelOptions& options)
      : Model(create(description_of(layers, options),
                     {options.device, options.threads, options.stream})) {}

  // From the JSON that description() returns.
  static Model from_description(const std::string& json, const Placement& placement = {}) {
    return Model(create(json, placement));
  }

  // From a checkpoint, written in any language.
  static Model load(const std::string& path, const Placement& placement = {}) {
    const tw_model_options options = detail::to_c(placement);
    tw_model* model = nullptr;
    detail::check(tw_model_load(path.c_str(), &options, &model));
    return Model(model);
  }

  Model copy() const {
    tw_model* twin = nullptr;
    detail::check(tw_model_copy(get(), &twin));
    Model out(twin);
    out.custom_loss_ = custom_loss_;
    return out;
  }

  void save(const std::string& path) const { detail::check(tw_model_save(get(), path.c_str())); }
  // Parameters and batch-norm statistics by name from any safetensors file.
  void load_weights(const std::string& path) {
    detail::check(tw_model_load_weights(get(), path.c_str()));
  }
  void reset() { detail::check(tw_model_reset(get())); }

  // ---- Facts

  std::int64_t in_features() const { return tw_model_in_features(get()); }
  std::int64_t out_features() const { return tw_model_out_features(get()); }
  std::int64_t num_parameters() const { return tw_model_num_parameters(get()); }
  std::int64_t steps_done() const { return tw_model_steps_done(get()); }
  std::int64_t epochs_done() const { return tw_model_epochs_done(get()); }
  DType dtype() const { return static_cast<DType>(tw_model_dtype(get())); }
  int threads() const { return tw_model_threads(get()); }
  std::string device() const { return tw_model_device(get()); }
  std::string description() const {
    char* json = nullptr;
    detail::check(tw_model_description(get(), &json));
    return detail::take_string(json);
  }
  std::string plan_summary() const {
    char* text = nullptr;
    detail::check(tw_model_plan_summary(get(), &text));
    return detail::take_string(text);
  }
  // The model of the C interface; owned by this object.
  tw_model* get() const noexcept { return model_.get(); }

  // ---- Memory of the application's for training on "cuda", see thalweg_c.h

  std::size_t workspace_bytes(std::int64_t batch_size) const {
    std::size_t bytes = 0;
    detail::check(tw_model_workspace_bytes(get(), batch_size, &bytes));
    return bytes;
  }
  void set_workspace(void* memory, std::size_t bytes) {
    detail::check(tw_model_set_workspace(get(), memory, bytes));
  }

  // ---- Training

  History fit(const Array& x, const Array& y, const FitOptions& options = {}) {
    tw_fit_options out{};
    out.struct_size = sizeof(out);
    out.epochs = detail::positive(options.epochs, "epochs");
    out.batch_size = options.batch_size ? detail::positive(*options.batch_size, "batch_size")
                                        : std::int64_t{TW_FULL_BATCH};
    out.shuffle = static_cast<std::int32_t>(options.shuffle);
    out.accumulate = detail::positive(options.accumulate, "accumulate");
    std::optional<DataSet> validation;
    if (options.validation_data) {
      validation.emplace(*this, options.validation_data->x, options.validation_data->y);
      out.validation_x = &validation->x;
      out.validation_y = &validation->y;
      out.validation_weights = detail::pointer_to(options.validation_data->sample_weight);
    }
    if (!options.class_weight.empty()) {
      out.class_weights = options.class_weight.data();
      out.num_class_weights = static_cast<std::int64_t>(options.class_weight.size());
    }
    tw_early_stopping early_stopping{};
    if (options.early_stopping) {
      early_stopping.struct_size = sizeof(early_stopping);
      early_stopping.monitor = static_cast<std::int32_t>(options.early_stopping->monitor);
      early_stopping.keep_last = options.early_stopping->restore_best ? 0 : 1;
      early_stopping.patience = detail::positive(options.early_stopping->patience, "patience");
      early_stopping.min_delta = options.early_stopping->min_delta;
      out.early_stopping = &early_stopping;
    }
    if (options.max_steps) out.max_steps = detail::positive(*options.max_steps, "max_steps");
    out.has_stop_at_loss = options.stop_at_loss ? 1 : 0;
    out.stop_at_loss = options.stop_at_loss.value_or(0.0);
    if (options.on_epoch) out.on_epoch = &detail::call_on_epoch;
    if (options.on_step) out.on_step = &detail::call_on_step;
    out.callback_every = detail::positive(options.callback_every, "callback_every");
    detail::set_interrupt(out, options);

    const DataSet data(*this, x, y);
    tw_fit_result* result = nullptr;
    const tw_status status = tw_model_fit(get(), &data.x, &data.y,
                                          detail::pointer_to(options.sample_weight), &out, &result);
    const std::unique_ptr<tw_fit_result, detail::FitResultDeleter> owner(result);
    detail::check(status);
    return history_of(result);
  }

  // One update on the given rows as one batch.
  StepRecord step(const Array& x, const Array& y, const std::optional<Array>& sample_weight = {}) {
    const DataSet data(*this, x, y);
    tw_step_record record{};
    record.struct_size = sizeof(record);
    detail::check(
        tw_model_step(get(), &data.x, &data.y, detail::pointer_to(sample_weight), &record));
    return detail::to_cpp(record);
  }

  // The optimizer's state starts at zero.
  void set_optimizer(const Optimizer& optimizer) {
    detail::check(tw_model_set_optimizer(get(), optimizer.json().c_str()));
  }

  // The loss of a model described with CustomLoss{}: function(outputs [rows, out_features], indices
  // of the rows in the data set, gradient to write) returns the value. T is the model's element
  // type.
  template <detail::Real T>
  void set_custom_loss(
      std::function<double(std::span<const T>, std::span<const std::int64_t>, std::span<T>)>
          function) {
    expect_dtype<T>("set_custom_loss");
    auto context = std::make_shared<CustomLossContext<T>>(
        CustomLossContext<T>{std::move(function), static_cast<std::size_t>(out_features())});
    detail::check(tw_model_set_custom_loss(get(), &CustomLossContext<T>::call, context.get()));
    custom_loss_ = std::move(context);
  }

  // Running statistics of all batch norms as averages over x.
  void recalibrate_batch_norm(const Array& x, const RunOptions& options = {}) {
    const tw_array input = x.with_columns(in_features()).c_array();
    const tw_run_options out = detail::to_c(options);
    detail::check(tw_model_recalibrate_batch_norm(get(), &input, &out));
  }

  // ---- Evaluation

  Metrics evaluate(const Array& x, const Array& y, const std::optional<Array>& sample_weight = {},
                   const RunOptions& options = {}) const {
    const DataSet data(*this, x, y);
    const tw_run_options out = detail::to_c(options);
    tw_metrics metrics{};
    detail::check(tw_model_evaluate(get(), &data.x, &data.y, detail::pointer_to(sample_weight),
                                    &out, &metrics));
    return detail::to_cpp(metrics);
  }

  // Outputs, row-major [rows, out_features].
  template <detail::Real T = float>
  std::vector<T> predict(const Array& x, const RunOptions& options = {}) const {
    return predict_with<T>(tw_model_predict, x, options);
  }

  // Softmax, sigmoid or identity of the outputs, by the loss.
  template <detail::Real T = float>
  std::vector<T> predict_probabilities(const Array& x, const RunOptions& options = {}) const {
    return predict_with<T>(tw_model_predict_probabilities, x, options);
  }

  // Without allocation in the application: out has rows * out_features elements of the model's
  // type.
  template <detail::Real T>
  void predict_into(const Array& x, std::span<T> out, const RunOptions& options = {}) const {
    expect_dtype<T>("predict_into");
    const tw_array input = x.with_columns(in_features()).c_array();
    const tw_run_options c_options = detail::to_c(options);
    detail::check(tw_model_predict(get(), &input, &c_options, out.data(), out.size_bytes()));
  }

  // Of the loss on the given rows as one batch; changes nothing.
  template <detail::Real T = float>
  LossAndGradient<T> loss_and_gradient(const Array& x, const Array& y,
                                       const GradientOptions& options = {}) const {
    const DataSet data(*this, x, y);
    tw_gradient_options out{};
    out.struct_size = sizeof(out);
    out.evaluation_mode = options.training ? 0 : 1;
    detail::set_interrupt(out, options);
    const std::int64_t inputs =
        options.input_gradient ? count_of(data.x.shape[0], data.x.shape[1]) : 0;
    LossAndGradient<T> result;
    result.gradient = values<T>(num_parameters(), [&](void* gradient, std::size_t bytes) {
      result.input_gradient = values<T>(inputs, [&](void* input_gradient, std::size_t input_bytes) {
        tw_metrics metrics{};
        detail::check(tw_model_loss_and_gradient(
            get(), &data.x, &data.y, detail::pointer_to(options.sample_weight), &out, &metrics,
            gradient, bytes, options.input_gradient ? input_gradient : nullptr, input_bytes));
        result.metrics = detail::to_cpp(metrics);
      });
    });
    return result;
  }

  // ---- Values: flat vectors in the order of tensors()

  std::vector<TensorInfo> tensors() const { return list_tensors(TW_TENSORS_PARAMETERS); }
  std::vector<TensorInfo> state_tensors() const { return list_tensors(TW_TENSORS_STATE); }

  template <detail::Real T = float>
  std::vector<T> parameters() const {
    return values_of<T>(tw_model_get_parameters);
  }
  void set_parameters(std::span<const float> parameters) {
    set_values(tw_model_set_parameters, parameters);
  }
  void set_parameters(std::span<const double> parameters) {
    set_values(tw_model_set_parameters, parameters);
  }
  // The iterate of the look-ahead methods; the parameters for all others.
  template <detail::Real T = float>
  std::vector<T> theta() const {
    return values_of<T>(tw_model_get_theta);
  }
  // The Polyak or exponential average; ValueError when the description asks for none.
  template <detail::Real T = float>
  std::vector<T> average() const {
    return values_of<T>(tw_model_get_average);
  }

  std::vector<std::string> slot_names() const {
    std::vector<std::string> names;
    for (std::int64_t slot = 0; slot < tw_model_num_slots(get()); ++slot) {
      char* name = nullptr;
      detail::check(tw_model_slot_name(get(), slot, &name));
      names.push_back(detail::take_string(name));
    }
    return names;
  }
  template <detail::Real T = float>
  std::vector<T> slot(std::int64_t index) const {
    return values<T>(num_parameters(), [&](void* out, std::size_t bytes) {
      detail::check(tw_model_get_slot(get(), index, out, bytes));
    });
  }

  // Running means and variances, in the order of state_tensors().
  template <detail::Real T = float>
  std::vector<T> state() const {
    std::int64_t size = 0;
    for (const TensorInfo& tensor : state_tensors()) size += tensor.size;
    return values<T>(size, [&](void* out, std::size_t bytes) {
      detail::check(tw_model_get_state(get(), out, bytes));
    });
  }
  void set_state(std::span<const float> state) { set_values(tw_model_set_state, state); }
  void set_state(std::span<const double> state) { set_values(tw_model_set_state, state); }

 private:
  using Predict = tw_status (*)(const tw_model*, const tw_array*, const tw_run_options*, void*,
                                std::size_t);
  using Getter = tw_status (*)(const tw_model*, void*, std::size_t);
  using Setter = tw_status (*)(tw_model*, const void*, std::size_t);

  // x and y as matrices where they were given flat.
  struct DataSet {
    tw_array x;
    tw_array y;
    DataSet(const Model& model, const Array& inputs, const Array& targets)
        : x(inputs.with_columns(model.in_features()).c_array()), y(targets.c_array()) {
      const std::int64_t rows = x.shape[0], outputs = model.out_features();
      if (y.ndim == 1 && y.shape[0] != rows && rows > 0 && y.shape[0] / rows == outputs &&
          y.shape[0] % rows == 0)
        y = targets.with_columns(outputs).c_array();
    }
  };

  template <class T>
  struct CustomLossContext {
    std::function<double(std::span<const T>, std::span<const std::int64_t>, std::span<T>)> function;
    std::size_t outputs;

    static std::int32_t call(const void* out, const std::int64_t* row_index, std::int64_t rows,
                             double* value, void* gradient, void* user_data) {
      return detail::contained(TW_FAIL, [&]() -> std::int32_t {
        auto& context = *static_cast<CustomLossContext*>(user_data);
        const auto count = static_cast<std::size_t>(rows);
        *value = context.function({static_cast<const T*>(out), count * context.outputs},
                                  {row_index, count},
                                  {static_cast<T*>(gradient), count * context.outputs});
        return TW_CONTINUE;
      });
    }
  };

  explicit Model(tw_model* model) : model_(model) {}

  static tw_model* create(const std::string& json, const Placement& placement) {
    const tw_model_options options = detail::to_c(placement);
    tw_model* model = nullptr;
    detail::check(tw_model_create(json.c_str(), &options, &model));
    return model;
  }

  static std::string description_of(const std::vector<Layer>& layers, const ModelOptions& options) {
    detail::JsonObject out;
    out.number("in_features", options.in_features)
        .text("dtype", options.dtype == DType::kFloat32 ? "float32" : "float64")
        .number("seed", options.seed)
        .array("layers", layers)
        .json("loss", options.loss.json())
        .json("optimizer", options.optimizer.json())
        .json("averaging", options.averaging ? options.averaging->json() : "null")
        .number("clip_norm", options.clip_norm)
        .text("check_finite", options.check_finite == CheckFinite::kLoss ? "loss" : "gradients")
        .text("matmul_precision", options.matmul_precision == MatmulPrecision::kHighest ? "highest"
                                  : options.matmul_precision == MatmulPrecision::kHigh  ? "high"
                                                                                        : "medium");
    return out;
  }

  static History history_of(const tw_fit_result* result) {
    History history;
    for (std::int64_t i = 0; i < tw_fit_result_num_epochs(result); ++i) {
      tw_epoch_record record{};
      record.struct_size = sizeof(record);
      detail::check(tw_fit_result_epoch(result, i, &record));
      history.epochs.push_back(detail::to_cpp(record));
    }
    history.stopped_because = tw_fit_result_stopped_because(result);
    history.best_epoch = tw_fit_result_best_epoch(result);
    return history;
  }

  template <class T>
  void expect_dtype(const char* operation) const {
    if (tw_model_dtype(get()) != detail::dtype_of<T>())
      throw TypeError(std::string("[") + operation + "] expected " +
                      (dtype() == DType::kFloat32 ? "float" : "double") +
                      ", the model's element type");
  }

  static std::int64_t count_of(std::int64_t rows, std::int64_t columns) {
    constexpr std::int64_t kMost = std::numeric_limits<std::ptrdiff_t>::max() / 8;
    if (columns > 0 && rows > kMost / columns)
      throw MemoryError("[memory] expected room for " + std::to_string(rows) + " x " +
                        std::to_string(columns) + " numbers");
    return rows * columns;
  }

  // `count` values that fill(void*, bytes) writes in the model's element type.
  template <class T, class Fill>
  std::vector<T> values(std::int64_t count, Fill&& fill) const {
    const auto size = static_cast<std::size_t>(count);
    std::vector<T> out(size);
    if (tw_model_dtype(get()) == detail::dtype_of<T>()) {
      fill(static_cast<void*>(out.data()), size * sizeof(T));
    } else {
      std::vector<std::conditional_t<std::same_as<T, float>, double, float>> other(size);
      fill(static_cast<void*>(other.data()), size * sizeof(other[0]));
      for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<T>(other[i]);
    }
    return out;
  }

  template <class T>
  std::vector<T> values_of(Getter getter) const {
    return values<T>(num_parameters(), [&](void* out, std::size_t bytes) {
      detail::check(getter(get(), out, bytes));
    });
  }

  template <class T>
  void set_values(Setter setter, std::span<const T> given) {
    if (tw_model_dtype(get()) == detail::dtype_of<T>())
      return detail::check(setter(get(), given.data(), given.size_bytes()));
    using Other = std::conditional_t<std::same_as<T, float>, double, float>;
    std::vector<Other> cast(given.size());
    for (std::size_t i = 0; i < given.size(); ++i) cast[i] = static_cast<Other>(given[i]);
    detail::check(setter(get(), cast.data(), cast.size() * sizeof(Other)));
  }

  template <class T>
  std::vector<T> predict_with(Predict function, const Array& x, const RunOptions& options) const {
    const tw_array input = x.with_columns(in_features()).c_array();
    const tw_run_options c_options = detail::to_c(options);
    return values<T>(count_of(input.shape[0], out_features()), [&](void* out, std::size_t bytes) {
      detail::check(function(get(), &input, &c_options, out, bytes));
    });
  }

  std::vector<TensorInfo> list_tensors(std::int32_t kind) const {
    std::vector<TensorInfo> out;
    for (std::int64_t i = 0; i < tw_model_num_tensors(get(), kind); ++i) {
      tw_tensor_info info{};
      info.struct_size = sizeof(info);
      detail::check(tw_model_tensor(get(), kind, i, &info));
      out.push_back({info.name, {info.shape, info.shape + info.ndim}, info.offset, info.size});
    }
    return out;
  }

  std::unique_ptr<tw_model, detail::ModelDeleter> model_;
  std::shared_ptr<void> custom_loss_;  // outlives model_'s use of it
};

}  // namespace wrapper
}  // namespace thalweg
