// The objective of one element type: checks, chunks of rows, sums over them, and which passes an
// evaluation needs. The passes themselves run on a device (cpu_objective.h, cuda_objective.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "network/plan.h"
#include "network/tangent_executor.h"
#include "training/data.h"
#include "training/engine.h"
#include "training/objective.h"

namespace thalweg {

template <class T>
class TypedObjective : public Objective {
 public:
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

 protected:
  // Rows of one pass.
  struct Chunk {
    std::int64_t first = 0;
    std::int64_t rows = 0;
    bool begins = true;  // the first of its sum
    bool ends = true;    // the last of its sum

    bool only() const { return begins && ends; }
  };
  // The passes over values that a product needs: the others are there, from the product before.
  struct Passes {
    bool forward = true;
    bool backward = true;
  };
  // What gradients of single rows are made of: rows without gaps in host memory.
  struct RowFactors {
    std::vector<std::vector<T>> values, gradients;  // by buffer; of nodes with parameters
    std::vector<std::vector<T>> mean, inv_std;      // by batch-norm state
  };

  TypedObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
                 const Interrupt& interrupt);

  // ---- What a device does. Sums over chunks are delivered with the chunk that ends them.

  // Running statistics: mean and variance of each batch norm in turn, [width] each.
  virtual void load_state(const T* flat) = 0;
  // Where to evaluate, and the direction of products.
  virtual void load_point(const char* operation, const double* theta) = 0;
  virtual void load_direction(const char* operation, const double* v) = 0;
  // Returns the sum of w loss over the chunk, or the value of a loss function. The gradient may be
  // null.
  virtual double evaluate_chunk(const char* operation, const Chunk& chunk, double* gradient) = 0;
  virtual void multiply_chunk(const char* operation, const Chunk& chunk, Curvature curvature,
                              const Passes& passes, double* out) = 0;
  virtual void jacobian_chunk(const char* operation, const Chunk& chunk, const Passes& passes,
                              double* out) = 0;
  virtual void transposed_chunk(const char* operation, const Chunk& chunk, const Passes& passes,
                                const double* u, double* out) = 0;
  // Forward and backward pass of every row by itself.
  virtual void factor_chunk(const char* operation, const Chunk& chunk, RowFactors* factors) = 0;
  // Where the first value that is not finite came out of, of the last product's last chunk.
  virtual std::string first_not_finite() = 0;

  // ---- For devices

  bool custom() const { return plan_.description.loss.kind == LossDescription::Kind::kCustom; }
  bool batch_statistics() const { return options_.statistics == Statistics::kBatch; }
  Pass pass_of(const Chunk& chunk) const;
  LossRequest request(double gradient_scale) const;
  // Of the loss of a row by itself.
  LossRequest row_request() const;
  // One parallel region of the host, for `passes` products over `rows`.
  template <class Body>
  void run(const char* operation, std::int64_t rows, double passes, Body&& body);

  const Plan plan_;       // fused, for the value and the gradient
  const Plan walk_plan_;  // not fused; tensors have the same places
  const ObjectiveOptions options_;
  const Data data_;
  const int threads_;
  Targets targets_ = Targets::kNone;
  std::int64_t chunk_rows_ = 0;
  double scale_ = 1.0;  // what multiplies sum(w loss)

 private:
  Chunk chunk_at(std::int64_t first) const;
  // body(chunk, passes) for all chunks of the rows, of a product over the plan that is not fused.
  template <class Body>
  void for_walk_chunks(bool backward, Body&& body);
  void set_point(const char* operation, const double* theta);
  double evaluate(const double* theta, double* gradient);
  void multiply(const char* operation, Curvature curvature, const double* theta, const double* v,
                double* out);
  void check_products(const char* operation) const;
  void check_examples(const char* operation) const;
  void check_finite(const char* operation, const double* out, std::int64_t count);
  void find_factors(const char* operation, const Chunk& chunk);

  const std::uint64_t step_;
  double total_weight_ = 0.0;
  std::vector<T> state_;       // that the device has
  std::vector<double> point_;  // that the device has
  bool point_set_ = false;
  RowFactors factors_;
  // Whether the passes over values have run at the point, over all rows in one chunk: then products
  // need tangents only.
  bool forward_ready_ = false;
  bool backward_ready_ = false;
};

template <class T>
template <class Body>
void TypedObjective<T>::run(const char* operation, std::int64_t rows, double passes, Body&& body) {
  if (ThreadPool::shared().run(useful_threads(plan_, rows, passes, threads_), body, interrupt_,
                               Subnormals::kFlush))
    throw Interrupted(concat("[", operation, "] interrupted"));
}

extern template class TypedObjective<float>;
extern template class TypedObjective<double>;

}  // namespace thalweg
