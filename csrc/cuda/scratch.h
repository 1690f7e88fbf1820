// Memory that reductions borrow. Launches that follow each other on a stream may share it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace thalweg::cuda {

// Tickets that every launch may count on.
inline constexpr int kTickets = 4096;

// Tickets for launches on matrices of up to so many columns: each tile takes one at the least.
constexpr std::int64_t tickets_for(std::int64_t columns) {
  constexpr std::int64_t kTileColumns = 64;
  return std::max<std::int64_t>(kTickets, ceil_div(columns, kTileColumns));
}

struct Scratch {
  unsigned* tickets = nullptr;  // zero before the first use; every launch leaves zeros
  void* memory = nullptr;       // as many bytes as the operation's *_scratch_bytes() says
  std::int64_t ticket_count = kTickets;
};

}  // namespace thalweg::cuda
