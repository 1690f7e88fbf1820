// Values of the C interface to and from those of the library: arrays, options, records, strings.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <string_view>

#include "api/guard.h"
#include "core/array_view.h"
#include "core/thread_pool.h"
#include "training/model.h"

namespace thalweg::api {

static_assert(TW_BOOL == static_cast<int>(DType::kBool));
static_assert(TW_INT64 == static_cast<int>(DType::kInt64));
static_assert(TW_UINT8 == static_cast<int>(DType::kUInt8));
static_assert(TW_BFLOAT16 == static_cast<int>(DType::kBFloat16));
static_assert(TW_FLOAT64 == static_cast<int>(DType::kFloat64));

// The product of sizes that a caller chose; TW_ERROR_VALUE when it leaves the range.
inline std::int64_t checked_product(std::string_view operation, std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  expect<ValueError>(!__builtin_mul_overflow(a, b, &product), "[", operation,
                     "] expected a size below 2^63, got ", a, " x ", b);
  return product;
}

// Of a model on a device, an array may lie there.
inline ArrayView to_view(const Model& model, const tw_array& array, std::string_view operation,
                         std::string_view name) {
  expect<TypeError>(array.dtype >= TW_BOOL && array.dtype <= TW_FLOAT64, "[", operation,
                    "] expected a tw_dtype in ", name, ".dtype, got ", array.dtype);
  expect<ValueError>(array.ndim == 1 || array.ndim == 2, "[", operation, "] expected ", name,
                     " with 1 or 2 dimensions, got ", array.ndim);
  ArrayView view;
  view.data = array.data;
  view.dtype = static_cast<DType>(array.dtype);
  view.dimensions = array.ndim;
  view.rows = array.shape[0];
  view.row_stride = array.strides[0];
  view.cols = array.ndim == 2 ? array.shape[1] : 1;
  view.col_stride = array.ndim == 2 ? array.strides[1] : item_size(view.dtype);
  expect<ValueError>(view.rows >= 0 && view.cols >= 0, "[", operation, "] expected ", name,
                     ".shape >= 0, got (", view.rows, ", ", view.cols, ")");
  expect<ValueError>(checked_product(operation, view.rows, view.cols) == 0 || view.data, "[",
                     operation, "] expected ", name, ".data, got NULL");
  if (model.exchange() && view.size() > 0) view.memory = model.exchange()->memory_of(view.data);
  return view;
}

// An absent view for NULL.
inline ArrayView to_optional_view(const Model& model, const tw_array* array,
                                  std::string_view operation, std::string_view name) {
  return array ? to_view(model, *array, operation, name) : ArrayView{};
}

inline Data to_data(const Model& model, const tw_array* x, const tw_array* y,
                    const tw_array* weights, std::string_view operation) {
  return {to_view(model, required(x, operation, "x"), operation, "x"),
          to_view(model, required(y, operation, "y"), operation, "y"),
          to_optional_view(model, weights, operation, "weights")};
}

// The caller's options as the library knows them: missing fields are zero, unknown ones have to be.
template <class Options>
Options read_options(const Options* given, std::string_view operation) {
  constexpr std::size_t kLongest = 4096;  // beyond it, struct_size was not set
  Options known{};
  if (!given) return known;
  const std::size_t size = given->struct_size;
  expect<ValueError>(size >= sizeof(size) && size <= kLongest, "[", operation,
                     "] expected options with struct_size = sizeof(options), got ", size);
  std::memcpy(static_cast<void*>(&known), given, std::min(size, sizeof(Options)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  expect<ValueError>(size <= sizeof(Options) || std::all_of(bytes + sizeof(Options), bytes + size,
                                                            [](unsigned char b) { return b == 0; }),
                     "[", operation, "] expected options known to thalweg ", TW_VERSION_STRING,
                     ", got an option of a later version");
  return known;
}

// Writes as much of `value` as the caller's structure holds.
template <class Result>
void write_result(const Result& value, Result& out, std::string_view operation) {
  const std::size_t size = out.struct_size;
  expect<ValueError>(size >= sizeof(size), "[", operation,
                     "] expected a result with struct_size = sizeof(result), got ", size);
  std::memcpy(static_cast<void*>(&out), &value, std::min(size, sizeof(Result)));
  out.struct_size = size;
}

// A caller's buffer for `count` elements of the model's type.
inline void expect_buffer(const Model& model, const void* buffer, std::size_t bytes,
                          std::int64_t count, std::string_view operation, std::string_view name) {
  const std::int64_t wanted =
      checked_product(operation, count, item_size(model.description().dtype));
  expect<ValueError>(bytes == static_cast<std::size_t>(wanted), "[", operation, "] expected ", name,
                     " of ", wanted, " bytes, got ", bytes);
  expect<ValueError>(buffer || bytes == 0, "[", operation, "] expected ", name, ", got NULL");
  const DeviceExchange* exchange = model.exchange();
  if (!exchange || exchange->memory_of(buffer) == Memory::kHost) return;
  ArrayView view;
  view.data = buffer;
  view.dtype = DType::kUInt8;
  view.rows = wanted;
  exchange->check_place(view, std::string(operation), std::string(name));
}

inline Interrupt to_interrupt(tw_interrupt interrupt, void* user_data) {
  if (!interrupt) return {};
  return [=] { return interrupt(user_data) != 0; };
}

inline tw_metrics to_c(const Metrics& metrics) {
  return {metrics.loss, metrics.accuracy, metrics.weight};
}

inline tw_epoch_record to_c(const EpochRecord& record) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  tw_epoch_record out{};
  out.struct_size = sizeof(out);
  out.epoch = record.epoch;
  out.train = to_c(record.train);
  out.validation = record.validation ? to_c(*record.validation) : tw_metrics{kNaN, kNaN, 0.0};
  out.lr = record.lr;
  out.seconds = record.seconds;
  out.samples_per_second = record.samples_per_second;
  out.steps = record.steps;
  out.skipped_rows = record.skipped_rows;
  return out;
}

inline tw_step_record to_c(const StepRecord& record) {
  tw_step_record out{};
  out.struct_size = sizeof(out);
  out.step = record.step;
  out.metrics = to_c(record.metrics);
  out.lr = record.lr;
  out.gradient_norm = record.gradient_norm;
  return out;
}

// For tw_string_destroy.
inline char* to_c_string(std::string_view text) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (!copy) throw std::bad_alloc();
  std::copy(text.begin(), text.end(), copy);
  copy[text.size()] = '\0';
  return copy;
}

}  // namespace thalweg::api
