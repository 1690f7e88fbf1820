// Device memory at the C interface: data, outputs and vectors there, and streams on which the work
// that makes the data is still queued when a call comes.
//
// The emulator runs queued work as late as it may: a call that does not wait for a stream finds
// what was in the memory before, which is NaN.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/resources.h"
#include "kernel_test.h"
#include "thalweg/thalweg_c.h"
#include "training/model.h"

#if defined(TW_CUDA_EMULATED)
#include "cuda/emulator/device_memory.h"
#include "cuda/emulator/settings.h"
#endif

namespace thalweg {
namespace {

using cuda::test::expect_that;
using cuda::test::Random;

constexpr std::int64_t kRows = 37;
constexpr std::int64_t kFeatures = 5;
constexpr std::int64_t kClasses = 3;
constexpr const char* kDescription = R"({"in_features": 5, "seed": 3, "dtype": "float32",
    "layers": [{"type": "dense", "units": 7}, {"type": "batch_norm"}, {"type": "relu"},
               {"type": "dense", "units": 3}],
    "optimizer": {"type": "momentum", "lr": 0.1}, "averaging": {"type": "ema"}})";

using Values = std::vector<float>;

struct DataSet {
  Values x = Random(1).normals<float>(kRows * kFeatures);
  std::vector<std::int64_t> y;
  Values weights;
  DataSet() {
    Random random(2);
    for (std::int64_t r = 0; r < kRows; ++r) {
      y.push_back(random.below(kClasses));
      weights.push_back(static_cast<float>(0.5 + random.uniform()));
    }
  }
};

void expect_ok(tw_status status, const char* call) {
  expect_that(status == TW_OK, call, " failed: ", tw_last_error_message());
}

void expect_error(tw_status status, tw_status wanted, const std::string& part, const char* call) {
  const std::string message = status == TW_OK ? "" : tw_last_error_message();
  expect_that(status == wanted && message.find(part) != std::string::npos, call, ": expected ",
              tw_status_name(wanted), " with '", part, "', got ", tw_status_name(status), ": ",
              message);
}

class Model {
 public:
  explicit Model(cudaStream_t stream = nullptr, const char* device = "cuda") {
    tw_model_options options{};
    options.struct_size = sizeof(options);
    options.device = device;
    options.stream = stream;
    expect_ok(tw_model_create(kDescription, &options, &model_), "tw_model_create");
  }
  ~Model() { tw_model_destroy(model_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  operator tw_model*() const { return model_; }

 private:
  tw_model* model_ = nullptr;
};

// New memory is filled by work on the default stream, which a model's streams do not wait for.
void settle() { cuda::check(cudaDeviceSynchronize(), "test"); }

// Where a call's arrays and outputs lie.
struct Arrays {
  tw_array x, y, weights;
};

Arrays arrays_at(const void* x, const void* y, const void* weights) {
  return {tw_matrix(x, TW_FLOAT32, kRows, kFeatures), tw_vector(y, TW_INT64, kRows),
          tw_vector(weights, TW_FLOAT32, kRows)};
}

// All that the calls of a model return, one after the other.
class Results {
 public:
  // f(pointer) fills `count` floats, in device memory if `on_device`.
  template <class F>
  void add(std::int64_t count, bool on_device, F&& f) {
    Values host(static_cast<std::size_t>(count));
    const std::size_t bytes = host.size() * sizeof(float);
    if (on_device) {
      cuda::test::DeviceArray<float> device(count);
      settle();
      expect_ok(f(device.data(), bytes), "a call with an output on the device");
      host = device.download();
    } else {
      expect_ok(f(host.data(), bytes), "a call with an output on the host");
    }
    all_.insert(all_.end(), host.begin(), host.end());
  }
  void add(double value) { all_.push_back(static_cast<float>(value)); }
  const Values& all() const { return all_; }

 private:
  Values all_;
};

Values run(tw_model* model, const Arrays& data, bool on_device) {
  Results results;
  tw_fit_options fit{};
  fit.struct_size = sizeof(fit);
  fit.epochs = 2;
  fit.batch_size = 10;
  fit.validation_x = &data.x;
  fit.validation_y = &data.y;
  expect_ok(tw_model_fit(model, &data.x, &data.y, &data.weights, &fit, nullptr), "tw_model_fit");
  tw_step_record step{};
  step.struct_size = sizeof(step);
  expect_ok(tw_model_step(model, &data.x, &data.y, nullptr, &step), "tw_model_step");
  results.add(step.metrics.loss);
  tw_metrics metrics{};
  expect_ok(tw_model_evaluate(model, &data.x, &data.y, &data.weights, nullptr, &metrics),
            "tw_model_evaluate");
  results.add(metrics.loss);
  results.add(kRows * kClasses, on_device, [&](void* out, std::size_t bytes) {
    return tw_model_predict(model, &data.x, nullptr, out, bytes);
  });
  results.add(kRows * kClasses, on_device, [&](void* out, std::size_t bytes) {
    return tw_model_predict_probabilities(model, &data.x, nullptr, out, bytes);
  });
  const std::int64_t parameters = tw_model_num_parameters(model);
  const std::size_t gradient_bytes = static_cast<std::size_t>(parameters) * sizeof(float);
  results.add(parameters + kRows * kFeatures, on_device, [&](void* out, std::size_t bytes) {
    return tw_model_loss_and_gradient(model, &data.x, &data.y, &data.weights, nullptr, &metrics,
                                      out, gradient_bytes, static_cast<char*>(out) + gradient_bytes,
                                      bytes - gradient_bytes);
  });
  results.add(metrics.loss);
  using Getter = tw_status (*)(const tw_model*, void*, std::size_t);
  for (const Getter get : {tw_model_get_parameters, tw_model_get_theta, tw_model_get_average})
    results.add(parameters, on_device,
                [&](void* out, std::size_t bytes) { return get(model, out, bytes); });
  results.add(parameters, on_device, [&](void* out, std::size_t bytes) {
    return tw_model_get_slot(model, 0, out, bytes);
  });
  results.add(14, on_device,
              [&](void* out, std::size_t bytes) { return tw_model_get_state(model, out, bytes); });
  return results.all();
}

Values expected() {
  const DataSet data;
  const Model model;
  return run(model, arrays_at(data.x.data(), data.y.data(), data.weights.data()), false);
}

void test_memory_of_the_device() {
  cuda::test::context = "device memory";
  const DataSet data;
  cuda::test::DeviceArray<float> x(data.x), weights(data.weights);
  cuda::test::DeviceArray<std::int64_t> y(data.y);
  const Model model;
  expect_that(run(model, arrays_at(x.data(), y.data(), weights.data()), true) == expected(),
              "expected the results of host memory");

  // Values go in as they came out.
  const std::int64_t parameters = tw_model_num_parameters(model);
  const auto bytes = static_cast<std::size_t>(parameters) * sizeof(float);
  cuda::test::DeviceArray<float> values(parameters), state(14);
  settle();
  expect_ok(tw_model_get_parameters(model, values.data(), bytes), "tw_model_get_parameters");
  expect_ok(tw_model_get_state(model, state.data(), 14 * sizeof(float)), "tw_model_get_state");
  const Model other;
  expect_ok(tw_model_set_parameters(other, values.data(), bytes), "tw_model_set_parameters");
  expect_ok(tw_model_set_state(other, state.data(), 14 * sizeof(float)), "tw_model_set_state");
  const tw_array input = tw_matrix(x.data(), TW_FLOAT32, kRows, kFeatures);
  Values outputs[2];
  int i = 0;
  for (tw_model* m : {static_cast<tw_model*>(model), static_cast<tw_model*>(other)}) {
    outputs[i].resize(kRows * kClasses);
    expect_ok(
        tw_model_predict(m, &input, nullptr, outputs[i].data(), outputs[i].size() * sizeof(float)),
        "tw_model_predict");
    ++i;
  }
  expect_that(outputs[0] == outputs[1], "expected equal models to predict the same");
}

// Copies that are queued on a stream, from page-locked memory, and run as late as may be.
class Arriving {
 public:
  Arriving() : x_(kRows * kFeatures), weights_(kRows), y_(kRows) { settle(); }
  void queue(cudaStream_t stream) {
    copy(x_, data_.x, pinned_x_, stream);
    copy(y_, data_.y, pinned_y_, stream);
    copy(weights_, data_.weights, pinned_weights_, stream);
  }
  Arrays arrays() { return arrays_at(x_.data(), y_.data(), weights_.data()); }

 private:
  template <class T>
  static void copy(cuda::test::DeviceArray<T>& to, const std::vector<T>& from,
                   cuda::PinnedArray<T>& pinned, cudaStream_t stream) {
    std::copy(from.begin(), from.end(), pinned.data());
    cuda::check(cudaMemcpyAsync(to.data(), pinned.data(), from.size() * sizeof(T),
                                cudaMemcpyHostToDevice, stream),
                "test");
  }
  DataSet data_;
  cuda::PinnedArray<float> pinned_x_{kRows * kFeatures, "test"}, pinned_weights_{kRows, "test"};
  cuda::PinnedArray<std::int64_t> pinned_y_{kRows, "test"};
  cuda::test::DeviceArray<float> x_, weights_;
  cuda::test::DeviceArray<std::int64_t> y_;
};

void test_stream_of_the_caller() {
  cuda::test::context = "caller's stream";
  const cuda::Stream stream("test");
  {
    const Model model(stream);
    Arriving arriving;
    arriving.queue(stream);
    expect_that(run(model, arriving.arrays(), true) == expected(),
                "expected calls to come after what was queued on the stream");
    tw_model* copy = nullptr;
    expect_ok(tw_model_copy(model, &copy), "tw_model_copy");
    Arriving later;
    later.queue(stream);
    const Arrays arrays = later.arrays();
    tw_metrics metrics{};
    expect_ok(tw_model_evaluate(copy, &arrays.x, &arrays.y, nullptr, nullptr, &metrics),
              "tw_model_evaluate of a copy");
    tw_model_destroy(copy);
  }
  stream.synchronize("test");  // it outlives the model
}

// What __cuda_array_interface__ asks for, and DLPack does with the exchange's stream itself.
void test_streams_that_are_waited_for() {
  cuda::test::context = "waiting";
  const DataSet data;
  const cuda::Stream producer("test");
  const std::unique_ptr<thalweg::Model> model =
      thalweg::Model::create(parse_description(kDescription), "cuda", 1);
  Values wanted(kRows * kClasses);
  model->predict(ArrayView::matrix(data.x.data(), kRows, kFeatures), 64, wanted.data());
  const cudaStream_t streams[] = {producer, cudaStreamLegacy, cudaStreamPerThread,
                                  reinterpret_cast<cudaStream_t>(model->exchange()->stream())};
  for (const cudaStream_t stream : streams) {
    Arriving arriving;
    arriving.queue(stream);
    if (stream != streams[3]) model->exchange()->wait_for(reinterpret_cast<std::uintptr_t>(stream));
    ArrayView x =
        ArrayView::matrix(static_cast<const float*>(arriving.arrays().x.data), kRows, kFeatures);
    x.memory = Memory::kCuda;
    Values found(wanted.size());
    model->predict(x, 64, found.data());
    expect_that(found == wanted, "expected a call to wait for its data");
  }
}

void test_workspace_of_the_caller() {
  cuda::test::context = "workspace";
  const DataSet data;
  const Arrays arrays = arrays_at(data.x.data(), data.y.data(), data.weights.data());
  const Model model;
  std::size_t small = 0, large = 0, again = 0;
  expect_ok(tw_model_workspace_bytes(model, 10, &small), "tw_model_workspace_bytes");
  expect_ok(tw_model_workspace_bytes(model, kRows, &large), "tw_model_workspace_bytes");
  expect_ok(tw_model_workspace_bytes(model, kRows, &again), "tw_model_workspace_bytes");
  expect_that(small > 0 && small < large && large == again, "expected ", small, " < ", large,
              " == ", again);

  // Memory of exactly that size, whose guard bands are looked at.
  cuda::test::DeviceArray<unsigned char> memory(static_cast<std::int64_t>(large));
  settle();
  expect_ok(tw_model_set_workspace(model, memory.data(), large), "tw_model_set_workspace");
  expect_that(run(model, arrays, false) == expected(), "expected the results of own memory");
  const std::vector<unsigned char> contents = memory.download();
  expect_that(std::any_of(contents.begin(), contents.end(),
                          [](unsigned char byte) { return byte != 0xff && byte != 0; }),
              "expected the training to work in the caller's memory");

  // Too small: nothing happens, and the library's own memory serves again.
  expect_ok(tw_model_set_workspace(model, memory.data(), large - 1), "tw_model_set_workspace");
  const std::int64_t steps = tw_model_steps_done(model);
  tw_step_record step{};
  step.struct_size = sizeof(step);
  expect_error(tw_model_step(model, &arrays.x, &arrays.y, nullptr, &step), TW_ERROR_VALUE,
               "expected a workspace of", "tw_model_step");
  expect_that(tw_model_steps_done(model) == steps, "expected no step");
  tw_fit_options fit{};
  fit.struct_size = sizeof(fit);
  fit.batch_size = 10;
  expect_ok(tw_model_fit(model, &arrays.x, &arrays.y, nullptr, &fit, nullptr), "tw_model_fit");
  expect_ok(tw_model_set_workspace(model, nullptr, 0), "tw_model_set_workspace");
  memory.fill_bytes(0xff);
  settle();
  expect_ok(tw_model_step(model, &arrays.x, &arrays.y, nullptr, &step), "tw_model_step");
  const std::vector<unsigned char> untouched = memory.download();
  expect_that(std::all_of(untouched.begin(), untouched.end(),
                          [](unsigned char byte) { return byte == 0xff; }),
              "expected memory that was taken back to stay as it is");

  expect_error(tw_model_set_workspace(model, memory.data() + 128, large - 128), TW_ERROR_VALUE,
               "multiple of 256", "tw_model_set_workspace");
  alignas(256) static unsigned char host[256];
  expect_error(tw_model_set_workspace(model, host, sizeof(host)), TW_ERROR_DEVICE, "host memory",
               "tw_model_set_workspace");
  expect_error(tw_model_workspace_bytes(model, 0, &small), TW_ERROR_VALUE, "batch_size",
               "tw_model_workspace_bytes");
  const Model on_cpu(nullptr, "cpu");
  expect_error(tw_model_workspace_bytes(on_cpu, 10, &small), TW_ERROR_DEVICE, "CPU",
               "tw_model_workspace_bytes");
  expect_error(tw_model_set_workspace(on_cpu, nullptr, 0), TW_ERROR_DEVICE, "CPU",
               "tw_model_set_workspace");
}

// A model's fits with minibatches of every size, each of which is captured; the first error.
std::string fit_with_every_size(tw_model* model, const Arrays& data) {
  for (std::int64_t size = 2; size <= kRows; ++size) {
    tw_fit_options fit{};
    fit.struct_size = sizeof(fit);
    fit.epochs = 1;
    fit.batch_size = size;
    if (tw_model_fit(model, &data.x, &data.y, &data.weights, &fit, nullptr) != TW_OK)
      return tw_last_error_message();
  }
  return "";
}

Values parameters_of(const tw_model* model) {
  Values values(static_cast<std::size_t>(tw_model_num_parameters(model)));
  expect_ok(tw_model_get_parameters(model, values.data(), values.size() * sizeof(float)),
            "tw_model_get_parameters");
  return values;
}

// Two models train on one stream that the default stream waits for, while other threads use that
// one and make models.
void test_captures_beside_other_threads() {
  cuda::test::context = "threads";
  const DataSet data;
  const Arrays arrays = arrays_at(data.x.data(), data.y.data(), data.weights.data());
  const Model alone;
  const std::string error = fit_with_every_size(alone, arrays);
  expect_that(error.empty(), "alone: ", error);

  // Whether a capture is disturbed is a matter of chance.
  constexpr int kRounds = 8;
  for (int round = 0; round < kRounds; ++round) {
    const cuda::Stream stream("test", nullptr, cudaStreamDefault);
    const Model first(stream);
    tw_model* second = nullptr;
    expect_ok(tw_model_copy(first, &second), "tw_model_copy");
    std::string errors[3];
    std::atomic<bool> stop{false};
    std::thread others([&] {
      try {
        Values out(kRows * kClasses);
        while (!stop) {
          const Model other;
          if (tw_model_predict(other, &arrays.x, nullptr, out.data(), out.size() * sizeof(float)) !=
              TW_OK)
            errors[2] = tw_last_error_message();
          const cuda::test::DeviceArray<float> memory(8);
        }
      } catch (const Error& failure) {
        errors[2] = failure.what();
      }
    });
    std::thread one([&] { errors[0] = fit_with_every_size(first, arrays); });
    std::thread two([&] { errors[1] = fit_with_every_size(second, arrays); });
    one.join();
    two.join();
    stop = true;
    others.join();
    for (const std::string& text : errors) expect_that(text.empty(), text);
    expect_that(parameters_of(first) == parameters_of(alone), "expected the fits of a model alone");
    expect_that(parameters_of(second) == parameters_of(alone),
                "expected the fits of a model alone");
    tw_model_destroy(second);
  }
}

#if defined(TW_CUDA_EMULATED)
// The last minibatch of an epoch is smaller: its graph finds no memory while the updates before it
// are queued.
void test_failure_behind_updates() {
  cuda::test::context = "failure behind updates";
  const DataSet data;
  const Arrays arrays = arrays_at(data.x.data(), data.y.data(), data.weights.data());
  const auto fit = [&](tw_model* model, std::int64_t max_steps) {
    tw_fit_options options{};
    options.struct_size = sizeof(options);
    options.epochs = 1;
    options.batch_size = 10;
    options.max_steps = max_steps;
    return tw_model_fit(model, &arrays.x, &arrays.y, &arrays.weights, &options, nullptr);
  };
  const auto values = [](tw_model* model) {
    Results results;
    const std::int64_t parameters = tw_model_num_parameters(model);
    for (const auto get : {tw_model_get_parameters, tw_model_get_theta, tw_model_get_average})
      results.add(parameters, false,
                  [&](void* out, std::size_t bytes) { return get(model, out, bytes); });
    results.add(parameters, false, [&](void* out, std::size_t bytes) {
      return tw_model_get_slot(model, 0, out, bytes);
    });
    results.add(14, false, [&](void* out, std::size_t bytes) {
      return tw_model_get_state(model, out, bytes);
    });
    return results.all();
  };
  const Model model, other;
  expect_ok(fit(model, 1), "tw_model_fit");
  const std::size_t memory = emulator::settings().memory_bytes;
  emulator::settings().memory_bytes = emulator::memory_in_use();
  expect_error(fit(model, 0), TW_ERROR_MEMORY, "[fit]", "tw_model_fit without memory");
  emulator::settings().memory_bytes = memory;
  expect_ok(fit(other, 3), "tw_model_fit");
  for (const std::int64_t steps : {3, 4, 8}) {
    expect_that(tw_model_steps_done(model) == steps, "expected ", steps, " steps, got ",
                tw_model_steps_done(model));
    expect_that(values(model) == values(other), "expected the values of ", steps, " updates");
    expect_ok(fit(model, 0), "tw_model_fit");
    expect_ok(fit(other, 0), "tw_model_fit");
  }
}

std::unique_ptr<thalweg::Model> make_model() {
  return thalweg::Model::create(parse_description(kDescription), "cuda", 1);
}

// A question whether to stop throws, at any time of a step: steps and parameters agree.
void test_failure_behind_a_step() {
  cuda::test::context = "failure behind a step";
  const DataSet set;
  Data data;
  data.x = ArrayView::matrix(set.x.data(), kRows, kFeatures);
  data.y = ArrayView::vector(set.y.data(), kRows);
  const std::unique_ptr<thalweg::Model> model = make_model(), other = make_model();
  const auto parameters = [](const thalweg::Model& of) {
    Values values(static_cast<std::size_t>(of.num_parameters()));
    of.get_parameters(values.data());
    return values;
  };
  bool behind = false;
  bool thrown = true;
  for (int last = 1; thrown; ++last) {
    const std::int64_t before = model->steps_done();
    int asked = 0;
    thrown = false;
    try {
      model->step(data, [&] {
        // Longer than the time between two questions.
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        if (++asked == last) throw Interrupted("[test] stopped");
        return false;
      });
    } catch (const Interrupted&) {
      thrown = true;
    }
    behind = behind || (thrown && model->steps_done() > before);
    while (other->steps_done() < model->steps_done()) other->step(data);
    expect_that(parameters(*model) == parameters(*other), "question ", last,
                ": expected the parameters of ", model->steps_done(), " steps");
  }
  // With another seed an update may be done before anyone asks.
  if (emulator::settings().seed == 0) expect_that(behind, "expected an exception behind an update");
}

// What a model keeps for its next pure pass is there for whoever finds no memory.
void test_idle_memory() {
  cuda::test::context = "idle memory";
  constexpr std::int64_t kMany = 4000;
  const Values x = Random(4).normals<float>(kMany * kFeatures);
  const std::unique_ptr<thalweg::Model> model = make_model(), other = make_model();
  const auto predict = [&](const thalweg::Model& with, std::int64_t rows) {
    Values out(static_cast<std::size_t>(rows * kClasses));
    with.predict(ArrayView::matrix(x.data(), rows, kFeatures), rows, out.data());
    return out;
  };
  const auto in_use = [] { return emulator::memory_in_use(); };
  std::size_t& limit = emulator::settings().memory_bytes;
  const std::size_t memory = limit;
  const Values few = predict(*other, kRows);
  other->release_workspaces();
  const std::size_t without = in_use();
  const Values many = predict(*model, kMany);
  limit = in_use();
  expect_that(predict(*other, kRows) == few, "expected the same outputs in the other's memory");
  other->release_workspaces();
  expect_that(in_use() == without, "expected nothing to be kept, got ", in_use() - without,
              " bytes");
  limit = without;
  bool failed = false;
  try {
    (void)predict(*model, kMany);
  } catch (const Error& error) {
    failed = error.code() == ErrorCode::kMemory;
  }
  expect_that(failed, "expected an error when nothing is idle");
  limit = memory;
  expect_that(predict(*model, kMany) == many, "expected the same outputs after the error");
}
#endif

void test_what_cannot_work() {
  cuda::test::context = "errors";
  tw_model_options options{};
  options.struct_size = sizeof(options);
  options.device = "cuda";
  tw_model* model = nullptr;
  for (const cudaStream_t stream : {cudaStreamLegacy, cudaStreamPerThread}) {
    options.stream = stream;
    expect_error(tw_model_create(kDescription, &options, &model), TW_ERROR_VALUE,
                 "cannot be captured", "tw_model_create");
  }
  const cuda::Stream stream("test");
  options.stream = stream;
  options.device = "cpu";
  expect_error(tw_model_create(kDescription, &options, &model), TW_ERROR_DEVICE, "no stream",
               "tw_model_create");
  expect_that(model == nullptr, "expected no model");
}

void tests() {
  test_memory_of_the_device();
  test_stream_of_the_caller();
  test_streams_that_are_waited_for();
  test_workspace_of_the_caller();
  test_captures_beside_other_threads();
#if defined(TW_CUDA_EMULATED)
  test_failure_behind_updates();
  test_failure_behind_a_step();
  test_idle_memory();
#endif
  test_what_cannot_work();
}

}  // namespace
}  // namespace thalweg

int main() { return thalweg::cuda::test::run(thalweg::tests); }
