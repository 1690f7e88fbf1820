// Training and evaluation behind the C interface.
#include <memory>
#include <utility>
#include <vector>

#include "api/convert.h"
#include "api/guard.h"
#include "api/handles.h"
#include "training/population.h"

namespace {

using namespace thalweg;
using namespace thalweg::api;

std::int64_t or_default(std::int64_t value, std::int64_t default_value) {
  return value == 0 ? default_value : value;
}

std::int64_t positive(std::int64_t value, std::int64_t default_value, std::string_view operation,
                      std::string_view name) {
  expect<ValueError>(value >= 0, "[", operation, "] expected ", name, " > 0, or 0 for ",
                     default_value, ", got ", value);
  return or_default(value, default_value);
}

template <class Enum>
Enum to_enum(std::int32_t value, Enum last, std::string_view name) {
  expect<ValueError>(value >= 0 && value <= static_cast<std::int32_t>(last), "[fit] expected ",
                     name, " in [0, ", static_cast<std::int32_t>(last), "], got ", value);
  return static_cast<Enum>(value);
}

static_assert(TW_SHUFFLE_STACK == static_cast<int>(Shuffle::kStack));
static_assert(TW_SHUFFLE_IID == static_cast<int>(Shuffle::kIid));
static_assert(TW_SHUFFLE_NONE == static_cast<int>(Shuffle::kNone));
static_assert(TW_MONITOR_VALIDATION_LOSS == static_cast<int>(Monitor::kValidationLoss));
static_assert(TW_MONITOR_LOSS == static_cast<int>(Monitor::kLoss));
static_assert(TW_MONITOR_ACCURACY == static_cast<int>(Monitor::kAccuracy));

EarlyStopping to_early_stopping(const tw_early_stopping* given) {
  const tw_early_stopping options = read_options(given, "tw_early_stopping");
  EarlyStopping out;
  out.monitor = to_enum(options.monitor, Monitor::kAccuracy, "early_stopping.monitor");
  out.patience = positive(options.patience, out.patience, "fit", "early_stopping.patience");
  out.min_delta = options.min_delta;
  out.restore_best = options.keep_last == 0;
  return out;
}

// True to go on.
bool goes_on(std::int32_t answer) {
  if (answer < 0) throw CallbackFailed("[fit] a callback returned TW_FAIL");
  return answer == TW_CONTINUE;
}

std::int64_t to_batch_size(std::int64_t batch_size) {
  if (batch_size == TW_FULL_BATCH) return 0;
  expect<ValueError>(batch_size >= 0,
                     "[fit] expected batch_size > 0, 0 for 32, or TW_FULL_BATCH, got ", batch_size);
  return or_default(batch_size, 32);
}

FitOptions to_fit_options(const Model& model, const tw_fit_options* given) {
  const tw_fit_options options = read_options(given, "tw_model_fit");
  FitOptions out;
  out.epochs = positive(options.epochs, out.epochs, "fit", "epochs");
  out.batch_size = to_batch_size(options.batch_size);
  out.shuffle = to_enum(options.shuffle, Shuffle::kNone, "shuffle");
  out.accumulate = positive(options.accumulate, out.accumulate, "fit", "accumulate");
  if (options.validation_x)
    out.validation = to_data(model, options.validation_x, options.validation_y,
                             options.validation_weights, "fit, validation");
  expect<ValueError>(
      options.num_class_weights >= 0 && (options.class_weights || options.num_class_weights == 0),
      "[fit] expected class_weights with num_class_weights values, got ",
      options.num_class_weights);
  if (options.class_weights)
    out.class_weights.assign(options.class_weights,
                             options.class_weights + options.num_class_weights);
  if (options.early_stopping) out.early_stopping = to_early_stopping(options.early_stopping);
  expect<ValueError>(options.max_steps >= 0, "[fit] expected max_steps >= 0, got ",
                     options.max_steps);
  if (options.max_steps > 0) out.max_steps = options.max_steps;
  if (options.has_stop_at_loss) out.stop_at_loss = options.stop_at_loss;
  out.interrupt = to_interrupt(options.interrupt, options.user_data);
  if (options.on_epoch) {
    out.on_epoch = [callback = options.on_epoch,
                    user_data = options.user_data](const EpochRecord& record) {
      const tw_epoch_record converted = to_c(record);
      return goes_on(callback(&converted, user_data));
    };
  }
  if (options.on_step) {
    out.every = positive(options.callback_every, 1, "fit", "callback_every");
    out.on_step = [callback = options.on_step,
                   user_data = options.user_data](const StepRecord& record) {
      const tw_step_record converted = to_c(record);
      return goes_on(callback(&converted, user_data));
    };
  }
  return out;
}

struct RunOptions {
  std::int64_t batch_size;
  Interrupt interrupt;
};

RunOptions to_run_options(const tw_run_options* given, std::string_view operation) {
  const tw_run_options options = read_options(given, operation);
  return {positive(options.batch_size, 1024, operation, "batch_size"),
          to_interrupt(options.interrupt, options.user_data)};
}

using Predict = void (Model::*)(const ArrayView&, std::int64_t, void*, const Interrupt&) const;

tw_status predict_with(Predict method, const tw_model* model, const tw_array* x,
                       const tw_run_options* options, void* out, size_t out_bytes,
                       std::string_view operation) {
  return guarded([&] {
    const Model& source = *required(model, operation, "model").model;
    const ArrayView input = to_view(source, required(x, operation, "x"), operation, "x");
    const RunOptions run = to_run_options(options, operation);
    expect_buffer(source, out, out_bytes,
                  checked_product(operation, input.rows, source.out_features()), operation, "out");
    (source.*method)(input, run.batch_size, out, run.interrupt);
  });
}

}  // namespace

tw_status tw_model_fit(tw_model* model, const tw_array* x, const tw_array* y,
                       const tw_array* weights, const tw_fit_options* options,
                       tw_fit_result** result) {
  return guarded([&] {
    Model& target = *required(model, "fit", "model").model;
    const Data data = to_data(target, x, y, weights, "fit");
    const FitOptions fit_options = to_fit_options(target, options);
    auto history = std::make_unique<tw_fit_result>();  // nothing can fail after the training
    history->result = target.fit(data, fit_options);
    if (result) *result = history.release();
  });
}

tw_status tw_fit_many(tw_model* const* models, int64_t num_models, const tw_array* x,
                      const tw_array* y, const tw_array* weights, int64_t num_data_sets,
                      const tw_fit_options* options, int32_t threads, tw_fit_result** results) {
  return guarded([&] {
    required(models, "fit_many", "models");
    required(x, "fit_many", "x");
    required(y, "fit_many", "y");
    expect<ValueError>(num_models >= 1, "[fit_many] expected num_models >= 1, got ", num_models);
    expect<ValueError>(num_data_sets == 1 || num_data_sets == num_models,
                       "[fit_many] expected num_data_sets to be 1 or ", num_models, ", got ",
                       num_data_sets);
    expect<ValueError>(threads >= 0, "[fit_many] expected threads >= 0, got ", threads);
    const FitOptions fit_options =
        to_fit_options(*required(models[0], "fit_many", "models").model, options);
    expect<ValueError>(!fit_options.on_epoch && !fit_options.on_step,
                       "[fit_many] expected on_epoch and on_step to be NULL, got a function");
    std::vector<Member> members;
    std::vector<std::unique_ptr<tw_fit_result>> histories;  // nothing can fail after the training
    for (std::int64_t i = 0; i < num_models; ++i) {
      const std::int64_t set = num_data_sets == 1 ? 0 : i;
      Member& member = members.emplace_back();
      member.model = required(models[i], "fit_many", "models").model.get();
      member.data =
          to_data(*member.model, x + set, y + set, weights ? weights + set : nullptr, "fit_many");
      member.options = fit_options;
      histories.push_back(std::make_unique<tw_fit_result>());
    }
    std::vector<MemberResult> trained =
        fit_population(std::move(members), threads > 0 ? threads : ThreadPool::default_threads(),
                       fit_options.interrupt);
    for (std::size_t i = 0; results && i < trained.size(); ++i) {
      histories[i]->result = std::move(trained[i].fit);
      results[i] = histories[i].release();
    }
  });
}

int64_t tw_fit_result_num_epochs(const tw_fit_result* result) {
  return result ? static_cast<int64_t>(result->result.epochs.size()) : 0;
}

tw_status tw_fit_result_epoch(const tw_fit_result* result, int64_t index, tw_epoch_record* record) {
  return guarded([&] {
    required(result, "tw_fit_result_epoch", "result");
    required(record, "tw_fit_result_epoch", "record");
    const std::int64_t count = tw_fit_result_num_epochs(result);
    expect<ValueError>(index >= 0 && index < count, "[tw_fit_result_epoch] expected index in [0, ",
                       count, "), got ", index);
    write_result(to_c(result->result.epochs[static_cast<std::size_t>(index)]), *record,
                 "tw_fit_result_epoch");
  });
}

const char* tw_fit_result_stopped_because(const tw_fit_result* result) {
  return result ? result->result.stopped_because.c_str() : "";
}

int64_t tw_fit_result_best_epoch(const tw_fit_result* result) {
  return result ? result->result.best_epoch : 0;
}

void tw_fit_result_destroy(tw_fit_result* result) { delete result; }

tw_status tw_model_step(tw_model* model, const tw_array* x, const tw_array* y,
                        const tw_array* weights, tw_step_record* record) {
  return guarded([&] {
    tw_model& target = required(model, "step", "model");
    const Data data = to_data(*target.model, x, y, weights, "step");
    if (record) write_result(tw_step_record{}, *record, "step");  // checks before the update
    const StepRecord done = target.model->step(data, {}, target.custom_loss);
    if (record) write_result(to_c(done), *record, "step");
  });
}

tw_status tw_model_set_optimizer(tw_model* model, const char* optimizer) {
  return guarded([&] {
    Model& target = *required(model, "tw_model_set_optimizer", "model").model;
    const Description description = parse_description(
        concat(R"({"in_features": 1, "layers": [{"type": "dense", "units": 1}], "optimizer": )",
               &required(optimizer, "tw_model_set_optimizer", "optimizer"), "}"));
    target.set_optimizer(description.optimizer);
  });
}

tw_status tw_model_set_custom_loss(tw_model* model, tw_loss_callback loss, void* user_data) {
  return guarded([&] {
    tw_model& target = required(model, "tw_model_set_custom_loss", "model");
    required(loss, "tw_model_set_custom_loss", "loss");
    expect<ValueError>(
        target.model->description().loss.kind == LossDescription::Kind::kCustom,
        "[tw_model_set_custom_loss] expected a model described with a loss of type custom");
    CustomLoss function = [=](const void* outputs, const std::int64_t* row_index, std::int64_t rows,
                              void* gradient) {
      double value = 0.0;
      goes_on(loss(outputs, row_index, rows, &value, gradient, user_data));
      return value;
    };
    target.model->set_custom_loss(function);
    target.custom_loss = std::move(function);
  });
}

tw_status tw_model_recalibrate_batch_norm(tw_model* model, const tw_array* x,
                                          const tw_run_options* options) {
  constexpr std::string_view operation = "recalibrate_batch_norm";
  return guarded([&] {
    Model& target = *required(model, operation, "model").model;
    const ArrayView input = to_view(target, required(x, operation, "x"), operation, "x");
    const RunOptions run = to_run_options(options, operation);
    target.recalibrate_batch_norm(input, run.batch_size, run.interrupt);
  });
}

tw_status tw_model_evaluate(const tw_model* model, const tw_array* x, const tw_array* y,
                            const tw_array* weights, const tw_run_options* options,
                            tw_metrics* metrics) {
  return guarded([&] {
    const Model& source = *required(model, "evaluate", "model").model;
    const Data data = to_data(source, x, y, weights, "evaluate");
    const RunOptions run = to_run_options(options, "evaluate");
    required(metrics, "evaluate", "metrics") =
        to_c(source.evaluate(data, run.batch_size, run.interrupt));
  });
}

tw_status tw_model_predict(const tw_model* model, const tw_array* x, const tw_run_options* options,
                           void* out, size_t out_bytes) {
  return predict_with(&Model::predict, model, x, options, out, out_bytes, "predict");
}

tw_status tw_model_predict_probabilities(const tw_model* model, const tw_array* x,
                                         const tw_run_options* options, void* out,
                                         size_t out_bytes) {
  return predict_with(&Model::predict_probabilities, model, x, options, out, out_bytes,
                      "predict_probabilities");
}

tw_status tw_model_loss_and_gradient(const tw_model* model, const tw_array* x, const tw_array* y,
                                     const tw_array* weights, const tw_gradient_options* options,
                                     tw_metrics* metrics, void* gradient, size_t gradient_bytes,
                                     void* input_gradient, size_t input_gradient_bytes) {
  constexpr std::string_view operation = "loss_and_gradient";
  return guarded([&] {
    const tw_model& source = required(model, operation, "model");
    const Data data = to_data(*source.model, x, y, weights, operation);
    const tw_gradient_options given = read_options(options, operation);
    if (gradient)
      expect_buffer(*source.model, gradient, gradient_bytes, source.model->num_parameters(),
                    operation, "gradient");
    if (input_gradient)
      expect_buffer(*source.model, input_gradient, input_gradient_bytes, data.x.size(), operation,
                    "input_gradient");
    GradientOptions gradient_options;
    gradient_options.training = given.evaluation_mode == 0;
    gradient_options.custom_loss = source.custom_loss;
    gradient_options.interrupt = to_interrupt(given.interrupt, given.user_data);
    const Metrics result =
        source.model->loss_and_gradient(data, gradient_options, gradient, input_gradient);
    if (metrics) *metrics = to_c(result);
  });
}
