// What fills memory that a kernel may not rely on, and AddressSanitizer's view of it, which is
// nothing in a build without the sanitizer.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define TW_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TW_ADDRESS_SANITIZER 1
#endif
#endif

#if defined(TW_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace thalweg::emulator {

// New memory: NaN in every floating-point type.
inline constexpr unsigned char kPoison = 0xff;
// The surroundings of variables and allocations: no NaN, since arithmetic keeps the bits of those.
inline constexpr unsigned char kGuard = 0x5a;

#if defined(TW_ADDRESS_SANITIZER)
inline constexpr bool kAddressSanitizer = true;
inline void forbid_access(const void* begin, std::size_t bytes) {
  __asan_poison_memory_region(begin, bytes);
}
inline void permit_access(const void* begin, std::size_t bytes) {
  __asan_unpoison_memory_region(begin, bytes);
}
#else
inline constexpr bool kAddressSanitizer = false;
inline void forbid_access(const void*, std::size_t) {}
inline void permit_access(const void*, std::size_t) {}
#endif

}  // namespace thalweg::emulator
