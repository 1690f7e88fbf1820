// Rows into a workspace, and waiting.
#include "training/cuda_rows.h"

#include <chrono>
#include <thread>

#include "cuda/gather.h"
#include "training/engine.h"

namespace thalweg {

Data slice(const Data& data, std::int64_t first, std::int64_t rows) {
  Data part = data;
  for (ArrayView* array : {&part.x, &part.y, &part.weights})
    if (array->present()) *array = array->slice(first, rows);
  return part;
}

template <class T>
void queue_rows(const Plan& plan, const Data& data, Targets targets, std::int64_t first,
                bool fill_weights, cuda::StepState* state, CudaWorkspace<T>& workspace,
                cudaStream_t stream) {
  cuda::RowOrder order;
  order.offset = first;
  cuda::gather<T>(data.x, order, workspace.value(0), stream);
  if (targets == Targets::kDense) cuda::gather<T>(data.y, order, workspace.targets(), stream);
  const bool weighted = data.weights.present();
  if (targets != Targets::kLabels && !weighted && !fill_weights && state == nullptr) return;
  cuda::GatherTargets<T> problem;
  problem.order = order;
  problem.rows = workspace.rows();
  if (targets == Targets::kLabels) {
    problem.labels = data.y;
    problem.classes = plan.out_features;
    problem.label_out = workspace.labels.data();
  }
  problem.weights = data.weights;
  if (weighted || fill_weights) problem.row_weights = workspace.row_weights.data();
  if (fill_weights) {
    problem.block_weights = workspace.block_weights.data();
    problem.total_weight = workspace.total_weight.data();
  }
  problem.state = state;
  problem.gradient_divisor = loss_scale_divisor(plan);
  cuda::gather_targets(problem, workspace.scratch(), stream);
}

template <class T>
double call_custom_loss(const Plan& plan, CudaWorkspace<T>& workspace, int output,
                        const std::vector<std::int64_t>& row_index, const CustomLoss& loss,
                        double scale, cudaStream_t stream) {
  constexpr const char* kOperation = "loss";
  const cuda::Matrix<T> outputs = workspace.value(output);
  const auto size = static_cast<std::size_t>(outputs.rows * outputs.width);
  std::vector<T> predictions(size), gradient(size);
  queue_download(outputs, predictions.data(), stream, kOperation);
  cuda::check(cudaStreamSynchronize(stream), kOperation);
  const double value = loss(predictions.data(), row_index.data(), outputs.rows, gradient.data());
  if (!workspace.has_gradients()) return value;
  for (T& element : gradient) element = static_cast<T>(scale * static_cast<double>(element));
  const cuda::DeviceArray<T> rows(static_cast<std::int64_t>(size), kOperation);
  cuda::upload(gradient.data(), rows.data(), rows.size(), stream, kOperation);
  cuda::pack<T>(rows.data(), outputs.width, workspace.gradient(plan.output), stream);
  cuda::check(cudaStreamSynchronize(stream), kOperation);
  return value;
}

bool wait_for(const cuda::Event& event, const Interrupt& interrupt, const char* operation) {
  constexpr std::chrono::milliseconds kAskEvery{2};
  auto asked = std::chrono::steady_clock::now();
  while (!event.done(operation)) {
    const auto now = std::chrono::steady_clock::now();
    if (interrupt && now - asked >= kAskEvery) {
      if (interrupt()) return false;
      asked = now;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

#define TW_INSTANTIATE(T)                                                                       \
  template void queue_rows(const Plan&, const Data&, Targets, std::int64_t, bool,               \
                           cuda::StepState*, CudaWorkspace<T>&, cudaStream_t);                  \
  template double call_custom_loss(const Plan&, CudaWorkspace<T>&, int,                         \
                                   const std::vector<std::int64_t>&, const CustomLoss&, double, \
                                   cudaStream_t);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
