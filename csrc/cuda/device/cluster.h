// Thread block clusters (sm_90 and newer), along x: ranks, barrier and distributed shared memory.
// On older architectures every block is a cluster of its own.
//
// No block may exit while another reads its shared memory: end with sync_cluster().
#pragma once

#include "cuda/device/barrier.h"
#include "cuda/device/launch.h"
#include "cuda/device/shared_memory.h"

namespace thalweg::cuda {

#if defined(__CUDACC__)

TW_DEVICE int cluster_rank() {
  std::uint32_t rank = 0;
#if TW_CUDA_ARCH >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
TW_DEVICE int cluster_size() {
  std::uint32_t size = 1;
#if TW_CUDA_ARCH >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return static_cast<int>(size);
}

// A barrier of all threads of the cluster in two halves; it orders their memory accesses.
TW_DEVICE void arrive_cluster() {
#if TW_CUDA_ARCH >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
TW_DEVICE void wait_cluster() {
#if TW_CUDA_ARCH >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  sync_block();
#endif
}

// The variable of the block `rank` that `pointer` is in the own block.
template <class T>
TW_DEVICE T* map_to_rank(T* pointer, int rank) {
#if TW_CUDA_ARCH >= 900
  T* mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return mapped;
#else
  return pointer;
#endif
}

TW_DEVICE void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

#else

inline int cluster_rank() { return emulator::current().block->rank; }
inline int cluster_size() { return emulator::current_launch().cluster; }

inline void arrive_cluster(Site site = Site::current()) { emulator::cluster_arrive(site); }
inline void wait_cluster(Site site = Site::current()) { emulator::cluster_wait(site); }

template <class T>
T* map_to_rank(T* pointer, int rank, Site site = Site::current()) {
  return static_cast<T*>(emulator::map_shared(pointer, rank, site));
}

inline void sync_cluster(Site site = Site::current()) {
  arrive_cluster(site);
  wait_cluster(site);
}

#endif

}  // namespace thalweg::cuda
