// Evaluations of an objective: which passes over which rows.
#include "training/typed_objective.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "cpu/kernels.h"
#include "math/compensated_sum.h"
#include "network/path.h"

namespace thalweg {
namespace {

// Rows in memory at a time unless the caller or batch norm says otherwise.
constexpr std::int64_t kChunkRows = 8192;
// A Hessian of 2 GB.
constexpr std::int64_t kMostForHessian = 16384;

Description at_highest(Description description) {
  description.matmul_precision = MatmulPrecision::kHighest;
  return description;
}

}  // namespace

template <class T>
TypedObjective<T>::TypedObjective(const Model& model, const Data& data,
                                  const ObjectiveOptions& options, const Interrupt& interrupt)
    : plan_(compile(at_highest(model.description()))),
      walk_plan_(compile(at_highest(model.description()), false)),
      options_(options),
      data_(data),
      threads_(model.threads()),
      step_(static_cast<std::uint64_t>(model.steps_done())) {
  const DeviceExchange* const exchange = model.exchange();
  targets_ = check_data({plan_, "Objective", false, threads_, interrupt, true, exchange}, data_);
  expect<ValueError>(!custom() || options_.custom_loss,
                     "[Objective] expected a loss callable for a model with a custom loss, got "
                     "none");
  const std::int64_t rows = data_.x.rows;
  const bool coupled = batch_statistics() && plan_.has_batch_norm();
  expect<ValueError>(
      rows >= 2 || !coupled,
      "[Objective] expected at least 2 rows with batch statistics (the variance of one row is "
      "zero), got ",
      rows, "; use frozen statistics");
  const std::int64_t asked = options_.chunk_rows;
  expect<ValueError>(asked >= 0, "[Objective] expected chunk_size >= 1, got ", asked);
  expect<ValueError>(asked == 0 || asked >= rows || !coupled, "[Objective] expected all ", rows,
                     " rows in one chunk with batch statistics, got chunk_size ", asked, "; ",
                     plan_.states.empty() ? "" : plan_.states.front().name,
                     " normalizes over the rows: use frozen statistics, or no chunk_size");
  expect<ValueError>(asked == 0 || asked >= rows || !custom(), "[Objective] expected all ", rows,
                     " rows in one chunk for a loss function, got chunk_size ", asked);
  chunk_rows_ = coupled || custom()
                    ? rows
                    : std::min(rows, round_up(asked > 0 ? asked : kChunkRows, kRowBlock));

  // The total is summed on the host.
  std::vector<std::byte> fetched;
  Data host;
  host.weights = on_host(data_.weights, exchange, &fetched);
  Batch all;
  all.data = &host;
  all.rows = rows;
  total_weight_ = static_cast<double>(rows);
  if (all.weighted()) {
    std::vector<double> blocks(static_cast<std::size_t>(row_blocks_of(rows)));
    total_weight_ = total_weight<T>(
        all, [](std::int64_t r) { return r; }, blocks.data(), threads_, interrupt, "Objective");
  }
  if (coupled) check_total_weight(plan_, total_weight_, "Objective");
  scale_ = loss_scale(plan_, total_weight_);
}

template <class T>
void TypedObjective<T>::take_state(const Model& model) {
  std::int64_t size = 0;
  for (const BatchNormState& state : plan_.states) size += 2 * state.width;
  std::vector<T> flat(static_cast<std::size_t>(size));
  model.get_state(flat.data());
  if (flat == state_) return;
  forward_ready_ = backward_ready_ = false;
  state_.clear();
  load_state(flat.data());
  state_ = std::move(flat);
}

// ---- passes -------------------------------------------------------------------------------------

template <class T>
Pass TypedObjective<T>::pass_of(const Chunk& chunk) const {
  Pass pass;
  pass.mode = batch_statistics() ? Mode::kTraining : Mode::kFrozen;
  pass.seed = plan_.description.seed;
  pass.step = step_;
  pass.first_row = chunk.first;
  pass.total_weight = total_weight_;
  pass.dropout = options_.dropout;
  return pass;
}

template <class T>
LossRequest TypedObjective<T>::request(double gradient_scale) const {
  LossRequest request;
  request.gradient_scale = gradient_scale;
  request.weighted = data_.weights.present();
  request.dense_targets = targets_ == Targets::kDense;
  return request;
}

template <class T>
LossRequest TypedObjective<T>::row_request() const {
  LossRequest loss = request(loss_scale(plan_, 1.0));
  loss.weighted = false;
  return loss;
}

template <class T>
typename TypedObjective<T>::Chunk TypedObjective<T>::chunk_at(std::int64_t first) const {
  const std::int64_t count = std::min(chunk_rows_, rows() - first);
  return {first, count, first == 0, first + count == rows()};
}

template <class T>
template <class Body>
void TypedObjective<T>::for_walk_chunks(bool backward, Body&& body) {
  for (std::int64_t first = 0; first < rows(); first += chunk_rows_) {
    const Chunk chunk = chunk_at(first);
    const Passes passes{!(chunk.only() && forward_ready_),
                        backward && !(chunk.only() && backward_ready_)};
    if (passes.forward) forward_ready_ = backward_ready_ = false;
    body(chunk, passes);
    forward_ready_ = chunk.only();
    backward_ready_ = chunk.only() && (backward || backward_ready_);
  }
}

template <class T>
void TypedObjective<T>::set_point(const char* operation, const double* theta) {
  const auto size = static_cast<std::size_t>(dimension());
  if (point_set_ && std::memcmp(point_.data(), theta, size * sizeof(double)) == 0) return;
  point_set_ = forward_ready_ = backward_ready_ = false;
  point_.assign(theta, theta + size);
  load_point(operation, theta);
  point_set_ = true;
}

template <class T>
double TypedObjective<T>::evaluate(const double* theta, double* gradient) {
  const char* const operation = gradient ? "grad" : "value";
  set_point(operation, theta);
  double loss = 0.0;
  double rest = 0.0;
  for (std::int64_t first = 0; first < rows(); first += chunk_rows_)
    add_compensated(loss, rest, evaluate_chunk(operation, chunk_at(first), gradient));
  return custom() ? loss : (loss + rest) * scale_;
}

// ---- products -----------------------------------------------------------------------------------

template <class T>
void TypedObjective<T>::check_products(const char* operation) const {
  expect<ValueError>(!custom(), "[", operation,
                     "] expected a loss with second derivatives, got a loss function; use one of "
                     "thalweg.losses");
}

template <class T>
void TypedObjective<T>::check_finite(const char* operation, const double* out, std::int64_t count) {
  if (cpu::kernels<double>().finite(out, count)) return;
  const std::string where = first_not_finite();
  throw NonFiniteError(
      concat("[", operation,
             "] expected a finite product, got a non-finite one; the first non-finite values come "
             "out of ",
             where, ". Look at the parameters, the direction and the data"),
      static_cast<std::int64_t>(step_), where);
}

template <class T>
void TypedObjective<T>::multiply(const char* operation, Curvature curvature, const double* theta,
                                 const double* v, double* out) {
  check_products(operation);
  set_point(operation, theta);
  load_direction(operation, v);
  for_walk_chunks(curvature == Curvature::kHessian, [&](const Chunk& chunk, const Passes& passes) {
    multiply_chunk(operation, chunk, curvature, passes, out);
  });
  check_finite(operation, out, dimension());
}

template <class T>
void TypedObjective<T>::hessian_product(const double* theta, const double* v, double* out) {
  multiply("hvp", Curvature::kHessian, theta, v, out);
}

template <class T>
void TypedObjective<T>::gauss_newton_product(const double* theta, const double* v, double* out) {
  multiply("ggnvp", Curvature::kGaussNewton, theta, v, out);
}

template <class T>
void TypedObjective<T>::hessian(const double* theta, std::vector<double>* out) {
  const std::int64_t n = dimension();
  expect<ValueError>(n <= kMostForHessian, "[hessian] expected at most ", kMostForHessian,
                     " parameters, got ", n, "; use products (hvp)");
  check_products("hessian");
  out->resize(static_cast<std::size_t>(n * n));
  double* const h = out->data();
  std::vector<double> unit(static_cast<std::size_t>(n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    unit[static_cast<std::size_t>(i)] = 1.0;
    multiply("hessian", Curvature::kHessian, theta, unit.data(), h + i * n);
    unit[static_cast<std::size_t>(i)] = 0.0;
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < i; ++j)
      h[i * n + j] = h[j * n + i] = 0.5 * (h[i * n + j] + h[j * n + i]);
}

template <class T>
void TypedObjective<T>::jacobian_product(const double* theta, const double* v, double* out) {
  set_point("jvp", theta);
  load_direction("jvp", v);
  for_walk_chunks(false, [&](const Chunk& chunk, const Passes& passes) {
    jacobian_chunk("jvp", chunk, passes, out + chunk.first * out_features());
  });
  check_finite("jvp", out, rows() * out_features());
}

template <class T>
void TypedObjective<T>::jacobian_transposed_product(const double* theta, const double* u,
                                                    double* out) {
  set_point("vjp", theta);
  for_walk_chunks(false, [&](const Chunk& chunk, const Passes& passes) {
    transposed_chunk("vjp", chunk, passes, u + chunk.first * out_features(), out);
  });
  check_finite("vjp", out, dimension());
}

// ---- gradients of single rows -------------------------------------------------------------------

template <class T>
void TypedObjective<T>::check_examples(const char* operation) const {
  check_products(operation);
  expect<ValueError>(!batch_statistics() || !plan_.has_batch_norm(), "[", operation,
                     "] expected rows that do not depend on each other, got batch statistics in ",
                     plan_.states.empty() ? "" : plan_.states.front().name,
                     "; use frozen statistics");
}

template <class T>
void TypedObjective<T>::find_factors(const char* operation, const Chunk& chunk) {
  forward_ready_ = backward_ready_ = false;
  for (auto* buffers : {&factors_.values, &factors_.gradients})
    buffers->resize(walk_plan_.buffers.size());
  const auto reserve = [&](std::vector<T>& rows, int buffer) {
    rows.resize(static_cast<std::size_t>(chunk.rows * walk_plan_.buffers[buffer].width));
  };
  for (const Node& node : walk_plan_.nodes) {
    if (node.weight < 0 && node.state < 0) continue;
    reserve(factors_.values[static_cast<std::size_t>(node.input)], node.input);
    reserve(factors_.gradients[static_cast<std::size_t>(node.output)], node.output);
  }
  for (auto* vectors : {&factors_.mean, &factors_.inv_std}) {
    vectors->resize(walk_plan_.states.size());
    for (std::size_t s = 0; s < vectors->size(); ++s)
      (*vectors)[s].resize(static_cast<std::size_t>(walk_plan_.states[s].width));
  }
  factor_chunk(operation, chunk, &factors_);
}

template <class T>
void TypedObjective<T>::example_gradients(const double* theta, std::int64_t first,
                                          std::int64_t count, void* out) {
  const char* const operation = "per_example_grads";
  check_examples(operation);
  expect<ValueError>(first >= 0 && count >= 0 && first + count <= rows(), "[", operation,
                     "] expected rows inside [0, ", rows(), "), got [", first, ", ", first + count,
                     ")");
  set_point(operation, theta);
  const std::int64_t size = dimension();
  for (std::int64_t begin = first; begin < first + count; begin += chunk_rows_) {
    const Chunk chunk{begin, std::min(chunk_rows_, first + count - begin)};
    find_factors(operation, chunk);
    run(operation, chunk.rows, 3.0, [&](Team& team) {
      team.for_each(chunk.rows, [&](std::int64_t r) {
        T* const row = static_cast<T*>(out) + (begin - first + r) * size;
        const auto flat = [&](int tensor) { return row + plan_.tensors[tensor].flat_offset; };
        for (const Node& node : walk_plan_.nodes) {
          if (node.weight < 0 && node.state < 0) continue;
          const std::int64_t outs = walk_plan_.buffers[node.output].width;
          const std::int64_t ins = walk_plan_.buffers[node.input].width;
          const T* const dy =
              factors_.gradients[static_cast<std::size_t>(node.output)].data() + r * outs;
          const T* const x = factors_.values[static_cast<std::size_t>(node.input)].data() + r * ins;
          if (node.weight >= 0) {
            T* to = flat(node.weight);
            for (std::int64_t o = 0; o < outs; ++o)
              for (std::int64_t j = 0; j < ins; ++j) *to++ = dy[o] * x[j];
          }
          if (node.bias >= 0) std::copy_n(dy, outs, flat(node.bias));
          if (node.state < 0) continue;
          std::copy_n(dy, outs, flat(node.beta));
          const T* const mean = factors_.mean[static_cast<std::size_t>(node.state)].data();
          const T* const inv_std = factors_.inv_std[static_cast<std::size_t>(node.state)].data();
          T* const to = flat(node.gamma);
          for (std::int64_t c = 0; c < outs; ++c) to[c] = dy[c] * ((x[c] - mean[c]) * inv_std[c]);
        }
      });
    });
  }
}

template <class T>
void TypedObjective<T>::example_gradient_norms(const double* theta, double* out) {
  const char* const operation = "per_example_grad_norms";
  check_examples(operation);
  set_point(operation, theta);
  for (std::int64_t first = 0; first < rows(); first += chunk_rows_) {
    const Chunk chunk = chunk_at(first);
    find_factors(operation, chunk);
    run(operation, chunk.rows, 1.0, [&](Team& team) {
      team.for_each(chunk.rows, [&](std::int64_t r) {
        const auto squares = [&](const T* values, std::int64_t width) {
          double sum = 0.0;
          for (std::int64_t j = 0; j < width; ++j)
            sum += static_cast<double>(values[j]) * static_cast<double>(values[j]);
          return sum;
        };
        double total = 0.0;
        for (const Node& node : walk_plan_.nodes) {
          if (node.weight < 0 && node.state < 0) continue;
          const std::int64_t outs = walk_plan_.buffers[node.output].width;
          const std::int64_t ins = walk_plan_.buffers[node.input].width;
          const T* const dy =
              factors_.gradients[static_cast<std::size_t>(node.output)].data() + r * outs;
          const T* const x = factors_.values[static_cast<std::size_t>(node.input)].data() + r * ins;
          // The gradient of a weight is the outer product of two vectors.
          if (node.weight >= 0)
            total += squares(dy, outs) * (squares(x, ins) + (node.bias >= 0 ? 1.0 : 0.0));
          if (node.state < 0) continue;
          const T* const mean = factors_.mean[static_cast<std::size_t>(node.state)].data();
          const T* const inv_std = factors_.inv_std[static_cast<std::size_t>(node.state)].data();
          for (std::int64_t c = 0; c < outs; ++c) {
            const auto slope = static_cast<double>(dy[c]);
            const double normalized = (static_cast<double>(x[c]) - static_cast<double>(mean[c])) *
                                      static_cast<double>(inv_std[c]);
            total += slope * slope * (1.0 + normalized * normalized);
          }
        }
        out[chunk.first + r] = std::sqrt(total);
      });
    });
  }
}

// ---- paths --------------------------------------------------------------------------------------

template <class T>
void TypedObjective<T>::path_scales(const double* theta, double* kappa) {
  thalweg::path_scales(plan_, theta, 2.0, kappa);
}

template class TypedObjective<float>;
template class TypedObjective<double>;

}  // namespace thalweg
