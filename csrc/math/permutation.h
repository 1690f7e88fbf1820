// Owns the order of the examples in an epoch: a bijection of [0, n) keyed by (seed, epoch),
// evaluated per index in either direction, so that no permutation array exists and training resumes
// anywhere.
//
// An index is a digit pair (left, right) of a grid rows x columns that just covers [0, n). A
// Feistel network with modular addition (Black, Rogaway 2002) permutes the grid, and cycle walking
// repeats it until the result is below n. The grid exceeds n by less than one row, so this is rare;
// only below 64 examples the grid stays 8 x 8, since smaller ones do not mix (chi-square of pairs
// at n = 5).
#pragma once

#include "math/philox.h"

namespace thalweg {
inline namespace TW_ISA {

class Permutation {
 public:
  static constexpr int kRounds = 8;

  // Precondition: 1 <= n <= 2^48.
  TW_HD Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch) : n_(n) {
    std::uint64_t root = static_cast<std::uint64_t>(sqrt(static_cast<double>(n)));
    root += root * root < n ? 1 : 0;
    const std::uint64_t columns = root < kSmallestSide ? kSmallestSide : root;
    const std::uint64_t rows = (n + columns - 1) / columns;
    columns_ = static_cast<std::uint32_t>(columns);
    rows_ = static_cast<std::uint32_t>(rows < kSmallestSide ? kSmallestSide : rows);
    for (int round = 0; round < kRounds; round += 4) {
      const PhiloxBlock keys =
          philox(seed, kPermutationStream, epoch, static_cast<std::uint64_t>(round / 4));
      for (int i = 0; i < 4; ++i) keys_[round + i] = keys.word[i];
    }
  }

  TW_HD std::uint64_t size() const { return n_; }

  // The index of the example at position `position` of the epoch. Precondition: position < n.
  TW_HD std::uint64_t operator()(std::uint64_t position) const {
    std::uint64_t x = position;
    do {
      x = forward(x);
    } while (x >= n_);
    return x;
  }

  // The position of the example `index` in the epoch. Precondition: index < n.
  TW_HD std::uint64_t inverse(std::uint64_t index) const {
    std::uint64_t x = index;
    do {
      x = backward(x);
    } while (x >= n_);
    return x;
  }

 private:
  static constexpr std::uint64_t kSmallestSide = 8;

  TW_HD std::uint64_t forward(std::uint64_t x) const {
    std::uint32_t left = static_cast<std::uint32_t>(x / columns_);
    std::uint32_t right = static_cast<std::uint32_t>(x % columns_);
    for (int round = 0; round < kRounds; round += 2) {
      left = add(left, below(rows_, right, keys_[round]), rows_);
      right = add(right, below(columns_, left, keys_[round + 1]), columns_);
    }
    return static_cast<std::uint64_t>(left) * columns_ + right;
  }

  TW_HD std::uint64_t backward(std::uint64_t x) const {
    std::uint32_t left = static_cast<std::uint32_t>(x / columns_);
    std::uint32_t right = static_cast<std::uint32_t>(x % columns_);
    for (int round = kRounds - 2; round >= 0; round -= 2) {
      right = subtract(right, below(columns_, left, keys_[round + 1]), columns_);
      left = subtract(left, below(rows_, right, keys_[round]), rows_);
    }
    return static_cast<std::uint64_t>(left) * columns_ + right;
  }

  TW_HD static std::uint32_t add(std::uint32_t a, std::uint32_t b, std::uint32_t modulus) {
    const std::uint32_t sum = a + b;
    return sum >= modulus ? sum - modulus : sum;
  }

  TW_HD static std::uint32_t subtract(std::uint32_t a, std::uint32_t b, std::uint32_t modulus) {
    return a >= b ? a - b : a + modulus - b;
  }

  // Keyed hash of x, scaled to [0, modulus).
  TW_HD static std::uint32_t below(std::uint32_t modulus, std::uint32_t x, std::uint32_t key) {
    std::uint32_t h = (x ^ key) * 0x9E3779B1u;
    h = (h ^ (h >> 15)) * 0x85EBCA77u;
    h ^= (h >> 13) ^ key;
    return static_cast<std::uint32_t>((static_cast<std::uint64_t>(h) * modulus) >> 32);
  }

  std::uint64_t n_;
  std::uint32_t rows_;
  std::uint32_t columns_;
  std::uint32_t keys_[kRounds];
};

}  // namespace TW_ISA
}  // namespace thalweg
