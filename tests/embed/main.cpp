// embed_cpp CHECKPOINT INPUTS OUTPUTS: the C++ interface as an application uses it.
//
// CHECKPOINT was written by Python; INPUTS and OUTPUTS hold float32 numbers, the rows that Python
// predicted and what it got. Prints one line per check that fails and answers how many did.
#include <thalweg/thalweg.h>

#include <bit>
#include <clocale>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace tw = thalweg;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

template <class Exception, class F>
void expect_throws(F&& f, const std::string& part, const std::string& what) {
  try {
    f();
  } catch (const Exception& error) {
    const std::string message = error.what();
    expect(message.find(part) != std::string::npos, what + ": '" + part + "' not in: " + message);
    return;
  } catch (const std::exception& error) {
    expect(false, what + ": another exception: " + error.what());
    return;
  }
  expect(false, what + ": no exception");
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  }
  return true;
}

std::vector<float> read_floats(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy_n(bytes.data(), values.size() * sizeof(float), reinterpret_cast<char*>(values.data()));
  return values;
}

// Three noisy rays in the plane, one per class.
struct Rays {
  static constexpr int kRows = 300;
  std::vector<float> x;
  std::vector<int> labels;

  Rays() {
    std::uint32_t state = 1;
    const auto uniform = [&state] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(state >> 8) / 16777216.0f;
    };
    for (int row = 0; row < kRows; ++row) {
      const int label = row % 3;
      const float angle = 2.1f * static_cast<float>(label) + 0.4f * (uniform() - 0.5f);
      const float radius = 0.5f + uniform();
      x.push_back(radius * std::cos(angle));
      x.push_back(radius * std::sin(angle));
      labels.push_back(label);
    }
  }
};

tw::Model make_model() {
  return tw::Model({tw::Dense{16}, tw::BatchNorm{}, tw::ReLU{}, tw::Dense{3}},
                   {.in_features = 2, .optimizer = tw::Adam{1e-2}, .seed = 7});
}

void check_training() {
  const Rays rays;
  tw::Model model = make_model();
  int epochs_seen = 0;
  const tw::History history = model.fit(
      rays.x, rays.labels,
      {.epochs = 20,
       .batch_size = 50,
       .validation_data = tw::Validation{rays.x, rays.labels},
       .on_epoch = [&epochs_seen](const tw::EpochRecord&) { return ++epochs_seen == 15; }});
  expect(epochs_seen == 15 && history.epochs.size() == 15, "on_epoch stops after 15 epochs");
  expect(history.stopped_because == "callback", "stopped_because: " + history.stopped_because);
  expect(model.steps_done() == 90 && model.epochs_done() == 15, "counters");
  expect(history.epochs.back().validation.has_value(), "validation metrics");
  expect(history.epochs.back().train.loss < history.epochs.front().train.loss, "loss falls");

  const tw::Metrics metrics = model.evaluate(rays.x, rays.labels);
  expect(metrics.accuracy > 0.95, "accuracy " + std::to_string(metrics.accuracy));
  expect(metrics.weight == Rays::kRows, "total weight");

  const std::vector<float> outputs = model.predict(rays.x);
  expect(outputs.size() == Rays::kRows * 3, "outputs [rows, 3]");
  const std::vector<double> wide = model.predict<double>(tw::Array(rays.x, Rays::kRows, 2));
  expect(wide.size() == outputs.size() && wide[5] == static_cast<double>(outputs[5]),
         "double outputs");
  std::vector<float> row(3);
  model.predict_into(tw::Array(rays.x.data() + 2, 1, 2, 8, 4), std::span<float>(row));
  expect(same_bits(row, {outputs[3], outputs[4], outputs[5]}), "one row alone has the same bits");
  const std::vector<float> probabilities = model.predict_probabilities(rays.x);
  expect(std::abs(probabilities[0] + probabilities[1] + probabilities[2] - 1.0f) < 1e-5f,
         "softmax");

  std::vector<std::vector<float>> answers(4);
  std::vector<std::thread> threads;
  for (std::vector<float>& answer : answers)
    threads.emplace_back([&] { answer = model.predict(rays.x); });
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& answer : answers)
    expect(same_bits(answer, outputs), "predictions from several threads");
}

void check_values() {
  const Rays rays;
  tw::Model model = make_model();
  model.step(rays.x, rays.labels);
  const std::vector<tw::TensorInfo> tensors = model.tensors();
  expect(!tensors.empty() && tensors[0].name == "layers.0.weight", "name of the first tensor");
  expect(tensors[0].shape == std::vector<std::int64_t>{16, 2}, "shape of the first tensor");
  expect(model.state_tensors().size() == 2, "running mean and variance");
  expect(model.slot_names().size() == 2, "slots of Adam");
  expect(model.slot(0).size() == static_cast<std::size_t>(model.num_parameters()),
         "size of a slot");

  const tw::LossAndGradient<float> gradient =
      model.loss_and_gradient(rays.x, rays.labels, {.input_gradient = true});
  expect(gradient.gradient.size() == static_cast<std::size_t>(model.num_parameters()), "gradient");
  expect(gradient.input_gradient.size() == rays.x.size(), "input gradient");

  tw::Model twin = model.copy();
  expect(same_bits(twin.parameters(), model.parameters()), "copy");
  std::vector<float> parameters = twin.parameters();
  parameters[0] += 1.0f;
  twin.set_parameters(parameters);
  expect(same_bits(twin.parameters(), parameters), "set_parameters");
  expect(!same_bits(model.parameters(), parameters), "a copy is independent");
  expect(tw::Model::from_description(model.description()).description() == model.description(),
         "description");
}

void check_custom_loss() {
  const Rays rays;
  std::vector<float> targets(rays.x.begin(), rays.x.end());
  const auto model_with = [](const tw::Loss& loss) {
    return tw::Model({tw::Dense{4}, tw::Tanh{}, tw::Dense{2}},
                     {.in_features = 2, .loss = loss, .optimizer = tw::SGD{0.1}});
  };
  tw::Model named = model_with(tw::SquaredError{});
  tw::Model custom = model_with(tw::CustomLoss{});
  custom.set_custom_loss<float>([&targets](std::span<const float> outputs,
                                           std::span<const std::int64_t> rows,
                                           std::span<float> gradient) {
    double value = 0.0;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::size_t target = static_cast<std::size_t>(rows[i / 2]) * 2 + i % 2;
      const double error = static_cast<double>(outputs[i]) - static_cast<double>(targets[target]);
      value += error * error / static_cast<double>(rows.size());
      gradient[i] = static_cast<float>(2.0 * error / static_cast<double>(rows.size()));
    }
    return value;
  });
  const double expected = named.step(rays.x, targets).metrics.loss;
  const double got = custom.step(rays.x, targets).metrics.loss;
  expect(std::abs(got - expected) < 1e-5 * expected,
         "custom loss: " + std::to_string(got) + " instead of " + std::to_string(expected));
}

void check_checkpoints(const char* checkpoint, const char* inputs, const char* outputs) {
  const tw::Model model = tw::Model::load(checkpoint);
  const std::vector<float> expected = read_floats(outputs);
  expect(!expected.empty(), "file of outputs");
  expect(same_bits(model.predict(read_floats(inputs)), expected), "the bits that Python predicts");

  const Rays rays;
  tw::Model first = make_model();
  first.fit(rays.x, rays.labels, {.epochs = 2});
  first.save("cpp.safetensors");
  tw::Model second = tw::Model::load("cpp.safetensors", {.device = "cpu", .threads = 1});
  first.fit(rays.x, rays.labels, {.epochs = 2});
  second.fit(rays.x, rays.labels, {.epochs = 2});
  expect(same_bits(first.parameters(), second.parameters()), "training resumes with the same bits");
}

void check_errors() {
  Rays rays;
  tw::Model model = make_model();
  const std::vector<float> before = model.parameters();
  expect_throws<tw::ValueError>([&] { model.predict(tw::Array(rays.x, 200, 3)); }, "3",
                                "3 columns");
  expect_throws<tw::ValueError>([&] { model.predict(std::vector<float>(5)); }, "multiple of 2",
                                "5");
  expect_throws<tw::ValueError>([&] { (void)tw::Array(rays.x, 7, 2); }, "7 x 2", "wrong counts");
  expect_throws<tw::ValueError>([&] { model.fit(rays.x, std::vector<int>(3)); }, "", "3 labels");
  expect_throws<tw::ValueError>([&] { model.fit(rays.x, rays.labels, {.epochs = 0}); }, "epochs",
                                "0");
  expect_throws<tw::ValueError>([] { tw::Model({tw::Dense{0}}, {.in_features = 2}); }, "units",
                                "no units");
  if (!tw::cuda_available())
    expect_throws<tw::DeviceError>(
        [] { tw::Model({tw::Dense{2}}, {.in_features = 2, .device = "cuda"}); }, "cuda", "no GPU");
  expect_throws<tw::DeviceError>(
      [&] { tw::Model({tw::Dense{2}}, {.in_features = 2, .device = "cpu", .stream = &model}); },
      "no stream", "a stream for the CPU");
  if (model.device() == "cpu") {
    expect_throws<tw::DeviceError>([&] { (void)model.workspace_bytes(10); }, "on the CPU",
                                   "a workspace on the CPU");
    expect_throws<tw::DeviceError>([&] { model.set_workspace(nullptr, 0); }, "on the CPU",
                                   "a workspace on the CPU");
  }
  expect_throws<tw::ValueError>([&] { model.average(); }, "averaging", "no average");
  expect_throws<tw::CheckpointError>([] { tw::Model::load("missing.safetensors"); },
                                     "missing.safetensors", "missing file");
  {
    std::ofstream("foreign.safetensors") << "not a checkpoint";
  }
  expect_throws<tw::CheckpointError>([] { tw::Model::load("foreign.safetensors"); }, "",
                                     "foreign file");

  rays.labels[10] = 3;
  expect_throws<tw::ValueError>([&] { model.fit(rays.x, rays.labels); }, "3", "label out of range");
  rays.labels[10] = 1;
  expect_throws<std::out_of_range>(
      [&] {
        model.fit(rays.x, rays.labels, {.on_epoch = [](const tw::EpochRecord&) -> bool {
                    throw std::out_of_range("mine");
                  }});
      },
      "mine", "an exception of a callback");
  model.set_parameters(before);
  rays.x[0] = std::nanf("");
  expect_throws<tw::ValueError>([&] { model.fit(rays.x, rays.labels); }, "", "NaN in x");
  expect(same_bits(model.parameters(), before), "bad input changes nothing");

  rays.x[0] = 0.0f;
  int asked = 0;
  expect_throws<tw::Interrupted>(
      [&] {
        model.fit(rays.x, rays.labels,
                  {.epochs = 1'000'000, .interrupt = [&asked] { return ++asked > 20; }});
      },
      "", "interrupt");
  expect(std::isfinite(model.evaluate(rays.x, rays.labels).loss), "the model works afterwards");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: embed_cpp CHECKPOINT INPUTS OUTPUTS\n");
    return 2;
  }
  // A decimal comma must not reach the descriptions; where the locale is missing this does nothing.
  std::setlocale(LC_ALL, "de_DE.UTF-8");
  expect(tw::version() == TW_VERSION_STRING, "version");
  expect(tw::default_threads() >= 1, "threads");
  expect(!tw::describe_system().empty(), "describe_system");
  try {
    check_training();
    check_values();
    check_custom_loss();
    check_checkpoints(argv[1], argv[2], argv[3]);
    check_errors();
  } catch (const std::exception& error) {
    expect(false, std::string("unexpected exception: ") + error.what());
  }
  if (failures == 0) std::printf("embed_cpp: all checks passed\n");
  return failures;
}
