// Products of pairs of bfloat16 numbers on the matrix unit of x86 processors (AMX): blocks of 32 x
// 32 sums in four tiles. Part of the path v4_bf16, used where the processor has the unit and the
// system lends it.
#pragma once

#include "cpu/simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define TW_AMX 1

#include "core/processor.h"
#include "math/bfloat16.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

// The calling thread's tiles, all of 16 rows of 64 bytes, for the life of this object.
class Tiles {
 public:
  Tiles() {
    alignas(64) static constexpr Configuration kConfiguration;
    _tile_loadconfig(&kConfiguration);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct Configuration {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

// sums[32][32] = the products of `panels` panels: rows of 16 pairs of A, whose panels are a_stride
// pairs apart, and 16 rows of 32 pairs of B each. 16 rows alone unless `both`; the other rows of A
// are not read then, and those of `sums` not written.
TW_INLINE void multiply_tiles(const BfloatPair* a, std::int64_t a_stride, const BfloatPair* b,
                              std::int64_t panels, bool both, float* sums) {
  constexpr int kRowBytes = kPanel * sizeof(float);
  constexpr std::int64_t kHalf = kPanel / 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    _tile_loadd(4, a, kRowBytes / 2);
    _tile_loadd(6, b, kRowBytes);
    _tile_loadd(7, b + kHalf, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (both) {
      _tile_loadd(5, a + kHalf * kHalf, kRowBytes / 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += a_stride;
    b += kHalf * kPanel;
  }
  _tile_stored(0, sums, kRowBytes);
  _tile_stored(1, sums + kHalf, kRowBytes);
  if (!both) return;
  _tile_stored(2, sums + kHalf * kPanel, kRowBytes);
  _tile_stored(3, sums + kHalf * kPanel + kHalf, kRowBytes);
}

// out (+)= sums of all panels for `rows` <= 32 rows of a panel, promoted every kPromote products.
TW_INLINE void multiply_on_tiles(const BfloatPair* a, std::int64_t a_stride, const BfloatPair* b,
                                 std::int64_t panels, std::int64_t rows, bool add, float* out) {
  constexpr std::int64_t kMost = kPromote / kPanel;
  alignas(64) float sums[kTile];
  std::int64_t begin = 0;
  do {
    const std::int64_t count = panels - begin < kMost ? panels - begin : kMost;
    multiply_tiles(a + begin * a_stride, a_stride, b + begin * (kTile / 2), count,
                   rows > kPanel / 2, sums);
    for (std::int64_t i = 0; i < rows * kPanel; i += Vec<float>::kLanes) {
      const Vec<float> sum = Vec<float>::load(sums + i);
      (add ? Vec<float>::load(out + i) + sum : sum).store(out + i);
    }
    add = true;
    begin += kMost;
  } while (begin < panels);
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu

#endif
