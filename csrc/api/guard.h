// The boundary of the C interface: exceptions become status codes and the thread's last error.
#pragma once

#include <exception>
#include <string_view>

#include "core/error.h"
#include "thalweg/thalweg_c.h"

namespace thalweg::api {

// Records the exception that is being handled as the thread's last error.
tw_status record_current_exception() noexcept;

template <class F>
tw_status guarded(F&& f) noexcept {
  try {
    f();
    return TW_OK;
  } catch (...) {
    return record_current_exception();
  }
}

template <class T>
T& required(T* pointer, std::string_view operation, std::string_view name) {
  expect<ValueError>(pointer != nullptr, "[", operation, "] expected ", name, ", got NULL");
  return *pointer;
}

}  // namespace thalweg::api
