// Activations and the elementwise operations around them, against the textbook formulas in double.
#include "cuda/activation.h"
#include "math/activations.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

double sigmoid_of(double z) { return 1 / (1 + std::exp(-z)); }

// In long double: the rounding of z / sqrt(2) grows with z^2.
double normal_of(double z) {
  return static_cast<double>(std::erfc(static_cast<long double>(-z) / std::sqrt(2.0L)) / 2);
}

double value_of(const char* name, double z, double a) {
  const std::string phi = name;
  if (phi == "identity") return z;
  if (phi == "relu") return z > 0 ? z : 0;
  if (phi == "leaky_relu") return z > 0 ? z : a * z;
  if (phi == "elu") return z > 0 ? z : a * std::expm1(z);
  if (phi == "gelu") return z * normal_of(z);
  if (phi == "silu") return z * sigmoid_of(z);
  if (phi == "sigmoid") return sigmoid_of(z);
  if (phi == "tanh") return std::tanh(z);
  if (phi == "softplus") return z > 0 ? z + std::log1p(std::exp(-z)) : std::log1p(std::exp(z));
  expect_that(false, "no reference for ", name);
  return 0;
}

double derivative_of(const char* name, double z, double a) {
  const std::string phi = name;
  const double s = sigmoid_of(z);
  if (phi == "identity") return 1;
  if (phi == "relu") return z > 0 ? 1 : 0;
  if (phi == "leaky_relu") return z > 0 ? 1 : a;
  if (phi == "elu") return z > 0 ? 1 : a * std::exp(z);
  if (phi == "gelu")
    return normal_of(z) + z * std::exp(-z * z / 2) / std::sqrt(2 * 3.14159265358979323846);
  if (phi == "silu") return s + z * s * (1 - s);
  if (phi == "sigmoid") return s * (1 - s);
  if (phi == "tanh") return 1 - std::tanh(z) * std::tanh(z);
  if (phi == "softplus") return s;
  return 0;
}

template <class T>
std::vector<double> doubles(const std::vector<T>& x) {
  return {x.begin(), x.end()};
}

template <class T>
void test_activation(int id, int64_t rows, int64_t width) {
  const double ulp = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  const char* name = activation_name(id);
  const auto [needs, parameter] = dispatch_activation(id, [](auto phi) {
    return std::pair(decltype(phi)::backward_needs, decltype(phi)::default_parameter);
  });
  context = concat(name, sizeof(T) == 4 ? " float32 " : " float64 ", rows, "x", width);
  Random random(static_cast<std::uint64_t>(id * 1000 + rows));
  const Activation phi{id, parameter};
  std::vector<T> z = random.normals<T>(rows * width, 2);
  const std::vector<T> dy = random.normals<T>(rows * width);
  z[0] = T(0);
  const std::size_t size = z.size();

  DeviceMatrix<T> device_z(rows, width, z), device_dy(rows, width, dy), y(rows, width);
  activation<T>(device_z, y, phi, nullptr);
  const std::vector<T> got = y.dense();
  std::vector<double> want(size), bound(size);
  for (std::size_t i = 0; i < size; ++i) {
    want[i] = value_of(name, static_cast<double>(z[i]), parameter);
    bound[i] = 4 * ulp * (std::abs(want[i]) + 1e-2);
  }
  expect_close("value", got, want, bound);

  DeviceMatrix<T> dz(rows, width);
  DeviceMatrix<T>& at = needs == ActivationNeeds::input ? device_z : y;
  activation_backward<T>(device_dy, at, dz, phi, false, nullptr);
  for (std::size_t i = 0; i < size; ++i) {
    want[i] =
        static_cast<double>(dy[i]) * derivative_of(name, static_cast<double>(z[i]), parameter);
    bound[i] = 8 * ulp * (std::abs(static_cast<double>(dy[i])) + std::abs(want[i]));
  }
  expect_close("derivative", dz.dense(), want, bound);

  // Added to what is there, and in place.
  activation_backward<T>(device_dy, at, dz, phi, true, nullptr);
  for (double& v : want) v *= 2;
  for (double& b : bound) b *= 3;
  expect_close("accumulated", dz.dense(), want, bound);
  activation<T>(device_z, device_z, phi, nullptr);
  expect_same_bits("in place", device_z.dense(), got);
}

template <class T>
void test_elementwise(int64_t rows, int64_t width) {
  context = concat("elementwise", sizeof(T) == 4 ? " float32 " : " float64 ", rows, "x", width);
  Random random(static_cast<std::uint64_t>(rows * 7 + width));
  const std::vector<T> a = random.normals<T>(rows * width);
  const std::vector<T> b = random.normals<T>(rows * width);
  DeviceMatrix<T> device_a(rows, width, a), device_b(rows, width, b), sum(rows, width),
      twin(rows, width);
  add<T>(device_a, device_b, sum, nullptr);
  std::vector<T> want(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) want[i] = a[i] + b[i];
  expect_same_bits("add", sum.dense(), want);
  accumulate<T>(device_b, device_a, nullptr);
  expect_same_bits("accumulate", device_a.dense(), want);
  copy<T>(sum, twin, nullptr);
  expect_same_bits("copy", twin.dense(), want);
}

void test_planes(int64_t rows, int64_t width, int planes, bool rounded) {
  context = concat("planes ", planes, rounded ? " rounded " : " ", rows, "x", width);
  Random random(5);
  const std::vector<float> z = random.normals<float>(rows * width, 3);
  DeviceMatrix<float> device_z(rows, width, z), y(rows, width, planes, rounded);
  activation<float>(device_z, y, {kActivationTanh}, nullptr);
  const std::vector<float> got = y.dense();
  const double bound = rounded ? 0x1p-8 : 0x1p-20;
  std::vector<double> want;
  for (const float v : z) want.push_back(std::tanh(static_cast<double>(v)));
  expect_close("value", got, want, bound);
}

template <class T>
void test_not_finite() {
  context = "values that are not finite";
  const T nan = static_cast<T>(std::nan("")), infinity = std::numeric_limits<T>::infinity();
  DeviceMatrix<T> z(1, 3, {nan, infinity, -infinity}), y(1, 3);
  activation<T>(z, y, {kActivationRelu}, nullptr);
  const std::vector<T> got = y.dense();
  expect_that(got[0] != got[0] && got[1] == infinity && got[2] == T(0), "relu of NaN, +inf, -inf");
}

template <class T>
void test_all() {
  for (const auto& [rows, width] : odd_shapes()) {
    for (int id = 0; id < kActivationCount; ++id) {
      if (id < 2 || rows == 65 || rows == 7) test_activation<T>(id, rows, width);
    }
    test_elementwise<T>(rows, width);
  }
  test_elementwise<T>(1100, 37);  // more quads than the emulator's grid has threads
  test_not_finite<T>();
}

void tests() {
  test_all<float>();
  test_all<double>();
  for (int planes = 1; planes <= kMaxPlanes; ++planes) test_planes(33, 13, planes, false);
  test_planes(33, 13, 1, true);
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
