// What a model writes to and reads from a file. The container is in checkpoint_file.h.
//
// Tensors: parameters and batch-norm buffers by layer, "optimizer.<slot>.<parameter>",
// "average.<parameter>", "method.<vector>" (float64) of a method on the whole objective. Metadata:
// "description" (JSON), "training" (JSON: counters, the place in the data and the partial metrics
// of the epoch in progress), "method" (JSON: its numbers).
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "math/optimizers.h"
#include "ops/device_resolution.h"
#include "training/checkpoint_file.h"
#include "training/typed_model.h"

namespace thalweg {
namespace {

constexpr const char* kShuffleNames[] = {"epoch", "stack", "iid", "none"};

[[noreturn]] void fail(const std::string& message) { throw CheckpointError("[load] " + message); }

const StoredTensor& require(const CheckpointFile& file, const TensorInfo& info,
                            const std::string& name) {
  const StoredTensor* tensor = file.find(name);
  if (tensor == nullptr) fail("expected a tensor '" + name + "', which the file does not hold");
  const auto text = [](const std::vector<std::int64_t>& shape) {
    std::string out = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) out += concat(i ? ", " : "", shape[i]);
    return out + ")";
  };
  if (tensor->shape != info.shape)
    fail(
        concat("expected '", name, "' of shape ", text(info.shape), ", got ", text(tensor->shape)));
  return *tensor;
}

// Casts between float32 and float64.
template <class T>
void read_values(const StoredTensor& tensor, std::int64_t size, T* out) {
  const auto convert = [&]<class Source>() {
    const auto* bytes = static_cast<const std::byte*>(tensor.data);
    for (std::int64_t i = 0; i < size; ++i) {
      Source value;
      std::memcpy(&value, bytes + i * std::int64_t{sizeof(Source)}, sizeof(Source));
      out[i] = static_cast<T>(value);
    }
  };
  if (tensor.dtype == DType::kFloat32)
    convert.template operator()<float>();
  else if (tensor.dtype == DType::kFloat64)
    convert.template operator()<double>();
  else
    fail(concat("expected '", tensor.name, "' as float32 or float64, got ",
                dtype_name(tensor.dtype)));
}

template <class T>
void add_tensors(const std::vector<TensorInfo>& infos, const std::string& prefix, const T* flat,
                 CheckpointFile* file) {
  for (const TensorInfo& info : infos)
    file->tensors.push_back({prefix + info.name, dtype_of<T>(), info.shape, flat + info.offset,
                             info.size * std::int64_t{sizeof(T)}});
}

// All of `infos` from the file into a flat vector.
template <class T>
std::vector<T> read_tensors(const CheckpointFile& file, const std::vector<TensorInfo>& infos,
                            const std::string& prefix) {
  std::int64_t size = 0;
  for (const TensorInfo& info : infos) size = std::max(size, info.offset + info.size);
  std::vector<T> flat(static_cast<std::size_t>(size));
  for (const TensorInfo& info : infos)
    read_values(require(file, info, prefix + info.name), info.size, flat.data() + info.offset);
  return flat;
}

std::int64_t read_count(const CheckpointFile& file, const std::string& name) {
  TensorInfo scalar;
  const StoredTensor& tensor = require(file, scalar, name);
  if (tensor.dtype != DType::kInt64)
    fail(concat("expected '", name, "' as int64, got ", dtype_name(tensor.dtype)));
  std::int64_t count = 0;
  std::memcpy(&count, tensor.data, sizeof(count));
  if (count < 0) fail(concat("expected '", name, "' >= 0, got ", count));
  return count;
}

const std::string& metadata(const CheckpointFile& file, const std::string& key) {
  const auto entry = file.metadata.find(key);
  if (entry == file.metadata.end()) fail("expected metadata '" + key + "', which the file lacks");
  return entry->second;
}

Json cursor_json(const Cursor& cursor) {
  Json::Object out;
  out.push_back({"steps", cursor.steps});
  out.push_back({"updates", cursor.updates});
  out.push_back({"epochs", cursor.epochs});
  out.push_back({"position", cursor.position});
  out.push_back({"rows", cursor.rows});
  out.push_back({"batch_size", cursor.batch_size});
  out.push_back({"accumulate", cursor.accumulate});
  out.push_back({"shuffle", kShuffleNames[static_cast<int>(cursor.shuffle)]});
  out.push_back({"loss", cursor.loss});
  out.push_back({"hits", cursor.hits});
  out.push_back({"weight", cursor.weight});
  out.push_back({"skipped_rows", cursor.skipped_rows});
  out.push_back({"steps_per_epoch", cursor.steps_per_epoch});
  out.push_back({"averaged", cursor.averaged});
  return out;
}

Cursor parse_cursor(const std::string& text) {
  const Json json = Json::parse(text);
  const auto member = [&](const char* key) -> const Json& {
    const Json* value = json.find(key);
    if (value == nullptr) fail(concat("expected training.", key, " in the metadata"));
    return *value;
  };
  const auto count = [&](const char* key) {
    const std::optional<std::int64_t> value = member(key).int64();
    if (!value || *value < 0) fail(concat("expected training.", key, " as a count >= 0"));
    return *value;
  };
  const auto real = [&](const char* key) {
    const std::optional<double> value = member(key).number();
    if (!value) fail(concat("expected training.", key, " as a number"));
    return *value;
  };
  Cursor cursor;
  cursor.steps = count("steps");
  cursor.updates = count("updates");
  cursor.epochs = count("epochs");
  cursor.position = count("position");
  cursor.rows = count("rows");
  cursor.batch_size = count("batch_size");
  cursor.accumulate = count("accumulate");
  const std::string* shuffle = member("shuffle").string();
  const auto* name = std::find_if(std::begin(kShuffleNames), std::end(kShuffleNames),
                                  [&](const char* n) { return shuffle && *shuffle == n; });
  if (name == std::end(kShuffleNames)) fail("expected training.shuffle as the name of an order");
  cursor.shuffle = static_cast<Shuffle>(name - std::begin(kShuffleNames));
  cursor.loss = real("loss");
  cursor.hits = real("hits");
  cursor.weight = real("weight");
  cursor.skipped_rows = count("skipped_rows");
  cursor.steps_per_epoch = real("steps_per_epoch");
  cursor.averaged = count("averaged");
  return cursor;
}

constexpr std::string_view kMethodPrefix = "method.";

minimize::MethodState read_method(const CheckpointFile& file) {
  minimize::MethodState state;
  for (const StoredTensor& tensor : file.tensors) {
    if (!std::string_view(tensor.name).starts_with(kMethodPrefix)) continue;
    minimize::Vector values(static_cast<std::size_t>(tensor.bytes / item_size(tensor.dtype)));
    read_values(tensor, minimize::length(values), values.data());
    state.vectors.emplace_back(tensor.name.substr(kMethodPrefix.size()), std::move(values));
  }
  const Json numbers = Json::parse(metadata(file, "method"));
  if (numbers.object() == nullptr) fail("expected an object as metadata 'method'");
  for (const Json::Member& member : *numbers.object()) {
    const std::optional<double> value = member.value.number();
    if (!value) fail(concat("expected method.", member.key, " in the metadata as a number"));
    state.numbers.emplace_back(member.key, *value);
  }
  return state;
}

}  // namespace

template <class T>
void TypedModel<T>::save(const std::string& path) const {
  CheckpointFile file;
  const std::vector<std::string> slots = slot_names();
  std::vector<std::vector<T>> flats;
  flats.reserve(slots.size() + 2);
  const auto add = [&](const std::string& prefix, const auto& get) {
    T* values = flats.emplace_back(flat()).data();
    get(values);
    add_tensors(tensors_, prefix, values, &file);
  };
  add("", [&](T* values) { get_parameters(values); });
  std::vector<T> state = flat_state();
  get_state(state.data());
  add_tensors(state_tensors_, "", state.data(), &file);
  const std::vector<std::int64_t> batches = engine_->batches();
  for (std::size_t s = 0; s < plan_.states.size(); ++s)
    file.tensors.push_back({plan_.states[s].name + ".num_batches_tracked",
                            DType::kInt64,
                            {},
                            &batches[s],
                            std::int64_t{sizeof(std::int64_t)}});
  for (std::size_t s = 0; s < slots.size(); ++s)
    add(concat("optimizer.", slots[s], "."),
        [&](T* values) { engine_->get_slot(static_cast<int>(s), values); });
  if (cursor_.averaged > 0) add("average.", [&](T* values) { engine_->get_average(values); });
  minimize::MethodState method;
  if (method_) {
    method = method_->state();
    for (const auto& [name, values] : method.vectors) {
      if (values.empty()) continue;
      const std::int64_t size = minimize::length(values);
      file.tensors.push_back({concat(kMethodPrefix, name),
                              DType::kFloat64,
                              {size},
                              values.data(),
                              size * std::int64_t{sizeof(double)}});
    }
    Json::Object numbers;
    for (const auto& [name, value] : method.numbers) numbers.push_back({name, value});
    file.metadata["method"] = Json(std::move(numbers)).text();
  }
  file.metadata["description"] = to_json(plan_.description);
  file.metadata["training"] = cursor_json(cursor_).text();
  write_checkpoint_file(path, file);
}

template <class T>
void TypedModel<T>::restore(const CheckpointFile& file) {
  // Everything is read and checked before anything is written.
  const std::vector<T> parameters = read_tensors<T>(file, tensors_, "");
  const std::vector<T> state = read_tensors<T>(file, state_tensors_, "");
  std::vector<std::int64_t> batches;
  for (const BatchNormState& bn : plan_.states)
    batches.push_back(read_count(file, bn.name + ".num_batches_tracked"));
  std::vector<std::vector<T>> slots;
  for (const std::string& name : slot_names())
    slots.push_back(read_tensors<T>(file, tensors_, "optimizer." + name + "."));
  const Cursor cursor = parse_cursor(metadata(file, "training"));
  std::vector<T> average;
  if (cursor.averaged > 0) {
    if (!averages()) fail("expected no averaged updates in a model without averaging");
    average = read_tensors<T>(file, tensors_, "average.");
  }
  if (cursor.position > cursor.rows) fail("expected training.position <= training.rows");
  // A state that is not the method's is an error; this one is replaced whole.
  if (method_) method_->set_state(read_method(file));

  set_parameters(parameters.data());
  set_state(state.data());
  engine_->set_batches(batches);
  for (std::size_t s = 0; s < slots.size(); ++s)
    engine_->set_slot(static_cast<int>(s), slots[s].data());
  if (cursor.averaged > 0) engine_->set_average(average.data());
  cursor_ = cursor;
}

template <class T>
void TypedModel<T>::load_weights(const std::string& path) {
  const CheckpointFile file = read_checkpoint_file(path, false);
  // PyTorch's Sequential says "0.weight" where thalweg says "layers.0.weight".
  const bool bare = !tensors_.empty() && file.find(tensors_[0].name) == nullptr;
  const auto renamed = [&](std::vector<TensorInfo> infos) {
    constexpr std::string_view kLayers = "layers.";
    if (bare)
      for (TensorInfo& info : infos)
        for (std::size_t at = info.name.find(kLayers); at != std::string::npos;
             at = info.name.find(kLayers, at))
          info.name.erase(at, kLayers.size());
    return infos;
  };
  const std::vector<T> parameters = read_tensors<T>(file, renamed(tensors_), "");
  const std::vector<T> state = read_tensors<T>(file, renamed(state_tensors_), "");
  // Not every program counts batches.
  std::vector<TensorInfo> counts(plan_.states.size());
  for (std::size_t s = 0; s < counts.size(); ++s)
    counts[s].name = plan_.states[s].name + ".num_batches_tracked";
  counts = renamed(std::move(counts));
  std::vector<std::int64_t> batches = engine_->batches();
  for (std::size_t s = 0; s < counts.size(); ++s)
    if (file.find(counts[s].name) != nullptr) batches[s] = read_count(file, counts[s].name);
  set_parameters(parameters.data());
  set_state(state.data());
  engine_->set_batches(batches);
}

std::unique_ptr<Model> Model::load(const std::string& path, const std::string& device, int threads,
                                   void* stream) {
  const std::string resolved = resolve_device(device);
  threads = resolve_threads(threads);
  const CheckpointFile file = read_checkpoint_file(path, true);
  const auto described = [&](auto&& read) {
    try {
      return read();
    } catch (const ValueError& error) {
      throw CheckpointError(
          concat("[load] '", path, "' does not describe a model: ", error.what()));
    }
  };
  const Description description = described([&] {
    Description parsed = parse_description(metadata(file, "description"));
    // A description takes a line to ask for all memory.
    const std::int64_t parameters = compile(parsed).num_parameters;
    std::int64_t stored = 0;
    for (const StoredTensor& tensor : file.tensors)
      stored += tensor.bytes / item_size(tensor.dtype);
    if (parameters > stored)
      fail(concat("expected ", parameters, " parameters, got tensors of ", stored, " elements"));
    return parsed;
  });
  const auto restored = [&]<class T>() -> std::unique_ptr<Model> {
    auto model = std::make_unique<TypedModel<T>>(description, resolved, threads, stream);
    model->restore(file);
    return model;
  };
  return described([&] {
    return description.dtype == DType::kFloat64 ? restored.template operator()<double>()
                                                : restored.template operator()<float>();
  });
}

#define TW_INSTANTIATE(T)                                      \
  template void TypedModel<T>::save(const std::string&) const; \
  template void TypedModel<T>::restore(const CheckpointFile&); \
  template void TypedModel<T>::load_weights(const std::string&);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
