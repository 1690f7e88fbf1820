// What the methods of minimize/ ask of the function that they minimize: a value and a gradient, and
// for some methods products with second derivatives. A network's loss on fixed data, a callable of
// Python and a formula of a test are functions alike.
//
// Vectors are dense arrays of dimension() doubles, whatever type the function computes in: sums
// over steps and directions then never limit the accuracy of a float32 function. Input and output
// of a call never overlap. Calls come from one thread, one after another; a function that fails
// throws, and the method passes the exception on. A function need not check for non-finite results:
// the methods do.
#pragma once

#include <cstdint>
#include <vector>

#include "core/error.h"

namespace thalweg::minimize {

class Function {
 public:
  virtual ~Function() = default;

  virtual std::int64_t dimension() const = 0;

  // Returns f(x) and writes its gradient.
  virtual double value_and_gradient(const double* x, double* gradient) = 0;

  // f(x) alone, where it is cheaper.
  virtual double value(const double* x) {
    scratch_.resize(static_cast<std::size_t>(dimension()));
    return value_and_gradient(x, scratch_.data());
  }

  // out = H(x) v with the Hessian H of f.
  virtual bool has_hessian() const { return false; }
  virtual void hessian_product(const double* x, const double* v, double* out) {
    (void)x, (void)v, (void)out;
    throw InternalError("[minimize] the function has no Hessian-vector product");
  }

  // out = G(x) v with the Gauss-Newton matrix G, positive semidefinite for a convex loss.
  virtual bool has_gauss_newton() const { return false; }
  virtual void gauss_newton_product(const double* x, const double* v, double* out) {
    (void)x, (void)v, (void)out;
    throw InternalError("[minimize] the function has no Gauss-Newton product");
  }

  // The scales kappa >= 0 of Path-SGD at x, in_u * out_v of each weight (Neyshabur, Salakhutdinov,
  // Srebro 2015).
  virtual bool has_path_scales() const { return false; }
  virtual void path_scales(const double* x, double* kappa) {
    (void)x, (void)kappa;
    throw InternalError("[minimize] the function has no path scales");
  }

  // Rounding error of a value, relative to its magnitude: smaller differences say nothing. For a
  // function that computes in float32, a few times 2^-24.
  virtual double relative_noise() const { return 0x1p-50; }

  // Asked between evaluations; true stops the method with Interrupted, its last iterate kept.
  virtual bool interrupted() { return false; }

 private:
  std::vector<double> scratch_;
};

}  // namespace thalweg::minimize
