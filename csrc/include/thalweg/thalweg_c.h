/*
 * The C interface of thalweg: train and run dense networks in process.
 *
 *   tw_model* model = NULL;
 *   tw_fit_options options = {.struct_size = sizeof options, .epochs = 10, .batch_size = 128};
 *   tw_array x = tw_matrix(pixels, TW_FLOAT32, rows, 784);
 *   tw_array y = tw_vector(labels, TW_INT64, rows);
 *   if (tw_model_create(description, NULL, &model) || tw_model_fit(model, &x, &y, NULL, &options,
 * NULL)) fprintf(stderr, "%s\n", tw_last_error_message()); tw_model_destroy(model);
 *
 * Errors. Functions that can fail return a tw_status: TW_OK (zero) or a positive code. The message
 * of the last failure on the calling thread is tw_last_error_message(). A call that fails for any
 * reason but the interruption or failure of a running fit changes neither its outputs nor the
 * model. No function aborts the process, and no exception leaves the library.
 *
 * Ownership. tw_*_create, load, copy and fit hand out objects that the caller destroys with the
 * matching tw_*_destroy (NULL is allowed there). Strings returned through char** are freed with
 * tw_string_destroy. Strings returned as const char* belong to the object that they were asked of
 * and live until it is destroyed, unless said otherwise. Arrays that the caller passes are borrowed
 * for the duration of the call.
 *
 * Threads. Any thread may use any model. Functions that take a const tw_model* may run on one model
 * from many threads at once; the others need exclusive use of the model, which the caller sees to.
 * Callbacks run on the thread that made the call; they may call functions that take the model as
 * const, and no others on it.
 *
 * Option structures begin with struct_size, to be set to sizeof of the structure that the caller
 * was compiled with. Zero means the default in every field, and NULL options mean all defaults. The
 * library reads no more than struct_size bytes; when the caller's structure is longer than the
 * library's, the bytes that it does not know have to be zero. Result structures work the other way
 * round: the caller sets struct_size and the library writes no more than that many bytes.
 *
 * Memory layout. Matrices are row-major [rows, columns] in the descriptions below; inputs may have
 * any strides and any real element type. Outputs are contiguous and of the model's element type
 * (tw_model_dtype), and the caller states their size in bytes, which has to be the exact one.
 *
 * Device memory. For a model on "cuda", every array and every output may lie in host memory or in
 * memory of its GPU (cudaMalloc, managed memory); the library asks CUDA where a pointer points to,
 * and refuses memory of another GPU. Arrays there are read where they lie. A call comes after what
 * was queued on the stream that the model was made with; without one, what the caller has queued on
 * an array has to be complete. Every call is complete when it returns. For a model on the CPU, all
 * memory has to be the host's.
 *
 * Text is UTF-8 and independent of the locale.
 */
#ifndef THALWEG_THALWEG_C_H_
#define THALWEG_THALWEG_C_H_

#include <stddef.h>
#include <stdint.h>

#include "thalweg/version.h"

#if !defined(_WIN32)
#define TW_API __attribute__((visibility("default")))
#elif defined(TW_BUILDING_LIBRARY)
#define TW_API __declspec(dllexport)
#else
#define TW_API __declspec(dllimport)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Versions ---- */

/* The version of the library that runs, "major.minor.patch". TW_VERSION_STRING is that of the
 * header. */
TW_API const char* tw_version(void);

/* ---- Errors ---- */

typedef int32_t tw_status;

enum {
  TW_OK = 0,
  TW_ERROR_VALUE = 1,       /* bad shape or value */
  TW_ERROR_TYPE = 2,        /* bad element type */
  TW_ERROR_DEVICE = 3,      /* device missing or unusable */
  TW_ERROR_NON_FINITE = 4,  /* NaN or Inf in a loss, gradient or parameter */
  TW_ERROR_CHECKPOINT = 5,  /* file missing, foreign, truncated or corrupt */
  TW_ERROR_MEMORY = 6,      /* allocation failed */
  TW_ERROR_INTERRUPTED = 7, /* interrupt() asked to stop */
  TW_ERROR_CALLBACK = 8,    /* a callback returned TW_FAIL */
  TW_ERROR_INTERNAL = 9     /* a bug of thalweg */
};

/* "value", "type", ... for messages; "unknown" for other numbers. Static storage. */
TW_API const char* tw_status_name(tw_status status);

/* About the last failed call on this thread; valid until the next failing call on it. Empty before
 * the first failure. */
TW_API const char* tw_last_error_message(void);

/* With TW_ERROR_NON_FINITE: the update that saw the value (counted over the life of the model) and
 * where it appeared first: the name of a layer ("layers.2") or "loss", or empty when it is not
 * known. -1 and "" with all other errors. */
TW_API int64_t tw_last_error_step(void);
TW_API const char* tw_last_error_layer(void);

TW_API void tw_string_destroy(char* string);

/* ---- Arrays ---- */

typedef int32_t tw_dtype;

enum {
  TW_BOOL = 0,
  TW_INT8 = 1,
  TW_INT16 = 2,
  TW_INT32 = 3,
  TW_INT64 = 4,
  TW_UINT8 = 5,
  TW_UINT16 = 6,
  TW_UINT32 = 7,
  TW_UINT64 = 8,
  TW_FLOAT16 = 9,
  TW_BFLOAT16 = 10,
  TW_FLOAT32 = 11,
  TW_FLOAT64 = 12
};

/* A borrowed array with one or two dimensions. Strides are in bytes and may be zero or negative.
 * This structure never grows. */
typedef struct tw_array {
  const void* data;
  tw_dtype dtype;
  int32_t ndim;
  int64_t shape[2];
  int64_t strides[2];
} tw_array;

/* Bytes of one element; 0 for an unknown type. */
static inline int64_t tw_dtype_size(tw_dtype dtype) {
  switch (dtype) {
    case TW_BOOL:
    case TW_INT8:
    case TW_UINT8:
      return 1;
    case TW_INT16:
    case TW_UINT16:
    case TW_FLOAT16:
    case TW_BFLOAT16:
      return 2;
    case TW_INT32:
    case TW_UINT32:
    case TW_FLOAT32:
      return 4;
    case TW_INT64:
    case TW_UINT64:
    case TW_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

/* A contiguous row-major matrix and a contiguous vector. */
static inline tw_array tw_matrix(const void* data, tw_dtype dtype, int64_t rows, int64_t columns) {
  tw_array array = {data, dtype, 2, {0, 0}, {0, 0}};
  array.shape[0] = rows;
  array.shape[1] = columns;
  array.strides[0] = columns * tw_dtype_size(dtype);
  array.strides[1] = tw_dtype_size(dtype);
  return array;
}

static inline tw_array tw_vector(const void* data, tw_dtype dtype, int64_t length) {
  tw_array array = {data, dtype, 1, {0, 1}, {0, 0}};
  array.shape[0] = length;
  array.strides[0] = tw_dtype_size(dtype);
  return array;
}

/* ---- Callbacks ---- */

/* What a callback returns. */
enum {
  TW_CONTINUE = 0,
  TW_STOP = 1, /* end the training in good order after this epoch or update */
  TW_FAIL = -1 /* end the call with TW_ERROR_CALLBACK */
};

/* Asked every few milliseconds during long calls. Non-zero ends the call with TW_ERROR_INTERRUPTED
 * within 250 ms; an update that has begun to write is finished, one that has not is discarded. */
typedef int32_t (*tw_interrupt)(void* user_data);

/* ---- Models ---- */

/* Parameters, optimizer state, batch-norm statistics and data cursor of one network on one device.
 */
typedef struct tw_model tw_model;

typedef struct tw_model_options {
  size_t struct_size;
  const char* device; /* "auto" (default), "cpu" or "cuda" */
  int32_t threads;    /* 0: tw_default_threads() */
  int32_t reserved;   /* zero */
  void* stream;       /* the CUDA stream (cudaStream_t) that a model on "cuda" trains on, made by
                         cudaStreamCreate and alive as long as the model and its copies; NULL: one
                         of its own. NULL on the CPU */
} tw_model_options;

/* A new model. `description` is JSON:
 *
 *   {"in_features": 784, "dtype": "float32", "seed": 0,
 *    "layers": [{"type": "dense", "units": 512}, {"type": "batch_norm"}, {"type": "relu"},
 *               {"type": "dense", "units": 10}],
 *    "loss": {"type": "cross_entropy"}, "optimizer": {"type": "adam", "lr": 0.001}}
 *
 * All layers, losses, optimizers, schedules and their keys are listed in docs/cpp.md. */
TW_API tw_status tw_model_create(const char* description, const tw_model_options* options,
                                 tw_model** model);

/* A model from a checkpoint that thalweg wrote, in any language. Training resumes exactly where it
 * was saved. */
TW_API tw_status tw_model_load(const char* path, const tw_model_options* options, tw_model** model);

/* An independent model in the same state. */
TW_API tw_status tw_model_copy(const tw_model* model, tw_model** copy);

TW_API void tw_model_destroy(tw_model* model);

/* Writes a checkpoint (safetensors) by way of a temporary file: at any time, `path` holds the old
 * file or the whole new one. */
TW_API tw_status tw_model_save(const tw_model* model, const char* path);

/* Parameters and batch-norm statistics, by name, from any safetensors file. */
TW_API tw_status tw_model_load_weights(tw_model* model, const char* path);

/* Parameters, optimizer state, statistics and counters as after tw_model_create. */
TW_API tw_status tw_model_reset(tw_model* model);

/* ---- Facts about a model. Zero or an empty string for NULL ---- */

TW_API int64_t tw_model_in_features(const tw_model* model);
TW_API int64_t tw_model_out_features(const tw_model* model);
TW_API int64_t tw_model_num_parameters(const tw_model* model);
TW_API int64_t tw_model_steps_done(const tw_model* model);
TW_API int64_t tw_model_epochs_done(const tw_model* model);
TW_API tw_dtype tw_model_dtype(const tw_model* model); /* TW_FLOAT32 or TW_FLOAT64 */
TW_API int32_t tw_model_threads(const tw_model* model);
TW_API const char* tw_model_device(const tw_model* model); /* "cpu" or "cuda" */

/* The complete description, JSON. */
TW_API tw_status tw_model_description(const tw_model* model, char** json);

/* How the network is executed, one line per step, for people. */
TW_API tw_status tw_model_plan_summary(const tw_model* model, char** text);

/* ---- Workspace ---- */

/* The device memory that tw_model_fit and tw_model_step work in, with minibatches of `batch_size`
 * rows: values and gradients of the layers, the gradient of the parameters, and what reductions
 * borrow. Data of the host are copied into memory of the library's own, and calls that take the
 * model as const work in their own. TW_ERROR_DEVICE for a model on the CPU. */
TW_API tw_status tw_model_workspace_bytes(const tw_model* model, int64_t batch_size, size_t* bytes);

/* Memory of the caller's for that, on the model's GPU and aligned to 256 bytes, in place of memory
 * that the library allocates; NULL and 0 for the latter. It belongs to the model until it is
 * replaced or the model is destroyed, and may hold only one model's work. Copies of the model do
 * not use it. A fit or step that needs more is TW_ERROR_VALUE and changes nothing. */
TW_API tw_status tw_model_set_workspace(tw_model* model, void* memory, size_t bytes);

/* ---- Training ---- */

/* Data sets are given as x [rows, in_features], y and optional weights [rows] (NULL for none;
 * finite,
 * >= 0). With cross-entropy, y holds integer labels [rows] or probabilities [rows, out_features];
 * with the other losses, values [rows, out_features], or [rows] when there is one output. */

typedef struct tw_metrics {
  double loss;     /* reduced as the description says */
  double accuracy; /* weighted share of right decisions; NaN when the loss has no classes */
  double weight;   /* total weight of the rows */
} tw_metrics;

typedef struct tw_epoch_record {
  size_t struct_size;
  int64_t epoch; /* from 1, over the life of the model */
  tw_metrics train;
  tw_metrics validation; /* NaN and weight 0 without validation data */
  double lr;             /* of the last update */
  double seconds;
  double samples_per_second;
  int64_t steps;        /* updates in this epoch */
  int64_t skipped_rows; /* a last batch of one row under batch norm */
} tw_epoch_record;

typedef struct tw_step_record {
  size_t struct_size;
  int64_t step; /* updates done, over the life of the model */
  tw_metrics metrics;
  double lr;
  double gradient_norm; /* before clipping; NaN when it was not computed */
} tw_step_record;

/* Return TW_CONTINUE, TW_STOP or TW_FAIL. */
typedef int32_t (*tw_epoch_callback)(const tw_epoch_record* record, void* user_data);
typedef int32_t (*tw_step_callback)(const tw_step_record* record, void* user_data);

enum { TW_FULL_BATCH = -1 };

enum {
  TW_SHUFFLE_EPOCH = 0, /* a new order every epoch */
  TW_SHUFFLE_STACK = 1, /* one order, drawn once */
  TW_SHUFFLE_IID = 2,   /* rows drawn with replacement */
  TW_SHUFFLE_NONE = 3
};

enum {
  TW_MONITOR_VALIDATION_LOSS = 0,
  TW_MONITOR_VALIDATION_ACCURACY = 1,
  TW_MONITOR_LOSS = 2,
  TW_MONITOR_ACCURACY = 3
};

typedef struct tw_early_stopping {
  size_t struct_size;
  int32_t monitor;   /* TW_MONITOR_VALIDATION_LOSS */
  int32_t keep_last; /* 0: restore the parameters of the best epoch at the end */
  int64_t patience;  /* epochs without improvement; 0: 10 */
  double min_delta;  /* the smallest change that counts as one */
} tw_early_stopping;

typedef struct tw_fit_options {
  size_t struct_size;
  int64_t epochs;     /* 0: 1 */
  int64_t batch_size; /* 0: 32; TW_FULL_BATCH: all rows */
  int32_t shuffle;    /* TW_SHUFFLE_EPOCH */
  int32_t has_stop_at_loss;
  int64_t accumulate;           /* batches per update; 0: 1 */
  const tw_array* validation_x; /* NULL: no validation */
  const tw_array* validation_y;
  const tw_array* validation_weights;
  const double* class_weights; /* one factor per label, or NULL */
  int64_t num_class_weights;
  const tw_early_stopping* early_stopping; /* NULL: none */
  int64_t max_steps;                       /* updates in this call; 0: no limit */
  double stop_at_loss; /* with has_stop_at_loss: end after an epoch whose training loss is below */
  tw_epoch_callback on_epoch; /* after every epoch, or NULL */
  tw_step_callback on_step;   /* after every callback_every updates, or NULL */
  int64_t callback_every;     /* 0: 1 */
  tw_interrupt interrupt;     /* or NULL */
  void* user_data;            /* for the callbacks */
} tw_fit_options;

/* The history of one call of tw_model_fit. */
typedef struct tw_fit_result tw_fit_result;

/* Trains. A second call continues the first one. `result` may be NULL. After TW_ERROR_NON_FINITE
 * the model is as it was after the last good update; after TW_ERROR_INTERRUPTED and
 * TW_ERROR_CALLBACK it is as after the last finished update. All of these leave a model that works.
 */
TW_API tw_status tw_model_fit(tw_model* model, const tw_array* x, const tw_array* y,
                              const tw_array* weights, const tw_fit_options* options,
                              tw_fit_result** result);

TW_API int64_t tw_fit_result_num_epochs(const tw_fit_result* result);
/* 0 <= index < num_epochs. */
TW_API tw_status tw_fit_result_epoch(const tw_fit_result* result, int64_t index,
                                     tw_epoch_record* record);
/* "epochs", "max_steps", "early_stopping", "stop_at_loss", "callback" or "non_finite". */
TW_API const char* tw_fit_result_stopped_because(const tw_fit_result* result);
/* The best epoch under early stopping, or 0. */
TW_API int64_t tw_fit_result_best_epoch(const tw_fit_result* result);
TW_API void tw_fit_result_destroy(tw_fit_result* result);

/* Trains many models at once, one per thread, each to the same bits as tw_model_fit. x, y and
 * weights (or NULL) point to `num_data_sets` arrays: one for all models, or one for each. `threads`
 * may be 0 for tw_default_threads(). The interrupt is asked by the calling thread; on_epoch and
 * on_step have to be NULL; loss callbacks of different models run at the same time.
 *
 * `results` is NULL or has room for `num_models` pointers, written on TW_OK only. A model whose
 * loss becomes non-finite stops at its last good update ("non_finite" in its result), the others go
 * on. Any other error ends the call for all; bad data are found before any model has changed. */
TW_API tw_status tw_fit_many(tw_model* const* models, int64_t num_models, const tw_array* x,
                             const tw_array* y, const tw_array* weights, int64_t num_data_sets,
                             const tw_fit_options* options, int32_t threads,
                             tw_fit_result** results);

/* One update on the given rows as one batch. `record` may be NULL. */
TW_API tw_status tw_model_step(tw_model* model, const tw_array* x, const tw_array* y,
                               const tw_array* weights, tw_step_record* record);

/* Replaces the optimizer; its state starts at zero. `optimizer` is the JSON of the description's
 * "optimizer". */
TW_API tw_status tw_model_set_optimizer(tw_model* model, const char* optimizer);

/* A loss of the caller for a model whose description says "loss": {"type": "custom"}.
 *
 * outputs [rows, out_features] holds the outputs of a batch, in the model's element type; row_index
 * [rows] says which rows of the data set they are. The callback writes the value and its gradient
 * with respect to the outputs, [rows, out_features], and returns TW_CONTINUE or TW_FAIL. It runs on
 * the thread that made the call, and needs to stay valid as long as the model or a copy of it. */
typedef int32_t (*tw_loss_callback)(const void* outputs, const int64_t* row_index, int64_t rows,
                                    double* value, void* gradient, void* user_data);
TW_API tw_status tw_model_set_custom_loss(tw_model* model, tw_loss_callback loss, void* user_data);

/* Recomputes the running statistics of all batch norms as averages over x. */
typedef struct tw_run_options {
  size_t struct_size;
  int64_t batch_size;     /* 0: 1024 */
  tw_interrupt interrupt; /* or NULL */
  void* user_data;
} tw_run_options;

TW_API tw_status tw_model_recalibrate_batch_norm(tw_model* model, const tw_array* x,
                                                 const tw_run_options* options);

/* ---- Evaluation: pure, from any number of threads ---- */

TW_API tw_status tw_model_evaluate(const tw_model* model, const tw_array* x, const tw_array* y,
                                   const tw_array* weights, const tw_run_options* options,
                                   tw_metrics* metrics);

/* Outputs [rows, out_features]. The outputs of a row do not depend on the other rows, on the batch
 * size or on the number of threads. */
TW_API tw_status tw_model_predict(const tw_model* model, const tw_array* x,
                                  const tw_run_options* options, void* out, size_t out_bytes);

/* The same after the loss's link: softmax for cross-entropy, sigmoid for the binary losses, else
 * the outputs themselves. */
TW_API tw_status tw_model_predict_probabilities(const tw_model* model, const tw_array* x,
                                                const tw_run_options* options, void* out,
                                                size_t out_bytes);

typedef struct tw_gradient_options {
  size_t struct_size;
  int32_t evaluation_mode; /* 0: batch statistics and dropout, as in training */
  int32_t reserved;        /* zero */
  tw_interrupt interrupt;  /* or NULL */
  void* user_data;
} tw_gradient_options;

/* Loss on the given rows as one batch, and its gradients: with respect to the parameters
 * [num_parameters] and to x [rows, in_features]. Each of gradient, input_gradient and metrics may
 * be NULL. The model is not changed. */
TW_API tw_status tw_model_loss_and_gradient(const tw_model* model, const tw_array* x,
                                            const tw_array* y, const tw_array* weights,
                                            const tw_gradient_options* options, tw_metrics* metrics,
                                            void* gradient, size_t gradient_bytes,
                                            void* input_gradient, size_t input_gradient_bytes);

/* ---- Values ---- */

/* Parameters, gradients, averages and optimizer slots are flat vectors [num_parameters]: the
 * tensors of TW_TENSORS_PARAMETERS one after the other, without gaps. The batch-norm statistics are
 * the tensors of TW_TENSORS_STATE. */
enum { TW_TENSORS_PARAMETERS = 0, TW_TENSORS_STATE = 1 };

typedef struct tw_tensor_info {
  size_t struct_size;
  const char* name; /* "layers.0.weight"; lives as long as the model */
  int64_t ndim;     /* 1 or 2 */
  int64_t shape[2]; /* [out, in] for a weight; shape[1] is 1 for a vector */
  int64_t offset;   /* of the first element in the flat vector */
  int64_t size;     /* elements */
} tw_tensor_info;

/* `kind` is one of TW_TENSORS_*; 0 for NULL or an unknown kind. */
TW_API int64_t tw_model_num_tensors(const tw_model* model, int32_t kind);
TW_API tw_status tw_model_tensor(const tw_model* model, int32_t kind, int64_t index,
                                 tw_tensor_info* info);

TW_API tw_status tw_model_get_parameters(const tw_model* model, void* out, size_t out_bytes);
TW_API tw_status tw_model_set_parameters(tw_model* model, const void* values, size_t bytes);

/* The iterate theta of the look-ahead methods (Nesterov), whose gradients are taken elsewhere; the
 * parameters for all other optimizers. */
TW_API tw_status tw_model_get_theta(const tw_model* model, void* out, size_t out_bytes);

/* The Polyak or exponential average; TW_ERROR_VALUE when the description asks for none. */
TW_API tw_status tw_model_get_average(const tw_model* model, void* out, size_t out_bytes);

/* Optimizer slots: 0 <= slot < tw_model_num_slots. */
TW_API int64_t tw_model_num_slots(const tw_model* model);
TW_API tw_status tw_model_slot_name(const tw_model* model, int64_t slot, char** name);
TW_API tw_status tw_model_get_slot(const tw_model* model, int64_t slot, void* out,
                                   size_t out_bytes);

/* Running means and variances, in the order of TW_TENSORS_STATE. */
TW_API tw_status tw_model_get_state(const tw_model* model, void* out, size_t out_bytes);
TW_API tw_status tw_model_set_state(tw_model* model, const void* values, size_t bytes);

/* ---- Devices and threads ---- */

/* The smallest of processor affinity, container quota and OMP_NUM_THREADS; or THALWEG_NUM_THREADS.
 */
TW_API int32_t tw_default_threads(void);

/* 1 when device "cuda" can be used in this process. */
TW_API int32_t tw_cuda_available(void);

/* Library, processor, chosen instruction set, threads, CUDA and driver; lines of text for people.
 */
TW_API tw_status tw_describe_system(char** text);

#ifdef __cplusplus
}
#endif

#endif /* THALWEG_THALWEG_C_H_ */
