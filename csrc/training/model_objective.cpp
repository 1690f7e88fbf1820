// Value and gradient through Model::loss_and_gradient, whose training mode ties batch statistics to
// dropout.
#include "training/model_objective.h"

#include <algorithm>

#include "core/error.h"
#include "network/path.h"
#include "network/plan.h"
#include "training/data.h"

namespace thalweg {

template <class T>
ModelObjective<T>::ModelObjective(const Model& model, const Data& data,
                                  const ObjectiveOptions& options, const Interrupt& interrupt)
    : model_(model.copy()), data_(data) {
  const Plan plan = compile(model.description());
  check_data({plan, "Objective", false, model.threads(), interrupt}, data_);
  const std::int64_t rows = data_.x.rows;
  expect<DeviceError>(options.chunk_rows == 0 || options.chunk_rows >= rows,
                      "[Objective] expected all ", rows, " rows in one chunk on ", model.device(),
                      ", got chunk_size ", options.chunk_rows,
                      "; chunks are for models on the CPU");
  has_batch_norm_ = plan.has_batch_norm();
  const bool drops = std::any_of(plan.nodes.begin(), plan.nodes.end(),
                                 [](const Node& node) { return node.kind == NodeKind::kDropout; });
  const bool batch = options.statistics == Statistics::kBatch;
  expect<DeviceError>(!has_batch_norm_ || !drops || batch == options.dropout,
                      "[Objective] expected dropout with batch statistics, or neither, on ",
                      model.device(), ", got ", batch ? "batch" : "frozen",
                      " statistics with dropout ", options.dropout,
                      "; models on the CPU have all four");
  options_.training = has_batch_norm_ ? batch : drops && options.dropout;
  expect<ValueError>(
      rows >= 2 || !has_batch_norm_ || !batch,
      "[Objective] expected at least 2 rows with batch statistics (the variance of one row is "
      "zero), got ",
      rows, "; use frozen statistics");
  options_.custom_loss = options.custom_loss;
  candidate_.resize(static_cast<std::size_t>(dimension()));
  gradient_.resize(candidate_.size());
}

template <class T>
void ModelObjective<T>::take_state(const Model& model) {
  std::int64_t size = 0;
  for (const TensorInfo& tensor : model.state_tensors()) size += tensor.size;
  std::vector<T> state(static_cast<std::size_t>(size));
  model.get_state(state.data());
  model_->set_state(state.data());
}

template <class T>
double ModelObjective<T>::value_and_gradient(const double* theta, double* gradient) {
  std::transform(theta, theta + dimension(), candidate_.begin(),
                 [](double x) { return static_cast<T>(x); });
  if (candidate_ != point_) {
    point_.clear();
    model_->set_parameters(candidate_.data());
    point_ = candidate_;
  }
  options_.interrupt = interrupt_;
  const Metrics metrics = model_->loss_and_gradient(data_, options_, gradient_.data(), nullptr);
  options_.interrupt = {};
  std::copy(gradient_.begin(), gradient_.end(), gradient);
  return metrics.loss;
}

template <class T>
void ModelObjective<T>::path_scales(const double* theta, double* kappa) {
  thalweg::path_scales(model_->description(), theta, 2.0, kappa);
}

template <class T>
void ModelObjective<T>::refuse(const char* operation) const {
  throw DeviceError(concat("[", operation, "] expected a model on the CPU, got one on ",
                           model_->device(),
                           "; this product does not run there yet: save the model and load it with "
                           "device=\"cpu\""));
}

template class ModelObjective<float>;
template class ModelObjective<double>;

}  // namespace thalweg
