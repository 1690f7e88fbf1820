#include "cuda/maxout.h"
#include "cuda/quad_loop.h"
#include "math/maxout.h"

namespace thalweg::cuda {
namespace {

// ---- Kernels ------------------------------------------------------------------------------------

template <class T>
struct Winner {
  T maximum;
  std::int64_t piece;
};

template <class T>
TW_DEVICE Winner<T> winner_of(const T* pieces, std::int64_t count) {
  Winner<T> winner{pieces[0], 0};
  for (std::int64_t q = 1; q < count; ++q) {
    const T x = pieces[q];
    if (exceeds(x, winner.maximum)) winner = {x, q};
  }
  return winner;
}

template <class T>
TW_KERNEL void maxout_kernel(const Matrix<const T> z, const Matrix<T> y,
                             const std::int64_t pieces) {
  for_quads(y, [&](std::int64_t row, std::int64_t column) {
    Quad<T> maxima{};
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      if (column + j >= y.width) continue;
      maxima[j] = winner_of(z.data + row * z.pitch + (column + j) * pieces, pieces).maximum;
    }
    store_quad(y, row, column, maxima);
  });
}

// A quad of dz holds pieces of up to four units.
template <class T>
TW_KERNEL void maxout_backward_kernel(const Matrix<const T> z, const Matrix<const T> dy,
                                      const Matrix<T> dz, const std::int64_t pieces) {
  for_quads(dz, [&](std::int64_t row, std::int64_t column) {
    Quad<T> out{};
    std::int64_t unit = column / pieces;
    std::int64_t piece = column - unit * pieces;
    std::int64_t winner = -1;
    T gradient = T(0);
    bool fresh = true;
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      if (fresh && unit < dy.width) {
        winner = winner_of(z.data + row * z.pitch + unit * pieces, pieces).piece;
        gradient = dy.data[row * dy.pitch + unit];
      }
      out[j] = piece == winner && unit < dy.width ? gradient : T(0);
      ++piece;
      fresh = piece == pieces;
      if (fresh) {
        ++unit;
        piece = 0;
      }
    }
    store_quad(dz, row, column, out);
  });
}

template <class T>
TW_KERNEL void maxout_tangent_kernel(const Matrix<const T> z, const Matrix<const T> z_tangent,
                                     const Matrix<T> y_tangent, const std::int64_t pieces) {
  for_quads(y_tangent, [&](std::int64_t row, std::int64_t column) {
    Quad<T> out{};
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      if (column + j >= y_tangent.width) continue;
      const std::int64_t first = (column + j) * pieces;
      const std::int64_t piece = winner_of(z.data + row * z.pitch + first, pieces).piece;
      out[j] = z_tangent.data[row * z_tangent.pitch + first + piece];
    }
    store_quad(y_tangent, row, column, out);
  });
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

template <class T>
void maxout(const Matrix<const T>& z, const Matrix<T>& y, std::int64_t pieces,
            cudaStream_t stream) {
  launch(maxout_kernel<T>, elementwise("maxout", y.size(), stream), z, y, pieces);
}

template <class T>
void maxout_backward(const Matrix<const T>& z, const Matrix<const T>& dy, const Matrix<T>& dz,
                     std::int64_t pieces, cudaStream_t stream) {
  launch(maxout_backward_kernel<T>, elementwise("maxout_backward", dz.size(), stream), z, dy, dz,
         pieces);
}

template <class T>
void maxout_tangent(const Matrix<const T>& z, const Matrix<const T>& z_tangent,
                    const Matrix<T>& y_tangent, std::int64_t pieces, cudaStream_t stream) {
  launch(maxout_tangent_kernel<T>, elementwise("maxout_tangent", y_tangent.size(), stream), z,
         z_tangent, y_tangent, pieces);
}

#define TW_INSTANTIATE(T)                                                                         \
  template void maxout(const Matrix<const T>&, const Matrix<T>&, std::int64_t, cudaStream_t);     \
  template void maxout_backward(const Matrix<const T>&, const Matrix<const T>&, const Matrix<T>&, \
                                std::int64_t, cudaStream_t);                                      \
  template void maxout_tangent(const Matrix<const T>&, const Matrix<const T>&, const Matrix<T>&,  \
                               std::int64_t, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
