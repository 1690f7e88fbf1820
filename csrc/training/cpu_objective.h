// The objective of one element type on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "network/cpu_tangent_backend.h"
#include "network/parameters.h"
#include "network/workspace.h"
#include "training/typed_objective.h"

namespace thalweg {

template <class T>
class CpuObjective final : public TypedObjective<T> {
 public:
  CpuObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
               const Interrupt& interrupt, const cpu::Kernels<T>& kernels = cpu::kernels<T>());

 private:
  using Chunk = typename TypedObjective<T>::Chunk;
  using Passes = typename TypedObjective<T>::Passes;
  using RowFactors = typename TypedObjective<T>::RowFactors;
  class Walk;  // both executors over the plan without fusion

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

  Batch batch_of(const Chunk& chunk) const;
  void pack(const char* operation, const double* flat, Parameters<T>& parameters);
  void reserve_walk();
  void reserve_sums(const Chunk& chunk);
  double custom_loss(bool gradient);
  // Collective. Adds the arena to the sum over chunks; the last one writes the sum.
  void deliver(Team& team, const Chunk& chunk, double* out);
  // Rows of panels to a row-major matrix of doubles, and back. Collective.
  void store(Team& team, const Panels<T>& panels, double* out) const;
  void load(Team& team, const double* in, const Panels<T>& panels) const;

  using TypedObjective<T>::data_;
  using TypedObjective<T>::options_;
  using TypedObjective<T>::plan_;
  using TypedObjective<T>::walk_plan_;

  const cpu::Kernels<T>& kernels_;
  const std::vector<UpdateTask> tasks_;
  Parameters<T> parameters_;
  std::unique_ptr<Workspace<T>> workspace_;  // of the fused plan
  Arena<T> arena_;                           // a product or gradient over one chunk
  Arena<double> sums_;                       // over chunks, with what their additions rounded off
  Arena<double> rest_;

  std::unique_ptr<Parameters<T>> direction_;
  std::unique_ptr<Workspace<T>> values_;
  std::unique_ptr<Workspace<T>> tangents_;
};

}  // namespace thalweg
