// The barrier of a whole grid, which must have been launched with LaunchConfig::cooperative: all
// its blocks are resident.
#pragma once

#include "cuda/device/atomics.h"
#include "cuda/device/barrier.h"
#include "cuda/device/launch.h"
#include "cuda/device/memory.h"

namespace thalweg::cuda {

// In global memory, zero before its first use; ready for the next launch after every barrier.
struct GridBarrier {
  unsigned arrived;
  unsigned generation;
};

// All threads of the grid arrive before any leaves; orders their accesses to global memory.
TW_DEVICE void sync_grid(GridBarrier* barrier) {
  sync_block();
  const Index3 thread = thread_index();
  if (thread.x == 0 && thread.y == 0 && thread.z == 0) {
    const Index3 grid = grid_size();
    const unsigned last = static_cast<unsigned>(grid.x) * static_cast<unsigned>(grid.y) *
                              static_cast<unsigned>(grid.z) -
                          1;
    // Read before the arrival: the generation cannot end without this block.
    const unsigned generation = load_acquire(&barrier->generation);
    if (take_ticket(&barrier->arrived, last) == last) {
      store_release(&barrier->generation, generation + 1);
    } else {
      while (load_acquire(&barrier->generation) == generation) polling_pause();
    }
  }
  sync_block();
}

}  // namespace thalweg::cuda
