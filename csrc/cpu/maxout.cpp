// Maxout: unit u is the maximum of columns u * pieces .. u * pieces + pieces - 1. Panel p of the
// outputs reads exactly the panels p * pieces .. p * pieces + pieces - 1 of the inputs.
#include "math/maxout.h"

#include "cpu/operations.h"
#include "cpu/panel_loops.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Units [0, 32) of a panel of outputs; z is their first input's row in its panel. kPieces is 0 when
// the number of pieces is not known at compile time.
template <int kPieces, class T>
TW_INLINE void unit_maxima(const T* z, std::int64_t z_stride, std::int64_t count,
                           std::int64_t units, T* maximum, std::int32_t* winner) {
  const std::int64_t pieces = kPieces ? kPieces : count;
  const auto at = [=](std::int64_t u, std::int64_t q) TW_ALWAYS_INLINE {
    const std::int64_t column = u * pieces + q;
    return z[column / kPanel * z_stride + column % kPanel];
  };
  for (std::int64_t u = 0; u < units; ++u) {
    maximum[u] = at(u, 0);
    winner[u] = 0;
  }
  for (std::int64_t q = 1; q < pieces; ++q) {
    for (std::int64_t u = 0; u < units; ++u) {
      const T x = at(u, q);
      const bool larger = exceeds(x, maximum[u]);
      maximum[u] = larger ? x : maximum[u];
      winner[u] = larger ? static_cast<std::int32_t>(q) : winner[u];
    }
  }
}

template <class T>
void maxima(Panels<const T> z, std::int64_t pieces, std::int64_t p, std::int64_t r,
            std::int64_t units, T* maximum, std::int32_t* winner) {
  const T* const from = z.row(p * pieces, r);
  const std::int64_t stride = z.rows * kPanel;
  switch (pieces) {
    case 2:
      return unit_maxima<2>(from, stride, pieces, units, maximum, winner);
    case 4:
      return unit_maxima<4>(from, stride, pieces, units, maximum, winner);
    default:
      return unit_maxima<0>(from, stride, pieces, units, maximum, winner);
  }
}

}  // namespace

template <class T>
void maxout(Panels<const T> z, Panels<T> y, std::int64_t pieces, Range rows) {
  for (std::int64_t p = 0; p < y.panels(); ++p) {
    const std::int64_t lanes = y.lanes(p);
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      T maximum[kPanel] = {};
      std::int32_t winner[kPanel];
      maxima(z, pieces, p, r, lanes, maximum, winner);
      T* const to = y.row(p, r);
      for (std::int64_t u = 0; u < kPanel; ++u) to[u] = maximum[u];
    }
  }
}

template <class T>
void maxout_backward(Panels<const T> z, Panels<const T> dy, Panels<T> dz, std::int64_t pieces,
                     Range rows) {
  for (std::int64_t p = 0; p < dy.panels(); ++p) {
    const std::int64_t lanes = dy.lanes(p);
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      T maximum[kPanel];
      std::int32_t winner[kPanel];
      maxima(z, pieces, p, r, lanes, maximum, winner);
      const T* const gradient = dy.row(p, r);
      for (std::int64_t q = p * pieces; q < (p + 1) * pieces && q < dz.panels(); ++q) {
        T* const to = dz.row(q, r);
        for (std::int64_t j = 0; j < kPanel; ++j) to[j] = T(0);
      }
      for (std::int64_t u = 0; u < lanes; ++u) {
        const std::int64_t column = (p * kPanel + u) * pieces + winner[u];
        dz.row(column / kPanel, r)[column % kPanel] = gradient[u];
      }
    }
  }
}

template <class T>
void maxout_tangent(Panels<const T> z, Panels<const T> z_tangent, Panels<T> y_tangent,
                    std::int64_t pieces, Range rows) {
  for (std::int64_t p = 0; p < y_tangent.panels(); ++p) {
    const std::int64_t lanes = y_tangent.lanes(p);
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      T maximum[kPanel];
      std::int32_t winner[kPanel];
      maxima(z, pieces, p, r, lanes, maximum, winner);
      T* const to = y_tangent.row(p, r);
      for (std::int64_t u = 0; u < lanes; ++u) {
        const std::int64_t column = (p * kPanel + u) * pieces + winner[u];
        to[u] = z_tangent.row(column / kPanel, r)[column % kPanel];
      }
      for (std::int64_t u = lanes; u < kPanel; ++u) to[u] = T(0);
    }
  }
}

#define TW_INSTANTIATE(T)                                                                          \
  template void maxout(Panels<const T>, Panels<T>, std::int64_t, Range);                           \
  template void maxout_backward(Panels<const T>, Panels<const T>, Panels<T>, std::int64_t, Range); \
  template void maxout_tangent(Panels<const T>, Panels<const T>, Panels<T>, std::int64_t, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
