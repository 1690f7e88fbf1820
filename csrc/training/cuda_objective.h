// The objective of one element type on a GPU. Vectors come from and go to host memory; everything
// else stays on the device. All rows in one chunk lie there from the first evaluation on, and the
// launches of an evaluation are then a graph, captured once.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/resources.h"
#include "cuda/step_state.h"
#include "network/cuda_parameters.h"
#include "network/cuda_tangent_backend.h"
#include "network/cuda_workspace.h"
#include "training/cuda_data.h"
#include "training/typed_objective.h"

namespace thalweg {

template <class T>
class CudaObjective final : public TypedObjective<T> {
 public:
  // The model's device has to be the current one.
  CudaObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
                const Interrupt& interrupt);
  ~CudaObjective() override;

 private:
  using Chunk = typename TypedObjective<T>::Chunk;
  using Passes = typename TypedObjective<T>::Passes;
  using RowFactors = typename TypedObjective<T>::RowFactors;
  class Walk;  // both executors over the plan without fusion

  // A workspace and whether it holds the rows of the only chunk.
  struct Place {
    CudaWorkspace<T> workspace;
    bool filled = false;

    Place(const Plan& plan, const CudaParameters<T>& parameters, std::int64_t rows);
  };
  // What is captured.
  enum Work { kValue, kGradient, kForward, kBackward, kHessian, kGaussNewton, kAhead, kBack };
  static constexpr std::size_t kWorks = kBack + 1;

  void load_state(const T* flat) override;
  void load_point(const char* operation, const double* theta) override;
  void load_direction(const char* operation, const double* v) override;
  double evaluate_chunk(const char* operation, const Chunk& chunk, double* gradient) override;
  void multiply_chunk(const char* operation, const Chunk& chunk, Curvature curvature,
                      const Passes& passes, double* out) override;
  void jacobian_chunk(const char* operation, const Chunk& chunk, const Passes& passes,
                      double* out) override;
  void transposed_chunk(const char* operation, const Chunk& chunk, const Passes& passes,
                        const double* u, double* out) override;
  void factor_chunk(const char* operation, const Chunk& chunk, RowFactors* factors) override;
  std::string first_not_finite() override;

  void reserve_walk();
  // The rows of a chunk into a workspace; `keep` when they are those of the next call too.
  void fill(const char* operation, const Chunk& chunk, bool keep, Place& place);
  template <class Queue>
  void replay(const Chunk& chunk, Work work, Queue&& queue);
  // The values' passes of a product.
  void queue_values(const char* operation, const Chunk& chunk, const Passes& passes);
  // Waits for what is queued.
  void finish(const char* operation);
  // Adds the product to the sum over chunks; the last one writes the sum.
  void deliver(const Chunk& chunk, double* out);
  void upload_vector(const double* flat, CudaParameters<T>& parameters);
  std::vector<T>& host(std::int64_t size) {
    host_.resize(static_cast<std::size_t>(size));
    return host_;
  }

  using TypedObjective<T>::data_;
  using TypedObjective<T>::plan_;
  using TypedObjective<T>::walk_plan_;

  const int device_;
  cuda::Stream stream_;
  cuda::Event finished_;
  CudaParameters<T> parameters_;
  cuda::DeviceArray<T> product_;           // of one chunk, an arena like the parameters'
  cuda::DeviceArray<double> sums_, rest_;  // over chunks, with what their additions rounded off
  cuda::DeviceArray<cuda::StepState> state_;
  std::optional<CudaStaging> staging_;
  std::vector<T> host_;
  std::unique_ptr<Place> plain_;  // of the fused plan

  std::unique_ptr<CudaParameters<T>> direction_;
  std::unique_ptr<Place> values_;
  std::unique_ptr<CudaWorkspace<T>> tangents_;
  cuda::DeviceArray<T> gradients_;  // of batch norm's gamma and beta, from the values' passes
  cuda::DeviceArray<T> rows_;       // [rows of a chunk, out]

  std::array<std::optional<cuda::Graph>, kWorks> graphs_;
};

}  // namespace thalweg
