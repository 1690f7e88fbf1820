// Owns what every formula in math/ stands on: the host/device and instruction-set macros, fused
// multiply-add, and branch-free scalar helpers that g++ turns into vector instructions.
#pragma once

#include <cmath>
#include <cstdint>

// Functions marked TW_HD run on the host and, under nvcc, on the device. They are always inlined,
// so that a loop over one of them is a plain loop for the vectorizer.
#if defined(__CUDACC__)
#define TW_HD __host__ __device__ __forceinline__
#else
#define TW_HD __attribute__((always_inline)) inline
#endif

// Before and in the head of a template that calls what it is given, on the host or on the device:
//   TW_VISITOR template <class F> TW_VISITS constexpr ... visit(F&& f)
#if defined(__CUDACC__)
#define TW_VISITOR _Pragma("nv_exec_check_disable")
#define TW_VISITS __host__ __device__
#else
#define TW_VISITOR
#define TW_VISITS
#endif

// Each instruction set compiles math/ into its own inline namespace; otherwise the linker would
// merge copies that were compiled for different processors.
#ifndef TW_ISA
#define TW_ISA generic
#endif

namespace thalweg {
inline namespace TW_ISA {

template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
  static constexpr float min_normal = 0x1p-126f;
  static constexpr float max_finite = 0x1.fffffep127f;
  static constexpr float infinity = __builtin_inff();
  static constexpr float nan = __builtin_nanf("");
  // 1.5 * 2^mantissa_bits: adding it rounds to an integer, which then sits in the low mantissa
  // bits.
  static constexpr float rounder = 0x1.8p23f;
};

template <>
struct FloatFormat<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
  static constexpr double min_normal = 0x1p-1022;
  static constexpr double max_finite = 0x1.fffffffffffffp1023;
  static constexpr double infinity = __builtin_inf();
  static constexpr double nan = __builtin_nan("");
  static constexpr double rounder = 0x1.8p52;
};

template <class T>
using FloatBits = typename FloatFormat<T>::Bits;

template <class T>
TW_HD constexpr FloatBits<T> to_bits(T x) {
  return __builtin_bit_cast(FloatBits<T>, x);
}

template <class T>
TW_HD constexpr T from_bits(FloatBits<T> bits) {
  return __builtin_bit_cast(T, bits);
}

// a * b + c: one rounding where the target has fma, two otherwise.
TW_HD float madd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return ::fmaf(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

TW_HD double madd(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// IEEE square root. Vectorized only under -fno-math-errno.
TW_HD float sqrt(float x) {
#if defined(__CUDACC__)
  return ::sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}

TW_HD double sqrt(double x) {
#if defined(__CUDACC__)
  return ::sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

template <class T>
TW_HD constexpr T select(bool condition, T if_true, T if_false) {
  return condition ? if_true : if_false;
}

// Both return x when x is NaN: a bound never hides a NaN.
template <class T>
TW_HD constexpr T at_least(T x, T lowest) {
  return lowest > x ? lowest : x;
}

template <class T>
TW_HD constexpr T at_most(T x, T highest) {
  return highest < x ? highest : x;
}

template <class T>
TW_HD constexpr T abs(T x) {
  return from_bits<T>(to_bits(x) & ~to_bits(T(-0.0)));
}

// |magnitude| with the sign of `sign`.
template <class T>
TW_HD constexpr T copy_sign(T magnitude, T sign) {
  return from_bits<T>((to_bits(magnitude) & ~to_bits(T(-0.0))) |
                      (to_bits(sign) & to_bits(T(-0.0))));
}

template <class T>
TW_HD constexpr bool is_finite(T x) {
  return abs(x) <= FloatFormat<T>::max_finite;
}

// c[0] + c[1] x + c[2] x^2 + ... by Horner's rule, coefficients in ascending order.
template <class T>
TW_HD T polynomial(T, T c0) {
  return c0;
}

template <class T, class... Rest>
TW_HD T polynomial(T x, T c0, Rest... rest) {
  return madd(polynomial(x, T(rest)...), x, c0);
}

}  // namespace TW_ISA
}  // namespace thalweg
