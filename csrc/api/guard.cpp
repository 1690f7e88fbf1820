#include "api/guard.h"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace thalweg::api {
namespace {

constexpr const char* kOutOfMemory = "[memory] expected free memory, got none";

struct LastError {
  std::string message;
  std::string layer;
  std::int64_t step = -1;
  bool out_of_memory = false;  // then even the message may have found no memory

  void set(std::string_view text, std::string_view at_layer, std::int64_t at_step) {
    step = at_step;
    out_of_memory = false;
    message = text;
    layer = at_layer;
  }
  tw_status set_out_of_memory() noexcept {
    step = -1;
    out_of_memory = true;
    layer.clear();
    return TW_ERROR_MEMORY;
  }
};

thread_local LastError last_error;

static_assert(TW_ERROR_VALUE == static_cast<int>(ErrorCode::kValue));
static_assert(TW_ERROR_TYPE == static_cast<int>(ErrorCode::kType));
static_assert(TW_ERROR_DEVICE == static_cast<int>(ErrorCode::kDevice));
static_assert(TW_ERROR_NON_FINITE == static_cast<int>(ErrorCode::kNonFinite));
static_assert(TW_ERROR_CHECKPOINT == static_cast<int>(ErrorCode::kCheckpoint));
static_assert(TW_ERROR_MEMORY == static_cast<int>(ErrorCode::kMemory));
static_assert(TW_ERROR_INTERRUPTED == static_cast<int>(ErrorCode::kInterrupted));
static_assert(TW_ERROR_CALLBACK == static_cast<int>(ErrorCode::kCallback));
static_assert(TW_ERROR_INTERNAL == static_cast<int>(ErrorCode::kInternal));

tw_status translate_current_exception() {
  try {
    throw;
  } catch (const NonFiniteError& error) {
    last_error.set(error.what(), error.layer(), error.step());
    return TW_ERROR_NON_FINITE;
  } catch (const Error& error) {
    last_error.set(error.what(), {}, -1);
    return static_cast<tw_status>(error.code());
  } catch (const std::bad_alloc&) {
    return last_error.set_out_of_memory();
  } catch (const std::length_error&) {  // a size beyond what a container can hold
    return last_error.set_out_of_memory();
  } catch (const std::exception& error) {
    last_error.set(concat("[internal] ", error.what()), {}, -1);
    return TW_ERROR_INTERNAL;
  } catch (...) {
    last_error.set("[internal] unknown exception", {}, -1);
    return TW_ERROR_INTERNAL;
  }
}

}  // namespace

tw_status record_current_exception() noexcept {
  try {
    return translate_current_exception();
  } catch (...) {
    return last_error.set_out_of_memory();
  }
}

}  // namespace thalweg::api

const char* tw_status_name(tw_status status) {
  static constexpr const char* kNames[] = {"ok",         "value",      "type",   "device",
                                           "non_finite", "checkpoint", "memory", "interrupted",
                                           "callback",   "internal"};
  return status >= TW_OK && status <= TW_ERROR_INTERNAL ? kNames[status] : "unknown";
}

const char* tw_last_error_message(void) {
  using thalweg::api::last_error;
  return last_error.out_of_memory ? thalweg::api::kOutOfMemory : last_error.message.c_str();
}

int64_t tw_last_error_step(void) { return thalweg::api::last_error.step; }

const char* tw_last_error_layer(void) { return thalweg::api::last_error.layer.c_str(); }

void tw_string_destroy(char* string) { std::free(string); }
