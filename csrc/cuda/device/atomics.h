// Atomic operations on int, unsigned and unsigned long long, in shared or global memory. There are
// none on floating-point numbers: their order, and so the result, would vary from run to run.
#pragma once

#include "cuda/device/target.h"

#if !defined(__CUDACC__)
#include <algorithm>
#include <atomic>
#endif

namespace thalweg::cuda {

#if defined(__CUDACC__)

// Each returns the old value. Relaxed order: use the functions of memory.h to publish data.
template <class T>
TW_DEVICE T atomic_add(T* address, T value) {
  return ::atomicAdd(address, value);
}
template <class T>
TW_DEVICE T atomic_max(T* address, T value) {
  return ::atomicMax(address, value);
}
template <class T>
TW_DEVICE T atomic_min(T* address, T value) {
  return ::atomicMin(address, value);
}
template <class T>
TW_DEVICE T atomic_or(T* address, T value) {
  return ::atomicOr(address, value);
}
template <class T>
TW_DEVICE T atomic_exchange(T* address, T value) {
  return ::atomicExch(address, value);
}
template <class T>
TW_DEVICE T atomic_compare_exchange(T* address, T expected, T desired) {
  return ::atomicCAS(address, expected, desired);
}

// A ticket that orders memory: what a thread wrote before it took its ticket is seen by whoever
// takes a later one. Wraps to 0 after `last`, so that the counter is ready for the next launch.
TW_DEVICE unsigned take_ticket(unsigned* counter, unsigned last) {
  __threadfence();
  const unsigned ticket = ::atomicInc(counter, last);
  __threadfence();
  return ticket;
}

#else

namespace internal {

template <class T, class Change>
T atomic_update(T* address, const Change& change, const Site& site) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  emulator::require_aligned(address, sizeof(T), "atomic operation", site);
  emulator::preemption_point();
  std::atomic_ref<T> cell(*address);
  T old = cell.load();
  while (!cell.compare_exchange_weak(old, change(old))) {
  }
  // A lock that is tried again and again is no progress.
  if (change(old) != old) emulator::made_progress();
  return old;
}

}  // namespace internal

template <class T>
T atomic_add(T* address, std::type_identity_t<T> value, Site site = Site::current()) {
  // Wraps around, as on the device.
  using Unsigned = std::make_unsigned_t<T>;
  return internal::atomic_update(
      address,
      [=](T old) {
        return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
      },
      site);
}
template <class T>
T atomic_max(T* address, std::type_identity_t<T> value, Site site = Site::current()) {
  return internal::atomic_update(address, [=](T old) { return std::max(old, value); }, site);
}
template <class T>
T atomic_min(T* address, std::type_identity_t<T> value, Site site = Site::current()) {
  return internal::atomic_update(address, [=](T old) { return std::min(old, value); }, site);
}
template <class T>
T atomic_or(T* address, std::type_identity_t<T> value, Site site = Site::current()) {
  return internal::atomic_update(address, [=](T old) { return static_cast<T>(old | value); }, site);
}
template <class T>
T atomic_exchange(T* address, std::type_identity_t<T> value, Site site = Site::current()) {
  return internal::atomic_update(address, [=](T) { return value; }, site);
}
template <class T>
T atomic_compare_exchange(T* address, std::type_identity_t<T> expected,
                          std::type_identity_t<T> desired, Site site = Site::current()) {
  return internal::atomic_update(
      address, [=](T old) { return old == expected ? desired : old; }, site);
}

inline unsigned take_ticket(unsigned* counter, unsigned last, Site site = Site::current()) {
  return internal::atomic_update(
      counter, [=](unsigned old) { return old >= last ? 0u : old + 1; }, site);
}

#endif

}  // namespace thalweg::cuda
