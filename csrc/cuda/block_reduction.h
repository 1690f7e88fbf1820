// Sums over a block in a fixed order, and the last block of a grid.
#pragma once

#include "cuda/device/device.h"

namespace thalweg::cuda {

// Every thread of a block of kThreads receives the sums of all its threads' values.
template <int kThreads, int kValues>
TW_DEVICE void block_sums(double (&values)[kValues]) {
  constexpr int kWarps = kThreads / kWarpThreads;
  TW_SHARED(double[kWarps * kValues], partials);
  TW_UNROLL
  for (int v = 0; v < kValues; ++v) {
    for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
      values[v] += shuffle_xor(values[v], distance);
    }
  }
  sync_block();  // the sums before have been read
  if (lane_index() == 0) {
    TW_UNROLL
    for (int v = 0; v < kValues; ++v) partials[v * kWarps + warp_index()] = values[v];
  }
  sync_block();
  TW_UNROLL
  for (int v = 0; v < kValues; ++v) {
    values[v] = 0.0;
    for (int w = 0; w < kWarps; ++w) values[v] += partials[v * kWarps + w];
  }
}

// Whether this is the last of `blocks` blocks to get here: what all of them wrote before is then
// seen by all threads of this one. Leaves the ticket at zero.
TW_DEVICE bool is_last_block(unsigned* ticket, unsigned blocks) {
  TW_SHARED(int, last);
  sync_block();
  if (thread_index().x == 0) last = take_ticket(ticket, blocks - 1) == blocks - 1 ? 1 : 0;
  sync_block();
  return last != 0;
}

}  // namespace thalweg::cuda
