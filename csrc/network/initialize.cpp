// The initializers: Glorot and Bengio 2010, He et al. 2015, LeCun et al. 1998, Saxe et al. 2013,
// and the uniform rule U(+-1/sqrt(fan_in)).
#include "network/initialize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "math/philox.h"

namespace thalweg {
namespace {

// Below the streams that math/philox.h reserves, above those of dropout.
constexpr int kFirstTensorStream = 0x8000;

struct Draw {
  std::uint64_t seed;
  std::uint16_t stream;

  double normal(std::int64_t element) const {
    return standard_normal(philox_bits53(seed, stream, 0, static_cast<std::uint64_t>(element)));
  }
  double uniform(std::int64_t element, double bound) const {
    const std::uint64_t bits = philox_bits53(seed, stream, 0, static_cast<std::uint64_t>(element));
    return bound * (2.0 * uniform_double(bits) - 1.0);
  }
};

double dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Rows (or columns, when there are fewer) become orthonormal: Gram-Schmidt, twice for accuracy.
void orthogonal(const Draw& draw, std::int64_t out, std::int64_t in, double gain, double* values) {
  const std::int64_t count = std::min(out, in);
  const std::int64_t length = std::max(out, in);
  std::vector<double> q(static_cast<std::size_t>(count * length));
  for (std::int64_t i = 0; i < count * length; ++i) q[i] = draw.normal(i);
  for (std::int64_t r = 0; r < count; ++r) {
    double* row = q.data() + r * length;
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int64_t other = 0; other < r; ++other) {
        const double* base = q.data() + other * length;
        const double overlap = dot(row, base, length);
        for (std::int64_t i = 0; i < length; ++i) row[i] -= overlap * base[i];
      }
      const double norm = std::sqrt(dot(row, row, length));
      for (std::int64_t i = 0; i < length; ++i) row[i] /= norm;
    }
  }
  for (std::int64_t o = 0; o < out; ++o)
    for (std::int64_t i = 0; i < in; ++i)
      values[o * in + i] = gain * (out <= in ? q[o * length + i] : q[i * length + o]);
}

}  // namespace

void initialize(const Plan& plan, int index, std::uint64_t seed, double* values) {
  const Tensor& tensor = plan.tensors[index];
  const std::int64_t size = tensor.size();
  if (!tensor.is_weight()) {
    const bool one = tensor.kind == Tensor::Kind::kGamma && !tensor.zero;
    std::fill_n(values, size, one ? 1.0 : 0.0);
    return;
  }
  const Draw draw{seed, static_cast<std::uint16_t>(kFirstTensorStream + index)};
  const auto fan_in = static_cast<double>(tensor.in);
  const auto fan_out = static_cast<double>(tensor.out);
  const std::string& type = tensor.zero                  ? "zeros"
                            : tensor.init.type != "auto" ? tensor.init.type
                            : tensor.he                  ? "he_normal"
                                                         : "glorot_uniform";
  const auto normal = [&](double std) {
    for (std::int64_t i = 0; i < size; ++i) values[i] = std * draw.normal(i);
  };
  const auto uniform = [&](double bound) {
    for (std::int64_t i = 0; i < size; ++i) values[i] = draw.uniform(i, bound);
  };
  if (type == "deck")
    uniform(1.0 / std::sqrt(fan_in));
  else if (type == "glorot_uniform")
    uniform(std::sqrt(6.0 / (fan_in + fan_out)));
  else if (type == "he_normal")
    normal(std::sqrt(2.0 / fan_in));
  else if (type == "lecun_normal")
    normal(std::sqrt(1.0 / fan_in));
  else if (type == "orthogonal")
    orthogonal(draw, tensor.out, tensor.in, tensor.init.value, values);
  else if (type == "normal")
    normal(tensor.init.value);
  else if (type == "uniform")
    uniform(tensor.init.value);
  else if (type == "zeros")
    std::fill_n(values, size, 0.0);
  else
    throw InternalError(concat("[initialize] unknown initializer ", type));
}

}  // namespace thalweg
