// Flat, zero-initialized, aligned memory: parameters, gradients, optimizer slots, workspaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/export.h"

namespace thalweg {

// Zeros, aligned to at least 64 bytes, from 4 KiB on to as much; large blocks start at a huge page
// and ask for huge pages.
// Throws std::bad_alloc.
TW_INTERNAL_API void* allocate_zeroed(std::size_t bytes);
TW_INTERNAL_API void release(void* memory, std::size_t bytes) noexcept;

// count * item; std::bad_array_new_length (a std::bad_alloc) when negative or beyond the address
// space.
TW_INTERNAL_API std::size_t array_bytes(std::int64_t count, std::size_t item);

// rows * width; std::bad_array_new_length when that leaves 63 bits.
TW_INTERNAL_API std::int64_t element_count(std::int64_t rows, std::int64_t width);

template <class T>
class Arena {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64);

 public:
  Arena() = default;
  explicit Arena(std::int64_t size)
      : data_(size != 0 ? static_cast<T*>(allocate_zeroed(array_bytes(size, sizeof(T)))) : nullptr),
        size_(size) {}
  Arena(Arena&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Arena& operator=(Arena&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Arena() {
    if (data_) release(data_, static_cast<std::size_t>(size_) * sizeof(T));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  const T& operator[](std::int64_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

}  // namespace thalweg
