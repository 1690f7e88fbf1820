// The table of allocations, their guard pages and what lies at a bad address.
#include "cuda/emulator/device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>

#include "core/error.h"
#include "cuda/emulator/sanitizer.h"
#include "cuda/emulator/settings.h"

namespace thalweg::emulator {
namespace {

constexpr std::size_t kAlignment = 256;  // what cudaMalloc promises
constexpr std::size_t kQuarantined = 256;

struct Table {
  std::mutex mutex;
  std::map<std::uintptr_t, Allocation> live;
  std::deque<Allocation> freed;
  std::size_t device_bytes = 0;
  int accesses = 0;
};

Table& table() {
  static Table& table = *new Table;  // a kernel may fault during the end of the process
  return table;
}

std::uintptr_t key(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// The bytes between the end of the allocation and its guard page.
std::size_t gap(const Allocation& a) {
  return static_cast<std::size_t>(a.mapping + a.mapping_bytes - page_bytes() - (a.begin + a.bytes));
}

const Allocation* containing(const Table& t, const void* address) {
  auto next = t.live.upper_bound(key(address));
  if (next == t.live.begin()) return nullptr;
  const Allocation& a = std::prev(next)->second;
  return key(address) <= key(a.begin) + a.bytes ? &a : nullptr;
}

// Of all device memory, except its guard pages.
void set_protection(Table& t, int protection) {
  for (const auto& [begin, a] : t.live) {
    if (a.kind != MemoryKind::kDevice) continue;
    mprotect(a.mapping + page_bytes(), a.mapping_bytes - 2 * page_bytes(), protection);
  }
}

bool mapped_at(const Allocation& a, const void* address) {
  return key(address) >= key(a.mapping) && key(address) < key(a.mapping) + a.mapping_bytes;
}

std::string text_of(const Allocation& a, const void* address, const char* word) {
  const bool before = key(address) < key(a.begin);
  const std::size_t distance =
      before ? key(a.begin) - key(address) : key(address) - key(a.begin) - a.bytes;
  if (!before && key(address) < key(a.begin) + a.bytes) {
    return concat("byte ", key(address) - key(a.begin), " of ", word, " of ", a.bytes, " bytes");
  }
  return concat(distance, " bytes ", before ? "before the begin" : "after the end", " of ", word,
                " of ", a.bytes, " bytes");
}

}  // namespace

void* allocate(std::size_t bytes, MemoryKind kind) {
  const std::size_t page = page_bytes();
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  const std::size_t body = (rounded + page - 1) / page * page;
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  if (body < bytes) return nullptr;
  if (kind == MemoryKind::kDevice && bytes > settings().memory_bytes - t.device_bytes) {
    return nullptr;
  }
  Allocation a;
  a.bytes = bytes;
  a.kind = kind;
  a.mapping_bytes = body + 2 * page;
  void* mapping =
      mmap(nullptr, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  a.mapping = static_cast<unsigned char*>(mapping);
  if (mprotect(a.mapping + page, body, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, a.mapping_bytes);
    return nullptr;
  }
  a.begin = a.mapping + page + body - rounded;
  std::memset(a.begin, kPoison, bytes);
  std::memset(a.begin + bytes, kGuard, rounded - bytes);
  forbid_access(a.begin + bytes, rounded - bytes);
  if (kind == MemoryKind::kDevice) t.device_bytes += bytes;
  t.live.emplace(key(a.begin), a);
  if (settings().protect && kind == MemoryKind::kDevice && t.accesses == 0) {
    mprotect(a.mapping + page, body, PROT_NONE);
  }
  return a.begin;
}

bool release(void* begin, MemoryKind kind) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  const auto found = t.live.find(key(begin));
  if (found == t.live.end() || found->second.kind != kind) return false;
  const Allocation a = found->second;
  t.live.erase(found);
  if (kind == MemoryKind::kDevice) t.device_bytes -= a.bytes;
  permit_access(a.mapping, a.mapping_bytes);
  // Gives the pages back and keeps the addresses.
  mmap(a.mapping, a.mapping_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  t.freed.push_back(a);
  if (t.freed.size() > kQuarantined) {
    munmap(t.freed.front().mapping, t.freed.front().mapping_bytes);
    t.freed.pop_front();
  }
  return true;
}

std::optional<Allocation> find_allocation(const void* address) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  const Allocation* a = containing(t, address);
  if (a == nullptr) return std::nullopt;
  return *a;
}

std::string describe_address(const void* address) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  for (const auto& [begin, a] : t.live) {
    if (mapped_at(a, address)) return text_of(a, address, "an allocation");
  }
  for (const Allocation& a : t.freed) {
    if (mapped_at(a, address)) return text_of(a, address, "a freed allocation");
  }
  return address == nullptr || key(address) < page_bytes() ? "a null pointer"
                                                           : "no allocation of the device";
}

std::optional<std::string> overrun() {
  if (kAddressSanitizer) return std::nullopt;  // it stops at the write itself
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  static const auto intact = [] {
    std::array<unsigned char, kAlignment> bytes{};
    bytes.fill(kGuard);
    return bytes;
  }();
  for (auto& [begin, a] : t.live) {
    unsigned char* end = a.begin + a.bytes;
    const std::size_t bytes = gap(a);
    if (std::memcmp(end, intact.data(), bytes) == 0) continue;
    const std::ptrdiff_t at = std::mismatch(end, end + bytes, intact.data()).first - end;
    std::memset(end, kGuard, bytes);
    return concat("wrote ", at, " bytes after the end of an allocation of ", a.bytes, " bytes");
  }
  return std::nullopt;
}

std::size_t memory_in_use() {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  return t.device_bytes;
}

DeviceAccess::DeviceAccess() {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  if (t.accesses++ == 0 && settings().protect) set_protection(t, PROT_READ | PROT_WRITE);
}

DeviceAccess::~DeviceAccess() {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  if (--t.accesses == 0 && settings().protect) set_protection(t, PROT_NONE);
}

}  // namespace thalweg::emulator
