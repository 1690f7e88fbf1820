// Shared memory: static variables, the dynamic part, and 32-bit addresses of both.
//
//   TW_SHARED(float[32], partial);                     // in a kernel, before first use
//   float* tile = dynamic_shared<float>();             // LaunchConfig::dynamic_shared bytes
//
// TW_SHARED takes a type without commas (give others a name first) that needs no constructor.
// Shared memory starts undefined; the emulator fills it with NaN.
#pragma once

#include <type_traits>

#include "cuda/device/target.h"

#if defined(__CUDACC__)
#define TW_SHARED(type, name) __shared__ std::type_identity_t<type> name
#else
#define TW_SHARED(type, name)        \
  static char tw_tag_of_##name;      \
  std::type_identity_t<type>& name = \
      ::thalweg::cuda::internal::static_shared<std::type_identity_t<type>>(&tw_tag_of_##name)
#endif

namespace thalweg::cuda {

#if defined(__CUDACC__)

// The alignment that 128-byte swizzles of the tensor memory accelerator need.
template <class T>
TW_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char tw_dynamic_shared[];
  return reinterpret_cast<T*>(tw_dynamic_shared);
}

// An address in the shared memory of the own block, in bytes.
struct SharedAddress {
  std::uint32_t value;

  SharedAddress() = default;
  template <class T>
  TW_DEVICE SharedAddress(const T* pointer)
      : value(static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer))) {}
  TW_DEVICE explicit constexpr SharedAddress(std::uint32_t bytes) : value(bytes) {}
};

TW_DEVICE SharedAddress operator+(SharedAddress address, int bytes) {
  return SharedAddress(address.value + static_cast<std::uint32_t>(bytes));
}

#else

namespace internal {

template <class T>
T& static_shared(const void* tag, Site site = Site::current()) {
  static_assert(std::is_trivially_default_constructible_v<std::remove_all_extents_t<T>>);
  return *static_cast<T*>(emulator::static_shared_memory(tag, sizeof(T), alignof(T), site));
}

}  // namespace internal

template <class T>
T* dynamic_shared(Site site = Site::current()) {
  return reinterpret_cast<T*>(emulator::dynamic_shared_memory(alignof(T), site));
}

struct SharedAddress {
  std::uint32_t value;

  SharedAddress() = default;
  template <class T>
  SharedAddress(const T* pointer, Site site = Site::current())
      : value(emulator::shared_offset(pointer, site)) {}
  explicit constexpr SharedAddress(std::uint32_t bytes) : value(bytes) {}
};

inline SharedAddress operator+(SharedAddress address, int bytes) {
  return SharedAddress(address.value + static_cast<std::uint32_t>(bytes));
}

#endif

}  // namespace thalweg::cuda
