// The passes of an objective on the CPU: parallel regions in which every thread walks.
#include "training/cpu_objective.h"

#include <algorithm>

#include "math/compensated_sum.h"
#include "network/flat.h"

namespace thalweg {
namespace {

// Elements of an arena between two looks at the interrupt.
constexpr std::int64_t kElements = std::int64_t{1} << 16;

}  // namespace

template <class T>
CpuObjective<T>::CpuObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
                              const Interrupt& interrupt, const cpu::Kernels<T>& kernels)
    : TypedObjective<T>(model, data, options, interrupt),
      kernels_(kernels),
      tasks_(list_updates(plan_)),
      parameters_(plan_),
      arena_(plan_.arena_size) {
  this->take_state(model);
}

template <class T>
void CpuObjective<T>::load_state(const T* flat) {
  for (const BatchNormState& state : plan_.states) {
    for (T* to : {parameters_.running_mean(state), parameters_.running_var(state)}) {
      std::copy_n(flat, state.width, to);
      flat += state.width;
    }
  }
}

template <class T>
void CpuObjective<T>::pack(const char* operation, const double* flat, Parameters<T>& parameters) {
  this->run(operation, kRowBlock, 1.0, [&](Team& team) {
    team.for_each(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t t) {
      pack_task(plan_, tasks_[static_cast<std::size_t>(t)], flat, parameters.values.data(),
                parameters.transposed.data());
    });
  });
}

template <class T>
void CpuObjective<T>::load_point(const char* operation, const double* theta) {
  pack(operation, theta, parameters_);
}

template <class T>
void CpuObjective<T>::load_direction(const char* operation, const double* v) {
  reserve_walk();
  pack(operation, v, *direction_);
}

template <class T>
Batch CpuObjective<T>::batch_of(const Chunk& chunk) const {
  Batch batch;
  batch.data = &data_;
  batch.targets = this->targets_;
  batch.first = chunk.first;
  batch.rows = chunk.rows;
  batch.classes = plan_.out_features;
  batch.fill_weights = this->batch_statistics() && plan_.has_weighted_batch_norm();
  return batch;
}

template <class T>
void CpuObjective<T>::reserve_walk() {
  if (tangents_) return;
  auto direction = std::make_unique<Parameters<T>>(walk_plan_);
  auto values = std::make_unique<Workspace<T>>(walk_plan_, this->chunk_rows_, true);
  tangents_ = std::make_unique<Workspace<T>>(walk_plan_, this->chunk_rows_, true);
  direction_ = std::move(direction);
  values_ = std::move(values);
}

template <class T>
void CpuObjective<T>::reserve_sums(const Chunk& chunk) {
  if (chunk.only() || sums_.size() != 0) return;
  rest_ = Arena<double>(plan_.arena_size);
  sums_ = Arena<double>(plan_.arena_size);
}

template <class T>
void CpuObjective<T>::deliver(Team& team, const Chunk& chunk, double* out) {
  const auto unpack = [&](const auto* arena) {
    team.for_each(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t t) {
      unpack_task(plan_, tasks_[static_cast<std::size_t>(t)], arena, out);
    });
  };
  if (chunk.only()) return unpack(arena_.data());
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
double CpuObjective<T>::custom_loss(bool gradient) {
  Workspace<T>& workspace = *workspace_;
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
double CpuObjective<T>::evaluate_chunk(const char* operation, const Chunk& chunk,
                                       double* gradient) {
  if (!workspace_) workspace_ = std::make_unique<Workspace<T>>(plan_, this->chunk_rows_, true);
  Workspace<T>& workspace = *workspace_;
  if (gradient) reserve_sums(chunk);
  workspace.set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const Batch batch = batch_of(chunk);
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
    this->run(operation, chunk.rows, gradient ? 3.0 : 1.0, [&](Team& team) {
      CpuBackend<T> backend(plan_, parameters_, workspace, kernels_, team);
      Executor<CpuBackend<T>> executor(backend);
      body(team, executor);
    });
  };
  if (this->custom()) {
    region(ahead);
    const double loss = custom_loss(gradient != nullptr);
    region(back);
    return loss;
  }
  LossTotals totals;
  region([&](Team& team, Executor<CpuBackend<T>>& executor) {
    ahead(team, executor);
    executor.loss(pass, this->request(gradient ? this->scale_ : 0.0), &totals);
    back(team, executor);
  });
  return totals.loss;
}

// ---- products -----------------------------------------------------------------------------------

// Values and tangents on one thread of a team.
template <class T>
class CpuObjective<T>::Walk {
 public:
  Walk(CpuObjective& objective, Team& team)
      : backend(objective.walk_plan_, objective.parameters_, *objective.direction_,
                *objective.values_, *objective.tangents_, objective.kernels_, team),
        values(backend),
        tangents(backend) {}

  CpuTangentBackend<T> backend;
  Executor<CpuBackend<T>> values;
  TangentExecutor<CpuTangentBackend<T>> tangents;
};

// In the order in which a product computes them; of the last chunk.
template <class T>
std::string CpuObjective<T>::first_not_finite() {
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
void CpuObjective<T>::multiply_chunk(const char* operation, const Chunk& chunk, Curvature curvature,
                                     const Passes& passes, double* out) {
  reserve_sums(chunk);
  values_->set_rows(chunk.rows);
  tangents_->set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const Batch batch = batch_of(chunk);
  const LossRequest loss = this->request(this->scale_);
  LossTotals totals;
  this->run(operation, chunk.rows, curvature == Curvature::kHessian ? 8.0 : 5.0, [&](Team& team) {
    Walk walk(*this, team);
    if (passes.forward) {
      gather(team, batch, kernels_, *values_);
      walk.values.forward(pass);
    }
    if (passes.backward) {
      walk.values.loss(pass, loss, &totals);
      walk.values.backward(pass);
    }
    walk.tangents.forward(pass);
    walk.tangents.loss(loss);
    walk.tangents.backward(pass, curvature);
    walk.tangents.gradients(curvature, arena_.data());
    deliver(team, chunk, out);
  });
}

template <class T>
void CpuObjective<T>::store(Team& team, const Panels<T>& panels, double* out) const {
  team.for_each(row_blocks_of(panels.rows), [&](std::int64_t block) {
    const Range range = row_block(block, panels.rows);
    for (std::int64_t r = range.begin; r < range.end; ++r)
      for (std::int64_t p = 0; p < panels.panels(); ++p)
        std::copy_n(panels.row(p, r), panels.lanes(p), out + r * panels.width + p * kPanel);
  });
}

template <class T>
void CpuObjective<T>::load(Team& team, const double* in, const Panels<T>& panels) const {
  team.for_each(row_blocks_of(panels.rows), [&](std::int64_t block) {
    const Range range = row_block(block, panels.rows);
    for (std::int64_t r = range.begin; r < range.end; ++r)
      for (std::int64_t p = 0; p < panels.panels(); ++p) {
        const double* from = in + r * panels.width + p * kPanel;
        std::transform(from, from + panels.lanes(p), panels.row(p, r),
                       [](double x) { return static_cast<T>(x); });
        std::fill(panels.row(p, r) + panels.lanes(p), panels.row(p, r) + kPanel, T(0));
      }
  });
}

template <class T>
void CpuObjective<T>::jacobian_chunk(const char* operation, const Chunk& chunk,
                                     const Passes& passes, double* out) {
  values_->set_rows(chunk.rows);
  tangents_->set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const Batch batch = batch_of(chunk);
  this->run(operation, chunk.rows, 3.0, [&](Team& team) {
    Walk walk(*this, team);
    if (passes.forward) {
      gather(team, batch, kernels_, *values_);
      walk.values.forward(pass);
    }
    walk.tangents.forward(pass);
    store(team, tangents_->value(walk_plan_.output), out);
  });
}

template <class T>
void CpuObjective<T>::transposed_chunk(const char* operation, const Chunk& chunk,
                                       const Passes& passes, const double* u, double* out) {
  reserve_walk();
  reserve_sums(chunk);
  values_->set_rows(chunk.rows);
  tangents_->set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const Batch batch = batch_of(chunk);
  this->run(operation, chunk.rows, 3.0, [&](Team& team) {
    Walk walk(*this, team);
    if (passes.forward) {
      gather(team, batch, kernels_, *values_);
      walk.values.forward(pass);
    }
    load(team, u, tangents_->gradient(walk_plan_.output));
    walk.tangents.backward(pass, Curvature::kGaussNewton);
    walk.tangents.gradients(Curvature::kGaussNewton, arena_.data());
    deliver(team, chunk, out);
  });
}

template <class T>
void CpuObjective<T>::factor_chunk(const char* operation, const Chunk& chunk, RowFactors* factors) {
  reserve_walk();
  values_->set_rows(chunk.rows);
  const Pass pass = this->pass_of(chunk);
  const Batch batch = batch_of(chunk);
  LossTotals totals;
  this->run(operation, chunk.rows, 3.0, [&](Team& team) {
    Walk walk(*this, team);
    gather(team, batch, kernels_, *values_);
    walk.values.forward(pass);
    walk.values.loss(pass, this->row_request(), &totals);
    walk.values.backward(pass);
    team.for_each(row_blocks_of(chunk.rows), [&](std::int64_t block) {
      const auto copy = [&](const Panels<T>& from, std::vector<T>& to) {
        if (!to.empty())
          kernels_.scatter(from, row_block(block, chunk.rows), to.data(), from.width);
      };
      for (std::size_t b = 0; b < walk_plan_.buffers.size(); ++b) {
        copy(values_->value(static_cast<int>(b)), factors->values[b]);
        copy(values_->gradient(static_cast<int>(b)), factors->gradients[b]);
      }
    });
  });
  for (std::size_t s = 0; s < walk_plan_.states.size(); ++s) {
    const std::int64_t width = walk_plan_.states[s].width;
    std::copy_n(values_->mean(static_cast<int>(s)), width, factors->mean[s].data());
    std::copy_n(values_->inv_std(static_cast<int>(s)), width, factors->inv_std[s].data());
  }
}

template class CpuObjective<float>;
template class CpuObjective<double>;

}  // namespace thalweg
