// Pure passes on the CPU: evaluation, prediction, loss and gradient. They write to workspaces of
// their own and may run from many threads at once.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "math/activations.h"
#include "math/losses.h"
#include "training/cpu_engine.h"

namespace thalweg {
namespace {

// Values of all layers for a thread's rows, about what its second-level cache holds; and weights
// that every pass may read anew, because the last-level cache keeps them.
constexpr std::int64_t kPassBytes = std::int64_t{1} << 20;
constexpr std::int64_t kCachedWeightBytes = std::int64_t{16} << 20;

// Rows of one pass: whole row blocks, so that sums over rows do not depend on the batch size.
std::int64_t batch_rows(std::int64_t rows, std::int64_t batch_size) {
  return std::min(round_up(std::min(batch_size, rows), kRowBlock), rows);
}

// The same, but no more than about what the caches hold, at least one row block per thread, where
// that busies as many threads.
template <class T>
std::int64_t cached_rows(const Plan& plan, std::int64_t rows, std::int64_t batch_size,
                         int threads) {
  constexpr std::int64_t kBytes = sizeof(T);
  const std::int64_t asked = batch_rows(rows, batch_size);
  if (plan.arena_size * kBytes > kCachedWeightBytes) return asked;
  std::int64_t width = round_up(plan.in_features, kPanel);
  for (const Node& node : plan.nodes)
    if (runs_in_inference(node)) width += round_up(plan.buffers[node.output].width, kPanel);
  const std::int64_t blocks = (kPassBytes / (width * kBytes) + kRowBlock / 2) / kRowBlock;
  const int useful = inference_threads(plan, asked, threads);
  const std::int64_t cached =
      std::min(asked, useful * std::max(blocks, std::int64_t{1}) * kRowBlock);
  return inference_threads(plan, cached, threads) < useful ? asked : cached;
}

// Of an inference pass, those that this thread takes through all layers without a barrier: the row
// blocks that Team::for_each would give it; none when the threads share each layer.
Range own_rows(const Team& team, std::int64_t rows) {
  if (team.size() == 1 || !shares_rows(rows, team.size())) return {};
  return rows_of_blocks(team.share(row_blocks_of(rows)), rows);
}

}  // namespace

template <class T>
class CpuEngine<T>::Lease {
 public:
  Lease(const CpuEngine& model, std::int64_t rows, bool gradients) : model_(model) {
    {
      const std::lock_guard lock(model.pool_mutex_);
      auto& pool = model.pool_;
      const auto fits = [&](const auto& workspace) {
        return workspace->capacity() >= rows && workspace->has_gradients() == gradients;
      };
      const auto found = std::find_if(pool.begin(), pool.end(), fits);
      if (found != pool.end()) {
        workspace_ = std::move(*found);
        pool.erase(found);
      }
    }
    if (!workspace_) workspace_ = std::make_unique<Workspace<T>>(model.plan_, rows, gradients);
    workspace_->set_rows(rows);
  }
  ~Lease() {
    const std::lock_guard lock(model_.pool_mutex_);
    if (model_.pool_.size() >= kPooledWorkspaces) model_.pool_.erase(model_.pool_.begin());
    model_.pool_.push_back(std::move(workspace_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace<T>& operator*() const { return *workspace_; }
  Workspace<T>* operator->() const { return workspace_.get(); }

 private:
  const CpuEngine& model_;
  std::unique_ptr<Workspace<T>> workspace_;
};

template <class T>
template <class Visit>
void CpuEngine<T>::infer(const ArrayView& x, std::int64_t batch_size, const Interrupt& interrupt,
                         const char* operation, Visit&& visit) const {
  const std::int64_t chunk = cached_rows<T>(plan_, x.rows, batch_size, threads_);
  const Lease workspace(*this, chunk, false);
  Data data;
  data.x = x;
  Pass pass;
  for (std::int64_t first = 0; first < x.rows; first += chunk) {
    Batch batch;
    batch.data = &data;
    batch.first = first;
    batch.rows = std::min(chunk, x.rows - first);
    workspace->set_rows(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        inference_threads_for(batch.rows),
        [&](Team& team) {
          const Range own = own_rows(team, batch.rows);
          gather(team, batch, kernels_, *workspace, own);
          CpuBackend<T> backend(plan_, parameters_, *workspace, kernels_, team, own);
          Executor(backend).forward(pass);
          visit(team, *workspace, batch);
        },
        interrupt, Subnormals::kFlush);
    if (interrupted) throw Interrupted(concat("[", operation, "] interrupted"));
    pass.prepared = true;
  }
}

template <class T>
double CpuEngine<T>::call_custom_loss(Workspace<T>& workspace, int output, const CustomLoss& loss,
                                      double scale) const {
  const Panels<T> outputs = workspace.value(output);
  const auto size = static_cast<std::size_t>(outputs.rows * outputs.width);
  std::vector<T> predictions(size), gradient(size);
  kernels_.scatter(outputs, {0, outputs.rows}, predictions.data(), outputs.width);
  const double value =
      loss(predictions.data(), workspace.row_index.data(), outputs.rows, gradient.data());
  if (workspace.has_gradients()) {
    for (T& element : gradient) element = static_cast<T>(scale * static_cast<double>(element));
    kernels_.gather(ArrayView::matrix(gradient.data(), outputs.rows, outputs.width), nullptr, 0,
                    {0, outputs.rows}, workspace.gradient(plan_.output));
    if constexpr (std::is_same_v<T, float>) {
      const cpu::BfloatPanels pairs = workspace.gradient_pairs(plan_.output);
      if (pairs.columns)
        kernels_.round_to_bfloat16(pairs, workspace.gradient(plan_.output), {0, outputs.rows},
                                   {0, outputs.panels()});
    }
  }
  return value;
}

template <class T>
LossTotals CpuEngine<T>::evaluate(const Data& data, Targets targets, std::int64_t batch_size,
                                  const CustomLoss& custom_loss, const Interrupt& interrupt) const {
  const std::int64_t rows = data.x.rows;
  const std::int64_t chunk = custom_loss ? batch_rows(rows, batch_size)
                                         : cached_rows<T>(plan_, rows, batch_size, threads_);
  const Lease workspace(*this, chunk, false);
  LossTotals sum;
  Pass pass;
  for (std::int64_t first = 0; first < rows; first += chunk) {
    Batch batch;
    batch.data = &data;
    batch.targets = targets;
    batch.first = first;
    batch.rows = std::min(chunk, rows - first);
    batch.classes = plan_.out_features;
    workspace->set_rows(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        inference_threads_for(batch.rows),
        [&](Team& team) {
          const Range own = own_rows(team, batch.rows);
          gather(team, batch, kernels_, *workspace, own);
          CpuBackend<T> backend(plan_, parameters_, *workspace, kernels_, team, own);
          Executor executor(backend);
          executor.forward(pass);
          if (!custom_loss)
            executor.loss(pass, {0.0, batch.weighted(), targets == Targets::kDense}, &sum);
        },
        interrupt, Subnormals::kFlush);
    if (interrupted) throw Interrupted("[evaluate] interrupted");
    pass.prepared = true;
    if (custom_loss) {
      for (std::int64_t r = 0; r < batch.rows; ++r) workspace->row_index[r] = first + r;
      const int output = plan_.value_holder(plan_.output, true);
      const auto weight = static_cast<double>(batch.rows);
      sum.loss += weight * call_custom_loss(*workspace, output, custom_loss, 0.0);
      sum.weight += weight;
    }
  }
  return sum;
}

template <class T>
void CpuEngine<T>::predict(const ArrayView& x, std::int64_t batch_size, OutputMap map, T* out,
                           const Interrupt& interrupt, const char* operation) const {
  const std::int64_t width = plan_.out_features;
  infer(x, batch_size, interrupt, operation,
        [&](Team& team, Workspace<T>& workspace, const Batch& batch) {
          const Panels<T> outputs = workspace.value(plan_.value_holder(plan_.output, true));
          const Panels<T> mapped{workspace.targets.data(), batch.rows, width};
          T* to = out + batch.first * width;
          team.for_each(row_blocks_of(batch.rows), [&](std::int64_t block) {
            const Range rows = row_block(block, batch.rows);
            const Range panels{0, mapped.panels()};
            switch (map) {
              case OutputMap::kIdentity:
                kernels_.scatter(outputs, rows, to, width);
                return;
              case OutputMap::kSoftmax:
                kernels_.softmax(outputs, mapped, rows);
                break;
              case OutputMap::kSigmoid:
                kernels_.activation(outputs, mapped, {kActivationSigmoid, 0.0}, rows, panels);
                break;
              case OutputMap::kSigmoidOfTwice:
                kernels_.add(outputs, outputs, mapped, rows, panels);
                kernels_.activation(mapped, mapped, {kActivationSigmoid, 0.0}, rows, panels);
                break;
            }
            kernels_.scatter(mapped, rows, to, width);
          });
        });
}

template <class T>
void CpuEngine<T>::activations(const ArrayView& x, bool training, std::uint64_t step,
                               const std::vector<void*>& out, const Interrupt& interrupt) const {
  // Unfused, every layer has a buffer.
  const Plan plan = compile(plan_.description, false);
  Workspace<T> workspace(plan, x.rows, false);
  Data data;
  data.x = x;
  Batch batch;
  batch.data = &data;
  batch.rows = x.rows;
  batch.fill_weights = plan.has_weighted_batch_norm();
  Pass pass;
  pass.mode = training ? Mode::kTraining : Mode::kInference;
  pass.seed = plan.description.seed;
  pass.step = step;
  pass.total_weight = static_cast<double>(x.rows);
  const bool interrupted = ThreadPool::shared().run(
      threads_for(x.rows, 1.0),
      [&](Team& team) {
        gather(team, batch, kernels_, workspace);
        CpuBackend<T> backend(plan, parameters_, workspace, kernels_, team);
        Executor(backend).forward(pass);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const Panels<T> value =
              workspace.value(plan.value_holder(plan.layers[i].buffer, !training));
          team.for_each(row_blocks_of(value.rows), [&](std::int64_t block) {
            kernels_.scatter(value, row_block(block, value.rows), static_cast<T*>(out[i]),
                             value.width);
          });
        }
      },
      interrupt, Subnormals::kFlush);
  if (interrupted) throw Interrupted("[activations] interrupted");
}

template <class T>
LossTotals CpuEngine<T>::loss_and_gradient(const Data& data, Targets targets,
                                           const GradientRequest<T>& request) const {
  const std::int64_t rows = data.x.rows;
  Batch batch;
  batch.data = &data;
  batch.targets = targets;
  batch.rows = rows;
  batch.classes = plan_.out_features;
  batch.fill_weights = request.training && plan_.has_weighted_batch_norm();
  const bool with_gradient = request.gradient != nullptr || request.input_gradient != nullptr;
  const Lease workspace(*this, rows, with_gradient);
  double weight = static_cast<double>(rows);
  if (batch.weighted())
    weight = total_weight<T>(
        batch, [](std::int64_t r) { return r; }, workspace->block_weights.data(), threads_,
        request.interrupt, "loss_and_grad");
  if (request.training) check_total_weight(plan_, weight, "loss_and_grad");

  const Parameters<T>& parameters = request.input_gradient ? with_fresh_transposed() : parameters_;
  Pass pass;
  pass.mode = request.training ? Mode::kTraining : with_gradient ? Mode::kFrozen : Mode::kInference;
  pass.seed = plan_.description.seed;
  pass.step = request.step;
  pass.total_weight = weight;
  pass.input_gradient = request.input_gradient != nullptr;
  LossTotals totals;
  Arena<T> gradients(request.gradient ? plan_.arena_size : 0);

  const auto ahead = [&](Team& team) {
    gather(team, batch, kernels_, *workspace);
    CpuBackend<T> backend(plan_, parameters, *workspace, kernels_, team);
    Executor(backend).forward(pass);
  };
  const auto back = [&](Team& team) {
    if (!with_gradient) return;
    CpuBackend<T> backend(plan_, parameters, *workspace, kernels_, team);
    Executor executor(backend);
    executor.backward(pass);
    if (request.gradient) executor.gradients(gradients.data(), false, [](int) { return true; });
    if (request.input_gradient) {
      const Panels<T> dx = workspace->gradient(0);
      team.for_each(row_blocks_of(rows), [&](std::int64_t block) {
        kernels_.scatter(dx, row_block(block, rows), request.input_gradient, dx.width);
      });
    }
  };
  const auto run = [&](const auto& body) {
    if (ThreadPool::shared().run(threads_for(rows, 3.0), body, request.interrupt,
                                 Subnormals::kFlush))
      throw Interrupted("[loss_and_grad] interrupted");
  };
  if (request.custom_loss) {
    run(ahead);
    for (std::int64_t r = 0; r < rows; ++r) workspace->row_index[r] = r;
    totals.weight = weight;
    totals.loss = call_custom_loss(*workspace,
                                   plan_.value_holder(plan_.output, pass.mode == Mode::kInference),
                                   request.custom_loss, 1.0) /
                  loss_scale(plan_, weight);
    run(back);
  } else {
    run([&](Team& team) {
      ahead(team);
      CpuBackend<T> backend(plan_, parameters, *workspace, kernels_, team);
      Executor(backend).loss(pass,
                             {with_gradient ? loss_scale(plan_, weight) : 0.0, batch.weighted(),
                              targets == Targets::kDense},
                             &totals);
      back(team);
    });
  }
  if (request.gradient) unpack_flat(plan_, gradients.data(), request.gradient);
  return totals;
}

#define TW_INSTANTIATE(T)                                                                       \
  template void CpuEngine<T>::predict(const ArrayView&, std::int64_t, OutputMap, T*,            \
                                      const Interrupt&, const char*) const;                     \
  template LossTotals CpuEngine<T>::evaluate(const Data&, Targets, std::int64_t,                \
                                             const CustomLoss&, const Interrupt&) const;        \
  template void CpuEngine<T>::activations(const ArrayView&, bool, std::uint64_t,                \
                                          const std::vector<void*>&, const Interrupt&) const;   \
  template LossTotals CpuEngine<T>::loss_and_gradient(const Data&, Targets,                     \
                                                      const GradientRequest<T>&) const;         \
  template double CpuEngine<T>::call_custom_loss(Workspace<T>&, int, const CustomLoss&, double) \
      const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
