// Evaluations of an objective: passes over chunks of rows, and sums over chunks.
#include "training/objective.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "network/flat.h"
#include "network/path.h"
#include "training/engine.h"
#include "training/model_objective.h"
#include "training/typed_objective.h"

namespace thalweg {
namespace {

// Rows in memory at a time unless the caller or batch norm says otherwise.
constexpr std::int64_t kChunkRows = 8192;
// Elements of an arena between two looks at the interrupt.
constexpr std::int64_t kElements = std::int64_t{1} << 16;
// A Hessian of 2 GB.
constexpr std::int64_t kMostForHessian = 16384;

// sum + rest is the sum of all terms to twice the precision (Neumaier 1974).
void add_compensated(double& sum, double& rest, double term) {
  const double total = sum + term;
  rest += std::abs(sum) >= std::abs(term) ? (sum - total) + term : (term - total) + sum;
  sum = total;
}

}  // namespace

std::unique_ptr<Objective> Objective::create(const Model& model, const Data& data,
                                             const ObjectiveOptions& options,
                                             const Interrupt& interrupt) {
  const auto make = [&]<class T>(T) -> std::unique_ptr<Objective> {
    if (model.device() == "cpu")
      return std::make_unique<TypedObjective<T>>(model, data, options, interrupt);
    return std::make_unique<ModelObjective<T>>(model, data, options, interrupt);
  };
  return model.description().dtype == DType::kFloat64 ? make(0.0) : make(0.0f);
}

template <class T>
TypedObjective<T>::TypedObjective(const Model& model, const Data& data,
                                  const ObjectiveOptions& options, const Interrupt& interrupt,
                                  const cpu::Kernels<T>& kernels)
    : plan_(compile(model.description())),
      walk_plan_(compile(model.description(), false)),
      kernels_(kernels),
      options_(options),
      data_(data),
      threads_(model.threads()),
      step_(static_cast<std::uint64_t>(model.steps_done())),
      tasks_(list_updates(plan_)),
      parameters_(plan_),
      arena_(plan_.arena_size) {
  targets_ = check_data({plan_, "Objective", false, threads_, interrupt}, data_);
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

  Batch all = batch_of({0, rows});
  total_weight_ = static_cast<double>(rows);
  if (all.weighted()) {
    std::vector<double> blocks(static_cast<std::size_t>(row_blocks_of(rows)));
    total_weight_ = total_weight<T>(
        all, [](std::int64_t r) { return r; }, blocks.data(), threads_, interrupt, "Objective");
  }
  if (coupled) check_total_weight(plan_, total_weight_, "Objective");
  scale_ = loss_scale(plan_, total_weight_);

  take_state(model);
}

template <class T>
void TypedObjective<T>::take_state(const Model& model) {
  std::vector<T> flat;
  std::int64_t size = 0;
  for (const BatchNormState& state : plan_.states) size += 2 * state.width;
  flat.resize(static_cast<std::size_t>(size));
  model.get_state(flat.data());
  auto from = flat.begin();
  for (const BatchNormState& state : plan_.states) {
    for (T* to : {parameters_.running_mean(state), parameters_.running_var(state)}) {
      const auto end = from + state.width;
      if (!std::equal(from, end, to)) forward_ready_ = backward_ready_ = false;
      std::copy(from, end, to);
      from = end;
    }
  }
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
Batch TypedObjective<T>::batch_of(const Chunk& chunk) const {
  Batch batch;
  batch.data = &data_;
  batch.targets = targets_;
  batch.first = chunk.first;
  batch.rows = chunk.rows;
  batch.classes = plan_.out_features;
  batch.fill_weights = batch_statistics() && plan_.has_weighted_batch_norm();
  return batch;
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
template <class Body>
void TypedObjective<T>::run(const char* operation, std::int64_t rows, double passes, Body&& body) {
  if (ThreadPool::shared().run(useful_threads(plan_, rows, passes, threads_), body, interrupt_))
    throw Interrupted(concat("[", operation, "] interrupted"));
}

template <class T>
template <class Body>
void TypedObjective<T>::for_chunks(Body&& body) {
  for (std::int64_t first = 0; first < rows(); first += chunk_rows_) {
    const std::int64_t count = std::min(chunk_rows_, rows() - first);
    body(Chunk{first, count, first == 0, first + count == rows()});
  }
}

template <class T>
void TypedObjective<T>::set_point(const char* operation, const double* theta) {
  const auto size = static_cast<std::size_t>(dimension());
  if (point_set_ && std::memcmp(point_.data(), theta, size * sizeof(double)) == 0) return;
  point_set_ = forward_ready_ = backward_ready_ = false;
  point_.assign(theta, theta + size);
  run(operation, kRowBlock, 1.0, [&](Team& team) {
    team.for_each(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t t) {
      pack_task(plan_, tasks_[static_cast<std::size_t>(t)], theta, parameters_.values.data(),
                parameters_.transposed.data());
    });
  });
  point_set_ = true;
}

template <class T>
void TypedObjective<T>::set_direction(const char* operation, const double* v) {
  run(operation, kRowBlock, 1.0, [&](Team& team) {
    team.for_each(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t t) {
      pack_task(plan_, tasks_[static_cast<std::size_t>(t)], v, direction_->values.data(),
                direction_->transposed.data());
    });
  });
}

template <class T>
Workspace<T>& TypedObjective<T>::plain_workspace() {
  if (!workspace_) workspace_ = std::make_unique<Workspace<T>>(plan_, chunk_rows_, true);
  return *workspace_;
}

template <class T>
void TypedObjective<T>::reserve_walk() {
  if (tangents_) return;
  auto direction = std::make_unique<Parameters<T>>(walk_plan_);
  auto values = std::make_unique<Workspace<T>>(walk_plan_, chunk_rows_, true);
  tangents_ = std::make_unique<Workspace<T>>(walk_plan_, chunk_rows_, true);
  direction_ = std::move(direction);
  values_ = std::move(values);
}

template <class T>
void TypedObjective<T>::reserve_sums() {
  if (chunk_rows_ == rows() || sums_.size() != 0) return;
  rest_ = Arena<double>(plan_.arena_size);
  sums_ = Arena<double>(plan_.arena_size);
}

template <class T>
void TypedObjective<T>::deliver(Team& team, const Chunk& chunk, double* out) {
  const auto unpack = [&](const auto* arena) {
    team.for_each(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t t) {
      unpack_task(plan_, tasks_[static_cast<std::size_t>(t)], arena, out);
    });
  };
  if (chunk.begins && chunk.ends) return unpack(arena_.data());
  team.for_each(ceil_div(arena_.size(), kElements), [&](std::int64_t part) {
    const std::int64_t end = std::min(arena_.size(), (part + 1) * kElements);
    for (std::int64_t i = part * kElements; i < end; ++i) {
      if (chunk.begins) sums_[i] = rest_[i] = 0.0;
      add_compensated(sums_[i], rest_[i], static_cast<double>(arena_[i]));
      if (chunk.ends) sums_[i] += rest_[i];
    }
  });
  if (chunk.ends) unpack(sums_.data());
}

// ---- value and gradient -------------------------------------------------------------------------

template <class T>
double TypedObjective<T>::custom_loss(Workspace<T>& workspace, bool gradient) {
  const Panels<T> outputs = workspace.value(plan_.output);
  const auto size = static_cast<std::size_t>(outputs.rows * outputs.width);
  std::vector<T> predictions(size), slopes(size);
  kernels_.scatter(outputs, {0, outputs.rows}, predictions.data(), outputs.width);
  for (std::int64_t r = 0; r < outputs.rows; ++r) workspace.row_index[r] = r;
  const double value = options_.custom_loss(predictions.data(), workspace.row_index.data(),
                                            outputs.rows, slopes.data());
  if (gradient)
    kernels_.gather(ArrayView::matrix(slopes.data(), outputs.rows, outputs.width), nullptr, 0,
                    {0, outputs.rows}, workspace.gradient(plan_.output));
  return value;
}

template <class T>
double TypedObjective<T>::evaluate(const double* theta, double* gradient) {
  const char* const operation = gradient ? "grad" : "value";
  set_point(operation, theta);
  Workspace<T>& workspace = plain_workspace();
  if (gradient) reserve_sums();
  double loss = 0.0;
  double rest = 0.0;
  for_chunks([&](const Chunk& chunk) {
    workspace.set_rows(chunk.rows);
    const Pass pass = pass_of(chunk);
    const Batch batch = batch_of(chunk);
    LossTotals totals;
    const auto ahead = [&](Team& team, Executor<CpuBackend<T>>& executor) {
      gather(team, batch, kernels_, workspace);
      executor.forward(pass);
    };
    const auto back = [&](Team& team, Executor<CpuBackend<T>>& executor) {
      if (!gradient) return;
      executor.backward(pass);
      executor.gradients(arena_.data(), false, [](int) { return true; });
      deliver(team, chunk, gradient);
    };
    const auto region = [&](auto&& body) {
      run(operation, chunk.rows, gradient ? 3.0 : 1.0, [&](Team& team) {
        CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team);
        Executor<CpuBackend<T>> executor(backend);
        body(team, executor);
      });
    };
    if (custom()) {
      region(ahead);
      loss = custom_loss(workspace, gradient != nullptr);
      region(back);
      return;
    }
    region([&](Team& team, Executor<CpuBackend<T>>& executor) {
      ahead(team, executor);
      executor.loss(pass, request(gradient ? scale_ : 0.0), &totals);
      back(team, executor);
    });
    add_compensated(loss, rest, totals.loss);
  });
  return custom() ? loss : (loss + rest) * scale_;
}

// ---- products -----------------------------------------------------------------------------------

// Values and tangents on one thread of a team.
template <class T>
class TypedObjective<T>::Walk {
 public:
  Walk(TypedObjective& objective, Team& team)
      : backend(objective.walk_plan_, objective.parameters_, *objective.direction_,
                *objective.values_, *objective.tangents_, objective.kernels_, team),
        values(backend),
        tangents(backend) {}

  CpuTangentBackend<T> backend;
  Executor<CpuBackend<T>> values;
  TangentExecutor<CpuTangentBackend<T>> tangents;
};

template <class T>
void TypedObjective<T>::check_products(const char* operation) const {
  expect<ValueError>(!custom(), "[", operation,
                     "] expected a loss with second derivatives, got a loss function; use one of "
                     "thalweg.losses");
}

template <class T>
void TypedObjective<T>::check_finite(const char* operation, const double* out,
                                     std::int64_t count) const {
  if (cpu::kernels<double>().finite(out, count)) return;
  throw NonFiniteError(
      concat("[", operation,
             "] expected a finite product, got a non-finite one; the first non-finite values come "
             "out of ",
             first_not_finite(), ". Look at the parameters, the direction and the data"),
      static_cast<std::int64_t>(step_), first_not_finite());
}

// In the order in which a product computes them; of the last chunk.
template <class T>
std::string TypedObjective<T>::first_not_finite() const {
  const auto bad = [&](const Panels<T>& values) {
    return !kernels_.finite(values.data, values.size());
  };
  const std::vector<Node>& nodes = walk_plan_.nodes;
  for (Workspace<T>* pass : {values_.get(), tangents_.get()})
    for (const Node& node : nodes)
      if (bad(pass->value(node.output))) return node.layer;
  for (Workspace<T>* pass : {values_.get(), tangents_.get()})
    for (auto node = nodes.rbegin(); node != nodes.rend(); ++node)
      if (bad(pass->gradient(node->output))) return "the gradient of " + node->layer;
  return "the products with gradients";
}

template <class T>
void TypedObjective<T>::multiply(const char* operation, Curvature curvature, const double* theta,
                                 const double* v, double* out) {
  check_products(operation);
  const bool hessian = curvature == Curvature::kHessian;
  reserve_walk();
  set_point(operation, theta);
  set_direction(operation, v);
  reserve_sums();
  for_chunks([&](const Chunk& chunk) {
    const bool only = chunk.begins && chunk.ends;
    const bool forward = !(only && forward_ready_);
    const bool backward = hessian && !(only && backward_ready_);
    if (forward) forward_ready_ = backward_ready_ = false;
    values_->set_rows(chunk.rows);
    tangents_->set_rows(chunk.rows);
    const Pass pass = pass_of(chunk);
    const Batch batch = batch_of(chunk);
    const LossRequest loss = request(scale_);
    LossTotals totals;
    run(operation, chunk.rows, hessian ? 8.0 : 5.0, [&](Team& team) {
      Walk walk(*this, team);
      if (forward) {
        gather(team, batch, kernels_, *values_);
        walk.values.forward(pass);
      }
      if (backward) {
        walk.values.loss(pass, loss, &totals);
        walk.values.backward(pass);
      }
      walk.tangents.forward(pass);
      walk.tangents.loss(loss);
      walk.tangents.backward(pass, curvature);
      walk.tangents.gradients(curvature, arena_.data());
      deliver(team, chunk, out);
    });
    forward_ready_ = only;
    backward_ready_ = only && (hessian || backward_ready_);
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
void TypedObjective<T>::store(Team& team, const Panels<T>& panels, std::int64_t first,
                              double* out) const {
  team.for_each(row_blocks_of(panels.rows), [&](std::int64_t block) {
    const Range range = row_block(block, panels.rows);
    for (std::int64_t r = range.begin; r < range.end; ++r)
      for (std::int64_t p = 0; p < panels.panels(); ++p)
        std::copy_n(panels.row(p, r), panels.lanes(p),
                    out + (first + r) * panels.width + p * kPanel);
  });
}

template <class T>
void TypedObjective<T>::load(Team& team, const double* in, std::int64_t first,
                             const Panels<T>& panels) const {
  team.for_each(row_blocks_of(panels.rows), [&](std::int64_t block) {
    const Range range = row_block(block, panels.rows);
    for (std::int64_t r = range.begin; r < range.end; ++r)
      for (std::int64_t p = 0; p < panels.panels(); ++p) {
        const double* from = in + (first + r) * panels.width + p * kPanel;
        std::transform(from, from + panels.lanes(p), panels.row(p, r),
                       [](double x) { return static_cast<T>(x); });
        std::fill(panels.row(p, r) + panels.lanes(p), panels.row(p, r) + kPanel, T(0));
      }
  });
}

template <class T>
void TypedObjective<T>::jacobian_product(const double* theta, const double* v, double* out) {
  reserve_walk();
  set_point("jvp", theta);
  set_direction("jvp", v);
  for_chunks([&](const Chunk& chunk) {
    const bool only = chunk.begins && chunk.ends;
    const bool forward = !(only && forward_ready_);
    if (forward) forward_ready_ = backward_ready_ = false;
    values_->set_rows(chunk.rows);
    tangents_->set_rows(chunk.rows);
    const Pass pass = pass_of(chunk);
    const Batch batch = batch_of(chunk);
    run("jvp", chunk.rows, 3.0, [&](Team& team) {
      Walk walk(*this, team);
      if (forward) {
        gather(team, batch, kernels_, *values_);
        walk.values.forward(pass);
      }
      walk.tangents.forward(pass);
      store(team, tangents_->value(walk_plan_.output), chunk.first, out);
    });
    forward_ready_ = only;
  });
  check_finite("jvp", out, rows() * out_features());
}

template <class T>
void TypedObjective<T>::jacobian_transposed_product(const double* theta, const double* u,
                                                    double* out) {
  reserve_walk();
  set_point("vjp", theta);
  reserve_sums();
  for_chunks([&](const Chunk& chunk) {
    const bool only = chunk.begins && chunk.ends;
    const bool forward = !(only && forward_ready_);
    if (forward) forward_ready_ = backward_ready_ = false;
    values_->set_rows(chunk.rows);
    tangents_->set_rows(chunk.rows);
    const Pass pass = pass_of(chunk);
    const Batch batch = batch_of(chunk);
    run("vjp", chunk.rows, 3.0, [&](Team& team) {
      Walk walk(*this, team);
      if (forward) {
        gather(team, batch, kernels_, *values_);
        walk.values.forward(pass);
      }
      load(team, u, chunk.first, tangents_->gradient(walk_plan_.output));
      walk.tangents.backward(pass, Curvature::kGaussNewton);
      walk.tangents.gradients(Curvature::kGaussNewton, arena_.data());
      deliver(team, chunk, out);
    });
    forward_ready_ = only;
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
void TypedObjective<T>::example_pass(const char* operation, const Chunk& chunk) {
  forward_ready_ = backward_ready_ = false;
  values_->set_rows(chunk.rows);
  const Pass pass = pass_of(chunk);
  const Batch batch = batch_of(chunk);
  LossRequest loss = request(loss_scale(plan_, 1.0));
  loss.weighted = false;
  LossTotals totals;
  run(operation, chunk.rows, 3.0, [&](Team& team) {
    Walk walk(*this, team);
    gather(team, batch, kernels_, *values_);
    walk.values.forward(pass);
    walk.values.loss(pass, loss, &totals);
    walk.values.backward(pass);
  });
}

template <class T>
void TypedObjective<T>::example_gradients(const double* theta, std::int64_t first,
                                          std::int64_t count, void* out) {
  const char* const operation = "per_example_grads";
  check_examples(operation);
  expect<ValueError>(first >= 0 && count >= 0 && first + count <= rows(), "[", operation,
                     "] expected rows inside [0, ", rows(), "), got [", first, ", ", first + count,
                     ")");
  reserve_walk();
  set_point(operation, theta);
  const std::int64_t size = dimension();
  for (std::int64_t begin = first; begin < first + count; begin += chunk_rows_) {
    const Chunk chunk{begin, std::min(chunk_rows_, first + count - begin)};
    example_pass(operation, chunk);
    run(operation, chunk.rows, 3.0, [&](Team& team) {
      team.for_each(chunk.rows, [&](std::int64_t r) {
        T* const row = static_cast<T*>(out) + (begin - first + r) * size;
        const auto flat = [&](int tensor) { return row + plan_.tensors[tensor].flat_offset; };
        const auto copy = [&](const Panels<T>& from, T* to) {
          for (std::int64_t p = 0; p < from.panels(); ++p)
            std::copy_n(from.row(p, r), from.lanes(p), to + p * kPanel);
        };
        for (const Node& node : walk_plan_.nodes) {
          const Panels<T> dy = values_->gradient(node.output);
          const Panels<T> x = values_->value(node.input);
          if (node.weight >= 0) {
            T* to = flat(node.weight);
            for (std::int64_t o = 0; o < dy.width; ++o) {
              const T slope = dy.row(o / kPanel, r)[o % kPanel];
              for (std::int64_t p = 0; p < x.panels(); ++p) {
                const T* from = x.row(p, r);
                for (std::int64_t j = 0; j < x.lanes(p); ++j) *to++ = slope * from[j];
              }
            }
          }
          if (node.bias >= 0) copy(dy, flat(node.bias));
          if (node.state < 0) continue;
          copy(dy, flat(node.beta));
          T* to = flat(node.gamma);
          for (std::int64_t c = 0; c < dy.width; ++c)
            to[c] = dy.row(c / kPanel, r)[c % kPanel] *
                    ((x.row(c / kPanel, r)[c % kPanel] - values_->mean(node.state)[c]) *
                     values_->inv_std(node.state)[c]);
        }
      });
    });
  }
}

template <class T>
void TypedObjective<T>::example_gradient_norms(const double* theta, double* out) {
  const char* const operation = "per_example_grad_norms";
  check_examples(operation);
  reserve_walk();
  set_point(operation, theta);
  for_chunks([&](const Chunk& chunk) {
    example_pass(operation, chunk);
    run(operation, chunk.rows, 1.0, [&](Team& team) {
      team.for_each(chunk.rows, [&](std::int64_t r) {
        const auto squares = [&](const Panels<T>& values) {
          double sum = 0.0;
          for (std::int64_t p = 0; p < values.panels(); ++p)
            for (std::int64_t j = 0; j < values.lanes(p); ++j) {
              const auto x = static_cast<double>(values.row(p, r)[j]);
              sum += x * x;
            }
          return sum;
        };
        double total = 0.0;
        for (const Node& node : walk_plan_.nodes) {
          const Panels<T> dy = values_->gradient(node.output);
          const Panels<T> x = values_->value(node.input);
          // The gradient of a weight is the outer product of two vectors.
          if (node.weight >= 0) total += squares(dy) * (squares(x) + (node.bias >= 0 ? 1.0 : 0.0));
          if (node.state < 0) continue;
          for (std::int64_t c = 0; c < dy.width; ++c) {
            const auto slope = static_cast<double>(dy.row(c / kPanel, r)[c % kPanel]);
            const double normalized = (static_cast<double>(x.row(c / kPanel, r)[c % kPanel]) -
                                       static_cast<double>(values_->mean(node.state)[c])) *
                                      static_cast<double>(values_->inv_std(node.state)[c]);
            total += slope * slope * (1.0 + normalized * normalized);
          }
        }
        out[chunk.first + r] = std::sqrt(total);
      });
    });
  });
}

// ---- paths --------------------------------------------------------------------------------------

template <class T>
void TypedObjective<T>::path_scales(const double* theta, double* kappa) {
  thalweg::path_scales(plan_, theta, 2.0, kappa);
}

template class TypedObjective<float>;
template class TypedObjective<double>;

}  // namespace thalweg
