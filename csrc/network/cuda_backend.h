// The primitives of the executor's walk on a GPU: each queues launches on a stream, allocates
// nothing and waits for nothing, so that a pass can be captured in a graph. What changes from
// replay to replay is read from device memory: of the Pass, only the mode, the seed and the first
// row are baked into the launches; the step and the loss's scale come from the StepState, the total
// weight from the workspace.
//
// Fused here, beyond what the plan says: the softmax cross-entropy with the last product, the
// gradient of a bias with the product that makes its layer's gradient, and dropout with the
// products on both sides. The derivative of the ReLU family is kept as one bit per element.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/error.h"
#include "cuda/dropout.h"
#include "cuda/matrix.h"
#include "cuda/step_state.h"
#include "network/cuda_parameters.h"
#include "network/cuda_workspace.h"
#include "network/executor.h"

namespace thalweg {

// Where a pass leaves its results, besides the workspace.
template <class T>
struct CudaResults {
  // Of an update. Without one the step comes from the Pass, the scale of the loss's gradient from
  // the request, and the sums of the loss go to the workspace's.
  cuda::StepState* state = nullptr;
  T* gradients = nullptr;   // arena of the parameters' gradients; null: not wanted
  bool accumulate = false;  // add to the gradients and to the loss's sums: they hold earlier rows'
  // By tensor: of each weight's gradient the sum of squares, accumulated parts together; null: not
  // wanted.
  double* squares = nullptr;
};

template <class T>
class CudaBackend {
 public:
  using Element = T;
  using Matrix = cuda::Matrix<T>;
  using Weight = cuda::Matrix<const T>;
  using Vector = const T*;

  CudaBackend(const Plan& plan, const CudaParameters<T>& parameters, CudaWorkspace<T>& workspace,
              const CudaResults<T>& results, cudaStream_t stream)
      : plan_(plan),
        parameters_(parameters),
        workspace_(workspace),
        results_(results),
        stream_(stream),
        bias_taken_(plan.tensors.size(), false) {}

  const Plan& plan() const { return plan_; }
  Matrix value(int buffer) const { return workspace_.value(buffer); }
  Matrix gradient(int buffer) const { return workspace_.gradient(buffer); }
  Vector vector(int tensor) const { return parameters_.vector(tensor); }
  Weight weight(int tensor) const { return parameters_.weight(plan_, tensor); }

  void begin_forward(const Pass& pass);
  bool dense(const Pass& pass, const DenseForward<CudaBackend>& problem);
  static bool fuses_dropout(const Node& dense);
  // Its backward pass derives what it needs from z, without reading the activation.
  static constexpr bool gates_batch_norm() { return false; }
  void activation(const Matrix& z, const Matrix& y, const Activation& phi);
  void dropout(const Pass& pass, const Node& node, const Matrix& x, const Matrix& y,
               bool accumulate);
  void copy(const Matrix& x, const Matrix& y);
  void accumulate(const Matrix& x, const Matrix& y);
  void add(const Matrix& a, const Matrix& b, const Matrix& y);
  void maxout(const Matrix& z, const Matrix& y, std::int64_t pieces);
  void batch_statistics(const Pass& pass, int state, const Matrix& z, bool ready);
  void batch_norm(const BatchNormForward<CudaBackend>& problem);
  // `totals` is not for a device: the sums are in the StepState or the workspace.
  void loss(const LossRequest& request, const Matrix& outputs, const Matrix& gradient,
            LossTotals* totals);

  void activation_backward(const Matrix& dy, const Matrix& at, const Matrix& dz,
                           const Activation& phi, bool accumulate);
  void dense_input_gradient(const Pass& pass, const DenseInputGradient<CudaBackend>& problem);
  void maxout_backward(const Matrix& z, const Matrix& dy, const Matrix& dz, std::int64_t pieces);
  void batch_norm_backward(const Pass& pass, const BatchNormBackward<CudaBackend>& problem);

  // The arena and `accumulate` are those of the results.
  void weight_gradient(int tensor, const Matrix& x, const Matrix& dy, bool accumulate, T* arena);
  void bias_gradient(int tensor, const Matrix& dy, bool accumulate, T* arena);
  void norm_gradient(int tensor, bool accumulate, T* arena);
  void end_gradients();

  // Running statistics after the forward pass of a training batch, from and to arenas of the layout
  // of CudaParameters::state; only when the step updates the model, if `state` is given.
  void running_statistics(const Pass& pass, const T* from, T* to, std::int64_t* batches,
                          const cuda::StepState* state);

  // Of an activation whose derivative is 1 where its value is positive and a constant elsewhere:
  // that constant.
  static std::optional<double> slope_of_the_rest(const Activation& activation);
  // What passes of up to the workspace's capacity need of scratch memory.
  static std::size_t scratch_bytes(const Plan& plan, const CudaParameters<T>& parameters,
                                   CudaWorkspace<T>& workspace);

 protected:
  // launch(scratch), unless only the bytes matter.
  template <class Launch>
  void run(std::size_t bytes, Launch&& launch) {
    if (sizing_) {
      most_scratch_ = std::max(most_scratch_, bytes);
      return;
    }
    expect<InternalError>(bytes <= workspace_.scratch_bytes(), "[executor] expected at most ",
                          workspace_.scratch_bytes(), " bytes of scratch memory to do, got ",
                          bytes);
    launch(workspace_.scratch());
  }
  // sums (+)= column sums of x.
  void sum_columns(const Matrix& x, bool accumulate, T* sums);
  // A vector's place in the gradients' arena.
  T* gradient_of(int tensor) const {
    return results_.gradients + parameters_.layout.tensors[tensor].offset;
  }
  cuda::RowWeights<T> row_weights(int state) const {
    return plan_.states[state].weighted ? workspace_.batch_norm_weights() : cuda::RowWeights<T>{};
  }

  const Plan& plan_;
  const CudaParameters<T>& parameters_;
  CudaWorkspace<T>& workspace_;
  CudaResults<T> results_;
  cudaStream_t stream_;

 private:
  cuda::BatchStatistics<T> statistics(int state) const;
  cuda::Dropout dropout_of(const Pass& pass, const Node& node) const;
  cuda::Loss<T> loss_problem(const LossRequest& request, const Matrix& gradient) const;

  std::vector<bool> bias_taken_;    // by tensor: its gradient is there already
  bool statistics_wanted_ = false;  // batch_norm() takes them along
  bool sizing_ = false;
  std::size_t most_scratch_ = 0;
};

extern template class Executor<CudaBackend<float>>;
extern template class Executor<CudaBackend<double>>;

}  // namespace thalweg
