// Memory that reductions borrow. Launches that follow each other on a stream may share it.
#pragma once

#include <cstddef>

namespace thalweg::cuda {

// Tickets of one launch, at most.
inline constexpr int kTickets = 4096;

struct Scratch {
  unsigned* tickets = nullptr;  // [kTickets], zero before the first use; every launch leaves zeros
  void* memory = nullptr;       // as many bytes as the operation's *_scratch_bytes() says
};

}  // namespace thalweg::cuda
