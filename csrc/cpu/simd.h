// One vector register of floats or doubles, as wide as this instruction set allows.
//
// The type is a vector of the compiler (GCC and Clang), so +, -, *, / and comparisons are its own;
// intrinsics are used only for what it cannot spell. Everything here is inlined into kernels.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/layout.h"
#include "math/bfloat16.h"
#include "math/host_device.h"

#define TW_ALWAYS_INLINE __attribute__((always_inline))
#define TW_INLINE TW_ALWAYS_INLINE inline
// In front of a loop whose iterations are independent although its arrays may be the same memory.
#define TW_INDEPENDENT _Pragma("GCC ivdep")
#define TW_UNROLL(count) TW_PRAGMA(GCC unroll count)
#define TW_PRAGMA(text) _Pragma(#text)

namespace thalweg::cpu {
inline namespace TW_ISA {

// Overloaded for vectors below.
using thalweg::at_least;
using thalweg::madd;

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Register __attribute__((vector_size(kVectorBytes)));
  typedef T Memory __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));

  Register v;

  static TW_INLINE Vec zero() { return {Register{}}; }
  static TW_INLINE Vec set1(T x) { return {x - Register{}}; }
  static TW_INLINE Vec load(const T* from) { return {*reinterpret_cast<const Memory*>(from)}; }
  TW_INLINE void store(T* to) const { *reinterpret_cast<Memory*>(to) = v; }

  friend TW_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend TW_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend TW_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
};

// Vectors in a row of a panel.
template <class T>
inline constexpr int kPanelVectors = static_cast<int>(kPanel) / Vec<T>::kLanes;

// a * b + c: fused where the instruction set has fma.
template <class T>
TW_INLINE Vec<T> madd(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  } else {
    return {_mm512_fmadd_pd(a.v, b.v, c.v)};
  }
#elif defined(__AVX2__) && defined(__FMA__)
  if constexpr (sizeof(T) == 4) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
  } else {
    return {_mm256_fmadd_pd(a.v, b.v, c.v)};
  }
#elif defined(__ARM_FEATURE_FMA)
  Vec<T> out;
  for (int i = 0; i < Vec<T>::kLanes; ++i) out.v[i] = madd(a.v[i], b.v[i], c.v[i]);
  return out;
#else
  return a * b + c;
#endif
}

// As many pairs of bfloat16 numbers as a vector holds floats.
struct PairVec {
  typedef std::uint32_t Register __attribute__((vector_size(kVectorBytes)));
  typedef std::uint32_t Memory
      __attribute__((vector_size(kVectorBytes), aligned(alignof(std::uint32_t)), may_alias));

  Register v;

  static TW_INLINE PairVec set1(BfloatPair x) { return {x.bits - Register{}}; }
  static TW_INLINE PairVec load(const BfloatPair* from) {
    return {*reinterpret_cast<const Memory*>(from)};
  }
};

// c + a.first * b.first + a.second * b.second in float32, lane by lane. The processor's instruction
// takes subnormal numbers for zero, the others do not.
TW_INLINE Vec<float> madd(PairVec a, PairVec b, Vec<float> c) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  typedef Vec<float>::Register Floats;
  const Vec<float> first =
      madd(Vec<float>{(Floats)(a.v << 16)}, Vec<float>{(Floats)(b.v << 16)}, c);
  return madd(Vec<float>{(Floats)(a.v & 0xffff0000u)}, Vec<float>{(Floats)(b.v & 0xffff0000u)},
              first);
#endif
}

// What a product is made of: numbers of T, or pairs of bfloat16 numbers summed in float32.
template <class E>
struct Factor {
  using Vector = Vec<E>;
  static constexpr std::int64_t kProducts = 1;  // of one multiply-add
};
template <>
struct Factor<BfloatPair> {
  using Vector = PairVec;
  static constexpr std::int64_t kProducts = 2;
};

// lowest > x ? lowest : x, lane by lane: NaN in x stays.
template <class T>
TW_INLINE Vec<T> at_least(Vec<T> x, Vec<T> lowest) {
  return {lowest.v > x.v ? lowest.v : x.v};
}

// one where x > 0, else x, lane by lane.
template <class T>
TW_INLINE Vec<T> one_where_positive(Vec<T> x) {
  return {x.v > Vec<T>::zero().v ? Vec<T>::set1(T(1)).v : x.v};
}

// All bits set in the first kPanel elements, none in the others.
template <class T>
struct LaneMaskTable {
  FloatBits<T> bits[2 * kPanel];
  constexpr LaneMaskTable() : bits() {
    for (std::int64_t i = 0; i < 2 * kPanel; ++i) bits[i] = i < kPanel ? ~FloatBits<T>{0} : 0;
  }
};
template <class T>
inline constexpr LaneMaskTable<T> kLaneMasks;

// x in the lanes whose column (column + lane) is below `lanes`, zero in the others.
template <class T>
TW_INLINE Vec<T> keep_lanes(Vec<T> x, std::int64_t column, std::int64_t lanes) {
  typedef FloatBits<T> Bits __attribute__((vector_size(kVectorBytes)));
  typedef FloatBits<T> Memory
      __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  const FloatBits<T>* from =
      kLaneMasks<T>.bits + (lanes < column ? kPanel : kPanel - lanes + column);
  const Bits mask = *reinterpret_cast<const Memory*>(from);
  return {(typename Vec<T>::Register)((Bits)x.v & mask)};
}

// The lower or upper halves of a and b, interleaved: a0 b0 a1 b1 ...
template <bool kUpper, class T>
TW_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int kLanes = Vec<T>::kLanes;
  constexpr int kFirst = kUpper ? kLanes / 2 : 0;
  return [&]<int... i>(std::integer_sequence<int, i...>) TW_ALWAYS_INLINE {
    return Vec<T>{__builtin_shufflevector(a.v, b.v, (kFirst + i / 2 + i % 2 * kLanes)...)};
  }(std::make_integer_sequence<int, kLanes>{});
}

}  // namespace TW_ISA
}  // namespace thalweg::cpu
