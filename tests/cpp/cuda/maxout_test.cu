// Maxout and its backward pass, bit for bit.
#include "cuda/maxout.h"
#include "matrices.h"

namespace thalweg::cuda::test {
namespace {

template <class T>
void test_maxout(int64_t rows, int64_t units, int64_t pieces) {
  context = concat(sizeof(T) == 4 ? "float32 " : "float64 ", rows, "x", units, " of ", pieces);
  Random random(static_cast<std::uint64_t>(rows * 31 + units * 7 + pieces));
  const int64_t width = units * pieces;
  std::vector<T> z(static_cast<std::size_t>(rows * width));
  for (T& v : z) v = static_cast<T>(random.below(4));  // ties
  z[static_cast<std::size_t>(random.below(rows * width))] = static_cast<T>(std::nan(""));
  const std::vector<T> dy = random.normals<T>(rows * units);

  std::vector<T> maxima, gradient(z.size(), T(0));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t u = 0; u < units; ++u) {
      const std::size_t first = static_cast<std::size_t>(r * width + u * pieces);
      std::size_t winner = first;
      for (std::size_t at = first + 1; at < first + static_cast<std::size_t>(pieces); ++at) {
        if (std::isnan(z[winner])) break;
        if (std::isnan(z[at]) || z[at] > z[winner]) winner = at;
      }
      maxima.push_back(z[winner]);
      gradient[winner] = dy[static_cast<std::size_t>(r * units + u)];
    }

  DeviceMatrix<T> device_z(rows, width, z), device_dy(rows, units, dy), y(rows, units),
      dz(rows, width);
  maxout<T>(device_z, y, pieces, nullptr);
  expect_same_bits("maximum", y.dense(), maxima);
  maxout_backward<T>(device_z, device_dy, dz, pieces, nullptr);
  expect_same_bits("gradient", dz.dense(), gradient);
}

template <class T>
void test_all() {
  for (const int64_t pieces : {1, 2, 3, 4, 5, 9}) {
    for (const auto& [rows, units] : odd_shapes()) test_maxout<T>(rows, units, pieces);
  }
}

void tests() {
  test_all<float>();
  test_all<double>();
}

}  // namespace
}  // namespace thalweg::cuda::test

int main() { return thalweg::cuda::test::run(thalweg::cuda::test::tests); }
