// What a permutation of examples is computed from, the same for all instruction sets.
#pragma once

#include <cstdint>

namespace thalweg {

struct PermutationKeys {
  static constexpr int kRounds = 8;

  std::uint64_t size = 1;
  // Of the grid that covers [0, size).
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  std::uint32_t round[kRounds] = {};
};

}  // namespace thalweg
