// The objective of one element type on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "network/cpu_tangent_backend.h"
#include "network/parameters.h"
#include "network/plan.h"
#include "network/workspace.h"
#include "training/data.h"
#include "training/objective.h"

namespace thalweg {

template <class T>
class TypedObjective final : public Objective {
 public:
  TypedObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
                 const Interrupt& interrupt, const cpu::Kernels<T>& kernels = cpu::kernels<T>());

  std::int64_t dimension() const override { return plan_.num_parameters; }
  std::int64_t rows() const override { return data_.x.rows; }
  std::int64_t out_features() const override { return plan_.out_features; }
  void take_state(const Model& model) override;

  double value(const double* theta) override { return evaluate(theta, nullptr); }
  double value_and_gradient(const double* theta, double* gradient) override {
    return evaluate(theta, gradient);
  }
  bool has_hessian() const override { return !custom(); }
  void hessian_product(const double* theta, const double* v, double* out) override;
  void gauss_newton_product(const double* theta, const double* v, double* out) override;
  void hessian(const double* theta, std::vector<double>* out) override;
  void jacobian_product(const double* theta, const double* v, double* out) override;
  void jacobian_transposed_product(const double* theta, const double* u, double* out) override;
  void example_gradients(const double* theta, std::int64_t first, std::int64_t count,
                         void* out) override;
  void example_gradient_norms(const double* theta, double* out) override;
  // Values are sums of float32 losses in double.
  double relative_noise() const override {
    return sizeof(T) == sizeof(float) ? 0x1p-20 : Function::relative_noise();
  }
  bool has_path_scales() const override { return !plan_.has_batch_norm(); }
  void path_scales(const double* theta, double* kappa) override;

 private:
  // Rows of one pass.
  struct Chunk {
    std::int64_t first = 0;
    std::int64_t rows = 0;
    bool begins = true;  // the first of its sum
    bool ends = true;    // the last of its sum
  };
  class Walk;  // both executors over the plan without fusion

  bool custom() const { return plan_.description.loss.kind == LossDescription::Kind::kCustom; }
  bool batch_statistics() const { return options_.statistics == Statistics::kBatch; }
  Pass pass_of(const Chunk& chunk) const;
  Batch batch_of(const Chunk& chunk) const;
  LossRequest request(double gradient_scale) const;

  // One parallel region, for `passes` products over `rows`.
  template <class Body>
  void run(const char* operation, std::int64_t rows, double passes, Body&& body);
  // body(chunk) for all chunks of the rows.
  template <class Body>
  void for_chunks(Body&& body);

  void set_point(const char* operation, const double* theta);
  void set_direction(const char* operation, const double* v);
  Workspace<T>& plain_workspace();
  void reserve_walk();
  void reserve_sums();

  double evaluate(const double* theta, double* gradient);
  double custom_loss(Workspace<T>& workspace, bool gradient);
  // Collective. Adds the arena to the sum over chunks; the last one writes the sum.
  void deliver(Team& team, const Chunk& chunk, double* out);

  void multiply(const char* operation, Curvature curvature, const double* theta, const double* v,
                double* out);
  void check_products(const char* operation) const;
  void check_examples(const char* operation) const;
  void check_finite(const char* operation, const double* out, std::int64_t count) const;
  std::string first_not_finite() const;
  // Rows of `panels` from row `first` of a row-major matrix of doubles, and back. Collective.
  void store(Team& team, const Panels<T>& panels, std::int64_t first, double* out) const;
  void load(Team& team, const double* in, std::int64_t first, const Panels<T>& panels) const;
  // The gradient of every row of a chunk in the walk's workspace.
  void example_pass(const char* operation, const Chunk& chunk);

  const Plan plan_;       // fused, for the value and the gradient
  const Plan walk_plan_;  // not fused; tensors have the same places
  const cpu::Kernels<T>& kernels_;
  const ObjectiveOptions options_;
  const Data data_;
  const int threads_;
  const std::uint64_t step_;
  Targets targets_ = Targets::kNone;
  std::int64_t chunk_rows_ = 0;
  double total_weight_ = 0.0;
  double scale_ = 1.0;  // what multiplies sum(w loss)
  std::vector<UpdateTask> tasks_;

  Parameters<T> parameters_;
  std::vector<double> point_;  // that parameters_ hold
  bool point_set_ = false;
  std::unique_ptr<Workspace<T>> workspace_;
  Arena<T> arena_;      // a product or gradient over one chunk
  Arena<double> sums_;  // over chunks, with what their additions rounded off
  Arena<double> rest_;

  std::unique_ptr<Parameters<T>> direction_;
  std::unique_ptr<Workspace<T>> values_;
  std::unique_ptr<Workspace<T>> tangents_;
  // Whether values_ hold the passes at the point, over all rows: then products need tangents only.
  bool forward_ready_ = false;
  bool backward_ready_ = false;
};

}  // namespace thalweg
