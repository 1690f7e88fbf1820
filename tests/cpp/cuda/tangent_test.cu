// Tangents of activations, maxout, batch norm and losses against loops in long double.
#include "cuda/activation.h"
#include "cuda/batch_norm_tangent.h"
#include "cuda/loss.h"
#include "cuda/maxout.h"
#include "math/activations.h"
#include "math/losses.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

using Real = long double;

template <class T>
constexpr double kUlp = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
template <class T>
constexpr const char* kType = sizeof(T) == 4 ? " float32 " : " float64 ";

// Host matrices are dense [rows, width].
template <class T>
struct Host {
  int64_t rows, width;
  std::vector<T> values;

  Host(Random& random, int64_t r, int64_t w, double deviation = 1.0)
      : rows(r), width(w), values(random.normals<T>(r * w, deviation)) {}
  Real operator()(int64_t r, int64_t c) const {
    return static_cast<Real>(values[static_cast<std::size_t>(r * width + c)]);
  }
  DeviceMatrix<T> device() const { return {rows, width, values}; }
};

// A vector per column, zero in the padding.
template <class T>
std::vector<T> padded(int64_t width, const std::vector<T>& values) {
  std::vector<T> out(static_cast<std::size_t>(pitch_of(width)), T(0));
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

// want(row, column), bound as one number.
template <class T, class Want>
void expect_matrix(const char* what, DeviceMatrix<T>& got, int64_t rows, int64_t width, Want&& want,
                   double bound) {
  std::vector<double> exact;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < width; ++c) exact.push_back(static_cast<double>(want(r, c)));
  double largest = 1.0;
  for (const double v : exact) largest = std::max(largest, std::abs(v));
  expect_close(what, got.dense(), exact, bound * kUlp<T> * largest);
}

template <class T>
void test_activation(int id, int64_t rows, int64_t width) {
  context = concat("tangent of ", activation_name(id), kType<T>, rows, "x", width);
  Random random(static_cast<std::uint64_t>(id * 100 + rows));
  const Host<T> z(random, rows, width), dy(random, rows, width), q(random, rows, width),
      dq(random, rows, width);
  dispatch_activation(id, [&](auto rule) {
    using Phi = decltype(rule);
    const double a = Phi::default_parameter;
    Host<T> at = z;
    if (Phi::backward_needs == ActivationNeeds::output)
      for (T& s : at.values) s = Phi::value(s, static_cast<T>(a));
    DeviceMatrix<T> d_dy = dy.device(), d_dq = dq.device(), d_at = at.device(), d_q = q.device(),
                    out(rows, width);
    ActivationBackwardTangent<T> problem{.dy = d_dy,
                                         .dy_tangent = d_dq,
                                         .at = d_at,
                                         .z_tangent = d_q,
                                         .activation = {id, a},
                                         .dz_tangent = out};
    activation_backward_tangent(problem, nullptr);
    const auto exact = [&](int64_t r, int64_t c) {
      const double s = static_cast<double>(at(r, c));
      return dq(r, c) * static_cast<Real>(Phi::derivative(s, a)) +
             dy(r, c) * static_cast<Real>(Phi::second_derivative(s, a)) * q(r, c);
    };
    expect_matrix("tangent", out, rows, width, exact, 32);
    problem.accumulate = true;
    activation_backward_tangent(problem, nullptr);
    expect_matrix(
        "accumulated", out, rows, width, [&](int64_t r, int64_t c) { return 2 * exact(r, c); }, 32);
  });
}

template <class T>
void test_maxout(int64_t rows, int64_t units, int64_t pieces) {
  context = concat("maxout tangent", kType<T>, rows, "x", units, " of ", pieces);
  Random random(static_cast<std::uint64_t>(rows + units * 7 + pieces));
  Host<T> z(random, rows, units * pieces);
  for (T& v : z.values) v = static_cast<T>(random.below(4));  // ties
  const Host<T> q(random, rows, units * pieces);
  DeviceMatrix<T> d_z = z.device(), d_q = q.device(), out(rows, units);
  maxout_tangent<T>(d_z, d_q, out, pieces, nullptr);
  expect_matrix(
      "tangent", out, rows, units,
      [&](int64_t r, int64_t u) {
        int64_t best = u * pieces;
        for (int64_t c = best; c < (u + 1) * pieces; ++c)
          if (z(r, c) > z(r, best)) best = c;
        return q(r, best);
      },
      0);
}

template <class T>
void test_batch_norm(int64_t rows, int64_t width, bool weighted, bool frozen) {
  context = concat("batch norm tangent", kType<T>, rows, "x", width, weighted ? " weighted" : "",
                   frozen ? " frozen" : "");
  Random random(static_cast<std::uint64_t>(rows * 3 + width));
  const Host<T> z(random, rows, width), q(random, rows, width), g(random, rows, width),
      dq(random, rows, width);
  std::vector<T> weights;
  Real total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    weights.push_back(!weighted    ? T(1)
                      : r % 5 == 3 ? T(0)
                                   : static_cast<T>(random.uniform() + 0.5));
    total += static_cast<Real>(weights.back());
  }
  const auto w = [&](int64_t r) { return static_cast<Real>(weights[static_cast<std::size_t>(r)]); };
  const auto sum = [&](auto&& f) {
    Real s = 0;
    for (int64_t r = 0; r < rows; ++r) s += f(r);
    return s;
  };
  using Vector = std::vector<T>;
  const auto columns = [&](auto&& f) {
    Vector out;
    for (int64_t c = 0; c < width; ++c) out.push_back(static_cast<T>(f(c)));
    return padded(width, out);
  };
  const auto at = [](const Vector& v, int64_t c) {
    return static_cast<Real>(v[static_cast<std::size_t>(c)]);
  };
  const Vector mean =
      columns([&](int64_t c) { return sum([&](int64_t r) { return w(r) * z(r, c); }) / total; });
  const Vector inv_std = columns([&](int64_t c) {
    const Real variance = sum([&](int64_t r) {
                            const Real d = z(r, c) - at(mean, c);
                            return w(r) * d * d;
                          }) /
                          total;
    return 1 / std::sqrt(variance + 1e-3L);
  });
  const Vector gamma = columns([&](int64_t c) { return c == 2 ? 0.0 : random.normal(); });
  const Vector gamma_tangent = columns([&](int64_t) { return random.normal(); });
  const Vector beta_tangent = columns([&](int64_t) { return random.normal(); });
  const auto xhat = [&](int64_t r, int64_t c) { return (z(r, c) - at(mean, c)) * at(inv_std, c); };

  DeviceMatrix<T> d_z = z.device(), d_q = q.device(), d_g = g.device(), d_dq = dq.device(),
                  y(rows, width), dz(rows, width);
  DeviceArray<T> d_mean(mean), d_inv_std(inv_std), d_gamma(gamma), d_gamma_tangent(gamma_tangent),
      d_beta_tangent(beta_tangent), mean_q(pitch_of(width)), mean_q_xhat(pitch_of(width)),
      dgamma_tangent(pitch_of(width)), dbeta_tangent(pitch_of(width)), d_weights(weights);
  DeviceArray<double> d_total(std::vector<double>{static_cast<double>(total)});
  DeviceArray<double> partials(static_cast<int64_t>(batch_norm_tangent_scratch_bytes(rows, width)) /
                               static_cast<int64_t>(sizeof(double)));
  BatchNormPoint<T> point{.z = d_z,
                          .z_tangent = d_q,
                          .mean = d_mean.data(),
                          .inv_std = d_inv_std.data(),
                          .frozen = frozen,
                          .mean_tangent = frozen ? nullptr : mean_q.data(),
                          .std_tangent = frozen ? nullptr : mean_q_xhat.data()};
  RowWeights<T> row_weights;
  if (weighted) row_weights = {d_weights.data(), nullptr, d_total.data()};
  batch_norm_tangent<T>({.point = point,
                         .weights = row_weights,
                         .gamma = d_gamma.data(),
                         .gamma_tangent = d_gamma_tangent.data(),
                         .beta_tangent = d_beta_tangent.data(),
                         .y_tangent = y},
                        partials.data(), nullptr);
  const auto mq = [&](int64_t c) {
    return frozen ? Real(0) : sum([&](int64_t r) { return w(r) * q(r, c); }) / total;
  };
  const auto mqx = [&](int64_t c) {
    return frozen ? Real(0) : sum([&](int64_t r) { return w(r) * q(r, c) * xhat(r, c); }) / total;
  };
  std::vector<Real> mqs, mqxs;
  for (int64_t c = 0; c < width; ++c) {
    mqs.push_back(mq(c));
    mqxs.push_back(mqx(c));
  }
  const auto of = [](const std::vector<Real>& v, int64_t c) {
    return v[static_cast<std::size_t>(c)];
  };
  const auto xhat_tangent = [&](int64_t r, int64_t c) {
    return (q(r, c) - of(mqs, c) - xhat(r, c) * of(mqxs, c)) * at(inv_std, c);
  };
  const double spread = 256.0 * std::sqrt(static_cast<double>(rows));
  if (!frozen) {
    const Vector got = mean_q_xhat.download();
    for (int64_t c = 0; c < pitch_of(width); ++c)
      expect_that(std::abs(static_cast<double>(at(got, c) - (c < width ? of(mqxs, c) : 0))) <=
                      spread * kUlp<T>,
                  "std_tangent[", c, "]");
  }
  expect_matrix(
      "forward", y, rows, width,
      [&](int64_t r, int64_t c) {
        return at(gamma_tangent, c) * xhat(r, c) + at(gamma, c) * xhat_tangent(r, c) +
               at(beta_tangent, c);
      },
      spread);

  std::vector<Real> sg, sgx, sdq, sdqx;
  for (int64_t c = 0; c < width; ++c) {
    sg.push_back(sum([&](int64_t r) { return g(r, c); }));
    sgx.push_back(sum([&](int64_t r) { return g(r, c) * xhat(r, c); }));
    sdq.push_back(sum([&](int64_t r) { return dq(r, c); }));
    sdqx.push_back(
        sum([&](int64_t r) { return dq(r, c) * xhat(r, c) + g(r, c) * xhat_tangent(r, c); }));
  }
  DeviceArray<T> dbeta(columns([&](int64_t c) { return of(sg, c); }));
  DeviceArray<T> dgamma(columns([&](int64_t c) { return of(sgx, c); }));
  BatchNormBackwardTangent<T> problem{.point = point,
                                      .weights = row_weights,
                                      .gamma = d_gamma.data(),
                                      .gamma_tangent = d_gamma_tangent.data(),
                                      .dgamma = dgamma.data(),
                                      .dbeta = dbeta.data(),
                                      .g = d_g,
                                      .g_tangent = d_dq,
                                      .dgamma_tangent = dgamma_tangent.data(),
                                      .dbeta_tangent = dbeta_tangent.data(),
                                      .dz_tangent = dz};
  batch_norm_backward_tangent(problem, partials.data(), nullptr);
  const auto exact = [&](int64_t r, int64_t c) {
    const Real share = frozen ? Real(0) : w(r) / total;
    const Real x = xhat(r, c);
    const Real s = at(inv_std, c);
    const Real projected = g(r, c) - share * (of(sg, c) + x * of(sgx, c));
    const Real tangent =
        dq(r, c) - share * (of(sdq, c) + xhat_tangent(r, c) * of(sgx, c) + x * of(sdqx, c));
    const Real slope = at(gamma_tangent, c) * s - at(gamma, c) * s * s * of(mqxs, c);
    return slope * projected + at(gamma, c) * s * tangent;
  };
  expect_matrix("backward", dz, rows, width, exact, spread);
  const Vector got_gamma = dgamma_tangent.download();
  const Vector got_beta = dbeta_tangent.download();
  for (int64_t c = 0; c < pitch_of(width); ++c) {
    const double bound = spread * kUlp<T> * static_cast<double>(rows);
    expect_that(
        std::abs(static_cast<double>(at(got_gamma, c) - (c < width ? of(sdqx, c) : 0))) <= bound,
        "dgamma_tangent[", c, "]");
    expect_that(
        std::abs(static_cast<double>(at(got_beta, c) - (c < width ? of(sdq, c) : 0))) <= bound,
        "dbeta_tangent[", c, "]");
  }
  const Vector bits = dz.dense();
  batch_norm_backward_tangent(problem, partials.data(), nullptr);
  expect_same_bits("backward again", dz.dense(), bits);
  problem.accumulate = true;
  batch_norm_backward_tangent(problem, partials.data(), nullptr);
  expect_matrix(
      "accumulated", dz, rows, width, [&](int64_t r, int64_t c) { return 2 * exact(r, c); },
      spread);
}

template <class T>
void test_losses(int64_t rows, int64_t width, bool weighted) {
  context = concat("loss tangents", kType<T>, rows, "x", width, weighted ? " weighted" : "");
  Random random(static_cast<std::uint64_t>(rows * 11 + width));
  const Host<T> z(random, rows, width, 2.0), q(random, rows, width);
  Host<T> t(random, rows, width);
  for (T& v : t.values) v = static_cast<T>(random.uniform());
  std::vector<T> weights;
  for (int64_t r = 0; r < rows; ++r)
    weights.push_back(r % 5 == 3 ? T(0) : static_cast<T>(random.uniform()));
  const auto w = [&](int64_t r) {
    return weighted ? static_cast<Real>(weights[static_cast<std::size_t>(r)]) / 4 : Real(0.25);
  };
  DeviceArray<T> d_weights(weights);
  DeviceMatrix<T> d_z = z.device(), d_q = q.device(), d_t = t.device();
  for (const bool labels : {true, false}) {
    DeviceMatrix<T> out(rows, width);
    LossTangent<T> problem{.outputs = d_z,
                           .output_tangent = d_q,
                           .row_weights = weighted ? d_weights.data() : nullptr,
                           .label_smoothing = 0.1,
                           .gradient_scale = 0.25,
                           .gradient_tangent = out};
    if (!labels) problem.targets = d_t;
    softmax_cross_entropy_tangent(problem, nullptr);
    expect_matrix(
        labels ? "labels" : "probabilities", out, rows, width,
        [&](int64_t r, int64_t c) {
          Real total = 0, mean = 0, target = 0;
          for (int64_t k = 0; k < width; ++k) {
            const Real e = std::exp(z(r, k));
            total += e;
            mean += e * q(r, k);
            target += labels ? 1 / static_cast<Real>(width)
                             : 0.9L * t(r, k) + 0.1L / static_cast<Real>(width);
          }
          return w(r) * target * std::exp(z(r, c)) / total * (q(r, c) - mean / total);
        },
        64);
  }
  for (int id = 0; id < kLossCount; ++id) {
    dispatch_loss(id, [&](auto rule) {
      using Rule = decltype(rule);
      DeviceMatrix<T> out(rows, width);
      const LossTangent<T> problem{.outputs = d_z,
                                   .output_tangent = d_q,
                                   .targets = d_t,
                                   .row_weights = weighted ? d_weights.data() : nullptr,
                                   .parameter = Rule::default_parameter,
                                   .gradient_scale = 0.25,
                                   .gradient_tangent = out};
      elementwise_loss_tangent(id, problem, nullptr);
      expect_matrix(
          loss_name(id), out, rows, width,
          [&](int64_t r, int64_t c) {
            return w(r) * q(r, c) *
                   static_cast<Real>(Rule::second_derivative(static_cast<double>(z(r, c)),
                                                             static_cast<double>(t(r, c)),
                                                             Rule::default_parameter));
          },
          32);
    });
  }
}

template <class T>
void test_all() {
  for (const auto& [rows, width] : odd_shapes()) {
    for (int id = 0; id < kActivationCount; ++id)
      if (rows == 65 || rows == 7) test_activation<T>(id, rows, width);
    for (const int64_t pieces : {1, 2, 3}) test_maxout<T>(rows, width, pieces);
    for (const bool weighted : {false, true}) {
      test_losses<T>(rows, width, weighted);
      for (const bool frozen : {false, true})
        if (rows > 1) test_batch_norm<T>(rows, width, weighted && !frozen, frozen);
    }
  }
}

void tests() {
  test_all<float>();
  test_all<double>();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
