// Emulated device memory and pinned host memory: mappings of their own, between pages that may not
// be touched.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace thalweg::emulator {

enum class MemoryKind { kDevice, kPinned };

struct Allocation {
  unsigned char* begin = nullptr;
  std::size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  unsigned char* mapping = nullptr;
  std::size_t mapping_bytes = 0;
};

// nullptr when the emulated device, or the host, has not enough left. New memory is all NaN.
// The end of the allocation, rounded up to the alignment of cudaMalloc, touches a guard page; the
// bytes in between are checked by overrun().
void* allocate(std::size_t bytes, MemoryKind kind);
// False unless `begin` is what allocate() returned for this kind. The address range stays out of
// bounds for a while, so that a use after free faults.
bool release(void* begin, MemoryKind kind);

// The allocation that contains an address, its end included.
std::optional<Allocation> find_allocation(const void* address);
// Says what lies at an address that faulted: "8 bytes after the end of an allocation of ...".
std::string describe_address(const void* address);
// Says which allocation was written to beyond its end, if any; reported once.
std::optional<std::string> overrun();

std::size_t memory_in_use();

// Device memory is accessible while one of these exists and, unless Settings::protect, always.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace thalweg::emulator
