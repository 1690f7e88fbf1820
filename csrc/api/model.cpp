// The life of a model behind the C interface: creation, files, facts and values.
#include <utility>

#include "api/convert.h"
#include "api/guard.h"
#include "api/handles.h"

namespace {

using namespace thalweg;
using namespace thalweg::api;

struct Placement {
  std::string device;
  int threads;
  void* stream;
};

Placement read_placement(const tw_model_options* given, std::string_view operation) {
  const tw_model_options options = read_options(given, operation);
  expect<ValueError>(options.threads >= 0, "[", operation, "] expected threads >= 0, got ",
                     options.threads);
  expect<ValueError>(options.reserved == 0, "[", operation, "] expected reserved == 0, got ",
                     options.reserved);
  return {options.device ? options.device : "auto", options.threads, options.stream};
}

tw_model* to_handle(std::unique_ptr<Model> model, CustomLoss custom_loss = {}) {
  std::string device = model->device();
  return new tw_model{std::move(model), std::move(device), std::move(custom_loss)};
}

const Model& model_of(const tw_model* model, std::string_view operation) {
  return *required(model, operation, "model").model;
}

Model& model_of(tw_model* model, std::string_view operation) {
  return *required(model, operation, "model").model;
}

void expect_values(const Model& model, const void* values, std::size_t bytes, std::int64_t count,
                   std::string_view operation) {
  expect_buffer(model, values, bytes, count, operation, "values");
}

const std::vector<TensorInfo>* tensors_of(const tw_model* model, std::int32_t kind) {
  if (!model) return nullptr;
  if (kind == TW_TENSORS_PARAMETERS) return &model->model->tensors();
  if (kind == TW_TENSORS_STATE) return &model->model->state_tensors();
  return nullptr;
}

std::int64_t state_size(const Model& model) {
  std::int64_t size = 0;
  for (const TensorInfo& tensor : model.state_tensors()) size += tensor.size;
  return size;
}

}  // namespace

// ---- Life

tw_status tw_model_create(const char* description, const tw_model_options* options,
                          tw_model** model) {
  return guarded([&] {
    required(model, "tw_model_create", "model");
    const Placement placement = read_placement(options, "tw_model_create");
    const Description parsed =
        parse_description(&required(description, "tw_model_create", "description"));
    *model =
        to_handle(Model::create(parsed, placement.device, placement.threads, placement.stream));
  });
}

tw_status tw_model_load(const char* path, const tw_model_options* options, tw_model** model) {
  return guarded([&] {
    required(model, "tw_model_load", "model");
    const Placement placement = read_placement(options, "tw_model_load");
    *model = to_handle(Model::load(&required(path, "tw_model_load", "path"), placement.device,
                                   placement.threads, placement.stream));
  });
}

tw_status tw_model_copy(const tw_model* model, tw_model** copy) {
  return guarded([&] {
    required(copy, "tw_model_copy", "copy");
    std::unique_ptr<Model> twin = model_of(model, "tw_model_copy").copy();
    if (model->custom_loss) twin->set_custom_loss(model->custom_loss);
    *copy = to_handle(std::move(twin), model->custom_loss);
  });
}

void tw_model_destroy(tw_model* model) { delete model; }

tw_status tw_model_save(const tw_model* model, const char* path) {
  return guarded(
      [&] { model_of(model, "tw_model_save").save(&required(path, "tw_model_save", "path")); });
}

tw_status tw_model_load_weights(tw_model* model, const char* path) {
  return guarded([&] {
    model_of(model, "tw_model_load_weights")
        .load_weights(&required(path, "tw_model_load_weights", "path"));
  });
}

tw_status tw_model_reset(tw_model* model) {
  return guarded([&] { model_of(model, "tw_model_reset").reset(); });
}

// ---- Facts

int64_t tw_model_in_features(const tw_model* model) {
  return model ? model->model->description().in_features : 0;
}

int64_t tw_model_out_features(const tw_model* model) {
  return model ? model->model->out_features() : 0;
}

int64_t tw_model_num_parameters(const tw_model* model) {
  return model ? model->model->num_parameters() : 0;
}

int64_t tw_model_steps_done(const tw_model* model) {
  return model ? model->model->steps_done() : 0;
}

int64_t tw_model_epochs_done(const tw_model* model) {
  return model ? model->model->epochs_done() : 0;
}

tw_dtype tw_model_dtype(const tw_model* model) {
  return model ? static_cast<tw_dtype>(model->model->description().dtype) : 0;
}

int32_t tw_model_threads(const tw_model* model) { return model ? model->model->threads() : 0; }

const char* tw_model_device(const tw_model* model) { return model ? model->device.c_str() : ""; }

tw_status tw_model_description(const tw_model* model, char** json) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_description");
    required(json, "tw_model_description", "json") = to_c_string(to_json(source.description()));
  });
}

tw_status tw_model_plan_summary(const tw_model* model, char** text) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_plan_summary");
    required(text, "tw_model_plan_summary", "text") = to_c_string(source.plan_summary());
  });
}

// ---- Workspace

tw_status tw_model_workspace_bytes(const tw_model* model, int64_t batch_size, size_t* bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_workspace_bytes");
    required(bytes, "tw_model_workspace_bytes", "bytes") = source.workspace_bytes(batch_size);
  });
}

tw_status tw_model_set_workspace(tw_model* model, void* memory, size_t bytes) {
  return guarded([&] { model_of(model, "tw_model_set_workspace").set_workspace(memory, bytes); });
}

// ---- Values

int64_t tw_model_num_tensors(const tw_model* model, int32_t kind) {
  const std::vector<TensorInfo>* tensors = tensors_of(model, kind);
  return tensors ? static_cast<int64_t>(tensors->size()) : 0;
}

tw_status tw_model_tensor(const tw_model* model, int32_t kind, int64_t index,
                          tw_tensor_info* info) {
  return guarded([&] {
    required(model, "tw_model_tensor", "model");
    required(info, "tw_model_tensor", "info");
    const std::int64_t count = tw_model_num_tensors(model, kind);
    expect<ValueError>(index >= 0 && index < count, "[tw_model_tensor] expected index in [0, ",
                       count, ") for kind ", kind, ", got ", index);
    const TensorInfo& tensor = (*tensors_of(model, kind))[static_cast<std::size_t>(index)];
    tw_tensor_info out{};
    out.name = tensor.name.c_str();
    out.ndim = static_cast<std::int64_t>(tensor.shape.size());
    out.shape[0] = tensor.shape.empty() ? 1 : tensor.shape[0];
    out.shape[1] = tensor.shape.size() < 2 ? 1 : tensor.shape[1];
    out.offset = tensor.offset;
    out.size = tensor.size;
    write_result(out, *info, "tw_model_tensor");
  });
}

tw_status tw_model_get_parameters(const tw_model* model, void* out, size_t out_bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_get_parameters");
    expect_values(source, out, out_bytes, source.num_parameters(), "tw_model_get_parameters");
    source.get_parameters(out);
  });
}

tw_status tw_model_set_parameters(tw_model* model, const void* values, size_t bytes) {
  return guarded([&] {
    Model& target = model_of(model, "tw_model_set_parameters");
    expect_values(target, values, bytes, target.num_parameters(), "tw_model_set_parameters");
    target.set_parameters(values);
  });
}

tw_status tw_model_get_theta(const tw_model* model, void* out, size_t out_bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_get_theta");
    expect_values(source, out, out_bytes, source.num_parameters(), "tw_model_get_theta");
    source.get_theta(out);
  });
}

tw_status tw_model_get_average(const tw_model* model, void* out, size_t out_bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_get_average");
    expect_values(source, out, out_bytes, source.num_parameters(), "tw_model_get_average");
    expect<ValueError>(
        source.get_average(out),
        "[tw_model_get_average] expected a description with \"averaging\", got none");
  });
}

int64_t tw_model_num_slots(const tw_model* model) {
  int64_t count = 0;
  guarded([&] {
    count = static_cast<int64_t>(model_of(model, "tw_model_num_slots").slot_names().size());
  });
  return count;
}

tw_status tw_model_slot_name(const tw_model* model, int64_t slot, char** name) {
  return guarded([&] {
    const std::vector<std::string> names = model_of(model, "tw_model_slot_name").slot_names();
    expect<ValueError>(slot >= 0 && slot < static_cast<std::int64_t>(names.size()),
                       "[tw_model_slot_name] expected slot in [0, ", names.size(), "), got ", slot);
    required(name, "tw_model_slot_name", "name") =
        to_c_string(names[static_cast<std::size_t>(slot)]);
  });
}

tw_status tw_model_get_slot(const tw_model* model, int64_t slot, void* out, size_t out_bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_get_slot");
    const std::size_t count = source.slot_names().size();
    expect<ValueError>(slot >= 0 && slot < static_cast<std::int64_t>(count),
                       "[tw_model_get_slot] expected slot in [0, ", count, "), got ", slot);
    expect_values(source, out, out_bytes, source.num_parameters(), "tw_model_get_slot");
    source.get_slot(static_cast<int>(slot), out);
  });
}

tw_status tw_model_get_state(const tw_model* model, void* out, size_t out_bytes) {
  return guarded([&] {
    const Model& source = model_of(model, "tw_model_get_state");
    expect_values(source, out, out_bytes, state_size(source), "tw_model_get_state");
    source.get_state(out);
  });
}

tw_status tw_model_set_state(tw_model* model, const void* values, size_t bytes) {
  return guarded([&] {
    Model& target = model_of(model, "tw_model_set_state");
    expect_values(target, values, bytes, state_size(target), "tw_model_set_state");
    target.set_state(values);
  });
}
