// Allocation of arenas: small blocks from the heap, large ones as their own mapping with huge
// pages.
#include "core/arena.h"

#include <cstring>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace thalweg {
namespace {

// Arrays that are worked off side by side begin at the same place of 4 KiB: a load seems to wait
// for an earlier store at its place of another 4 KiB, and so the loads of an element come first.
constexpr std::size_t kPage = std::size_t{4} << 10;
constexpr std::align_val_t alignment(std::size_t bytes) {
  return std::align_val_t{bytes < kPage ? 64 : kPage};
}
constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__linux__)

constexpr bool is_large(std::size_t bytes) { return bytes >= kHugePage; }

// Pieces are cut off around the block at whole pages; 64 KiB is the largest base page in use.
constexpr std::size_t kLargestPage = std::size_t{64} << 10;
constexpr std::size_t whole_pages(std::size_t bytes) {
  return (bytes + kLargestPage - 1) / kLargestPage * kLargestPage;
}

void* map_zeroed(std::size_t bytes) {
  const std::size_t length = whole_pages(bytes);
  void* const mapping =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  char* const first = static_cast<char*>(mapping);
  const std::size_t lead =
      (kHugePage - reinterpret_cast<std::uintptr_t>(first) % kHugePage) % kHugePage;
  char* const block = first + lead;
  if (lead > 0) munmap(first, lead);
  if (lead < kHugePage) munmap(block + length, kHugePage - lead);
  madvise(block, length, MADV_HUGEPAGE);  // advice: a kernel without huge pages may refuse
  return block;
}

void unmap(void* memory, std::size_t bytes) noexcept { munmap(memory, whole_pages(bytes)); }

#endif

}  // namespace

std::size_t array_bytes(std::int64_t count, std::size_t item) {
  constexpr std::size_t kLargest = std::numeric_limits<std::ptrdiff_t>::max() - 4 * kHugePage;
  if (count < 0 || static_cast<std::uint64_t>(count) > kLargest / item)
    throw std::bad_array_new_length();
  return static_cast<std::size_t>(count) * item;
}

std::int64_t element_count(std::int64_t rows, std::int64_t width) {
  std::int64_t count = 0;
  if (__builtin_mul_overflow(rows, width, &count)) throw std::bad_array_new_length();
  return count;
}

void* allocate_zeroed(std::size_t bytes) {
#if defined(__linux__)
  if (is_large(bytes)) return map_zeroed(bytes);
#endif
  void* const memory = ::operator new(bytes, alignment(bytes));
  std::memset(memory, 0, bytes);
  return memory;
}

void release(void* memory, [[maybe_unused]] std::size_t bytes) noexcept {
#if defined(__linux__)
  if (is_large(bytes)) return unmap(memory, bytes);
#endif
  ::operator delete(memory, alignment(bytes));
}

}  // namespace thalweg
