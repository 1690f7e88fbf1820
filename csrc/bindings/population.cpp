// Calls on many models at once. Arguments have been given their public meaning and defaults by
// python/thalweg/population.py.
#include "training/population.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/bound_model.h"
#include "bindings/fit_values.h"
#include "bindings/python_call.h"
#include "bindings/result_array.h"

namespace thalweg::bindings {
namespace {

// An array that the models read.
InputArray shared_array(const std::vector<BoundModel>& models, py::handle array,
                        const char* operation, const std::string& name) {
  const DeviceExchange* const first = models.at(0).model.exchange();
  InputArray input(array, operation, name, first);
  // It is there when the stream that the first model named is; see DeviceExchange::stream().
  if (input.on_device())
    for (const BoundModel& other : models)
      if (const DeviceExchange* exchange = other.model.exchange(); exchange && exchange != first)
        exchange->wait_for(first->stream());
  return input;
}

// One argument of all members: nothing, one array that they share, or an array for each.
class MemberArrays {
 public:
  MemberArrays(const char* operation, const std::string& name, const py::list& arrays,
               const std::vector<BoundModel>& models) {
    arrays_.reserve(arrays.size());
    if (arrays.size() == 1) {
      arrays_.push_back(shared_array(models, arrays[0], operation, name));
      return;
    }
    for (std::size_t i = 0; i < arrays.size(); ++i)
      arrays_.emplace_back(arrays[i], operation, name, models.at(i).model.exchange());
  }
  ArrayView of(std::size_t member) const {
    if (arrays_.empty()) return {};
    return arrays_[arrays_.size() == 1 ? 0 : member].view();
  }

 private:
  std::vector<InputArray> arrays_;
};

class MemberData {
 public:
  // arrays: lists of x, y and weights, see MemberArrays
  MemberData(const char* operation, const py::tuple& arrays, const std::vector<BoundModel>& models,
             const std::string& prefix = "")
      : x_(operation, prefix + "x", arrays[0], models),
        y_(operation, prefix + "y", arrays[1], models),
        weights_(operation, prefix + "sample_weight", arrays[2], models) {}
  Data of(std::size_t member) const { return {x_.of(member), y_.of(member), weights_.of(member)}; }

 private:
  MemberArrays x_, y_, weights_;
};

// The same lock of every model; released in reverse, as readers have to be.
template <class Lock>
class Locks {
 public:
  template <class... Arguments>
  Locks(const std::vector<BoundModel>& models, const Arguments&... arguments) {
    locks_.reserve(models.size());
    try {
      for (const BoundModel& model : models)
        locks_.push_back(std::make_unique<Lock>(model.lock, arguments...));
    } catch (...) {
      release();
      throw;
    }
  }
  ~Locks() { release(); }
  Locks(const Locks&) = delete;
  Locks& operator=(const Locks&) = delete;

 private:
  void release() {
    while (!locks_.empty()) locks_.pop_back();
  }

  std::vector<std::unique_ptr<Lock>> locks_;
};

std::vector<BoundModel> bound_models(const py::list& objects) {
  std::vector<BoundModel> models;
  models.reserve(objects.size());
  for (const py::handle object : objects) models.push_back(bound_model(object));
  return models;
}

py::list fit_members(const py::list& models, int threads, const py::tuple& arrays,
                     const std::vector<py::array_t<std::int64_t>>& rows,
                     const py::tuple& validation_arrays, std::int64_t epochs,
                     std::int64_t batch_size, const std::string& shuffle, std::int64_t accumulate,
                     const std::optional<StoppingTuple>& stopping,
                     std::optional<std::int64_t> max_steps, std::optional<double> stop_at_loss,
                     const py::object& on_epoch) {
  const std::vector<BoundModel> bound = bound_models(models);
  const MemberData data("fit", arrays, bound);
  const MemberData validation("fit", validation_arrays, bound, "validation ");
  const FitOptions options =
      fit_options(epochs, batch_size, shuffle, accumulate, stopping, max_steps, stop_at_loss);
  PythonCall call;
  std::mutex one_callback;
  std::vector<Member> members(bound.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    Member& member = members[i];
    member.model = &bound[i].model;
    member.data = data.of(i);
    if (!rows.empty()) member.rows.assign(rows[i].data(), rows[i].data() + rows[i].size());
    member.options = options;
    member.options.validation = validation.of(i);
    if (on_epoch.is_none()) continue;
    member.options.on_epoch = [&, i](const EpochRecord& record) {
      // In this order: a callback may read a member whose thread waits for its turn.
      const ModelLock::Pause pause(bound[i].lock);
      const std::lock_guard lock(one_callback);
      bool stop = false;
      call.with_gil([&] { stop = on_epoch(i, epoch_row(record)).is(py::bool_(true)); });
      return !stop;
    };
  }

  std::vector<MemberResult> results;
  call.run([&](const Interrupt& interrupt) {
    const Locks<ModelLock::Write> locks(bound, "fit", interrupt);
    results = fit_population(std::move(members), threads, interrupt);
  });
  py::list out;
  for (const MemberResult& result : results) {
    py::dict row = fit_row(result.fit);
    row["failure"] = py::none();
    if (result.failure) {
      const NonFiniteError& failure = *result.failure;
      row["failure"] = py::make_tuple(failure.what(), failure.step(), failure.layer());
    }
    out.append(row);
  }
  return out;
}

py::list evaluate_members(const py::list& models, int threads, const py::tuple& arrays,
                          std::int64_t batch_size) {
  const std::vector<BoundModel> bound = bound_models(models);
  const MemberData data("evaluate", arrays, bound);
  std::vector<Data> member_data;
  for (std::size_t i = 0; i < bound.size(); ++i) member_data.push_back(data.of(i));
  std::vector<Metrics> metrics(bound.size());
  PythonCall call;
  call.run([&](const Interrupt& interrupt) {
    const Locks<ModelLock::Read> locks(bound, interrupt);
    const MemberJob evaluate = [&](std::int64_t member, const Interrupt& ask) {
      const auto i = static_cast<std::size_t>(member);
      metrics[i] = bound[i].model.evaluate(member_data[i], batch_size, ask);
      bound[i].model.release_workspaces();
    };
    for_each_member(static_cast<std::int64_t>(bound.size()), threads, "evaluate", interrupt,
                    evaluate);
  });
  py::list out;
  for (const Metrics& of_member : metrics) {
    py::dict row;
    put_metrics(row, of_member);
    out.append(row);
  }
  return out;
}

// [members, rows, out], where x lies.
py::object predict_members(const py::list& models, int threads, const py::object& x,
                           std::int64_t batch_size, bool probabilities) {
  const char* operation = probabilities ? "predict_proba" : "predict";
  const std::vector<BoundModel> bound = bound_models(models);
  const InputArray input = shared_array(bound, x, operation, "x");
  const ArrayView view = input.view();
  const DType dtype = bound.at(0).model.description().dtype;
  const std::int64_t width = bound[0].model.out_features();
  const ResultArray out(dtype, {static_cast<std::int64_t>(bound.size()), view.rows, width},
                        input.on_device() ? bound[0].model.exchange() : nullptr, operation);
  auto* const data = static_cast<std::byte*>(out.data());
  const std::int64_t stride = view.rows * width * item_size(dtype);
  PythonCall call;
  call.run([&](const Interrupt& interrupt) {
    const Locks<ModelLock::Read> locks(bound, interrupt);
    const MemberJob predict = [&](std::int64_t member, const Interrupt& ask) {
      const Model& model = bound[static_cast<std::size_t>(member)].model;
      if (probabilities) {
        model.predict_probabilities(view, batch_size, data + member * stride, ask);
      } else {
        model.predict(view, batch_size, data + member * stride, ask);
      }
      model.release_workspaces();
    };
    for_each_member(static_cast<std::int64_t>(bound.size()), threads, operation, interrupt,
                    predict);
  });
  return out.object();
}

}  // namespace

void bind_population(py::module_& module) {
  module.def("fit_members", &fit_members, py::kw_only(), py::arg("models"), py::arg("threads"),
             py::arg("arrays"), py::arg("rows"), py::arg("validation_arrays"), py::arg("epochs"),
             py::arg("batch_size"), py::arg("shuffle"), py::arg("accumulate"),
             py::arg("early_stopping"), py::arg("max_steps"), py::arg("stop_at_loss"),
             py::arg("on_epoch"));
  module.def("evaluate_members", &evaluate_members, py::arg("models"), py::arg("threads"),
             py::arg("arrays"), py::arg("batch_size"));
  module.def("predict_members", &predict_members, py::arg("models"), py::arg("threads"),
             py::arg("x"), py::arg("batch_size"), py::arg("probabilities"));
}

}  // namespace thalweg::bindings
