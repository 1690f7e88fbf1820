// Tests that a failed allocation is TW_ERROR_MEMORY and nothing else: the first, then the second,
// then every later allocation of a call fails once; afterwards the model is as before or complete,
// and training goes on to the same bits. Prints every failure; the exit code is 1 if there was one.
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "thalweg/thalweg_c.h"

namespace {

// Allocations until the one that fails; 0 after it, negative for none.
std::atomic<long> left{-1};

bool fails() {
  long now = left.load();
  while (now > 0 && !left.compare_exchange_weak(now, now - 1)) {
  }
  return now == 1;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (fails()) throw std::bad_alloc();
  const std::size_t padded = (bytes + alignment) / alignment * alignment;
  if (void* const memory = std::aligned_alloc(alignment, padded)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return fails() ? nullptr : std::malloc(bytes + 1);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

constexpr std::int64_t kRows = 100;
constexpr std::int64_t kFeatures = 10;
constexpr std::int64_t kEpochs = 3;
constexpr const char* kDescription = R"({
  "in_features": 10, "seed": 3, "loss": {"type": "cross_entropy"},
  "layers": [{"type": "dense", "units": 40}, {"type": "batch_norm"}, {"type": "relu"},
             {"type": "dropout", "p": 0.2},
             {"type": "residual", "layers": [{"type": "dense", "units": 40}, {"type": "gelu"}]},
             {"type": "dense", "units": 3}],
  "optimizer": {"type": "adam", "groups": [{"match": "*.bias", "weight_decay": 0.1}]},
  "averaging": {"type": "ema", "decay": 0.9}, "clip_norm": 1.0})";
constexpr const char* kOtherOptimizer =
    R"({"type": "nesterov", "lr": {"schedule": "robbins_monro", "start": 0.1, "k0": 10},
        "groups": [{"match": "*.weight", "frozen": true}]})";

struct Arrays {
  std::vector<float> values;
  std::vector<std::int64_t> labels;
  tw_array x{}, y{};

  Arrays() : values(kRows * kFeatures), labels(kRows) {
    std::uint32_t state = 1;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(state >> 8) / 0x1p24f - 0.5f;
    }
    for (std::int64_t r = 0; r < kRows; ++r) labels[static_cast<std::size_t>(r)] = r % 3;
    x.data = values.data();
    x.dtype = TW_FLOAT32;
    x.ndim = 2;
    x.shape[0] = kRows;
    x.shape[1] = kFeatures;
    x.strides[0] = kFeatures * 4;
    x.strides[1] = 4;
    y.data = labels.data();
    y.dtype = TW_INT64;
    y.ndim = 1;
    y.shape[0] = kRows;
    y.strides[0] = 8;
  }
};

int failures = 0;
const Arrays* arrays = nullptr;
tw_model* model = nullptr;

void fail(const std::string& what) {
  ++failures;
  std::printf("FAILED %s: %s\n", what.c_str(), tw_last_error_message());
}

tw_status create() {
  tw_model_destroy(model);
  model = nullptr;
  tw_model_options options{};
  options.struct_size = sizeof(options);
  options.threads = 2;
  return tw_model_create(kDescription, &options, &model);
}

tw_status load(const std::string& path) {
  tw_model_destroy(model);
  model = nullptr;
  return tw_model_load(path.c_str(), nullptr, &model);
}

tw_status fit(std::int64_t epochs) {
  tw_early_stopping stopping{};
  stopping.struct_size = sizeof(stopping);
  stopping.patience = 100;
  stopping.keep_last = 1;
  tw_fit_options options{};
  options.struct_size = sizeof(options);
  options.epochs = epochs;
  options.batch_size = 16;
  options.accumulate = 2;
  options.shuffle = TW_SHUFFLE_STACK;
  options.validation_x = &arrays->x;
  options.validation_y = &arrays->y;
  options.early_stopping = &stopping;
  return tw_model_fit(model, &arrays->x, &arrays->y, nullptr, &options, nullptr);
}

std::vector<float> parameters() {
  std::vector<float> values(static_cast<std::size_t>(tw_model_num_parameters(model)));
  if (tw_model_get_parameters(model, values.data(), values.size() * sizeof(float)) != TW_OK)
    fail("get_parameters");
  return values;
}

// Fails the n-th allocation of call(), for n = 1 on until there are not that many.
void sweep(const char* name, const std::function<tw_status()>& prepare,
           const std::function<tw_status()>& call,
           const std::function<bool(tw_status)>& is_right_after) {
  for (long n = 1;; ++n) {
    const std::string what = std::string(name) + ", allocation " + std::to_string(n);
    if (prepare() != TW_OK) return fail(what + ": preparation");
    left = n;
    const tw_status status = call();
    const bool reached = left == 0;
    left = -1;
    if (status != TW_OK && !(reached && status == TW_ERROR_MEMORY))
      fail(what + ": status " + std::to_string(status));
    if (!is_right_after(status)) fail(what + ": the model is not what it should be");
    if (!reached) {
      std::printf("%s: %ld allocations\n", name, n - 1);
      return;
    }
  }
}

}  // namespace

int main() {
  const Arrays data;
  arrays = &data;
  char folder[] = "/tmp/thalweg_memory_test_XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const std::string path = std::string(folder) + "/model.safetensors";
  const std::string other_path = path + ".2";

  if (create() != TW_OK) fail("create");
  const std::vector<float> initial = parameters();
  if (fit(kEpochs) != TW_OK || tw_model_save(model, path.c_str()) != TW_OK) fail("fit and save");
  const std::vector<float> trained = parameters();

  const auto nothing = [] { return tw_status{TW_OK}; };
  const auto is_initial = [&](tw_status) { return parameters() == initial; };
  sweep("create", nothing, create, [&](tw_status status) {
    return (status == TW_OK || (model == nullptr && create() == TW_OK)) && parameters() == initial;
  });
  sweep(
      "load", nothing, [&] { return load(path); },
      [&](tw_status status) {
        return (status == TW_OK || (model == nullptr && load(path) == TW_OK)) &&
               parameters() == trained;
      });
  sweep(
      "fit", create, [] { return fit(kEpochs); },
      [&](tw_status) {
        const std::int64_t rest = kEpochs - tw_model_epochs_done(model);
        return (rest == 0 || fit(rest) == TW_OK) && parameters() == trained;
      });
  sweep(
      "step", create, [&] { return tw_model_step(model, &data.x, &data.y, nullptr, nullptr); },
      [&](tw_status status) {
        return tw_model_steps_done(model) == (status == TW_OK) &&
               (parameters() == initial) == (status != TW_OK);
      });
  sweep("save", create, [&] { return tw_model_save(model, other_path.c_str()); }, is_initial);
  sweep(
      "load_weights", create, [&] { return tw_model_load_weights(model, path.c_str()); },
      [&](tw_status status) { return parameters() == (status == TW_OK ? trained : initial); });
  sweep(
      "copy", create,
      [] {
        tw_model* twin = nullptr;
        const tw_status status = tw_model_copy(model, &twin);
        tw_model_destroy(twin);
        return status;
      },
      is_initial);
  sweep(
      "set_optimizer", create, [] { return tw_model_set_optimizer(model, kOtherOptimizer); },
      [](tw_status status) {
        char* json = nullptr;
        if (tw_model_description(model, &json) != TW_OK) return false;
        const bool other = std::strstr(json, "nesterov") != nullptr;
        tw_string_destroy(json);
        return other == (status == TW_OK) && tw_model_num_slots(model) == (other ? 1 : 2);
      });
  sweep(
      "evaluate", create,
      [&] {
        tw_metrics metrics{};
        return tw_model_evaluate(model, &data.x, &data.y, nullptr, nullptr, &metrics);
      },
      is_initial);
  std::vector<float> gradient(initial.size());
  sweep(
      "loss_and_gradient", create,
      [&] {
        return tw_model_loss_and_gradient(model, &data.x, &data.y, nullptr, nullptr, nullptr,
                                          gradient.data(), gradient.size() * sizeof(float), nullptr,
                                          0);
      },
      is_initial);

  tw_model_destroy(model);
  for (const std::string& file : {path, other_path}) unlink(file.c_str());
  rmdir(folder);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
