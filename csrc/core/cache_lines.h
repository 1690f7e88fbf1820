// Moves cache lines to the processor that needs them next.
#pragma once

#include <cstdint>

namespace thalweg {

inline constexpr std::int64_t kCacheLine = 64;  // bytes

// Makes values[0, count) writable in this processor's cache by storing what they hold: a line that
// other processors have read too is taken from them while this one computes something else, and a
// later store need not wait. Asking for such lines (prefetchw) took longer where it was measured.
// No other thread may write or read the values meanwhile.
template <class T>
void claim_lines(T* values, std::int64_t count) {
  const auto bytes = static_cast<std::int64_t>(sizeof(T)) * count;
  auto* const data = reinterpret_cast<char*>(values);
  for (std::int64_t at = 0; at < bytes; at += kCacheLine) {
    volatile char* const byte = data + at;
    *byte = *byte;
  }
}

}  // namespace thalweg
