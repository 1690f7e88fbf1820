// Pure passes: checks, and what becomes of the engine's results.
#include <algorithm>

#include "core/error.h"
#include "math/losses.h"
#include "training/typed_model.h"

namespace thalweg {
namespace {

void check_batch_size(std::int64_t batch_size, const char* operation) {
  expect<ValueError>(batch_size >= 1, "[", operation, "] expected batch_size >= 1, got ",
                     batch_size);
}

}  // namespace

template <class T>
Metrics TypedModel<T>::evaluate(const Data& data, std::int64_t batch_size,
                                const Interrupt& interrupt) const {
  const Targets targets = check_data(data_check("evaluate", false, interrupt), data);
  const CustomLoss& custom_loss = checked_custom_loss({}, "evaluate");
  check_batch_size(batch_size, "evaluate");
  return metrics_of(engine_->evaluate(data, targets, batch_size,
                                      has_custom_loss() ? custom_loss : CustomLoss(), interrupt));
}

template <class T>
void TypedModel<T>::predict(const ArrayView& x, std::int64_t batch_size, void* out,
                            const Interrupt& interrupt) const {
  check_input(data_check("predict", false, interrupt), x);
  check_batch_size(batch_size, "predict");
  engine_->predict(x, batch_size, OutputMap::kIdentity, static_cast<T*>(out), interrupt, "predict");
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
  check_batch_size(batch_size, "predict_proba");
  const OutputMap map = softmax       ? OutputMap::kSoftmax
                        : exponential ? OutputMap::kSigmoidOfTwice
                                      : OutputMap::kSigmoid;
  engine_->predict(x, batch_size, map, static_cast<T*>(out), interrupt, "predict_proba");
}

template <class T>
void TypedModel<T>::activations(const ArrayView& x, bool training, const std::vector<void*>& out,
                                const Interrupt& interrupt) const {
  check_input(data_check("activations", false, interrupt), x);
  expect<ValueError>(out.size() == plan_.layers.size(), "[activations] expected ",
                     plan_.layers.size(), " outputs, one per layer, got ", out.size());
  if (training) check_batch(x.rows, "activations");
  engine_->activations(x, training, static_cast<std::uint64_t>(cursor_.steps), out, interrupt);
}

template <class T>
Metrics TypedModel<T>::loss_and_gradient(const Data& data, const GradientOptions& options,
                                         void* gradient, void* input_gradient) const {
  const Targets targets = check_data(data_check("loss_and_grad", false, options.interrupt), data);
  if (options.training) check_batch(data.x.rows, "loss_and_grad");
  const CustomLoss& custom_loss = checked_custom_loss(options.custom_loss, "loss_and_grad");
  GradientRequest<T> request;
  request.training = options.training;
  request.step = static_cast<std::uint64_t>(cursor_.steps);
  if (has_custom_loss()) request.custom_loss = custom_loss;
  request.gradient = static_cast<T*>(gradient);
  request.input_gradient = static_cast<T*>(input_gradient);
  request.interrupt = options.interrupt;
  return metrics_of(engine_->loss_and_gradient(data, targets, request));
}

#define TW_INSTANTIATE(T)                                                                       \
  template Metrics TypedModel<T>::evaluate(const Data&, std::int64_t, const Interrupt&) const;  \
  template void TypedModel<T>::predict(const ArrayView&, std::int64_t, void*, const Interrupt&) \
      const;                                                                                    \
  template void TypedModel<T>::predict_probabilities(const ArrayView&, std::int64_t, void*,     \
                                                     const Interrupt&) const;                   \
  template void TypedModel<T>::activations(const ArrayView&, bool, const std::vector<void*>&,   \
                                           const Interrupt&) const;                             \
  template Metrics TypedModel<T>::loss_and_gradient(const Data&, const GradientOptions&, void*, \
                                                    void*) const;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
