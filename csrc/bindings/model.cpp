// Class _core.Model: one engine model, its lock, and its calls. Arguments have been given their
// public meaning and defaults by python/thalweg/model.py.
#include "training/model.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/bound_model.h"
#include "bindings/data_arguments.h"
#include "bindings/device_array.h"
#include "bindings/fit_values.h"
#include "bindings/model_lock.h"
#include "bindings/numpy_arrays.h"
#include "bindings/python_call.h"
#include "bindings/python_loss.h"
#include "bindings/result_array.h"

namespace thalweg::bindings {
namespace {

// A bar that moves ten times a second costs nothing.
constexpr std::chrono::milliseconds kProgressEvery{100};

// ---- arguments ----------------------------------------------------------------------------------

// A contiguous vector of exactly `size` elements of `dtype`.
const void* flat_data(const py::array& values, DType dtype, std::int64_t size,
                      const char* operation) {
  const bool right_type = with_real_type(
      dtype, [&](auto zero) { return py::isinstance<py::array_t<decltype(zero)>>(values); });
  expect<TypeError>(right_type, "[", operation, "] expected a vector of ", dtype_name(dtype),
                    ", got ", py::str(values.dtype()).cast<std::string>());
  expect<ValueError>(
      values.ndim() == 1 && values.size() == size && (values.flags() & py::array::c_style) != 0,
      "[", operation, "] expected a contiguous vector of ", size, " elements, got ", values.size(),
      " in ", values.ndim(), " dimensions");
  return values.data();
}

// ---- results ------------------------------------------------------------------------------------

py::dict step_row(const StepRecord& record) {
  py::dict row;
  row["step"] = record.step;
  put_metrics(row, record.metrics);
  row["lr"] = record.lr;
  if (!std::isnan(record.gradient_norm)) row["gradient_norm"] = record.gradient_norm;
  row["weight"] = record.metrics.weight;
  return row;
}

py::list tensor_rows(const std::vector<TensorInfo>& tensors) {
  py::list rows;
  for (const TensorInfo& tensor : tensors) {
    rows.append(py::make_tuple(tensor.name, tensor.offset, py::tuple(py::cast(tensor.shape))));
  }
  return rows;
}

std::int64_t total_size(const std::vector<TensorInfo>& tensors) {
  std::int64_t size = 0;
  for (const TensorInfo& tensor : tensors) size += tensor.size;
  return size;
}

// ---- the model ----------------------------------------------------------------------------------

class PyModel {
 public:
  explicit PyModel(std::unique_ptr<Model> model)
      : model_(std::move(model)),
        dtype_(model_->description().dtype),
        out_features_(model_->out_features()) {
    if (model_->description().loss.kind == LossDescription::Kind::kCustom) {
      model_->set_custom_loss(custom_loss());
    }
  }

  static std::unique_ptr<PyModel> create(const std::string& description, const std::string& device,
                                         int threads) {
    std::unique_ptr<Model> model;
    PythonCall().run([&](const Interrupt&) {
      model = Model::create(parse_description(description), device, threads);
    });
    return std::make_unique<PyModel>(std::move(model));
  }

  static std::unique_ptr<PyModel> load(const std::string& path, const std::string& device,
                                       int threads) {
    std::unique_ptr<Model> model;
    PythonCall().run([&](const Interrupt&) { model = Model::load(path, device, threads); });
    return std::make_unique<PyModel>(std::move(model));
  }

  std::unique_ptr<PyModel> copy() const {
    std::unique_ptr<Model> model;
    read([&](const Model& self, const Interrupt&) { model = self.copy(); });
    return std::make_unique<PyModel>(std::move(model));
  }

  // ---- constants

  std::string device() const { return model_->device(); }
  int threads() const { return model_->threads(); }
  const char* dtype() const { return dtype_name(dtype_); }
  std::int64_t out_features() const { return out_features_; }
  std::int64_t num_parameters() const { return model_->num_parameters(); }
  std::string plan_summary() const { return model_->plan_summary(); }
  std::vector<std::int64_t> graph_nodes() const { return model_->graph_nodes(); }
  py::list tensors() const { return tensor_rows(model_->tensors()); }
  py::list state_tensors() const { return tensor_rows(model_->state_tensors()); }
  py::list layers() const {
    py::list rows;
    for (const LayerInfo& layer : model_->layers()) {
      rows.append(py::make_tuple(layer.name, layer.type, layer.out_features, layer.parameters));
    }
    return rows;
  }

  // ---- values that training changes

  std::string description() const {
    std::string json;
    read([&](const Model& self, const Interrupt&) { json = to_json(self.description()); });
    return json;
  }
  std::int64_t steps_done() const {
    std::int64_t steps = 0;
    read([&](const Model& self, const Interrupt&) { steps = self.steps_done(); });
    return steps;
  }
  std::int64_t epochs_done() const {
    std::int64_t epochs = 0;
    read([&](const Model& self, const Interrupt&) { epochs = self.epochs_done(); });
    return epochs;
  }

  py::array parameters() const {
    return vector(num_parameters(), [](const Model& self, void* out) { self.get_parameters(out); });
  }
  py::object device_parameters() const {
    const DeviceExchange& device = required_exchange("device_parameters");
    const ResultArray out(dtype_, {num_parameters()}, &device, "device_parameters");
    read(
        [&, data = out.data()](const Model& self, const Interrupt&) { self.get_parameters(data); });
    return out.object();
  }
  py::array theta() const {
    return vector(num_parameters(), [](const Model& self, void* out) { self.get_theta(out); });
  }
  py::object average() const {
    bool present = false;
    const py::array values = vector(
        num_parameters(), [&](const Model& self, void* out) { present = self.get_average(out); });
    return present ? py::object(values) : py::none();
  }
  std::vector<std::string> slot_names() const {
    std::vector<std::string> names;
    read([&](const Model& self, const Interrupt&) { names = self.slot_names(); });
    return names;
  }
  py::dict fallbacks() const {
    std::vector<std::pair<std::string, std::int64_t>> counts;
    read([&](const Model& self, const Interrupt&) { counts = self.fallbacks(); });
    py::dict out;
    for (const auto& [name, count] : counts) out[py::str(name)] = count;
    return out;
  }
  py::array slot(int index) const {
    return vector(num_parameters(), [&](const Model& self, void* out) {
      const int count = static_cast<int>(self.slot_names().size());
      expect<ValueError>(index >= 0 && index < count, "[slot] expected an index below ", count,
                         ", got ", index);
      self.get_slot(index, out);
    });
  }
  py::array state() const {
    return vector(total_size(model_->state_tensors()),
                  [](const Model& self, void* out) { self.get_state(out); });
  }
  std::vector<std::int64_t> batches_tracked() const {
    std::vector<std::int64_t> counts;
    read([&](const Model& self, const Interrupt&) { counts = self.batches_tracked(); });
    return counts;
  }

  void set_parameters(const py::array& values) {
    const void* data = flat_data(values, dtype_, num_parameters(), "set_parameters");
    write("set_parameters", [&](Model& self, const Interrupt&) { self.set_parameters(data); });
  }
  void set_device_parameters(const py::object& values) {
    constexpr const char* kOperation = "set_parameters";
    const DeviceExchange& device = required_exchange(kOperation);
    const InputArray input(values, kOperation, "values", &device);
    const ArrayView view = input.view();
    expect<TypeError>(view.dtype == dtype_, "[set_parameters] expected a vector of ",
                      dtype_name(dtype_), " on the device, got ", dtype_name(view.dtype));
    expect<ValueError>(view.dimensions == 1 && view.rows == num_parameters() &&
                           (view.row_stride == item_size(dtype_) || view.rows == 1),
                       "[set_parameters] expected a contiguous vector of ", num_parameters(),
                       " elements on the device, got shape ", input.shape_text());
    device.check_place(view, kOperation, "values");
    write(kOperation, [&](Model& self, const Interrupt&) { self.set_parameters(view.data); });
  }
  void set_state(const py::array& values, const std::vector<std::int64_t>& batches) {
    const void* data = flat_data(values, dtype_, total_size(model_->state_tensors()), "set_state");
    write("set_state", [&](Model& self, const Interrupt&) {
      expect<ValueError>(batches.size() == self.batches_tracked().size(),
                         "[set_state] expected a batch count for each of ",
                         self.batches_tracked().size(), " batch norms, got ", batches.size());
      self.set_state(data);
      self.set_batches_tracked(batches);
    });
  }
  void set_optimizer(const std::string& description) {
    const OptimizerDescription optimizer = parse_description(description).optimizer;
    write("set_optimizer", [&](Model& self, const Interrupt&) { self.set_optimizer(optimizer); });
  }
  void reset() {
    write("reset", [](Model& self, const Interrupt&) { self.reset(); });
  }

  // ---- training

  py::dict fit(const py::object& x, const py::object& y, const py::object& weights,
               const py::object& validation_x, const py::object& validation_y,
               const py::object& validation_weights, std::int64_t epochs, std::int64_t batch_size,
               const std::string& shuffle, std::int64_t accumulate,
               const std::optional<StoppingTuple>& stopping, std::optional<std::int64_t> max_steps,
               std::optional<double> stop_at_loss, const py::object& on_epoch,
               const py::object& on_step, std::int64_t every, const py::object& on_progress,
               const py::object& loss, const py::object& targets) {
    const DataArguments training("fit", exchange(), x, y, weights);
    const DataArguments validation("fit", exchange(), validation_x, validation_y,
                                   validation_weights, "validation ");
    FitOptions options =
        fit_options(epochs, batch_size, shuffle, accumulate, stopping, max_steps, stop_at_loss);
    options.validation = validation.data();

    PythonCall call;
    const PythonLoss python_loss(call, loss, targets, &lock_);
    if (!on_epoch.is_none()) {
      options.on_epoch = [&](const EpochRecord& record) {
        return keep_going(call, on_epoch, [&] { return epoch_row(record); });
      };
    }
    if (!on_step.is_none() || !on_progress.is_none()) {
      options.every = on_progress.is_none() ? every : 1;
      options.on_step = [&, next = Clock::now()](const StepRecord& record) mutable {
        bool go = true;
        if (!on_step.is_none() && record.step % every == 0) {
          go = keep_going(call, on_step, [&] { return step_row(record); });
        }
        if (!on_progress.is_none() && Clock::now() >= next) {
          go &= keep_going(call, on_progress, [&] { return step_row(record); });
          next = Clock::now() + kProgressEvery;
        }
        return go;
      };
    }

    FitResult result;
    const Data data = training.data();
    run_write(call, "fit", python_loss, [&](Model& self, const Interrupt& interrupt) {
      options.interrupt = interrupt;
      result = self.fit(data, options);
    });
    return fit_row(result);
  }

  py::dict step(const py::object& x, const py::object& y, const py::object& weights,
                const py::object& loss, const py::object& targets) {
    const DataArguments arguments("step", exchange(), x, y, weights);
    const Data data = arguments.data();
    PythonCall call;
    const PythonLoss python_loss(call, loss, targets, &lock_);
    StepRecord record;
    run_write(call, "step", python_loss, [&](Model& self, const Interrupt& interrupt) {
      record = self.step(data, interrupt, python_loss.present() ? custom_loss() : CustomLoss{});
    });
    return step_row(record);
  }

  void recalibrate_batch_norm(const py::object& x, std::int64_t batch_size) {
    const InputArray input(x, "recalibrate_batch_norm", "x", exchange());
    const ArrayView view = input.view();
    write("recalibrate_batch_norm", [&](Model& self, const Interrupt& interrupt) {
      self.recalibrate_batch_norm(view, batch_size, interrupt);
    });
  }

  // ---- pure evaluation

  py::dict evaluate(const py::object& x, const py::object& y, const py::object& weights,
                    std::int64_t batch_size, const py::object& loss,
                    const py::object& targets) const {
    const DataArguments arguments("evaluate", exchange(), x, y, weights);
    const Data data = arguments.data();
    PythonCall call;
    const PythonLoss python_loss(call, loss, targets);
    Metrics metrics;
    run_read(call, python_loss, [&](const Model& self, const Interrupt& interrupt) {
      metrics = self.evaluate(data, batch_size, interrupt);
    });
    py::dict row;
    put_metrics(row, metrics);
    row["weight"] = metrics.weight;
    return row;
  }

  // Results lie where x does.
  py::object predict(const py::object& x, std::int64_t batch_size, bool probabilities) const {
    const char* operation = probabilities ? "predict_proba" : "predict";
    const InputArray input(x, operation, "x", exchange());
    const ArrayView view = input.view();
    const ResultArray out(dtype_, {view.rows, out_features_}, exchange_of(input), operation);
    void* data = out.data();
    read([&](const Model& self, const Interrupt& interrupt) {
      if (probabilities) {
        self.predict_probabilities(view, batch_size, data, interrupt);
      } else {
        self.predict(view, batch_size, data, interrupt);
      }
    });
    return out.object();
  }

  py::list activations(const py::object& x, bool training) const {
    const InputArray input(x, "activations", "x", exchange());
    const ArrayView view = input.view();
    py::list out;
    std::vector<void*> pointers;
    for (const LayerInfo& layer : model_->layers()) {
      const ResultArray array(dtype_, {view.rows, layer.out_features}, exchange_of(input),
                              "activations");
      pointers.push_back(array.data());
      out.append(array.object());
    }
    read([&](const Model& self, const Interrupt& interrupt) {
      self.activations(view, training, pointers, interrupt);
    });
    return out;
  }

  // (metrics, flat gradient, gradient of x or None)
  py::tuple loss_and_gradient(const py::object& x, const py::object& y, const py::object& weights,
                              bool training, bool parameter_gradient, bool input_gradient,
                              const py::object& loss, const py::object& targets) const {
    const DataArguments arguments("loss_and_grad", exchange(), x, y, weights);
    const Data data = arguments.data();
    const DeviceExchange* results = arguments.on_device() ? exchange() : nullptr;
    py::object gradient = py::none(), dx = py::none();
    void* gradient_data = nullptr;
    void* dx_data = nullptr;
    if (parameter_gradient) {
      const ResultArray array(dtype_, {num_parameters()}, results, "loss_and_grad");
      gradient_data = array.data();
      gradient = array.object();
    }
    if (input_gradient) {
      const ResultArray array(dtype_, {data.x.rows, data.x.cols}, results, "loss_and_grad");
      dx_data = array.data();
      dx = array.object();
    }
    PythonCall call;
    const PythonLoss python_loss(call, loss, targets);
    Metrics metrics;
    run_read(call, python_loss, [&](const Model& self, const Interrupt& interrupt) {
      GradientOptions options;
      options.training = training;
      options.interrupt = interrupt;
      if (python_loss.present()) options.custom_loss = custom_loss();
      metrics = self.loss_and_gradient(data, options, gradient_data, dx_data);
    });
    py::dict row;
    put_metrics(row, metrics);
    return py::make_tuple(row, gradient, dx);
  }

  BoundModel bound() { return {*model_, lock_}; }

  // ---- files

  void save(const std::string& path) const {
    read([&](const Model& self, const Interrupt&) { self.save(path); });
  }
  void load_weights(const std::string& path) {
    write("load_weights", [&](Model& self, const Interrupt&) { self.load_weights(path); });
  }

  py::object to_device(const py::array& array) const {
    return device_copy(array, required_exchange("to_device"), "to_device");
  }
  // A NumPy copy of an array on the model's device.
  py::array to_host(const py::object& array, const std::string& operation,
                    const std::string& name) const {
    const InputArray input(array, operation, name, exchange());
    const DeviceExchange& device = required_exchange(operation.c_str());
    device.check_place(input.view(), operation, name);
    return host_copy(input, device);
  }

 private:
  using Clock = std::chrono::steady_clock;

  const DeviceExchange* exchange() const { return model_->exchange(); }
  const DeviceExchange* exchange_of(const InputArray& input) const {
    return input.on_device() ? exchange() : nullptr;
  }
  const DeviceExchange& required_exchange(const char* operation) const {
    expect<DeviceError>(exchange() != nullptr, "[", operation,
                        "] expected a model on device 'cuda', got one on '", model_->device(), "'");
    return *exchange();
  }

  template <class Work>
  void read(Work&& work) const {
    PythonCall call;
    run_read(call, {}, std::forward<Work>(work));
  }
  template <class Work>
  void write(const char* operation, Work&& work) {
    PythonCall call;
    run_write(call, operation, {}, std::forward<Work>(work));
  }

  // The loss in force while a call runs on this thread.
  class LossScope {
   public:
    explicit LossScope(const PythonLoss* loss) : outer_(std::exchange(current_loss_, loss)) {}
    ~LossScope() { current_loss_ = outer_; }

   private:
    const PythonLoss* outer_;
  };

  using OptionalLoss = std::optional<std::reference_wrapper<const PythonLoss>>;

  template <class Work>
  void run_read(PythonCall& call, OptionalLoss loss, Work&& work) const {
    call.run([&](const Interrupt& interrupt) {
      const ModelLock::Read scope(lock_, interrupt);
      const LossScope loss_scope(loss ? &loss->get() : nullptr);
      work(std::as_const(*model_), interrupt);
    });
  }
  template <class Work>
  void run_write(PythonCall& call, const char* operation, OptionalLoss loss, Work&& work) {
    call.run([&](const Interrupt& interrupt) {
      const ModelLock::Write scope(lock_, operation, interrupt);
      const LossScope loss_scope(loss ? &loss->get() : nullptr);
      work(*model_, interrupt);
    });
  }

  // A vector of the model's element type that fill(model, data) writes; not writable from Python.
  template <class Fill>
  py::array vector(std::int64_t size, Fill&& fill) const {
    py::array out = new_array(dtype_, {size});
    void* data = out.mutable_data();
    read([&](const Model& self, const Interrupt&) { fill(self, data); });
    out.attr("setflags")(py::arg("write") = false);
    return out;
  }

  // callback(row()) with the writer paused; true unless it returned True.
  template <class Row>
  bool keep_going(PythonCall& call, const py::object& callback, Row&& row) {
    const ModelLock::Pause pause(lock_);
    bool stop = false;
    call.with_gil([&] { stop = callback(row()).is(py::bool_(true)); });
    return !stop;
  }

  // What the engine calls; finds the loss of the running call by thread.
  CustomLoss custom_loss() const {
    return
        [dtype = dtype_, out_features = out_features_](
            const void* outputs, const std::int64_t* row_index, std::int64_t rows, void* gradient) {
          expect<ValueError>(
              current_loss_ && current_loss_->present(),
              "[loss] expected a loss function for this model, got none; it was written in "
              "Python: pass it to Model.load(path, loss=function)");
          return (*current_loss_)(dtype, out_features, outputs, row_index, rows, gradient);
        };
  }

  static inline thread_local const PythonLoss* current_loss_ = nullptr;

  std::unique_ptr<Model> model_;
  DType dtype_;
  std::int64_t out_features_;
  mutable ModelLock lock_;
};

}  // namespace

BoundModel bound_model(py::handle object) { return object.cast<PyModel&>().bound(); }

void bind_model(py::module_& module) {
  py::class_<PyModel>(module, "Model", "One engine model. Private: use thalweg.Model.")
      .def(py::init(&PyModel::create), py::arg("description"), py::arg("device"),
           py::arg("threads"))
      .def_static("load", &PyModel::load, py::arg("path"), py::arg("device"), py::arg("threads"))
      .def("copy", &PyModel::copy)
      .def_property_readonly("device", &PyModel::device)
      .def_property_readonly("threads", &PyModel::threads)
      .def_property_readonly("dtype", &PyModel::dtype)
      .def_property_readonly("out_features", &PyModel::out_features)
      .def_property_readonly("num_parameters", &PyModel::num_parameters)
      .def_property_readonly("plan_summary", &PyModel::plan_summary)
      .def_property_readonly("graph_nodes", &PyModel::graph_nodes)
      .def_property_readonly("tensors", &PyModel::tensors)
      .def_property_readonly("state_tensors", &PyModel::state_tensors)
      .def_property_readonly("layers", &PyModel::layers)
      .def("description", &PyModel::description)
      .def("steps_done", &PyModel::steps_done)
      .def("epochs_done", &PyModel::epochs_done)
      .def("parameters", &PyModel::parameters)
      .def("device_parameters", &PyModel::device_parameters)
      .def("theta", &PyModel::theta)
      .def("average", &PyModel::average)
      .def("slot_names", &PyModel::slot_names)
      .def("slot", &PyModel::slot, py::arg("index"))
      .def("state", &PyModel::state)
      .def("batches_tracked", &PyModel::batches_tracked)
      .def("set_parameters", &PyModel::set_parameters, py::arg("values"))
      .def("set_device_parameters", &PyModel::set_device_parameters, py::arg("values"))
      .def("set_state", &PyModel::set_state, py::arg("values"), py::arg("batches_tracked"))
      .def("set_optimizer", &PyModel::set_optimizer, py::arg("description"))
      .def("reset", &PyModel::reset)
      .def("fallbacks", &PyModel::fallbacks)
      .def("fit", &PyModel::fit, py::kw_only(), py::arg("x"), py::arg("y"), py::arg("weights"),
           py::arg("validation_x"), py::arg("validation_y"), py::arg("validation_weights"),
           py::arg("epochs"), py::arg("batch_size"), py::arg("shuffle"), py::arg("accumulate"),
           py::arg("early_stopping"), py::arg("max_steps"), py::arg("stop_at_loss"),
           py::arg("on_epoch"), py::arg("on_step"), py::arg("every"), py::arg("on_progress"),
           py::arg("loss"), py::arg("targets"))
      .def("step", &PyModel::step, py::arg("x"), py::arg("y"), py::arg("weights"), py::arg("loss"),
           py::arg("targets"))
      .def("recalibrate_batch_norm", &PyModel::recalibrate_batch_norm, py::arg("x"),
           py::arg("batch_size"))
      .def("evaluate", &PyModel::evaluate, py::arg("x"), py::arg("y"), py::arg("weights"),
           py::arg("batch_size"), py::arg("loss"), py::arg("targets"))
      .def("predict", &PyModel::predict, py::arg("x"), py::arg("batch_size"),
           py::arg("probabilities"))
      .def("activations", &PyModel::activations, py::arg("x"), py::arg("training"))
      .def("loss_and_gradient", &PyModel::loss_and_gradient, py::arg("x"), py::arg("y"),
           py::arg("weights"), py::arg("training"), py::arg("parameter_gradient"),
           py::arg("input_gradient"), py::arg("loss"), py::arg("targets"))
      .def("to_device", &PyModel::to_device, py::arg("array"))
      .def("to_host", &PyModel::to_host, py::arg("array"), py::arg("operation"), py::arg("name"))
      .def("save", &PyModel::save, py::arg("path"))
      .def("load_weights", &PyModel::load_weights, py::arg("path"));
}

}  // namespace thalweg::bindings
