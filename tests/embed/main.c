/* embed_c CHECKPOINT INPUTS OUTPUTS: the C interface as an application uses it; arguments as for
 * embed_cpp. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thalweg/thalweg_c.h>

static int failures = 0;

static void expect(int condition, const char* what) {
  if (condition) return;
  ++failures;
  printf("FAILED: %s (last error: %s)\n", what, tw_last_error_message());
}

static void* read_file(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  long length;
  void* data;
  *bytes = 0;
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  length = ftell(file);
  rewind(file);
  data = malloc((size_t)length);
  if (data && fread(data, 1, (size_t)length, file) == (size_t)length) *bytes = (size_t)length;
  fclose(file);
  return data;
}

static int32_t count_epochs(const tw_epoch_record* record, void* user_data) {
  ++*(int*)user_data;
  return record->epoch == 3 ? TW_STOP : TW_CONTINUE;
}

static int32_t fail(const tw_step_record* record, void* user_data) {
  (void)record;
  (void)user_data;
  return TW_FAIL;
}

static const char kDescription[] =
    "{\"in_features\": 2, \"seed\": 1,"
    " \"layers\": [{\"type\": \"dense\", \"units\": 8}, {\"type\": \"tanh\"},"
    "              {\"type\": \"dense\", \"units\": 1}],"
    " \"loss\": {\"type\": \"squared_error\"},"
    " \"optimizer\": {\"type\": \"adam\", \"lr\": 0.01}}";

enum { kRows = 64 };

static void check_training(void) {
  double inputs[kRows][2];
  float targets[kRows];
  float outputs[kRows], alone[kRows];
  int epochs = 0, i;
  tw_model *model = NULL, *copy = NULL, *many[3] = {NULL, NULL, NULL};
  tw_fit_result *history = NULL, *results[2] = {NULL, NULL};
  tw_metrics before, after;
  tw_epoch_record record = {.struct_size = sizeof record};
  tw_tensor_info tensor = {.struct_size = sizeof tensor};
  tw_fit_options options = {.struct_size = sizeof options};
  struct {
    tw_fit_options known;
    int64_t future[2];
  } longer;
  char* json = NULL;
  tw_array x, y;

  for (i = 0; i < kRows; ++i) {
    inputs[i][0] = (double)(i % 8) / 4.0 - 1.0;
    inputs[i][1] = (double)(i / 8) / 4.0 - 1.0;
    targets[i] = (float)(inputs[i][0] * inputs[i][1]);
  }
  x = tw_matrix(inputs, TW_FLOAT64, kRows, 2);
  y = tw_vector(targets, TW_FLOAT32, kRows);

  expect(tw_model_create(kDescription, NULL, &model) == TW_OK, "create");
  expect(tw_model_in_features(model) == 2 && tw_model_out_features(model) == 1, "widths");
  expect(tw_model_num_parameters(model) == 8 * 2 + 8 + 8 + 1, "number of parameters");
  expect(tw_model_dtype(model) == TW_FLOAT32, "element type");
  expect(tw_model_evaluate(model, &x, &y, NULL, NULL, &before) == TW_OK, "evaluate");

  options.epochs = 10;
  options.on_epoch = count_epochs;
  options.user_data = &epochs;
  expect(tw_model_fit(model, &x, &y, NULL, &options, &history) == TW_OK, "fit");
  expect(epochs == 3 && tw_fit_result_num_epochs(history) == 3, "epochs until TW_STOP");
  expect(strcmp(tw_fit_result_stopped_because(history), "callback") == 0, "stopped_because");
  expect(tw_fit_result_epoch(history, 2, &record) == TW_OK && record.epoch == 3, "record");
  expect(tw_fit_result_epoch(history, 3, &record) == TW_ERROR_VALUE, "record out of range");
  expect(tw_model_evaluate(model, &x, &y, NULL, NULL, &after) == TW_OK, "evaluate again");
  expect(after.loss < before.loss, "loss falls");
  expect(tw_model_predict(model, &x, NULL, outputs, sizeof outputs) == TW_OK, "predict");
  expect(tw_model_predict(model, &x, NULL, outputs, 12) == TW_ERROR_VALUE, "short buffer");
  expect(tw_model_tensor(model, TW_TENSORS_PARAMETERS, 0, &tensor) == TW_OK &&
             strcmp(tensor.name, "layers.0.weight") == 0 && tensor.shape[0] == 8,
         "first tensor");
  expect(tw_model_description(model, &json) == TW_OK && strstr(json, "\"tanh\"") != NULL, "JSON");
  expect(tw_model_copy(model, &copy) == TW_OK && tw_model_steps_done(copy) > 0, "copy");
  expect(tw_model_set_optimizer(copy, "{\"type\": \"sgd\"}") == TW_OK, "set_optimizer");
  expect(tw_model_num_slots(copy) == 0, "slots of SGD");

  /* Structures of older and newer callers. */
  memset(&longer, 0, sizeof longer);
  longer.known.struct_size = sizeof longer;
  expect(tw_model_fit(copy, &x, &y, NULL, &longer.known, NULL) == TW_OK, "longer options");
  longer.future[1] = 1;
  expect(tw_model_fit(copy, &x, &y, NULL, &longer.known, NULL) == TW_ERROR_VALUE, "unknown option");
  longer.known.struct_size = sizeof(size_t);
  expect(tw_model_fit(copy, &x, &y, NULL, &longer.known, NULL) == TW_OK, "shorter options");
  longer.known.struct_size = 0;
  expect(tw_model_fit(copy, &x, &y, NULL, &longer.known, NULL) == TW_ERROR_VALUE, "no struct_size");

  options.on_step = fail;
  expect(tw_model_fit(copy, &x, &y, NULL, &options, NULL) == TW_ERROR_CALLBACK, "TW_FAIL");
  expect(tw_model_predict(copy, &x, NULL, outputs, sizeof outputs) == TW_OK, "predict afterwards");

  options = (tw_fit_options){.struct_size = sizeof options, .epochs = 2};
  expect(tw_model_copy(copy, &many[0]) == TW_OK && tw_model_copy(model, &many[1]) == TW_OK,
         "copies");
  expect(tw_fit_many(many, 2, &x, &y, NULL, 1, &options, 2, results) == TW_OK, "fit_many");
  expect(tw_fit_result_num_epochs(results[1]) == 2, "epochs of fit_many");
  expect(tw_model_fit(copy, &x, &y, NULL, &options, NULL) == TW_OK, "fit alone");
  expect(tw_model_predict(many[0], &x, NULL, outputs, sizeof outputs) == TW_OK &&
             tw_model_predict(copy, &x, NULL, alone, sizeof alone) == TW_OK &&
             memcmp(outputs, alone, sizeof alone) == 0,
         "fit_many as fit");
  expect(tw_fit_many(many, 2, &x, &y, NULL, 3, &options, 0, NULL) == TW_ERROR_VALUE, "data sets");
  many[2] = many[0];
  expect(tw_fit_many(many, 3, &x, &y, NULL, 1, &options, 0, NULL) == TW_ERROR_VALUE, "twice");

  tw_string_destroy(json);
  tw_fit_result_destroy(history);
  tw_fit_result_destroy(results[0]);
  tw_fit_result_destroy(results[1]);
  tw_model_destroy(many[0]);
  tw_model_destroy(many[1]);
  tw_model_destroy(copy);
  tw_model_destroy(model);
}

static void check_checkpoint(const char* checkpoint, const char* inputs, const char* outputs) {
  size_t input_bytes, output_bytes;
  void* x_data = read_file(inputs, &input_bytes);
  void* expected = read_file(outputs, &output_bytes);
  void* got = malloc(output_bytes + 1);
  tw_model* model = NULL;
  expect(x_data && expected && got && output_bytes > 0, "files of inputs and outputs");
  expect(tw_model_load(checkpoint, NULL, &model) == TW_OK, "load");
  if (model && x_data && expected && got) {
    const int64_t width = tw_model_in_features(model);
    const tw_array x = tw_matrix(x_data, TW_FLOAT32, (int64_t)(input_bytes / 4) / width, width);
    expect(tw_model_predict(model, &x, NULL, got, output_bytes) == TW_OK, "predict");
    expect(memcmp(got, expected, output_bytes) == 0, "the bits that Python predicts");
    expect(tw_model_save(model, "c.safetensors") == TW_OK, "save");
  }
  tw_model_destroy(model);
  free(got);
  free(expected);
  free(x_data);
}

static void check_errors(void) {
  tw_model* model = NULL;
  expect(tw_model_create("{", NULL, &model) == TW_ERROR_VALUE && !model, "bad JSON");
  expect(strlen(tw_last_error_message()) > 0, "message");
  expect(tw_model_create(NULL, NULL, &model) == TW_ERROR_VALUE, "NULL description");
  expect(tw_model_create(kDescription, NULL, NULL) == TW_ERROR_VALUE, "NULL model");
  expect(tw_model_load("missing.safetensors", NULL, &model) == TW_ERROR_CHECKPOINT, "missing file");
  expect(tw_model_predict(NULL, NULL, NULL, NULL, 0) == TW_ERROR_VALUE, "NULL everywhere");
  expect(strcmp(tw_status_name(TW_ERROR_CHECKPOINT), "checkpoint") == 0, "name of a status");
  expect(tw_last_error_step() == -1 && tw_last_error_layer()[0] == '\0', "no step, no layer");
  tw_model_destroy(NULL);
  tw_string_destroy(NULL);
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: embed_c CHECKPOINT INPUTS OUTPUTS\n");
    return 2;
  }
  expect(strcmp(tw_version(), TW_VERSION_STRING) == 0, "version");
  check_training();
  check_checkpoint(argv[1], argv[2], argv[3]);
  check_errors();
  if (failures == 0) printf("embed_c: all checks passed\n");
  return failures;
}
