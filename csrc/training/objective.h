// The loss of a network on fixed data as a function of its parameters: value, gradient, products
// with second derivatives and with the Jacobian of the outputs, gradients of single rows. What the
// methods of minimize/ work on, and what curvature is measured with.
//
// An objective owns everything that it needs but the data, so evaluations touch neither the model
// nor its batch-norm statistics. One call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/export.h"
#include "minimize/function.h"
#include "training/model.h"

namespace thalweg {

// What batch norm normalizes by. The two losses have different gradients and Hessians: with the
// statistics of the batch the rows depend on each other, with the running ones they do not.
enum class Statistics { kBatch, kFrozen };

struct ObjectiveOptions {
  Statistics statistics = Statistics::kBatch;
  bool dropout = false;         // with the masks of the model's next update, which stay fixed
  std::int64_t chunk_rows = 0;  // most rows in memory at a time; 0: chosen
  CustomLoss custom_loss;       // of a model with one
};

class TW_INTERNAL_API Objective : public minimize::Function {
 public:
  // Checks the data, borrows its memory, and takes over the batch-norm statistics of the model.
  static std::unique_ptr<Objective> create(const Model& model, const Data& data,
                                           const ObjectiveOptions& options,
                                           const Interrupt& interrupt = {});

  virtual std::int64_t rows() const = 0;
  virtual std::int64_t out_features() const = 0;

  // The running statistics that a model of the same description has now.
  virtual void take_state(const Model& model) = 0;
  // Polled by later calls; Interrupted leaves them.
  void set_interrupt(Interrupt interrupt) { interrupt_ = std::move(interrupt); }
  bool interrupted() override { return interrupt_ && interrupt_(); }

  bool has_hessian() const override = 0;
  void hessian_product(const double* theta, const double* v, double* out) override = 0;
  bool has_gauss_newton() const override { return has_hessian(); }
  void gauss_newton_product(const double* theta, const double* v, double* out) override = 0;

  // All of H [dimension, dimension], symmetric; ValueError beyond 2 GB.
  virtual void hessian(const double* theta, std::vector<double>* out) = 0;
  // J v [rows, out] of the outputs, and J' u of a matrix u of that shape.
  virtual void jacobian_product(const double* theta, const double* v, double* out) = 0;
  virtual void jacobian_transposed_product(const double* theta, const double* u, double* out) = 0;

  // Gradients of the losses of the rows [first, first + count), in the model's element type:
  // [count, dimension]. Their weighted mean is the gradient of the loss (their weighted sum when
  // the loss is a sum).
  virtual void example_gradients(const double* theta, std::int64_t first, std::int64_t count,
                                 void* out) = 0;
  // Euclidean norms of the gradients of all rows, without storing these.
  virtual void example_gradient_norms(const double* theta, double* out) = 0;

 protected:
  Interrupt interrupt_;
};

}  // namespace thalweg
