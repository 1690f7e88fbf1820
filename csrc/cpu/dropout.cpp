// Dropout: the mask is recomputed from its counters in the forward and in the backward pass.
#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/philox.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Words of the elements [element, element + kPanel), from the position returned in `words`.
TW_INLINE const std::uint32_t* random_words(const Dropout& problem, std::uint64_t element,
                                            std::uint32_t (&words)[kPanel + 4]) {
  const std::uint64_t first = element / 4;
  const int offset = static_cast<int>(element % 4);
  const auto stream = static_cast<std::uint16_t>(problem.stream);
  for (int block = 0; block < kPanel / 4; ++block) {
    const PhiloxBlock random =
        philox(problem.seed, stream, problem.step, first + static_cast<std::uint64_t>(block));
    for (int i = 0; i < 4; ++i) words[block * 4 + i] = random.word[i];
  }
  if (offset != 0) {
    const PhiloxBlock random = philox(problem.seed, stream, problem.step, first + kPanel / 4);
    for (int i = 0; i < 4; ++i) words[kPanel + i] = random.word[i];
  }
  return words + offset;
}

}  // namespace

template <class T>
void dropout(Panels<const T> x, Panels<T> y, const Dropout& problem, bool accumulate, Range rows,
             Range panels) {
  const T scale = static_cast<T>(problem.scale);
  const std::uint32_t threshold = problem.threshold;
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const std::int64_t lanes = y.lanes(p);
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const std::int64_t element = (problem.first_row + r) * x.width + p * kPanel;
      std::uint32_t words[kPanel + 4];
      const std::uint32_t* const word =
          random_words(problem, static_cast<std::uint64_t>(element), words);
      const T* const from = x.row(p, r);
      T* const to = y.row(p, r);
      // A product, not a selection: NaN stays visible.
      const auto dropped = [=](std::int64_t i) TW_ALWAYS_INLINE {
        return from[i] * (word[i] >= threshold ? scale : T(0));
      };
      if (accumulate) {
        transform(to, 1, lanes,
                  [=](std::int64_t i) TW_ALWAYS_INLINE { return to[i] + dropped(i); });
      } else {
        transform(to, 1, lanes, dropped);
      }
    }
  }
}

template void dropout(Panels<const float>, Panels<float>, const Dropout&, bool, Range, Range);
template void dropout(Panels<const double>, Panels<double>, const Dropout&, bool, Range, Range);

}  // namespace TW_ISA
}  // namespace thalweg::cpu
