// Operations on flat arenas that need not know their layout.
#include "cpu/operations.h"
#include "cpu/simd.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

template <class T>
void average(T* average, const T* p, double weight, std::int64_t count) {
  const T factor = static_cast<T>(weight);
  TW_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) {
    average[i] = madd(factor, p[i] - average[i], average[i]);
  }
}

template <class T>
double sum_of_squares(const T* x, std::int64_t count) {
  // Independent sums, so that additions overlap; merged in a fixed order.
  constexpr std::int64_t kSums = 32;
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (std::int64_t j = 0; j < kSums; ++j) {
      const double element = static_cast<double>(x[i + j]);
      sums[j] = madd(element, element, sums[j]);
    }
  }
  double total = 0.0;
  for (; i < count; ++i) total = madd(static_cast<double>(x[i]), static_cast<double>(x[i]), total);
  for (std::int64_t j = 0; j < kSums; ++j) total += sums[j];
  return total;
}

template <class T>
void scale(T* x, double factor, std::int64_t count) {
  const T f = static_cast<T>(factor);
  for (std::int64_t i = 0; i < count; ++i) x[i] *= f;
}

template <class T>
void axpy(double a, const T* x, T* y, std::int64_t count) {
  const T factor = static_cast<T>(a);
  TW_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) y[i] = madd(factor, x[i], y[i]);
}

template <class T>
bool finite(const T* x, std::int64_t count) {
  FloatBits<T> bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= is_finite(x[i]) ? 0 : 1;
  return bad == 0;
}

#define TW_INSTANTIATE(T)                                    \
  template void average(T*, const T*, double, std::int64_t); \
  template double sum_of_squares(const T*, std::int64_t);    \
  template void scale(T*, double, std::int64_t);             \
  template void axpy(double, const T*, T*, std::int64_t);    \
  template bool finite(const T*, std::int64_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
