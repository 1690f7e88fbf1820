// Batch norm against loops in double: statistics at large means and many rows, forward and backward
// with every activation, weights and frozen statistics, both paths with the same bits.
#include "core/layout.h"
#include "cuda/batch_norm.h"
#include "math/activations.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

constexpr double kEps = 1e-5;

template <class T>
constexpr double kUlp = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;

template <class T>
std::vector<T> padded(std::vector<T> values) {
  values.resize(static_cast<std::size_t>(pitch_of(static_cast<int64_t>(values.size()))), T(0));
  return values;
}

// A vector per column that must be zero beyond the width.
template <class T>
std::vector<T> columns(DeviceArray<T>& array, int64_t width) {
  std::vector<T> values = array.download();
  for (std::size_t c = static_cast<std::size_t>(width); c < values.size(); ++c)
    expect_that(values[c] == T(0), "column ", c, " beyond the width ", width);
  values.resize(static_cast<std::size_t>(width));
  return values;
}

struct Moments64 {
  std::vector<double> mean, var;
  double weight = 0;
};

template <class T>
Moments64 moments_of(const std::vector<T>& z, const std::vector<T>& weights, int64_t rows,
                     int64_t width) {
  Moments64 out;
  const auto n = static_cast<std::size_t>(width);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
    out.weight += weights.empty() ? 1.0 : static_cast<double>(weights[r]);
  for (std::size_t c = 0; c < n; ++c) {
    long double sum = 0, squares = 0;
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r)
      sum += (weights.empty() ? 1.0L : static_cast<long double>(weights[r])) *
             static_cast<long double>(z[r * n + c]);
    const long double mean = sum / static_cast<long double>(out.weight);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      const long double d = static_cast<long double>(z[r * n + c]) - mean;
      squares += (weights.empty() ? 1.0L : static_cast<long double>(weights[r])) * d * d;
    }
    out.mean.push_back(static_cast<double>(mean));
    out.var.push_back(static_cast<double>(squares) / out.weight);
  }
  return out;
}

template <class T>
struct Weights {
  Weights(int64_t rows, bool weighted) : device(rows), blocks(row_blocks_of(rows)), total(1) {
    if (!weighted) return;
    std::vector<double> block(static_cast<std::size_t>(row_blocks_of(rows)), 0.0);
    double sum = 0;
    Random random(17);
    for (int64_t r = 0; r < rows; ++r) {
      values.push_back(r % 4 == 1 ? T(0) : static_cast<T>(2 * random.uniform()));
      if (r / kRowBlock == 1) values.back() = T(0);  // a block without weight
      block[static_cast<std::size_t>(r / kRowBlock)] += static_cast<double>(values.back());
      sum += static_cast<double>(values.back());
    }
    device.upload(values);
    blocks.upload(block);
    total.upload({sum});
  }
  RowWeights<T> view() {
    if (values.empty()) return {};
    return {device.data(), blocks.data(), total.data()};
  }
  std::vector<T> values;
  DeviceArray<T> device;
  DeviceArray<double> blocks, total;
};

template <class T>
struct StatisticsBuffers {
  explicit StatisticsBuffers(int64_t width)
      : mean(pitch_of(width)),
        inv_std(pitch_of(width)),
        batch_mean(pitch_of(width)),
        batch_var(pitch_of(width)) {}
  BatchStatistics<T> view() {
    return {kEps, batch_mean.data(), batch_var.data(), mean.data(), inv_std.data()};
  }
  DeviceArray<T> mean, inv_std;
  DeviceArray<double> batch_mean, batch_var;
};

template <class T>
void check_statistics(StatisticsBuffers<T>& got, const Moments64& want, int64_t width,
                      double relative) {
  std::vector<double> var_bound, mean_bound, inv_std, inv_bound;
  for (std::size_t c = 0; c < want.mean.size(); ++c) {
    var_bound.push_back(relative * want.var[c] + 1e-300);
    mean_bound.push_back(kUlp<double> * std::abs(want.mean[c]) +
                         4 * kUlp<T> * std::sqrt(want.var[c]) + 1e-300);
    inv_std.push_back(1 / std::sqrt(want.var[c] + kEps));
    inv_bound.push_back((relative + 2 * kUlp<T>)*inv_std.back());
  }
  expect_close("variance", columns(got.batch_var, width), want.var, var_bound);
  expect_close("mean", columns(got.batch_mean, width), want.mean, mean_bound);
  expect_close("inv_std", columns(got.inv_std, width), inv_std, inv_bound);
  for (std::size_t c = 0; c < mean_bound.size(); ++c)
    mean_bound[c] += kUlp<T> * std::abs(want.mean[c]);
  expect_close("rounded mean", columns(got.mean, width), want.mean, mean_bound);
}

template <class T>
void test_statistics(int64_t rows, int64_t width, double mean, bool weighted) {
  context = concat("statistics", sizeof(T) == 4 ? " float32 " : " float64 ", rows, "x", width,
                   " mean ", mean, weighted ? " weighted" : "");
  std::vector<T> z = Random(static_cast<std::uint64_t>(rows)).normals<T>(rows * width, 1, mean);
  // The last column is constant.
  for (int64_t r = 0; r < rows; ++r)
    z[static_cast<std::size_t>(r * width + width - 1)] = static_cast<T>(mean / 3);
  Weights<T> weights(rows, weighted);
  if (weighted && rows > 70) z[static_cast<std::size_t>(70 * width)] = static_cast<T>(1e30);
  const Moments64 want = moments_of(z, weights.values, rows, width);
  DeviceMatrix<T> device_z(rows, width, z);
  StatisticsBuffers<T> statistics(width);
  TestScratch scratch(column_statistics_scratch_bytes(rows, width), tickets_for(width));
  column_statistics<T>(device_z, weights.view(), statistics.view(), scratch.scratch(), nullptr);
  check_statistics(statistics, want, width, sizeof(T) == 4 ? 1e-5 : 1e-12);
  expect_that(columns(statistics.batch_var, width).back() == 0.0, "variance of a constant column");
  const std::vector<double> first = statistics.batch_var.download();
  column_statistics<T>(device_z, weights.view(), statistics.view(), scratch.scratch(), nullptr);
  expect_same_bits("statistics again", statistics.batch_var.download(), first);
  scratch.expect_ready();
}

double phi_of(int id, double z, double a) {
  switch (id) {
    case kActivationIdentity:
      return z;
    case kActivationRelu:
      return z > 0 ? z : 0;
    case kActivationLeakyRelu:
      return z > 0 ? z : a * z;
    case kActivationTanh:
      return std::tanh(z);
    case kActivationGelu:
      return z * std::erfc(-z / std::sqrt(2.0)) / 2;
  }
  expect_that(false, "no reference for activation ", id);
  return 0;
}

double phi_derivative_of(int id, double z, double a) {
  switch (id) {
    case kActivationIdentity:
      return 1;
    case kActivationRelu:
      return z > 0 ? 1 : 0;
    case kActivationLeakyRelu:
      return z > 0 ? 1 : a;
    case kActivationTanh:
      return 1 - std::tanh(z) * std::tanh(z);
    case kActivationGelu:
      return std::erfc(-z / std::sqrt(2.0)) / 2 +
             z * std::exp(-z * z / 2) / std::sqrt(2 * 3.14159265358979323846);
  }
  return 0;
}

// What a path left behind, for a comparison of bits.
template <class T>
struct Results {
  std::vector<T> y, pre, mean, dz, dgamma, dbeta;
  std::vector<double> var;
};

template <class T>
void expect_same_results(const Results<T>& a, const Results<T>& b) {
  expect_same_bits("y of both paths", a.y, b.y);
  expect_same_bits("pre of both paths", a.pre, b.pre);
  expect_same_bits("mean of both paths", a.mean, b.mean);
  expect_same_bits("variance of both paths", a.var, b.var);
  expect_same_bits("dz of both paths", a.dz, b.dz);
  expect_same_bits("dgamma of both paths", a.dgamma, b.dgamma);
  expect_same_bits("dbeta of both paths", a.dbeta, b.dbeta);
}

template <class T>
Results<T> test_path(int64_t rows, int64_t width, Activation phi, bool weighted, bool frozen,
                     bool accumulate, BatchNormPath path) {
  context =
      concat(activation_name(phi.id), sizeof(T) == 4 ? " float32 " : " float64 ", rows, "x", width,
             weighted ? " weighted" : "", frozen ? " frozen" : "", accumulate ? " accumulate" : "",
             path == BatchNormPath::kSlab ? " slab" : " two passes");
  Random random(static_cast<std::uint64_t>(rows * 100 + width));
  const auto n = static_cast<std::size_t>(width);
  const std::vector<T> z = random.normals<T>(rows * width, 2, 1);
  const std::vector<T> dy = random.normals<T>(rows * width);
  const std::vector<T> gamma = random.normals<T>(width), beta = random.normals<T>(width);
  const std::vector<T> old = random.normals<T>(rows * width);
  Weights<T> weights(rows, weighted);
  Moments64 moments = moments_of(z, weights.values, rows, width);

  DeviceMatrix<T> device_z(rows, width, z), y(rows, width), pre(rows, width);
  DeviceArray<T> device_gamma(padded(gamma)), device_beta(padded(beta));
  StatisticsBuffers<T> statistics(width);
  TestScratch scratch(std::max(column_statistics_scratch_bytes(rows, width),
                               batch_norm_backward_scratch_bytes(rows, width)));
  BatchNormApply<T> apply;
  apply.z = device_z;
  apply.y = y;
  apply.gamma = device_gamma.data();
  apply.beta = device_beta.data();
  apply.activation = phi;
  apply.pre = pre;
  if (frozen) {
    for (std::size_t c = 0; c < n; ++c) {
      moments.mean[c] = 0.5;
      moments.var[c] = 2.25 - kEps;
    }
    statistics.mean.upload(padded(std::vector<T>(n, T(0.5))));
    statistics.inv_std.upload(padded(std::vector<T>(n, T(1) / T(1.5))));
    apply.mean = statistics.mean.data();
    apply.inv_std = statistics.inv_std.data();
    batch_norm(apply, nullptr);
  } else {
    batch_norm_forward(apply, weights.view(), statistics.view(), scratch.scratch(), nullptr, path);
    check_statistics(statistics, moments, width, sizeof(T) == 4 ? 1e-5 : 1e-12);
  }

  std::vector<double> want_y, want_pre, g, xhat, bound;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t c = i % n;
    xhat.push_back((static_cast<double>(z[i]) - moments.mean[c]) /
                   std::sqrt(moments.var[c] + kEps));
    want_pre.push_back(static_cast<double>(gamma[c]) * xhat[i] + static_cast<double>(beta[c]));
    want_y.push_back(phi_of(phi.id, want_pre[i], phi.parameter));
    g.push_back(static_cast<double>(dy[i]) * phi_derivative_of(phi.id, want_pre[i], phi.parameter));
    bound.push_back(16 * kUlp<T> *
                    (1 + std::abs(static_cast<double>(gamma[c])) * (std::abs(xhat[i]) + 1) +
                     std::abs(static_cast<double>(beta[c]))));
  }
  Results<T> results;
  results.y = y.dense();
  results.pre = pre.dense();
  results.mean = statistics.mean.download();
  if (!frozen) results.var = statistics.batch_var.download();
  expect_close("pre", results.pre, want_pre, bound);
  expect_close("y", results.y, want_y, bound);

  const double total = weighted ? moments.weight : static_cast<double>(rows);
  std::vector<double> sum_g(n, 0.0), sum_g_xhat(n, 0.0), size(n, 0.0);
  for (std::size_t i = 0; i < z.size(); ++i) {
    sum_g[i % n] += g[i];
    sum_g_xhat[i % n] += g[i] * xhat[i];
    size[i % n] += std::abs(g[i]) * (1 + std::abs(xhat[i]));
  }
  const std::vector<T> old_vector = random.normals<T>(width);
  DeviceMatrix<T> device_dy(rows, width, dy), dz(rows, width, old);
  DeviceArray<T> dgamma(padded(old_vector)), dbeta(padded(old_vector));
  BatchNormBackward<T> backward;
  backward.z = device_z;
  backward.dy = device_dy;
  backward.mean = statistics.mean.data();
  backward.inv_std = statistics.inv_std.data();
  backward.gamma = device_gamma.data();
  backward.beta = device_beta.data();
  backward.activation = phi;
  backward.weights = weights.view();
  backward.frozen = frozen;
  backward.dgamma = dgamma.data();
  backward.dbeta = dbeta.data();
  backward.accumulate_parameters = accumulate;
  backward.dz = dz;
  backward.accumulate = accumulate;
  batch_norm_backward(backward, scratch.scratch(), nullptr, path);
  std::vector<double> want_dz, dz_bound, want_dgamma, want_dbeta, vector_bound;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t c = i % n;
    const double inv_std = 1 / std::sqrt(moments.var[c] + kEps);
    const double w = frozen                   ? 0
                     : weights.values.empty() ? 1
                                              : static_cast<double>(weights.values[i / n]);
    const double scale = static_cast<double>(gamma[c]) * inv_std;
    want_dz.push_back((accumulate ? static_cast<double>(old[i]) : 0) +
                      scale * (g[i] - w * (sum_g[c] + xhat[i] * sum_g_xhat[c]) / total));
    dz_bound.push_back(32 * kUlp<T> *
                       (1 + std::abs(scale) * (1 + std::abs(xhat[i])) *
                                (1 + std::abs(g[i]) + w * size[c] / total)));
  }
  for (std::size_t c = 0; c < n; ++c) {
    const double start = accumulate ? static_cast<double>(old_vector[c]) : 0;
    want_dgamma.push_back(start + sum_g_xhat[c]);
    want_dbeta.push_back(start + sum_g[c]);
    vector_bound.push_back(16 * kUlp<T> * (size[c] + std::abs(start)));
  }
  results.dz = dz.dense();
  results.dgamma = columns(dgamma, width);
  results.dbeta = columns(dbeta, width);
  expect_close("dz", results.dz, want_dz, dz_bound);
  expect_close("dgamma", results.dgamma, want_dgamma, vector_bound);
  expect_close("dbeta", results.dbeta, want_dbeta, vector_bound);

  // The sums alone, and in place of dy.
  if (!accumulate) {
    backward.dz = {};
    batch_norm_backward(backward, scratch.scratch(), nullptr);
    expect_same_bits("dgamma alone", columns(dgamma, width), results.dgamma);
    backward.dz = device_dy;
    batch_norm_backward(backward, scratch.scratch(), nullptr, path);
    expect_same_bits("dz in place", device_dy.dense(), results.dz);
  }
  scratch.expect_ready();
  return results;
}

// A cluster of eight blocks, or a block where there are none, keeps 32 columns of z and dy whole,
// and all of it has to be resident. About: smaller clusters take less.
template <class T>
bool slab_fits(int64_t rows) {
  constexpr int64_t kRowBytes = 2 * 32 * int64_t{sizeof(T)};
  constexpr int64_t kBeside = 24 << 10;
  const int64_t blocks = has_clusters() ? 8 : 1;
  int most = 0;
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), "test");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "test");
  const int64_t bytes = round_up(ceil_div(rows, blocks), kRowBlock) * kRowBytes + kBeside;
  return multiprocessors * (most / bytes) >= blocks;
}

template <class T>
void test_both_paths(int64_t rows, int64_t width, Activation phi, bool weighted, bool accumulate) {
  const Results<T> two =
      test_path<T>(rows, width, phi, weighted, false, accumulate, BatchNormPath::kTwoPasses);
  if (!slab_fits<T>(rows)) return;
  const Results<T> slab =
      test_path<T>(rows, width, phi, weighted, false, accumulate, BatchNormPath::kSlab);
  expect_same_results(two, slab);
}

template <class T>
void test_running() {
  context = "running statistics";
  for (const bool running : {true, false})
    for (const double momentum : {0.1, -1.0})
      for (const bool weighted : {false, true}) {
        const std::vector<int64_t> widths = {1, 300, 7};
        std::vector<std::unique_ptr<DeviceArray<T>>> means, vars;
        std::vector<std::unique_ptr<DeviceArray<double>>> batch_means, batch_vars;
        DeviceArray<double> total(std::vector<double>{5.5});
        DeviceArray<int64_t> batches(std::vector<int64_t>{3, 0, 7});
        StepState host;
        host.weight = 1;
        host.status = running ? StepStatus::kRunning : StepStatus::kInvalidLabel;
        DeviceArray<StepState> state(std::vector<StepState>{host});
        std::vector<RunningStatistics<T>> layers;
        std::vector<std::vector<double>> want_means, want_vars;
        Random random(3);
        for (std::size_t l = 0; l < widths.size(); ++l) {
          const auto width = static_cast<std::size_t>(widths[l]);
          const std::vector<T> mean = random.normals<T>(widths[l]),
                               var = random.normals<T>(widths[l]);
          const std::vector<double> bm = random.normals<double>(widths[l]),
                                    bv = random.normals<double>(widths[l]);
          means.push_back(std::make_unique<DeviceArray<T>>(mean));
          vars.push_back(std::make_unique<DeviceArray<T>>(var));
          batch_means.push_back(std::make_unique<DeviceArray<double>>(bm));
          batch_vars.push_back(std::make_unique<DeviceArray<double>>(bv));
          RunningStatistics<T> layer;
          layer.width = widths[l];
          layer.batch_mean = batch_means[l]->data();
          layer.batch_var = batch_vars[l]->data();
          layer.rows = 64;
          if (weighted) layer.total_weight = total.data();
          layer.momentum = momentum;
          layer.mean_in = layer.mean = means[l]->data();
          layer.var_in = layer.var = vars[l]->data();
          layer.batches = batches.data() + l;
          layers.push_back(layer);
          const double seen[] = {4, 1, 8};
          const double w = !running ? 0 : momentum < 0 ? 1 / seen[l] : momentum;
          const double unbias = weighted ? 5.5 / 4.5 : 64.0 / 63.0;
          want_means.emplace_back();
          want_vars.emplace_back();
          for (std::size_t c = 0; c < width; ++c) {
            want_means[l].push_back((1 - w) * static_cast<double>(mean[c]) + w * bm[c]);
            want_vars[l].push_back((1 - w) * static_cast<double>(var[c]) + w * unbias * bv[c]);
          }
        }
        update_running_statistics(layers.data(), 3, state.data(), nullptr);
        for (std::size_t l = 0; l < widths.size(); ++l) {
          expect_close("mean", means[l]->download(), want_means[l], 8 * kUlp<T>);
          expect_close("var", vars[l]->download(), want_vars[l], 8 * kUlp<T>);
        }
        expect_same_bits("batches", batches.download(),
                         running ? std::vector<int64_t>{4, 1, 8} : std::vector<int64_t>{3, 0, 7});
      }
}

template <class T>
void test_fold(int64_t width, bool with_bias) {
  context = concat("fold ", width, with_bias ? " bias" : "");
  Random random(4);
  const std::vector<T> mean = random.normals<T>(width), gamma = random.normals<T>(width),
                       beta = random.normals<T>(width), bias = random.normals<T>(width);
  std::vector<T> var = random.normals<T>(width);
  for (T& v : var) v = v * v;
  DeviceArray<T> device_mean(mean), device_var(var), device_gamma(gamma), device_beta(beta),
      device_bias(bias);
  DeviceArray<T> out_mean(pitch_of(width)), inv_std(pitch_of(width)), scale(pitch_of(width)),
      shift(pitch_of(width)), only_mean(pitch_of(width)), only_inv(pitch_of(width));
  BatchNormFold<T> layer;
  layer.width = width;
  layer.eps = kEps;
  layer.running_mean = device_mean.data();
  layer.running_var = device_var.data();
  layer.gamma = device_gamma.data();
  layer.beta = device_beta.data();
  if (with_bias) layer.bias = device_bias.data();
  layer.mean = out_mean.data();
  layer.inv_std = inv_std.data();
  layer.scale = scale.data();
  layer.shift = shift.data();
  BatchNormFold<T> bare = layer;
  bare.scale = bare.shift = nullptr;
  bare.mean = only_mean.data();
  bare.inv_std = only_inv.data();
  const BatchNormFold<T> layers[] = {layer, bare};
  fold_batch_norm(layers, 2, nullptr);
  std::vector<double> want_mean, want_inv, want_scale, want_shift, bound;
  for (std::size_t c = 0; c < mean.size(); ++c) {
    want_mean.push_back(static_cast<double>(mean[c]));
    want_inv.push_back(1 / std::sqrt(static_cast<double>(var[c]) + kEps));
    want_scale.push_back(static_cast<double>(gamma[c]) * want_inv[c]);
    const double b = with_bias ? static_cast<double>(bias[c]) : 0;
    want_shift.push_back(static_cast<double>(beta[c]) + (b - want_mean[c]) * want_scale[c]);
    bound.push_back(4 * kUlp<T> *
                    (want_inv[c] + std::abs(want_scale[c]) + std::abs(want_shift[c])));
  }
  expect_close("mean", columns(out_mean, width), want_mean, 0.0);
  expect_close("inv_std", columns(inv_std, width), want_inv, bound);
  expect_close("scale", columns(scale, width), want_scale, bound);
  expect_close("shift", columns(shift, width), want_shift, bound);
  expect_same_bits("mean alone", only_mean.download(), out_mean.download());
  expect_same_bits("inv_std alone", only_inv.download(), inv_std.download());
}

void test_too_many_rows() {
  context = "a slab that does not fit";
  constexpr int64_t kRows = 60000;
  DeviceMatrix<float> z(kRows, 1), y(kRows, 1);
  StatisticsBuffers<float> statistics(1);
  DeviceArray<float> gamma(8), beta(8);
  TestScratch scratch(column_statistics_scratch_bytes(kRows, 1));
  BatchNormApply<float> apply;
  apply.z = z;
  apply.y = y;
  apply.gamma = gamma.data();
  apply.beta = beta.data();
  bool thrown = false;
  try {
    batch_norm_forward(apply, {}, statistics.view(), scratch.scratch(), nullptr,
                       BatchNormPath::kSlab);
  } catch (const DeviceError&) {
    thrown = true;
  }
  expect_that(thrown, "expected a DeviceError");
}

// More columns of tiles than a launch may always count on tickets for.
void test_many_columns() {
  constexpr int64_t kWidth = kTickets * 128 + 8;
  test_statistics<float>(2, kWidth, 3, false);
  context = "gradients of many columns";
  const std::vector<float> z = Random(1).normals<float>(2 * kWidth);
  const std::vector<float> dy = Random(2).normals<float>(2 * kWidth);
  DeviceMatrix<float> device_z(2, kWidth, z), device_dy(2, kWidth, dy);
  DeviceArray<float> zeros(std::vector<float>(kWidth, 0.0f)), ones(std::vector<float>(kWidth, 1));
  DeviceArray<float> dgamma(kWidth), dbeta(kWidth);
  BatchNormBackward<float> problem;
  problem.z = device_z;
  problem.dy = device_dy;
  problem.mean = problem.beta = zeros.data();
  problem.inv_std = problem.gamma = ones.data();
  problem.dgamma = dgamma.data();
  problem.dbeta = dbeta.data();
  const std::size_t bytes = batch_norm_backward_scratch_bytes(2, kWidth);
  TestScratch scratch(bytes, tickets_for(kWidth));
  batch_norm_backward(problem, scratch.scratch(), nullptr);
  std::vector<double> want_dgamma, want_dbeta;
  for (std::size_t c = 0; c < kWidth; ++c) {
    const double first = dy[c];
    const double second = dy[kWidth + c];
    want_dbeta.push_back(first + second);
    want_dgamma.push_back(first * z[c] + second * z[kWidth + c]);
  }
  expect_close("dbeta", dbeta.download(), want_dbeta, 1e-6);
  expect_close("dgamma", dgamma.download(), want_dgamma, 4e-6);
  scratch.expect_ready();

  context = "too few tickets";
  TestScratch few(bytes);
  StatisticsBuffers<float> statistics(1);
  int thrown = 0;
  const auto count = [&](const auto& call) {
    try {
      call();
    } catch (const InternalError&) {
      ++thrown;
    }
  };
  count([&] { batch_norm_backward(problem, few.scratch(), nullptr); });
  count([&] { column_statistics<float>(device_z, {}, statistics.view(), few.scratch(), nullptr); });
  expect_that(thrown == 2, "expected two InternalErrors, got ", thrown);
}

template <class T>
void test_all() {
  for (const auto& [rows, width] : odd_shapes()) {
    if (rows > 1) test_statistics<T>(rows, width, 3, rows % 2 == 1);
  }
  test_statistics<T>(1000, 9, 1e4, false);
  test_statistics<T>(700, 133, 1e4, false);
  test_statistics<T>(300, 20, 0, true);
  for (const auto& [rows, width] : odd_shapes()) {
    if (rows == 1) continue;
    test_both_paths<T>(rows, width, {kActivationRelu}, rows % 2 == 1, width % 2 == 1);
  }
  for (const int id :
       {static_cast<int>(kActivationIdentity), static_cast<int>(kActivationLeakyRelu),
        static_cast<int>(kActivationTanh), static_cast<int>(kActivationGelu)}) {
    test_both_paths<T>(150, 37, {id, 0.125}, id % 2 == 1, false);
    test_path<T>(70, 130, {id, 0.125}, false, true, false, BatchNormPath::kTwoPasses);
    if (slab_fits<T>(70))
      test_path<T>(70, 33, {id, 0.125}, false, true, true, BatchNormPath::kSlab);
  }
  // A cluster of several blocks.
  test_both_paths<T>(sizeof(T) == 4 ? 1300 : 900, 40, {kActivationRelu}, true, false);
  test_running<T>();
  for (const int64_t width : {1, 31, 300}) {
    test_fold<T>(width, true);
    test_fold<T>(width, false);
  }
}

void tests() {
  test_all<float>();
  test_all<double>();
  test_too_many_rows();
  test_many_columns();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
