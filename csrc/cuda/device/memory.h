// Vector accesses, cache hints, fences, and the loads and stores that publish data to other blocks.
#pragma once

#include "cuda/device/target.h"

#if !defined(__CUDACC__)
#include <atomic>
#endif

namespace thalweg::cuda {

// `count` elements that are loaded and stored by one instruction: 4, 8 or 16 bytes together.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  static_assert(sizeof(T) * count == 4 || sizeof(T) * count == 8 || sizeof(T) * count == 16);
  T values[count];

  TW_DEVICE T& operator[](int i) { return values[i]; }
  TW_DEVICE const T& operator[](int i) const { return values[i]; }
};

#if defined(__CUDACC__)

namespace internal {

template <int bytes>
struct Word;
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};
template <class V>
using WordOf = typename Word<static_cast<int>(sizeof(V))>::Type;

}  // namespace internal

// `address` must be a multiple of the vector's size.
template <int count, class T>
TW_DEVICE Vector<T, count> load_vector(const T* address) {
  using V = Vector<T, count>;
  return __builtin_bit_cast(V, *reinterpret_cast<const internal::WordOf<V>*>(address));
}
// Spelled out: nvcc takes the assignment of a uint4 apart, and does not always put it together
// again.
template <int count, class T>
TW_DEVICE void store_vector(T* address, const Vector<T, count>& vector) {
  using V = Vector<T, count>;
  const auto word = __builtin_bit_cast(internal::WordOf<V>, vector);
  if constexpr (sizeof(V) == 16) {
    asm volatile("st.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word.x), "r"(word.y),
                 "r"(word.z), "r"(word.w)
                 : "memory");
  } else if constexpr (sizeof(V) == 8) {
    asm volatile("st.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(word.x), "r"(word.y) : "memory");
  } else {
    *reinterpret_cast<unsigned*>(address) = word;
  }
}
// For data that nobody reads again soon: first to leave the caches.
template <int count, class T>
TW_DEVICE Vector<T, count> load_vector_streaming(const T* address) {
  using V = Vector<T, count>;
  return __builtin_bit_cast(V, __ldcs(reinterpret_cast<const internal::WordOf<V>*>(address)));
}
template <int count, class T>
TW_DEVICE void store_vector_streaming(T* address, const Vector<T, count>& vector) {
  using Word = internal::WordOf<Vector<T, count>>;
  __stcs(reinterpret_cast<Word*>(address), __builtin_bit_cast(Word, vector));
}
// For data that no thread writes while the kernel runs.
template <int count, class T>
TW_DEVICE Vector<T, count> load_vector_read_only(const T* address) {
  using V = Vector<T, count>;
  return __builtin_bit_cast(V, __ldg(reinterpret_cast<const internal::WordOf<V>*>(address)));
}

TW_DEVICE void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

TW_DEVICE void fence_block() { __threadfence_block(); }
TW_DEVICE void fence_device() { __threadfence(); }
TW_DEVICE void fence_system() { __threadfence_system(); }

// Device scope, global memory: what was written before the store is seen after the load that reads
// its value.
TW_DEVICE unsigned load_acquire(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}
TW_DEVICE void store_release(unsigned* address, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// In every loop that waits for another block: leaves the processor to others.
TW_DEVICE void polling_pause() { __nanosleep(32); }

#else

template <int count, class T>
Vector<T, count> load_vector(const T* address, Site site = Site::current()) {
  emulator::require_aligned(address, sizeof(T) * count, "vector load", site);
  Vector<T, count> vector;
  for (int i = 0; i < count; ++i) vector[i] = address[i];
  return vector;
}
template <int count, class T>
void store_vector(T* address, const Vector<T, count>& vector, Site site = Site::current()) {
  emulator::require_aligned(address, sizeof(T) * count, "vector store", site);
  for (int i = 0; i < count; ++i) address[i] = vector[i];
}
template <int count, class T>
Vector<T, count> load_vector_streaming(const T* address, Site site = Site::current()) {
  return load_vector<count>(address, site);
}
template <int count, class T>
void store_vector_streaming(T* address, const Vector<T, count>& vector,
                            Site site = Site::current()) {
  store_vector(address, vector, site);
}
template <int count, class T>
Vector<T, count> load_vector_read_only(const T* address, Site site = Site::current()) {
  return load_vector<count>(address, site);
}

inline void prefetch_to_l2(const void*) {}

inline void fence_block() { emulator::preemption_point(); }
inline void fence_device() { emulator::preemption_point(); }
inline void fence_system() { emulator::preemption_point(); }

inline unsigned load_acquire(const unsigned* address, Site site = Site::current()) {
  emulator::require_aligned(address, sizeof(unsigned), "load_acquire", site);
  emulator::preemption_point();
  return std::atomic_ref<unsigned>(*const_cast<unsigned*>(address)).load();
}
inline void store_release(unsigned* address, unsigned value, Site site = Site::current()) {
  emulator::require_aligned(address, sizeof(unsigned), "store_release", site);
  emulator::preemption_point();
  emulator::made_progress();
  std::atomic_ref<unsigned>(*address).store(value);
}

inline void polling_pause(Site site = Site::current()) { emulator::poll("polling", site); }

#endif

}  // namespace thalweg::cuda
