// Activations by list position, and the elementwise kernels around them.
#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/activations.h"

namespace thalweg::cpu {
inline namespace TW_ISA {

template <class T>
void activate_block(Activation phi, const T* z, T* y, std::int64_t rows, std::int64_t lanes) {
  const T a = static_cast<T>(phi.parameter);
  dispatch_activation(phi.id, [&](auto activation) {
    using Phi = decltype(activation);
    transform(y, rows, lanes, [=](std::int64_t i) TW_ALWAYS_INLINE { return Phi::value(z[i], a); });
  });
}

template <class T>
void differentiate_block(Activation phi, const T* dy, const T* at, T* dz, bool accumulate,
                         std::int64_t rows, std::int64_t lanes) {
  const T a = static_cast<T>(phi.parameter);
  dispatch_activation(phi.id, [&](auto activation) {
    using Phi = decltype(activation);
    if (accumulate) {
      transform(dz, rows, lanes, [=](std::int64_t i) TW_ALWAYS_INLINE {
        return dz[i] + dy[i] * Phi::derivative(at[i], a);
      });
    } else {
      transform(dz, rows, lanes,
                [=](std::int64_t i) TW_ALWAYS_INLINE { return dy[i] * Phi::derivative(at[i], a); });
    }
  });
}

template <class T>
void activation(Panels<const T> z, Panels<T> y, Activation phi, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    activate_block(phi, z.row(p, rows.begin), y.row(p, rows.begin), rows.size(), y.lanes(p));
  }
}

template <class T>
void activation_backward(Panels<const T> dy, const T* at, Panels<T> dz, Activation phi,
                         bool accumulate, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const T* const from = dy.row(p, rows.begin);
    // The identity needs no `at`.
    const T* const s = at ? at + (from - dy.data) : from;
    differentiate_block(phi, from, s, dz.row(p, rows.begin), accumulate, rows.size(), dz.lanes(p));
  }
}

template <class T>
void activation_backward_tangent(const ActivationBackwardTangent<T>& problem, Range rows,
                                 Range panels) {
  const T a = static_cast<T>(problem.activation.parameter);
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const T* const dy = problem.dy.row(p, rows.begin);
    const T* const dy_tangent = problem.dy_tangent.row(p, rows.begin);
    const T* const at = problem.at + (dy - problem.dy.data);
    const T* const z_tangent = problem.z_tangent + (dy - problem.dy.data);
    T* const out = problem.dz_tangent.row(p, rows.begin);
    const std::int64_t lanes = problem.dz_tangent.lanes(p);
    dispatch_activation(problem.activation.id, [&](auto activation) {
      using Phi = decltype(activation);
      const auto tangent = [=](std::int64_t i) TW_ALWAYS_INLINE {
        return madd(dy_tangent[i], Phi::derivative(at[i], a),
                    dy[i] * (Phi::second_derivative(at[i], a) * z_tangent[i]));
      };
      if (problem.accumulate) {
        transform(out, rows.size(), lanes,
                  [=](std::int64_t i) TW_ALWAYS_INLINE { return out[i] + tangent(i); });
      } else {
        transform(out, rows.size(), lanes, tangent);
      }
    });
  }
}

template <class T>
void add(Panels<const T> a, Panels<const T> b, Panels<T> out, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const T* const left = a.row(p, rows.begin);
    const T* const right = b.row(p, rows.begin);
    transform(out.row(p, rows.begin), rows.size(), out.lanes(p),
              [=](std::int64_t i) TW_ALWAYS_INLINE { return left[i] + right[i]; });
  }
}

template <class T>
void accumulate(Panels<const T> x, Panels<T> out, Range rows, Range panels) {
  add<T>(out, x, out, rows, panels);
}

template <class T>
void copy(Panels<const T> x, Panels<T> out, Range rows, Range panels) {
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const T* const from = x.row(p, rows.begin);
    transform(out.row(p, rows.begin), rows.size(), out.lanes(p),
              [=](std::int64_t i) TW_ALWAYS_INLINE { return from[i]; });
  }
}

#define TW_INSTANTIATE(T)                                                                          \
  template void activate_block(Activation, const T*, T*, std::int64_t, std::int64_t);              \
  template void differentiate_block(Activation, const T*, const T*, T*, bool, std::int64_t,        \
                                    std::int64_t);                                                 \
  template void activation(Panels<const T>, Panels<T>, Activation, Range, Range);                  \
  template void activation_backward(Panels<const T>, const T*, Panels<T>, Activation, bool, Range, \
                                    Range);                                                        \
  template void activation_backward_tangent(const ActivationBackwardTangent<T>&, Range, Range);    \
  template void add(Panels<const T>, Panels<const T>, Panels<T>, Range, Range);                    \
  template void accumulate(Panels<const T>, Panels<T>, Range, Range);                              \
  template void copy(Panels<const T>, Panels<T>, Range, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
