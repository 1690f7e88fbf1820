// The objective of a model on another device than the CPU: value and gradient there, through a copy
// of the model. Products run on the CPU only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "training/objective.h"

namespace thalweg {

template <class T>
class ModelObjective final : public Objective {
 public:
  ModelObjective(const Model& model, const Data& data, const ObjectiveOptions& options,
                 const Interrupt& interrupt);

  std::int64_t dimension() const override { return model_->num_parameters(); }
  std::int64_t rows() const override { return data_.x.rows; }
  std::int64_t out_features() const override { return model_->out_features(); }
  void take_state(const Model& model) override;

  double value_and_gradient(const double* theta, double* gradient) override;
  bool has_hessian() const override { return false; }
  void hessian_product(const double*, const double*, double*) override { refuse("hvp"); }
  void gauss_newton_product(const double*, const double*, double*) override { refuse("ggnvp"); }
  void hessian(const double*, std::vector<double>*) override { refuse("hessian"); }
  void jacobian_product(const double*, const double*, double*) override { refuse("jvp"); }
  void jacobian_transposed_product(const double*, const double*, double*) override {
    refuse("vjp");
  }
  void example_gradients(const double*, std::int64_t, std::int64_t, void*) override {
    refuse("per_example_grads");
  }
  void example_gradient_norms(const double*, double*) override { refuse("per_example_grad_norms"); }
  bool has_path_scales() const override { return !has_batch_norm_; }
  void path_scales(const double* theta, double* kappa) override;

 private:
  // DeviceError.
  [[noreturn]] void refuse(const char* operation) const;

  const std::unique_ptr<Model> model_;
  const Data data_;
  GradientOptions options_;
  bool has_batch_norm_ = false;
  std::vector<T> point_;  // that the model holds
  std::vector<T> candidate_;
  std::vector<T> gradient_;
};

}  // namespace thalweg
