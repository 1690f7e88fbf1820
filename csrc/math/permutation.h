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

#include "math/permutation_keys.h"
#include "math/philox.h"

namespace thalweg {
inline namespace TW_ISA {

class Permutation {
 public:
  static constexpr int kRounds = PermutationKeys::kRounds;

  TW_HD explicit Permutation(const PermutationKeys& keys) : keys_(keys) {}

  // Precondition: 1 <= n <= 2^48.
  TW_HD Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch) {
    keys_.size = n;
    std::uint64_t root = static_cast<std::uint64_t>(sqrt(static_cast<double>(n)));
    root += root * root < n ? 1 : 0;
    const std::uint64_t columns = root < kSmallestSide ? kSmallestSide : root;
    const std::uint64_t rows = (n + columns - 1) / columns;
    keys_.columns = static_cast<std::uint32_t>(columns);
    keys_.rows = static_cast<std::uint32_t>(rows < kSmallestSide ? kSmallestSide : rows);
    for (int round = 0; round < kRounds; round += 4) {
      const PhiloxBlock keys =
          philox(seed, kPermutationStream, epoch, static_cast<std::uint64_t>(round / 4));
      for (int i = 0; i < 4; ++i) keys_.round[round + i] = keys.word[i];
    }
  }

  TW_HD const PermutationKeys& keys() const { return keys_; }
  TW_HD std::uint64_t size() const { return keys_.size; }

  // The index of the example at position `position` of the epoch. Precondition: position < n.
  TW_HD std::uint64_t operator()(std::uint64_t position) const {
    std::uint64_t x = position;
    do {
      x = forward(x);
    } while (x >= keys_.size);
    return x;
  }

  // indices[i] = (*this)(first + i), many at a time in the vector units.
  void fill(std::uint64_t first, std::int64_t count, std::int64_t* indices) const {
    constexpr std::int64_t kMost = 32;
    std::uint32_t left[kMost];
    std::uint32_t right[kMost];
    for (std::int64_t begin = 0; begin < count; begin += kMost) {
      const std::int64_t some = count - begin < kMost ? count - begin : kMost;
      const std::uint64_t position = first + static_cast<std::uint64_t>(begin);
      std::uint32_t l = static_cast<std::uint32_t>(position / keys_.columns);
      std::uint32_t r = static_cast<std::uint32_t>(position % keys_.columns);
      for (std::int64_t i = 0; i < kMost; ++i) {
        left[i] = l;
        right[i] = r;
        const bool wraps = ++r == keys_.columns;
        l += wraps ? 1 : 0;
        r = wraps ? 0 : r;
      }
      for (int round = 0; round < kRounds; round += 2) {
        for (std::int64_t i = 0; i < kMost; ++i)
          left[i] = add(left[i], below(keys_.rows, right[i], keys_.round[round]), keys_.rows);
        for (std::int64_t i = 0; i < kMost; ++i)
          right[i] =
              add(right[i], below(keys_.columns, left[i], keys_.round[round + 1]), keys_.columns);
      }
      for (std::int64_t i = 0; i < some; ++i) {
        std::uint64_t x = static_cast<std::uint64_t>(left[i]) * keys_.columns + right[i];
        while (x >= keys_.size) x = forward(x);
        indices[begin + i] = static_cast<std::int64_t>(x);
      }
    }
  }

  // The position of the example `index` in the epoch. Precondition: index < n.
  TW_HD std::uint64_t inverse(std::uint64_t index) const {
    std::uint64_t x = index;
    do {
      x = backward(x);
    } while (x >= keys_.size);
    return x;
  }

 private:
  static constexpr std::uint64_t kSmallestSide = 8;

  TW_HD std::uint64_t forward(std::uint64_t x) const {
    std::uint32_t left = static_cast<std::uint32_t>(x / keys_.columns);
    std::uint32_t right = static_cast<std::uint32_t>(x % keys_.columns);
    for (int round = 0; round < kRounds; round += 2) {
      left = add(left, below(keys_.rows, right, keys_.round[round]), keys_.rows);
      right = add(right, below(keys_.columns, left, keys_.round[round + 1]), keys_.columns);
    }
    return static_cast<std::uint64_t>(left) * keys_.columns + right;
  }

  TW_HD std::uint64_t backward(std::uint64_t x) const {
    std::uint32_t left = static_cast<std::uint32_t>(x / keys_.columns);
    std::uint32_t right = static_cast<std::uint32_t>(x % keys_.columns);
    for (int round = kRounds - 2; round >= 0; round -= 2) {
      right = subtract(right, below(keys_.columns, left, keys_.round[round + 1]), keys_.columns);
      left = subtract(left, below(keys_.rows, right, keys_.round[round]), keys_.rows);
    }
    return static_cast<std::uint64_t>(left) * keys_.columns + right;
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

  PermutationKeys keys_;
};

}  // namespace TW_ISA
}  // namespace thalweg
