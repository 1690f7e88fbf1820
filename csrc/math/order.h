// Owns the order in which an epoch visits the rows of a data set: a function of position, not an
// array, so that training resumes anywhere, and the same on every device.
#pragma once

#include "math/permutation.h"

namespace thalweg {

// kEpoch: a new permutation per epoch; kStack: one for all epochs; kIid: drawn with replacement.
enum class Shuffle : int { kEpoch, kStack, kIid, kNone };

inline namespace TW_ISA {

class Order {
 public:
  Order() = default;
  TW_HD Order(Shuffle shuffle, std::int64_t rows, std::uint64_t seed, std::int64_t epoch)
      : shuffle_(shuffle),
        rows_(rows),
        seed_(seed),
        epoch_(static_cast<std::uint64_t>(epoch)),
        permutation_(static_cast<std::uint64_t>(rows), seed,
                     shuffle == Shuffle::kStack ? 0 : static_cast<std::uint64_t>(epoch)) {}

  TW_HD bool sequential() const { return shuffle_ == Shuffle::kNone; }
  TW_HD std::int64_t rows() const { return rows_; }

  // Of the permutation that the order is, null when it is none.
  TW_HD const PermutationKeys* permutation() const {
    const bool permuted = shuffle_ == Shuffle::kEpoch || shuffle_ == Shuffle::kStack;
    return permuted ? &permutation_.keys() : nullptr;
  }

  // The row at that position of the epoch.
  TW_HD std::int64_t operator()(std::int64_t position) const {
    switch (shuffle_) {
      case Shuffle::kEpoch:
      case Shuffle::kStack:
        return static_cast<std::int64_t>(permutation_(static_cast<std::uint64_t>(position)));
      case Shuffle::kIid:
        return draw(position);
      case Shuffle::kNone:
        break;
    }
    return position;
  }

 private:
  static constexpr std::uint16_t kIidStream = 0xfffe;

  // Uniform on [0, rows): the high half of 64 random bits times rows.
  TW_HD std::int64_t draw(std::int64_t position) const {
    const PhiloxBlock block =
        philox(seed_, kIidStream, epoch_, static_cast<std::uint64_t>(position));
    const std::uint64_t bits = static_cast<std::uint64_t>(block.word[1]) << 32 | block.word[0];
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::int64_t>(
        (static_cast<Wide>(bits) * static_cast<std::uint64_t>(rows_)) >> 64);
  }

  Shuffle shuffle_ = Shuffle::kNone;
  std::int64_t rows_ = 0;
  std::uint64_t seed_ = 0;
  std::uint64_t epoch_ = 0;
  Permutation permutation_{1, 0, 0};
};

}  // namespace TW_ISA
}  // namespace thalweg
