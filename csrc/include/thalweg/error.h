// Exceptions of the C++ interface, one type per kind of error and named as in Python.
//
// Everything here is compiled into the application, inside an inline namespace of its own: neither
// types of the standard library nor exceptions cross the boundary of libthalweg.
#pragma once

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "thalweg/thalweg_c.h"

namespace thalweg {
inline namespace wrapper {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, tw_status status = TW_ERROR_INTERNAL)
      : std::runtime_error(message), status_(status) {}
  tw_status status() const noexcept { return status_; }

 private:
  tw_status status_;
};

template <tw_status kStatus>
class TypedError : public Error {
 public:
  explicit TypedError(const std::string& message) : Error(message, kStatus) {}
};

using ValueError = TypedError<TW_ERROR_VALUE>;            // bad shape or value
using TypeError = TypedError<TW_ERROR_TYPE>;              // bad element type
using DeviceError = TypedError<TW_ERROR_DEVICE>;          // device missing or unusable
using CheckpointError = TypedError<TW_ERROR_CHECKPOINT>;  // missing, foreign or damaged file
using MemoryError = TypedError<TW_ERROR_MEMORY>;          // allocation failed
using Interrupted = TypedError<TW_ERROR_INTERRUPTED>;     // interrupt() answered true
using InternalError = TypedError<TW_ERROR_INTERNAL>;      // a bug of thalweg

// NaN or Inf in a loss, gradient or parameter.
class NonFiniteError : public TypedError<TW_ERROR_NON_FINITE> {
 public:
  NonFiniteError(const std::string& message, std::int64_t step, std::string layer)
      : TypedError(message), step_(step), layer_(std::move(layer)) {}
  std::int64_t step() const noexcept { return step_; }
  const std::string& layer() const noexcept { return layer_; }

 private:
  std::int64_t step_;
  std::string layer_;
};

namespace detail {

// An exception that left a callback of the call that is running on this thread. It waits here while
// the call returns through C.
inline thread_local std::exception_ptr pending_exception;

// Runs a callback; when it throws, keeps the exception and answers `failure`.
template <class F>
std::int32_t contained(std::int32_t failure, F&& callback) noexcept {
  try {
    return callback();
  } catch (...) {
    pending_exception = std::current_exception();
    return failure;
  }
}

[[noreturn]] inline void throw_last_error(tw_status status) {
  const std::string message = tw_last_error_message();
  switch (status) {
    case TW_ERROR_VALUE:
      throw ValueError(message);
    case TW_ERROR_TYPE:
      throw TypeError(message);
    case TW_ERROR_DEVICE:
      throw DeviceError(message);
    case TW_ERROR_NON_FINITE:
      throw NonFiniteError(message, tw_last_error_step(), tw_last_error_layer());
    case TW_ERROR_CHECKPOINT:
      throw CheckpointError(message);
    case TW_ERROR_MEMORY:
      throw MemoryError(message);
    case TW_ERROR_INTERRUPTED:
      throw Interrupted(message);
    case TW_ERROR_INTERNAL:
      throw InternalError(message);
    default:
      throw Error(message, status);
  }
}

inline void check(tw_status status) {
  if (pending_exception) std::rethrow_exception(std::exchange(pending_exception, nullptr));
  if (status != TW_OK) throw_last_error(status);
}

}  // namespace detail
}  // namespace wrapper
}  // namespace thalweg
