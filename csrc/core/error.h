// Typed errors. Every failure leaves the library as one of these; the C ABI maps them to codes and
// the Python module to exception types.
#pragma once

#include <charconv>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace thalweg {

enum class ErrorCode : int {
  kOk = 0,
  kValue = 1,        // bad shape or value
  kType = 2,         // bad element type
  kDevice = 3,       // device missing or unusable
  kNonFinite = 4,    // NaN or Inf in a loss, gradient or parameter
  kCheckpoint = 5,   // file missing, foreign, truncated or corrupt
  kMemory = 6,       // allocation failed
  kInterrupted = 7,  // the caller's interrupt() asked to stop
  kCallback = 8,     // a caller's callback failed; the caller knows why
  kInternal = 9,     // a bug of thalweg
};

class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
  std::string message_;
};

template <ErrorCode kCode>
class TypedError : public Error {
 public:
  explicit TypedError(std::string message) : Error(kCode, std::move(message)) {}
};

using ValueError = TypedError<ErrorCode::kValue>;
using TypeError = TypedError<ErrorCode::kType>;
using DeviceError = TypedError<ErrorCode::kDevice>;
using CheckpointError = TypedError<ErrorCode::kCheckpoint>;
using Interrupted = TypedError<ErrorCode::kInterrupted>;
using CallbackFailed = TypedError<ErrorCode::kCallback>;
using InternalError = TypedError<ErrorCode::kInternal>;

class NonFiniteError : public Error {
 public:
  NonFiniteError(std::string message, std::int64_t step, std::string layer)
      : Error(ErrorCode::kNonFinite, std::move(message)), step_(step), layer_(std::move(layer)) {}
  std::int64_t step() const noexcept { return step_; }
  const std::string& layer() const noexcept { return layer_; }

 private:
  std::int64_t step_;
  std::string layer_;
};

// Text for messages, independent of the process locale.
inline void append_text(std::string& out, std::string_view text) { out += text; }
// A template, so that a string literal is never taken for a bool.
template <class Bool>
  requires std::is_same_v<Bool, bool>
void append_text(std::string& out, Bool value) {
  out += value ? "true" : "false";
}
template <class Number>
  requires(std::is_arithmetic_v<Number> && !std::is_same_v<Number, bool>)
void append_text(std::string& out, Number value) {
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  out.append(buffer, result.ptr);
}

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::string out;
  (append_text(out, parts), ...);
  return out;
}

// expect<ValueError>(rows > 0, "[fit] expected at least one row, got ", rows);
template <class ErrorType, class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw ErrorType(concat(parts...));
}

}  // namespace thalweg
