// The owners of idle memory in this process.
#include "cuda/idle_memory.h"

#include <mutex>
#include <utility>
#include <vector>

namespace thalweg::cuda {
namespace {

struct Owners {
  std::mutex mutex;
  std::vector<IdleMemory*> all;
};

Owners& owners() {
  static Owners& owners = *new Owners;  // models may live until the end of the process
  return owners;
}

}  // namespace

IdleMemory::IdleMemory(int device, std::function<bool()> release)
    : device_(device), release_(std::move(release)) {
  const std::lock_guard lock(owners().mutex);
  owners().all.push_back(this);
}

IdleMemory::~IdleMemory() {
  const std::lock_guard lock(owners().mutex);
  std::erase(owners().all, this);
}

bool release_idle_memory() noexcept {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  const std::lock_guard lock(owners().mutex);
  bool released = false;
  for (const IdleMemory* owner : owners().all)
    if (owner->device_ == device && owner->release_()) released = true;
  return released;
}

}  // namespace thalweg::cuda
