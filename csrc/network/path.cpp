// One forward and one backward vector per buffer; linear in the number of parameters.
#include "network/path.h"

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "core/error.h"

namespace thalweg {
namespace {

class Paths {
 public:
  Paths(const Plan& plan, const double* parameters, double p)
      : plan_(plan), parameters_(parameters), p_(p) {}

  // Sums over the paths from the inputs, per unit of each buffer.
  void forward(bool biases) {
    in_ = zeros();
    in_[0].assign(in_[0].size(), 1.0);
    for (const Node& node : plan_.nodes) {
      const std::vector<double>& x = in_[index(node.input)];
      std::vector<double>& y = in_[index(node.output)];
      switch (node.kind) {
        case NodeKind::kDense:
          each_weight(node, [&](std::size_t o, std::size_t i, double power, std::int64_t) {
            y[o] += power * x[i];
          });
          if (biases)
            each_bias(node, [&](std::size_t o, double power, std::int64_t) { y[o] += power; });
          break;
        case NodeKind::kAdd:
          for (std::size_t u = 0; u < y.size(); ++u) y[u] = x[u] + in_[index(node.second)][u];
          break;
        case NodeKind::kMaxout:
          for (std::size_t u = 0; u < x.size(); ++u) y[u / pieces(node)] += x[u];
          break;
        case NodeKind::kActivation:
        case NodeKind::kDropout:
        case NodeKind::kBatchNorm:
          y = x;
          break;
      }
    }
  }

  // Sums over the paths to the outputs; the scales of all weights on the way.
  void backward(double* kappa) {
    std::vector<std::vector<double>> out = zeros();
    out[index(plan_.output)].assign(out[index(plan_.output)].size(), 1.0);
    const auto scale = [this](double paths) {
      return p_ == 2.0 ? paths : std::pow(paths, 2.0 / p_);
    };
    for (std::size_t n = plan_.nodes.size(); n-- > 0;) {
      const Node& node = plan_.nodes[n];
      const std::vector<double> y = out[index(node.output)];
      std::vector<double>& x = out[index(node.input)];
      switch (node.kind) {
        case NodeKind::kDense: {
          const std::vector<double>& in = in_[index(node.input)];
          each_weight(node, [&](std::size_t o, std::size_t i, double power, std::int64_t at) {
            x[i] += power * y[o];
            kappa[at] = scale(in[i] * y[o]);
          });
          each_bias(node, [&](std::size_t o, double, std::int64_t at) { kappa[at] = scale(y[o]); });
          break;
        }
        case NodeKind::kAdd:
          for (std::size_t u = 0; u < y.size(); ++u) {
            x[u] += y[u];
            out[index(node.second)][u] += y[u];
          }
          break;
        case NodeKind::kMaxout:
          for (std::size_t u = 0; u < x.size(); ++u) x[u] += y[u / pieces(node)];
          break;
        case NodeKind::kActivation:
        case NodeKind::kDropout:
        case NodeKind::kBatchNorm:
          for (std::size_t u = 0; u < y.size(); ++u) x[u] += y[u];
          break;
      }
    }
  }

  double total() const {
    double sum = 0.0;
    for (const double unit : in_[index(plan_.output)]) sum += unit;
    return sum;
  }

 private:
  static std::size_t index(int buffer) { return static_cast<std::size_t>(buffer); }
  static std::size_t pieces(const Node& node) { return static_cast<std::size_t>(node.pieces); }

  std::vector<std::vector<double>> zeros() const {
    std::vector<std::vector<double>> units;
    for (const Buffer& buffer : plan_.buffers)
      units.emplace_back(static_cast<std::size_t>(buffer.width), 0.0);
    return units;
  }

  double power(double w) const { return p_ == 2.0 ? w * w : std::pow(std::abs(w), p_); }

  // f(output, input, |w|^p, place in the flat vector)
  template <class F>
  void each_weight(const Node& node, F&& f) const {
    const Tensor& weight = plan_.tensors[node.weight];
    std::int64_t at = weight.flat_offset;
    for (std::int64_t o = 0; o < weight.out; ++o)
      for (std::int64_t i = 0; i < weight.in; ++i, ++at)
        f(static_cast<std::size_t>(o), static_cast<std::size_t>(i), power(parameters_[at]), at);
  }
  template <class F>
  void each_bias(const Node& node, F&& f) const {
    if (node.bias < 0) return;
    const Tensor& bias = plan_.tensors[node.bias];
    for (std::int64_t o = 0; o < bias.out; ++o)
      f(static_cast<std::size_t>(o), power(parameters_[bias.flat_offset + o]),
        bias.flat_offset + o);
  }

  const Plan& plan_;
  const double* parameters_;
  double p_;
  std::vector<std::vector<double>> in_;
};

void check(const Plan& plan, const char* operation, double p) {
  expect<ValueError>(p > 0.0 && std::isfinite(p), "[", operation, "] expected p > 0, got ", p);
  for (const Node& node : plan.nodes)
    expect<ValueError>(node.kind != NodeKind::kBatchNorm, "[", operation,
                       "] expected a network without batch norm, got one with batch norm at ",
                       node.layer, "; a path has no weight there");
}

}  // namespace

double path_norm(const Description& description, const double* parameters, double p, bool biases) {
  const Plan plan = compile(description);
  check(plan, "path_norm", p);
  Paths paths(plan, parameters, p);
  paths.forward(biases);
  return std::pow(paths.total(), 1.0 / p);
}

void path_scales(const Plan& plan, const double* parameters, double p, double* kappa) {
  check(plan, "path_scales", p);
  Paths paths(plan, parameters, p);
  paths.forward(true);
  paths.backward(kappa);
}

void path_scales(const Description& description, const double* parameters, double p,
                 double* kappa) {
  path_scales(compile(description), parameters, p, kappa);
}

}  // namespace thalweg
