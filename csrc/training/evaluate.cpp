// Pure passes: evaluation, prediction, loss and gradient. They write to workspaces of their own and
// may run from many threads at once.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "math/activations.h"
#include "math/losses.h"
#include "training/typed_model.h"

namespace thalweg {
namespace {

// Rows of one pass: whole row blocks, so that sums over rows do not depend on the batch size.
std::int64_t inference_rows(std::int64_t rows, std::int64_t batch_size) {
  return std::min(round_up(std::min(batch_size, rows), kRowBlock), rows);
}

}  // namespace

template <class T>
class TypedModel<T>::Lease {
 public:
  Lease(const TypedModel& model, std::int64_t rows, bool gradients) : model_(model) {
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
  const TypedModel& model_;
  std::unique_ptr<Workspace<T>> workspace_;
};

template <class T>
template <class Visit>
void TypedModel<T>::infer(const ArrayView& x, std::int64_t batch_size, const Interrupt& interrupt,
                          const char* operation, Visit&& visit) const {
  expect<ValueError>(batch_size >= 1, "[", operation, "] expected batch_size >= 1, got ",
                     batch_size);
  const std::int64_t chunk = inference_rows(x.rows, batch_size);
  const Lease workspace(*this, chunk, false);
  Data data;
  data.x = x;
  for (std::int64_t first = 0; first < x.rows; first += chunk) {
    Batch batch;
    batch.data = &data;
    batch.first = first;
    batch.rows = std::min(chunk, x.rows - first);
    workspace->set_rows(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        threads_for(batch.rows, 1.0),
        [&](Team& team) {
          gather(team, batch, kernels_, *workspace);
          CpuBackend<T> backend(plan_, parameters_, *workspace, kernels_, team);
          Executor(backend).forward(Pass{});
          visit(team, *workspace, batch);
        },
        interrupt);
    if (interrupted) throw Interrupted(concat("[", operation, "] interrupted"));
  }
}

template <class T>
double TypedModel<T>::call_custom_loss(Workspace<T>& workspace, int output, const CustomLoss& loss,
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
  }
  return value;
}

template <class T>
Metrics TypedModel<T>::evaluate(const Data& data, std::int64_t batch_size,
                                const Interrupt& interrupt) const {
  const Targets targets = check_data(data_check("evaluate", false, interrupt), data);
  const bool custom = plan_.description.loss.kind == LossDescription::Kind::kCustom;
  expect<ValueError>(
      !custom || custom_loss_,
      "[evaluate] expected a loss callable for a model with a custom loss, got none");
  expect<ValueError>(batch_size >= 1, "[evaluate] expected batch_size >= 1, got ", batch_size);
  const std::int64_t rows = data.x.rows;
  const std::int64_t chunk = inference_rows(rows, batch_size);
  const Lease workspace(*this, chunk, false);
  LossTotals sum;
  for (std::int64_t first = 0; first < rows; first += chunk) {
    Batch batch;
    batch.data = &data;
    batch.targets = targets;
    batch.first = first;
    batch.rows = std::min(chunk, rows - first);
    batch.classes = plan_.out_features;
    workspace->set_rows(batch.rows);
    const bool interrupted = ThreadPool::shared().run(
        threads_for(batch.rows, 1.0),
        [&](Team& team) {
          gather(team, batch, kernels_, *workspace);
          CpuBackend<T> backend(plan_, parameters_, *workspace, kernels_, team);
          Executor executor(backend);
          executor.forward(Pass{});
          if (!custom)
            executor.loss(Pass{}, {0.0, batch.weighted(), targets == Targets::kDense}, &sum);
        },
        interrupt);
    if (interrupted) throw Interrupted("[evaluate] interrupted");
    if (custom) {
      for (std::int64_t r = 0; r < batch.rows; ++r) workspace->row_index[r] = first + r;
      const int output = plan_.value_holder(plan_.output, true);
      const auto weight = static_cast<double>(batch.rows);
      sum.loss += weight * call_custom_loss(*workspace, output, custom_loss_, 0.0);
      sum.weight += weight;
    }
  }
  return metrics_of(sum);
}

template <class T>
void TypedModel<T>::predict(const ArrayView& x, std::int64_t batch_size, void* out,
                            const Interrupt& interrupt) const {
  check_input(data_check("predict", false, interrupt), x);
  const std::int64_t width = plan_.out_features;
  infer(x, batch_size, interrupt, "predict",
        [&](Team& team, Workspace<T>& workspace, const Batch& batch) {
          const Panels<T> outputs = workspace.value(plan_.value_holder(plan_.output, true));
          T* to = static_cast<T*>(out) + batch.first * width;
          team.for_each(row_blocks_of(batch.rows), [&](std::int64_t block) {
            const Range rows = row_block(block, batch.rows);
            kernels_.scatter(outputs, rows, to, width);
          });
        });
}

template <class T>
void TypedModel<T>::predict_probabilities(const ArrayView& x, std::int64_t batch_size, void* out,
                                          const Interrupt& interrupt) const {
  check_input(data_check("predict_proba", false, interrupt), x);
  const LossDescription& loss = plan_.description.loss;
  const bool softmax = loss.kind == LossDescription::Kind::kCrossEntropy;
  const bool elementwise = loss.kind == LossDescription::Kind::kElementwise;
  // P(+1) is the sigmoid of the output, and of twice the output where exp(-t z) is minimized
  // (Friedman, Hastie, Tibshirani 2000).
  const bool exponential = elementwise && loss.elementwise == kLossExponential;
  expect<ValueError>(softmax || exponential ||
                         (elementwise && (loss.elementwise == kLossBinaryCrossEntropy ||
                                          loss.elementwise == kLossLogistic)),
                     "[predict_proba] expected a model with a loss of class probabilities "
                     "(cross_entropy, binary_cross_entropy, logistic, exponential); use predict");
  const std::int64_t width = plan_.out_features;
  infer(x, batch_size, interrupt, "predict_proba",
        [&](Team& team, Workspace<T>& workspace, const Batch& batch) {
          const Panels<T> outputs = workspace.value(plan_.value_holder(plan_.output, true));
          const Panels<T> probabilities{workspace.targets.data(), batch.rows, width};
          T* to = static_cast<T*>(out) + batch.first * width;
          team.for_each(row_blocks_of(batch.rows), [&](std::int64_t block) {
            const Range rows = row_block(block, batch.rows);
            const Range panels{0, probabilities.panels()};
            if (softmax) {
              kernels_.softmax(outputs, probabilities, rows);
            } else if (exponential) {
              kernels_.add(outputs, outputs, probabilities, rows, panels);
              kernels_.activation(probabilities, probabilities, {kActivationSigmoid, 0.0}, rows,
                                  panels);
            } else {
              kernels_.activation(outputs, probabilities, {kActivationSigmoid, 0.0}, rows, panels);
            }
            kernels_.scatter(probabilities, rows, to, width);
          });
        });
}

template <class T>
void TypedModel<T>::activations(const ArrayView& x, bool training, const std::vector<void*>& out,
                                const Interrupt& interrupt) const {
  check_input(data_check("activations", false, interrupt), x);
  expect<ValueError>(out.size() == plan_.layers.size(), "[activations] expected ",
                     plan_.layers.size(), " outputs, one per layer, got ", out.size());
  if (training) check_batch(x.rows, "activations");
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
  pass.step = static_cast<std::uint64_t>(cursor_.steps);
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
      interrupt);
  if (interrupted) throw Interrupted("[activations] interrupted");
}

template <class T>
Metrics TypedModel<T>::loss_and_gradient(const Data& data, const GradientOptions& options,
                                         void* gradient, void* input_gradient) const {
  const Targets targets = check_data(data_check("loss_and_grad", false, options.interrupt), data);
  if (options.training) check_batch(data.x.rows, "loss_and_grad");
  const bool custom = plan_.description.loss.kind == LossDescription::Kind::kCustom;
  const CustomLoss& custom_loss = options.custom_loss ? options.custom_loss : custom_loss_;
  expect<ValueError>(!custom || custom_loss,
                     "[loss_and_grad] expected a loss callable for a model with a custom loss, got "
                     "none");
  const std::int64_t rows = data.x.rows;
  Batch batch;
  batch.data = &data;
  batch.targets = targets;
  batch.rows = rows;
  batch.classes = plan_.out_features;
  batch.fill_weights = options.training && plan_.has_weighted_batch_norm();
  const bool with_gradient = gradient != nullptr || input_gradient != nullptr;
  const Lease workspace(*this, rows, with_gradient);
  double weight = static_cast<double>(rows);
  if (batch.weighted())
    weight = total_weight<T>(
        batch, [](std::int64_t r) { return r; }, workspace->block_weights.data(), threads_,
        options.interrupt, "loss_and_grad");
  if (options.training) check_total_weight(weight, "loss_and_grad");

  const Parameters<T>& parameters = input_gradient ? with_fresh_transposed() : parameters_;
  Pass pass;
  pass.mode = options.training ? Mode::kTraining : with_gradient ? Mode::kFrozen : Mode::kInference;
  pass.seed = plan_.description.seed;
  pass.step = static_cast<std::uint64_t>(cursor_.steps);
  pass.total_weight = weight;
  pass.input_gradient = input_gradient != nullptr;
  LossTotals totals;
  Arena<T> gradients(gradient ? plan_.arena_size : 0);

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
    if (gradient) executor.gradients(gradients.data(), false, [](int) { return true; });
    if (input_gradient) {
      const Panels<T> dx = workspace->gradient(0);
      team.for_each(row_blocks_of(rows), [&](std::int64_t block) {
        kernels_.scatter(dx, row_block(block, rows), static_cast<T*>(input_gradient), dx.width);
      });
    }
  };
  const auto run = [&](const auto& body) {
    if (ThreadPool::shared().run(threads_for(rows, 3.0), body, options.interrupt))
      throw Interrupted("[loss_and_grad] interrupted");
  };
  if (custom) {
    run(ahead);
    for (std::int64_t r = 0; r < rows; ++r) workspace->row_index[r] = r;
    totals.weight = weight;
    totals.loss = call_custom_loss(*workspace,
                                   plan_.value_holder(plan_.output, pass.mode == Mode::kInference),
                                   custom_loss, 1.0) /
                  loss_scale(weight);
    run(back);
  } else {
    run([&](Team& team) {
      ahead(team);
      CpuBackend<T> backend(plan_, parameters, *workspace, kernels_, team);
      Executor(backend).loss(
          pass,
          {with_gradient ? loss_scale(weight) : 0.0, batch.weighted(), targets == Targets::kDense},
          &totals);
      back(team);
    });
  }
  if (gradient) unpack_flat(plan_, gradients.data(), static_cast<T*>(gradient));
  return metrics_of(totals);
}

#define TW_INSTANTIATE(T)                                                                        \
  template Metrics TypedModel<T>::evaluate(const Data&, std::int64_t, const Interrupt&) const;   \
  template void TypedModel<T>::predict(const ArrayView&, std::int64_t, void*, const Interrupt&)  \
      const;                                                                                     \
  template void TypedModel<T>::predict_probabilities(const ArrayView&, std::int64_t, void*,      \
                                                     const Interrupt&) const;                    \
  template void TypedModel<T>::activations(const ArrayView&, bool, const std::vector<void*>&,    \
                                           const Interrupt&) const;                              \
  template Metrics TypedModel<T>::loss_and_gradient(const Data&, const GradientOptions&, void*,  \
                                                    void*) const;                                \
  template double TypedModel<T>::call_custom_loss(Workspace<T>&, int, const CustomLoss&, double) \
      const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
