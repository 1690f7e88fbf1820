// Memory that is kept only to spare a later allocation: its owners give it back when the memory of
// their device runs out.
#pragma once

#include <functional>

#include "cuda/runtime.h"

namespace thalweg::cuda {

// While it lives, release() may be called from any thread that needs memory. It returns whether it
// has freed any, and neither allocates nor throws.
class IdleMemory {
 public:
  IdleMemory(int device, std::function<bool()> release);
  ~IdleMemory();
  IdleMemory(const IdleMemory&) = delete;
  IdleMemory& operator=(const IdleMemory&) = delete;

 private:
  friend bool release_idle_memory() noexcept;

  int device_;
  std::function<bool()> release_;
};

// Frees what is idle on the current device; whether there was any.
bool release_idle_memory() noexcept;

// The status of call(), which is made again when memory ran out and some was idle.
template <class Call>
cudaError_t allocate(Call&& call) {
  const cudaError_t status = call();
  if (status != cudaErrorMemoryAllocation || !release_idle_memory()) return status;
  (void)cudaGetLastError();
  return call();
}

}  // namespace thalweg::cuda
