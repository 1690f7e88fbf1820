// The random factors of dropout on the device (cuda/dropout.h).
#pragma once

#include "cuda/device_matrix.h"
#include "cuda/dropout.h"
#include "math/philox.h"

namespace thalweg::cuda {

// The words of four elements from `element` on. They lie in two blocks where the rows of the matrix
// are no multiples of four; shifts instead of an index keep them in registers.
TW_DEVICE PhiloxBlock dropout_words(const Dropout& dropout, std::uint64_t element) {
  const auto step = dropout.state ? static_cast<std::uint64_t>(dropout.state->steps) : dropout.step;
  const auto stream = static_cast<std::uint16_t>(dropout.stream);
  PhiloxBlock words = philox(dropout.seed, stream, step, element / 4);
  const int offset = static_cast<int>(element % 4);
  if (offset == 0) return words;
  const PhiloxBlock next = philox(dropout.seed, stream, step, element / 4 + 1);
  std::uint32_t all[8];
  TW_UNROLL
  for (int j = 0; j < 4; ++j) {
    all[j] = words.word[j];
    all[4 + j] = next.word[j];
  }
  TW_UNROLL
  for (int j = 0; j < 7; ++j) all[j] = (offset & 1) != 0 ? all[j + 1] : all[j];
  TW_UNROLL
  for (int j = 0; j < 4; ++j) words.word[j] = (offset & 2) != 0 ? all[j + 2] : all[j];
  return words;
}

// Of four elements of a row of a matrix of that width: 0 or dropout.scale. To be multiplied with,
// not selected by: NaN stays visible.
template <class T>
TW_DEVICE Quad<T> dropout_factors(const Dropout& dropout, std::int64_t width, std::int64_t row,
                                  std::int64_t column) {
  const std::int64_t element = (dropout.first_row + row) * width + column;
  const PhiloxBlock words = dropout_words(dropout, static_cast<std::uint64_t>(element));
  Quad<T> factors;
  TW_UNROLL
  for (int j = 0; j < kQuad; ++j) {
    factors[j] = words.word[j] >= dropout.threshold ? static_cast<T>(dropout.scale) : T(0);
  }
  return factors;
}

}  // namespace thalweg::cuda
