#include "cuda/activation.h"
#include "cuda/quad_loop.h"
#include "math/activations.h"

namespace thalweg::cuda {
namespace {

// ---- Kernels ------------------------------------------------------------------------------------

template <class T, class Phi>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void activation_kernel(const Matrix<const T> z, const Matrix<T> y, const T parameter) {
  for_quads(y, [&](std::int64_t row, std::int64_t column) {
    Quad<T> x = load_quad(z, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) x[j] = Phi::value(x[j], parameter);
    store_quad(y, row, column, x);
  });
}

template <class T, class Phi>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void activation_backward_kernel(const Matrix<const T> dy, const Matrix<const T> at,
                                const Matrix<T> dz, const T parameter, const bool accumulate) {
  for_quads(dz, [&](std::int64_t row, std::int64_t column) {
    const Quad<T> g = load_quad(dy, row, column);
    const Quad<T> s = load_quad(at, row, column);
    Quad<T> out{};
    if (accumulate) out = load_quad(dz, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T product = g[j] * Phi::derivative(s[j], parameter);
      out[j] = accumulate ? out[j] + product : product;
    }
    store_quad(dz, row, column, out);
  });
}

template <class T, class Phi>
TW_KERNEL_BOUNDS(kElementwiseThreads, 2)
void activation_backward_tangent_kernel(const ActivationBackwardTangent<T> problem) {
  const T parameter = static_cast<T>(problem.activation.parameter);
  for_quads(problem.dz_tangent, [&](std::int64_t row, std::int64_t column) {
    const Quad<T> g = load_quad(problem.dy, row, column);
    const Quad<T> g_tangent = load_quad(problem.dy_tangent, row, column);
    const Quad<T> s = load_quad(problem.at, row, column);
    const Quad<T> q = load_quad(problem.z_tangent, row, column);
    Quad<T> out{};
    if (problem.accumulate) out = load_quad(problem.dz_tangent, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) {
      const T curved = g[j] * (Phi::second_derivative(s[j], parameter) * q[j]);
      const T tangent = madd(g_tangent[j], Phi::derivative(s[j], parameter), curved);
      out[j] = problem.accumulate ? out[j] + tangent : tangent;
    }
    store_quad(problem.dz_tangent, row, column, out);
  });
}

template <class T>
TW_KERNEL void add_kernel(const Matrix<const T> a, const Matrix<const T> b, const Matrix<T> out) {
  for_quads(out, [&](std::int64_t row, std::int64_t column) {
    const Quad<T> left = load_quad(a, row, column);
    Quad<T> sum = load_quad(b, row, column);
    TW_UNROLL
    for (int j = 0; j < kQuad; ++j) sum[j] = left[j] + sum[j];
    store_quad(out, row, column, sum);
  });
}

template <class T>
TW_KERNEL void copy_kernel(const Matrix<const T> x, const Matrix<T> out) {
  for_quads(out, [&](std::int64_t row, std::int64_t column) {
    store_quad(out, row, column, load_quad(x, row, column));
  });
}

}  // namespace

// ---- Launchers ----------------------------------------------------------------------------------

template <class T>
void activation(const Matrix<const T>& z, const Matrix<T>& y, Activation phi, cudaStream_t stream) {
  dispatch_activation(phi.id, [&](auto rule) {
    launch(activation_kernel<T, decltype(rule)>, elementwise("activation", y.size(), stream), z, y,
           static_cast<T>(phi.parameter));
  });
}

template <class T>
void activation_backward(const Matrix<const T>& dy, const Matrix<const T>& at, const Matrix<T>& dz,
                         Activation phi, bool accumulate, cudaStream_t stream) {
  dispatch_activation(phi.id, [&](auto rule) {
    // The identity needs no `at`.
    launch(activation_backward_kernel<T, decltype(rule)>,
           elementwise("activation_backward", dz.size(), stream), dy, at.present() ? at : dy, dz,
           static_cast<T>(phi.parameter), accumulate);
  });
}

template <class T>
void activation_backward_tangent(const ActivationBackwardTangent<T>& problem, cudaStream_t stream) {
  dispatch_activation(problem.activation.id, [&](auto rule) {
    launch(activation_backward_tangent_kernel<T, decltype(rule)>,
           elementwise("activation_backward_tangent", problem.dz_tangent.size(), stream), problem);
  });
}

template <class T>
void add(const Matrix<const T>& a, const Matrix<const T>& b, const Matrix<T>& out,
         cudaStream_t stream) {
  launch(add_kernel<T>, elementwise("add", out.size(), stream), a, b, out);
}

template <class T>
void accumulate(const Matrix<const T>& x, const Matrix<T>& out, cudaStream_t stream) {
  add<T>(out, x, out, stream);
}

template <class T>
void copy(const Matrix<const T>& x, const Matrix<T>& out, cudaStream_t stream) {
  launch(copy_kernel<T>, elementwise("copy", out.size(), stream), x, out);
}

#define TW_INSTANTIATE(T)                                                                       \
  template void activation(const Matrix<const T>&, const Matrix<T>&, Activation, cudaStream_t); \
  template void activation_backward(const Matrix<const T>&, const Matrix<const T>&,             \
                                    const Matrix<T>&, Activation, bool, cudaStream_t);          \
  template void activation_backward_tangent(const ActivationBackwardTangent<T>&, cudaStream_t); \
  template void add(const Matrix<const T>&, const Matrix<const T>&, const Matrix<T>&,           \
                    cudaStream_t);                                                              \
  template void accumulate(const Matrix<const T>&, const Matrix<T>&, cudaStream_t);             \
  template void copy(const Matrix<const T>&, const Matrix<T>&, cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg::cuda
