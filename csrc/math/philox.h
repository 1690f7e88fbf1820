// Owns the counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), uniform
// and normal variates. A variate is a pure function of (seed, stream, step, element), the same on
// every device: key = seed (64 bits), counter = {block: 48 bits, stream: 16 bits, step: 64 bits}. A
// block holds four 32-bit words: element e of a stream of words is word e % 4 of block e / 4,
// element e of a stream of doubles takes words 2e and 2e + 1 of that numbering.
#pragma once

#include "math/elementary.h"

namespace thalweg {

struct PhiloxBlock {
  std::uint32_t word[4];
};

// Streams from here on belong to the library itself; lower ones number layers and parameters.
inline constexpr std::uint16_t kFirstReservedStream = 0xff00;
inline constexpr std::uint16_t kPermutationStream = 0xffff;

inline namespace TW_ISA {

TW_HD PhiloxBlock philox4x32_10(PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr std::uint64_t multiplier0 = 0xD2511F53;
  constexpr std::uint64_t multiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t weyl0 = 0x9E3779B9;
  constexpr std::uint32_t weyl1 = 0xBB67AE85;
  std::uint32_t x0 = counter.word[0];
  std::uint32_t x1 = counter.word[1];
  std::uint32_t x2 = counter.word[2];
  std::uint32_t x3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = multiplier0 * x0;
    const std::uint64_t product1 = multiplier1 * x2;
    x0 = static_cast<std::uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x1 = static_cast<std::uint32_t>(product1);
    x2 = static_cast<std::uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x3 = static_cast<std::uint32_t>(product0);
    key0 += weyl0;
    key1 += weyl1;
  }
  return {{x0, x1, x2, x3}};
}

// Precondition: block < 2^48.
TW_HD PhiloxBlock philox(std::uint64_t seed, std::uint16_t stream, std::uint64_t step,
                         std::uint64_t block) {
  const PhiloxBlock counter = {
      {static_cast<std::uint32_t>(block),
       static_cast<std::uint32_t>(block >> 32) | static_cast<std::uint32_t>(stream) << 16,
       static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32)}};
  return philox4x32_10(counter, static_cast<std::uint32_t>(seed),
                       static_cast<std::uint32_t>(seed >> 32));
}

// The word of one element, at the price of its whole block.
TW_HD std::uint32_t philox_word(std::uint64_t seed, std::uint16_t stream, std::uint64_t step,
                                std::uint64_t element) {
  return philox(seed, stream, step, element / 4).word[element % 4];
}

// 53 random bits of one element of a stream of doubles, at the price of its whole block.
TW_HD std::uint64_t philox_bits53(std::uint64_t seed, std::uint16_t stream, std::uint64_t step,
                                  std::uint64_t element) {
  const PhiloxBlock block = philox(seed, stream, step, element / 2);
  const int first = static_cast<int>(element % 2) * 2;
  return (static_cast<std::uint64_t>(block.word[first + 1]) << 32 | block.word[first]) >> 11;
}

// Uniform on [0, 1), a multiple of 2^-24.
TW_HD float uniform_float(std::uint32_t word) {
  return static_cast<float>(static_cast<std::int32_t>(word >> 8)) * 0x1p-24f;
}

// Uniform on [0, 1), a multiple of 2^-53.
TW_HD double uniform_double(std::uint64_t bits53) {
  return static_cast<double>(static_cast<std::int64_t>(bits53)) * 0x1p-53;
}

// Words below the threshold occur with probability p (0 <= p <= 1, resolution 2^-32): an element is
// dropped when uint64(word) < bernoulli_threshold(p).
TW_HD std::uint64_t bernoulli_threshold(double p) {
  return static_cast<std::uint64_t>(p * 0x1p32 + 0.5);
}

// Inverse of the standard normal distribution function for 0 < u < 1, relative error below 1e-15:
// algorithm AS 241, PPND16 (Wichura 1988).
TW_HD double normal_quantile(double u) {
  const double q = u - 0.5;
  if (abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q *
           polynomial(r, 3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                      1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                      3.3430575583588128105e4, 2.5090809287301226727e3) /
           polynomial(r, 1.0, 4.2313330701600911252e1, 6.8718700749205790830e2,
                      5.3941960214247511077e3, 2.1213794301586595867e4, 3.9307895800092710610e4,
                      2.8729085735721942674e4, 5.2264952788528545610e3);
  }
  const double tail = sqrt(-log(q < 0.0 ? u : 1.0 - u));
  double magnitude;
  if (tail <= 5.0) {
    const double r = tail - 1.6;
    magnitude =
        polynomial(r, 1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
                   3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
                   2.27238449892691845833e-2, 7.74545014278341407640e-4) /
        polynomial(r, 1.0, 2.05319162663775882187e0, 1.67638483018380384940e0,
                   6.89767334985100004550e-1, 1.48103976427480074590e-1, 1.51986665636164571966e-2,
                   5.47593808499534494600e-4, 1.05075007164441684324e-9);
  } else {
    const double r = tail - 5.0;
    magnitude =
        polynomial(r, 6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0,
                   2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                   2.71155556874348757815e-5, 2.01033439929228813265e-7) /
        polynomial(r, 1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1,
                   1.48753612908506148525e-2, 7.86869131145613259100e-4, 1.84631831751005468180e-5,
                   1.42151175831644588870e-7, 2.04426310338993978564e-15);
  }
  return copy_sign(magnitude, q);
}

// Standard normal variate of 53 random bits.
TW_HD double standard_normal(std::uint64_t bits53) {
  return normal_quantile((static_cast<double>(static_cast<std::int64_t>(bits53)) + 0.5) * 0x1p-53);
}

}  // namespace TW_ISA
}  // namespace thalweg
