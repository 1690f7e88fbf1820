// Owns the elementary functions: exp, expm1, log, log1p, tanh, erf, sigmoid, softplus and the
// normal distribution, for float and double.
//
// All are branch-free, free of tables and calls, and follow IEEE rules for NaN, infinities, signed
// zeros and subnormal numbers. g++ -O3 -fno-math-errno -fno-trapping-math vectorizes loops over
// them. Error <= 2 ulp over the whole range with and without hardware fma
// (tests/cpp/math_test.cpp). The polynomials are minimax fits (Remez exchange); each comment gives
// interval, degree and the maximum error of the function in which it is used, relative unless said
// otherwise.
#pragma once

#include "math/host_device.h"

namespace thalweg {
inline namespace TW_ISA {

namespace detail {

template <class T>
struct Series;

template <>
struct Series<float> {
  static constexpr float log2_e = 0x1.715476p0f;
  // ln 2 = high + low; products of high with an exponent are exact.
  static constexpr float ln2_high = 0x1.62e4p-1f;
  static constexpr float ln2_low = 0x1.7f7d1cp-20f;
  // Below exp_lowest exp is 0, above exp_highest infinite; below expm1_lowest expm1 is -1.
  static constexpr float exp_lowest = -104.0f;
  static constexpr float exp_highest = 89.0f;
  static constexpr float expm1_lowest = -18.0f;
  // The range of exp_normal().
  static constexpr float exp_normal_limit = 87.0f;
  // The offset K of scaled_erfc_series().
  static constexpr float erfc_offset = 2.0f;
  // Numbers so small that f(x) = x for expm1 and log1p.
  static constexpr float tiny = 0x1p-30f;
  // 2^subnormal_shift makes a subnormal number normal.
  static constexpr int subnormal_shift = 25;

  // (exp(r) - 1 - r) / r^2 on |r| <= 0.3475: degree 4, error of exp 2^-28.3.
  TW_HD static float exp_series(float r) {
    return polynomial(r, 0x1.fffffcp-2f, 0x1.55549p-3f, 0x1.5558fap-5f, 0x1.123b6ap-7f,
                      0x1.6a21bp-10f);
  }

  // The same for expm1: degree 5, error of expm1 2^-32.0.
  TW_HD static float expm1_series(float r) {
    return polynomial(r, 0.5f, 0x1.555556p-3f, 0x1.5554acp-5f, 0x1.11108ep-7f, 0x1.6d7654p-10f,
                      0x1.a1a36cp-13f);
  }

  // (log((1 + s) / (1 - s)) - 2 s) / s^3 in z = s^2 on |s| <= 0.1716: degree 2, error 2^-30.2.
  TW_HD static float log_series(float z) {
    return polynomial(z, 0x1.55557ap-1f, 0x1.995eacp-2f, 0x1.31e478p-2f);
  }

  // (tanh(x) - x) / x^3 in z = x^2 on |x| <= 0.552: degree 4, error 2^-29.8.
  TW_HD static float tanh_series(float z) {
    return polynomial(z, -0x1.55554ap-2f, 0x1.110d1ep-3f, -0x1.b92666p-5f, 0x1.59272ap-6f,
                      -0x1.9a9d2cp-8f);
  }

  // erf(x) / x - 1 in z = x^2 on |x| <= 1: degree 6, error 2^-29.6.
  TW_HD static float erf_series(float z) {
    return polynomial(z, 0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2cf8p-4f, -0x1.b7f90ep-6f,
                      0x1.5405b2p-8f, -0x1.a3f7p-11f, 0x1.496a32p-14f);
  }

  // exp(a^2) erfc(a) (a + K) in u = 1 - 2 (1 + K) / (a + K) on a >= 1: degree 7, error 2^-23.5.
  TW_HD static float scaled_erfc_series(float u) {
    return polynomial(u, 0x1.a4dcc2p-1f, -0x1.600fbcp-2f, 0x1.a58e4p-4f, -0x1.106a84p-6f,
                      -0x1.74289p-10f, 0x1.446834p-10f, -0x1.b163bep-16f, -0x1.541d4ep-14f);
  }
};

template <>
struct Series<double> {
  static constexpr double log2_e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42fefa3p-1;
  static constexpr double ln2_low = 0x1.3de6af278ece6p-42;
  static constexpr double exp_lowest = -746.0;
  static constexpr double exp_highest = 710.0;
  static constexpr double expm1_lowest = -38.0;
  static constexpr double exp_normal_limit = 708.0;
  static constexpr double erfc_offset = 3.0;
  static constexpr double tiny = 0x1p-60;
  static constexpr int subnormal_shift = 54;

  // |r| <= 0.3475: degree 9, error of exp 2^-57.9.
  TW_HD static double exp_series(double r) {
    return polynomial(r, 0x1.000000000000ap-1, 0x1.55555555554f7p-3, 0x1.55555555506eap-5,
                      0x1.1111111128375p-7, 0x1.6c16c18488a5fp-10, 0x1.a01a01288017dp-13,
                      0x1.a01998fd2da67p-16, 0x1.71df27c86a657p-19, 0x1.28ae791acb8cbp-22,
                      0x1.ad7e318e3463bp-26);
  }

  // |r| <= 0.3475: degree 10, error of expm1 2^-61.7.
  TW_HD static double expm1_series(double r) {
    return polynomial(r, 0.5, 0x1.5555555555559p-3, 0x1.555555555555ap-5, 0x1.111111110f622p-7,
                      0x1.6c16c16c1438fp-10, 0x1.a01a01b024123p-13, 0x1.a01a01b0f3cfdp-16,
                      0x1.71ddf7a4bdc84p-19, 0x1.27e4c51d63918p-22, 0x1.af6009fbf196cp-26,
                      0x1.1f963077c03ddp-29);
  }

  // |s| <= 0.1716: degree 6, error 2^-59.5.
  TW_HD static double log_series(double z) {
    return polynomial(z, 0x1.5555555555593p-1, 0x1.999999997fca1p-2, 0x1.2492494201c41p-2,
                      0x1.c71c51faeddedp-3, 0x1.7466420cecec6p-3, 0x1.39a1652840beap-3,
                      0x1.2f08ecec73b33p-3);
  }

  // |x| <= 0.552: degree 9, error 2^-55.4.
  TW_HD static double tanh_series(double z) {
    return polynomial(z, -0x1.5555555555496p-2, 0x1.1111111102078p-3, -0x1.ba1ba1acfb9f6p-5,
                      0x1.664f45ab9c93bp-6, -0x1.226ddab9714dfp-7, 0x1.d6c5c7acfcaf4p-9,
                      -0x1.7cf04a398219fp-10, 0x1.2f8d58fbee06ep-11, -0x1.b87ae2c46546bp-13,
                      0x1.aa6a96a7ae7eep-15);
  }

  // |x| <= 1: degree 11, error 2^-56.9.
  TW_HD static double erf_series(double z) {
    return polynomial(z, 0x1.06eba8214db68p-3, -0x1.812746b0379bdp-2, 0x1.ce2f21a040d16p-4,
                      -0x1.b82ce311fa93fp-6, 0x1.565bccf92b31fp-8, -0x1.c02db03dd762ap-11,
                      0x1.f9a2baa903947p-14, -0x1.f4ca4d6f6fdeap-17, 0x1.b97fd3dabcef8p-20,
                      -0x1.5c0726f37da84p-23, 0x1.d71b0f197af5bp-27, -0x1.abae48da6a237p-31);
  }

  // a >= 1: degree 19, error 2^-53.7.
  TW_HD static double scaled_erfc_series(double u) {
    return polynomial(u, 0x1.c57239e943d1ap-1, -0x1.eb2c5e8ccc2b4p-2, 0x1.ca7dc9a1610cbp-3,
                      -0x1.66ea393501799p-4, 0x1.bf93f1658764ep-6, -0x1.88b2c7bd74e6cp-8,
                      0x1.0bfeb76292533p-11, 0x1.af4cc89b44b3dp-13, -0x1.5b8364c94a50cp-14,
                      0x1.29fa8f5bb2b70p-19, 0x1.a1e589b9a3830p-18, -0x1.2b6e80c93e573p-20,
                      -0x1.dcf416ba58072p-22, 0x1.47c00b8fc14a8p-23, 0x1.30f6dbff3fbdbp-25,
                      -0x1.3af80f5070851p-26, -0x1.c03d4ce0da6b2p-29, 0x1.1745e63466516p-29,
                      0x1.0c3711f092980p-32, -0x1.555823070ff32p-33);
  }
};

// x = n ln 2 + r + r_low, |r| <= ln 2 / 2 up to rounding, r_low the rounding error of r. The
// integer n comes as the bits to_bits(rounder) + n.
template <class T>
struct Reduced {
  T r;
  T r_low;
  FloatBits<T> n_bits;
};

template <class T>
TW_HD Reduced<T> reduce_by_ln2(T x) {
  using S = Series<T>;
  const T shifted = madd(x, S::log2_e, FloatFormat<T>::rounder);
  const T n = shifted - FloatFormat<T>::rounder;
  const T high = madd(-n, S::ln2_high, x);
  const T r = madd(-n, S::ln2_low, high);
  return {r, madd(-n, S::ln2_low, high - r), to_bits(shifted)};
}

// 2^(n + offset), which has to be a normal number.
template <class T>
TW_HD T power_of_two(FloatBits<T> n_bits, int offset) {
  using F = FloatFormat<T>;
  const FloatBits<T> exponent =
      n_bits - to_bits(F::rounder) + static_cast<FloatBits<T>>(F::exponent_bias + offset);
  return from_bits<T>(exponent << F::mantissa_bits);
}

template <class T>
TW_HD T exp_reduced(T r) {
  return T(1) + madd(r * r, Series<T>::exp_series(r), r);
}

// exp for |x| <= exp_normal_limit.
template <class T>
TW_HD T exp_normal(T x) {
  const Reduced<T> reduced = reduce_by_ln2(x);
  return exp_reduced(reduced.r) * power_of_two<T>(reduced.n_bits, 0);
}

// log((1 + f) 2^k) + correction for 1 + f in [sqrt(1/2), sqrt(2)).
template <class T>
TW_HD T log_reduced(T f, T k, T correction) {
  using S = Series<T>;
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T half_square = T(0.5) * f * f;
  const T low = madd(s, madd(z, S::log_series(z), half_square), madd(k, S::ln2_low, correction));
  return madd(k, S::ln2_high, f - (half_square - low));
}

// u = m 2^k with m in [sqrt(1/2), sqrt(2)), for positive normal u.
template <class T>
struct Scaled {
  T m;
  T k;
};

template <class T>
TW_HD Scaled<T> split_exponent(T u) {
  using F = FloatFormat<T>;
  constexpr FloatBits<T> root_half = to_bits(T(0.70710678118654752440));
  constexpr FloatBits<T> one = to_bits(T(1));
  constexpr FloatBits<T> mantissa = (FloatBits<T>(1) << F::mantissa_bits) - 1;
  // A number with its integer in the low mantissa bits: 2^mantissa_bits + k + bias.
  constexpr T carrier = T(FloatBits<T>(1) << F::mantissa_bits);
  const FloatBits<T> bits = to_bits(u) + (one - root_half);
  const T biased = from_bits<T>((bits >> F::mantissa_bits) | to_bits(carrier));
  return {from_bits<T>((bits & mantissa) + root_half), biased - (carrier + T(F::exponent_bias))};
}

// log1p for finite x > -1.
template <class T>
TW_HD T log1p_finite(T x) {
  const T u = T(1) + x;
  const Scaled<T> scaled = split_exponent(u);
  const bool direct = scaled.k == T(0);
  // What rounding removed from 1 + x, relative to u.
  const T lost = select(x < T(1), x - (u - T(1)), T(1) - (u - x)) / u;
  return log_reduced(select(direct, x, scaled.m - T(1)), scaled.k, select(direct, T(0), lost));
}

// erf for |x| <= 1.
template <class T>
TW_HD T erf_small(T x) {
  return madd(x, Series<T>::erf_series(x * x), x);
}

// exp(a^2) erfc(a) for a >= 1.
template <class T>
TW_HD T scaled_erfc(T a) {
  using S = Series<T>;
  const T t = T(1) / (a + S::erfc_offset);
  return t * S::scaled_erfc_series(madd(T(-2) * (T(1) + S::erfc_offset), t, T(1)));
}

}  // namespace detail

template <class T>
TW_HD T exp(T x) {
  using S = detail::Series<T>;
  using F = FloatFormat<T>;
  const auto reduced = detail::reduce_by_ln2(at_most(at_least(x, S::exp_lowest), S::exp_highest));
  // 2^n as a product of two normal numbers, so that the last multiplication rounds subnormal
  // results.
  const FloatBits<T> biased_twice =
      reduced.n_bits - to_bits(F::rounder) + static_cast<FloatBits<T>>(2 * F::exponent_bias);
  const FloatBits<T> first = biased_twice >> 1;
  const FloatBits<T> second = biased_twice - first;
  return detail::exp_reduced(reduced.r) * from_bits<T>(first << F::mantissa_bits) *
         from_bits<T>(second << F::mantissa_bits);
}

template <class T>
TW_HD T expm1(T x) {
  using S = detail::Series<T>;
  const auto reduced = detail::reduce_by_ln2(at_most(at_least(x, S::expm1_lowest), S::exp_highest));
  const T r = reduced.r;
  const T p = r + madd(r * r, S::expm1_series(r), reduced.r_low);
  // Half of 2^n, which itself overflows for the largest n.
  const T half = detail::power_of_two<T>(reduced.n_bits, -1);
  return select(abs(x) < S::tiny, x, T(2) * madd(half, p, half - T(0.5)));
}

template <class T>
TW_HD T log(T x) {
  using S = detail::Series<T>;
  using F = FloatFormat<T>;
  constexpr T up = T(FloatBits<T>(1) << S::subnormal_shift);
  const bool subnormal = x < F::min_normal;
  const auto scaled = detail::split_exponent(select(subnormal, x * up, x));
  const T k = scaled.k - select(subnormal, T(S::subnormal_shift), T(0));
  const T y = detail::log_reduced(scaled.m - T(1), k, T(0));
  const T at_edge = select(x == T(0), -F::infinity, F::nan);
  return select(x > T(0), select(x <= F::max_finite, y, x), at_edge);
}

template <class T>
TW_HD T log1p(T x) {
  using F = FloatFormat<T>;
  const T y = select(abs(x) < detail::Series<T>::tiny, x, detail::log1p_finite(x));
  const T at_edge = select(x == T(-1), -F::infinity, F::nan);
  return select(x > T(-1), select(x <= F::max_finite, y, x), at_edge);
}

template <class T>
TW_HD T tanh(T x) {
  const T z = x * x;
  const T small = madd(x * z, detail::Series<T>::tanh_series(z), x);
  const T a = at_most(abs(x), T(20));
  const T large = T(1) - T(2) / (detail::exp_normal(a + a) + T(1));
  return copy_sign(select(abs(x) < T(0.55), small, large), x);
}

template <class T>
TW_HD T erf(T x) {
  const T a = abs(x);
  const T square = at_most(a * a, detail::Series<T>::exp_normal_limit);
  const T large = T(1) - detail::exp_normal(-square) * detail::scaled_erfc(a);
  return select(a < T(1), detail::erf_small(x), copy_sign(large, x));
}

// 1 / (1 + exp(-x)); for x < 0 in the form e - e (e / (1 + e)), which loses no digits to 1 + e.
template <class T>
TW_HD T sigmoid(T x) {
  const T e = exp(-abs(x));
  const T q = select(x < T(0), e, T(1)) / (T(1) + e);
  return select(x < T(0), madd(-e, q, e), q);
}

// log(1 + exp(x)).
template <class T>
TW_HD T softplus(T x) {
  // log1p of e in [0, 1], as in log1p_finite() with k = 0 or 1.
  const T e = exp(-abs(x));
  const T u = T(1) + e;
  const bool direct = e < T(0.41421356237309504880);
  const T lost = (e - (u - T(1))) / u;
  const T y = detail::log_reduced(select(direct, e, madd(T(0.5), u, T(-1))),
                                  select(direct, T(0), T(1)), select(direct, T(0), lost));
  return at_least(x, T(0)) + y;
}

// exp(-x^2 / 2) / sqrt(2 pi).
template <class T>
TW_HD T normal_density(T x) {
  return T(0.39894228040143267794) * exp(T(-0.5) * x * x);
}

// (1 + erf(x / sqrt(2))) / 2, without cancellation in the left tail. Its relative error there grows
// like x^2 ulp.
template <class T>
TW_HD T normal_distribution(T x) {
  const T scaled = x * T(0.70710678118654752440);
  const T a = abs(scaled);
  const T near = madd(T(0.5), detail::erf_small(scaled), T(0.5));
  const T tail = T(0.5) * exp(T(-0.5) * x * x) * detail::scaled_erfc(a);
  return select(a < T(1), near, select(x < T(0), tail, T(1) - tail));
}

}  // namespace TW_ISA
}  // namespace thalweg
