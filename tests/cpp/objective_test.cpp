// What an objective costs: matrix products per evaluation, counted by kernels that count, and
// allocations per call; and what methods of minimize/ see of it. Prints every failure; the exit
// code is 1 if there was one.
#include "training/objective.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "training/cpu_objective.h"

namespace {

std::atomic<long> allocations{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  if (void* const memory =
          std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment))
    return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace thalweg;
using std::int64_t;

int failures = 0;

template <class... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  ++failures;
  std::printf("FAIL: %s\n", concat(parts...).c_str());
}

// Multiply-adds of the products since the last reset, and the table that counts them.
template <class T>
struct Counted {
  static inline std::atomic<int64_t> products{0};
  static inline const cpu::Kernels<T>* real = nullptr;

  static void gemm(const cpu::Gemm<T>& problem, Range rows, Range panels) {
    for (int64_t p = panels.begin; p < panels.end; ++p)
      products += rows.size() * problem.a.width * problem.c.lanes(p);
    real->gemm(problem, rows, panels);
  }
  static void wgrad_tile(const T* x, int64_t x_lanes, const T* dy, int64_t dy_lanes, int64_t rows,
                         bool accumulate, T* tile) {
    products += rows * x_lanes * dy_lanes;
    real->wgrad_tile(x, x_lanes, dy, dy_lanes, rows, accumulate, tile);
  }
  static const cpu::Kernels<T>& table() {
    real = &cpu::kernels<T>();
    static cpu::Kernels<T> counting = *real;
    counting.gemm = &gemm;
    counting.wgrad_tile = &wgrad_tile;
    return counting;
  }
};

constexpr int64_t kRows = 200;
constexpr int64_t kFeatures = 40;
constexpr int64_t kWidth = 48;
constexpr int64_t kClasses = 10;
constexpr int kHidden = 4;

std::string description(const char* dtype, bool norm) {
  std::string layers;
  for (int i = 0; i < kHidden; ++i)
    layers += concat("{\"type\": \"dense\", \"units\": ", kWidth, "}, ",
                     norm ? "{\"type\": \"batch_norm\"}, " : "", "{\"type\": \"tanh\"}, ");
  return concat("{\"in_features\": ", kFeatures, ", \"dtype\": \"", dtype, "\", \"layers\": [",
                layers, "{\"type\": \"dense\", \"units\": ", kClasses,
                "}], \"loss\": {\"type\": \"cross_entropy\"}, \"optimizer\": {\"type\": \"sgd\"}}");
}

template <class T>
void test(bool norm) {
  const std::string name = concat(dtype_name(dtype_of<T>()), norm ? ", batch norm" : "");
  const std::unique_ptr<Model> model =
      Model::create(parse_description(description(dtype_name(dtype_of<T>()), norm)), "cpu", 2);
  std::vector<T> x(static_cast<std::size_t>(kRows * kFeatures));
  std::vector<int64_t> y(static_cast<std::size_t>(kRows));
  std::uint32_t state = 1;
  for (T& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<double>(state >> 8) * 0x1p-23 - 1.0);
  }
  for (std::size_t r = 0; r < y.size(); ++r) y[r] = static_cast<int64_t>(r) % kClasses;
  Data data;
  data.x = ArrayView::matrix(x.data(), kRows, kFeatures);
  data.y = ArrayView::vector(y.data(), kRows);

  CpuObjective<T> objective(*model, data, {}, {}, Counted<T>::table());
  minimize::Function& function = objective;
  check(function.dimension() == model->num_parameters(), name, ": dimension");
  check(function.has_hessian() && function.has_gauss_newton(), name, ": no products");
  check(function.has_path_scales() != norm, name, ": path scales");

  const auto size = static_cast<std::size_t>(function.dimension());
  std::vector<T> parameters(size);
  model->get_parameters(parameters.data());
  const std::vector<double> theta(parameters.begin(), parameters.end());
  std::vector<double> v(size), gradient(size), product(size), again(size);
  for (std::size_t i = 0; i < size; ++i) v[i] = (i % 7 == 0 ? 1.0 : -0.3) / 16.0;

  const auto counted = [&](auto&& call) {
    Counted<T>::products = 0;
    call();
    return Counted<T>::products.load();
  };
  // Products of one kind in the first layer, and in all others together.
  const int64_t first = kRows * kFeatures * kWidth;
  const int64_t others = kRows * kWidth * ((kHidden - 1) * kWidth + kClasses);
  const auto expect_count = [&](const char* what, int64_t got, int64_t in_first,
                                int64_t in_others) {
    check(got == in_first * first + in_others * others, name, ": ", what, " took ", got,
          " products, not ", in_first, " * ", first, " + ", in_others, " * ", others);
  };

  const int64_t of_gradient =
      counted([&] { function.value_and_gradient(theta.data(), gradient.data()); });
  expect_count("a gradient", of_gradient, 2, 3);
  const int64_t of_first =
      counted([&] { function.hessian_product(theta.data(), v.data(), product.data()); });
  expect_count("the first product", of_first, 3, 8);
  const int64_t of_second =
      counted([&] { function.hessian_product(theta.data(), v.data(), again.data()); });
  expect_count("the second product", of_second, 2, 6);
  check(product == again, name, ": the second product differs");
  check(static_cast<double>(of_first) <= 3.5 * static_cast<double>(of_gradient), name,
        ": a product costs ", of_first, " where a gradient costs ", of_gradient);
  expect_count("Gauss-Newton", counted([&] {
                 function.gauss_newton_product(theta.data(), v.data(), product.data());
               }),
               2, 4);
  std::printf("%s: a Hessian product takes %.3f, then %.3f gradients\n", name.c_str(),
              static_cast<double>(of_first) / static_cast<double>(of_gradient),
              static_cast<double>(of_second) / static_cast<double>(of_gradient));

  std::vector<double> at = theta;
  for (int point = 0; point < 2; ++point) {
    for (double& element : at) element += 1e-3;
    const long before = allocations;
    function.hessian_product(at.data(), v.data(), product.data());
    function.gauss_newton_product(at.data(), v.data(), product.data());
    function.value_and_gradient(at.data(), gradient.data());
    check(allocations == before, name, ": ", allocations - before, " allocations in later calls");
  }
  check(product != again, name, ": the point makes no difference");
}

}  // namespace

int main() {
  for (const bool norm : {false, true}) {
    test<float>(norm);
    test<double>(norm);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
