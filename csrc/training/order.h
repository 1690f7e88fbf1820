// The order in which an epoch visits the rows of a data set: a function of position, not an array,
// so that training resumes anywhere.
#pragma once

#include <cstdint>

#include "math/permutation.h"
#include "training/model.h"

namespace thalweg {

class Order {
 public:
  Order(Shuffle shuffle, std::int64_t rows, std::uint64_t seed, std::int64_t epoch)
      : shuffle_(shuffle),
        rows_(rows),
        seed_(seed),
        epoch_(static_cast<std::uint64_t>(epoch)),
        // `stack` permutes once: every epoch reads the order of epoch 0.
        permutation_(static_cast<std::uint64_t>(rows), seed,
                     shuffle == Shuffle::kStack ? 0 : static_cast<std::uint64_t>(epoch)) {}

  bool sequential() const { return shuffle_ == Shuffle::kNone; }
  std::int64_t rows() const { return rows_; }

  std::int64_t operator()(std::int64_t position) const {
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

  // Uniform on [0, rows), with replacement.
  std::int64_t draw(std::int64_t position) const {
    const PhiloxBlock block =
        philox(seed_, kIidStream, epoch_, static_cast<std::uint64_t>(position));
    const std::uint64_t bits = static_cast<std::uint64_t>(block.word[1]) << 32 | block.word[0];
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::int64_t>(
        (static_cast<Wide>(bits) * static_cast<std::uint64_t>(rows_)) >> 64);
  }

  Shuffle shuffle_;
  std::int64_t rows_;
  std::uint64_t seed_;
  std::uint64_t epoch_;
  Permutation permutation_;
};

}  // namespace thalweg
