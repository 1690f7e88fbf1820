// A function under minimization: evaluations are counted, interrupts are obeyed, and second
// derivatives are checked.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "minimize/function.h"
#include "minimize/lanczos.h"
#include "minimize/vector.h"

namespace thalweg::minimize {

// A point, and the function there when `evaluated`.
struct Iterate {
  Vector x;
  double f = 0.0;
  Vector g;
  bool evaluated = false;
};

struct Counts {
  std::int64_t values = 0;  // of f, with or without gradient
  std::int64_t gradients = 0;
  std::int64_t products = 0;  // with second derivatives
};

enum class Curvature { kHessian, kGaussNewton };

class Problem {
 public:
  explicit Problem(Function& function) : function_(function), n_(function.dimension()) {}

  std::int64_t dimension() const { return n_; }
  const Counts& counts() const { return counts_; }
  bool has(Curvature curvature) const {
    return curvature == Curvature::kHessian ? function_.has_hessian()
                                            : function_.has_gauss_newton();
  }
  double noise() const { return function_.relative_noise(); }

  // Evaluates f and its gradient at at.x; they may be non-finite.
  void evaluate(Iterate& at) {
    poll();
    at.g.resize(at.x.size());
    ++counts_.values, ++counts_.gradients;
    at.f = function_.value_and_gradient(at.x.data(), at.g.data());
    at.evaluated = true;
  }

  double value(const Vector& x) {
    poll();
    ++counts_.values;
    return function_.value(x.data());
  }

  // v -> H(x) v or G(x) v at a point that outlives the operator.
  Operator curvature(Curvature which, const Vector& x) {
    return [this, which, &x](const double* v, double* out) {
      poll();
      ++counts_.products;
      if (which == Curvature::kHessian) {
        function_.hessian_product(x.data(), v, out);
      } else {
        function_.gauss_newton_product(x.data(), v, out);
      }
    };
  }

  void path_scales(const Vector& x, Vector& kappa) {
    poll();
    kappa.resize(x.size());
    function_.path_scales(x.data(), kappa.data());
  }
  bool has_path_scales() const { return function_.has_path_scales(); }

 private:
  void poll() {
    if (function_.interrupted()) throw Interrupted("[minimize] interrupted");
  }

  Function& function_;
  std::int64_t n_;
  Counts counts_;
};

inline bool finite(const Iterate& at) { return std::isfinite(at.f) && all_finite(at.g); }

// What a method did instead of its rule, by name, in the order of first occurrence.
class Fallbacks {
 public:
  void add(const char* name) {
    for (auto& entry : counts_) {
      if (entry.first == name) {
        ++entry.second;
        return;
      }
    }
    counts_.emplace_back(name, 1);
  }
  const std::vector<std::pair<std::string, std::int64_t>>& counts() const { return counts_; }

 private:
  std::vector<std::pair<std::string, std::int64_t>> counts_;
};

}  // namespace thalweg::minimize
