// The choice of a device.
#include "training/objective.h"

#include "training/cpu_objective.h"
#if defined(TW_WITH_CUDA)
#include "training/cuda_objective.h"
#endif

namespace thalweg {

std::unique_ptr<Objective> Objective::create(const Model& model, const Data& data,
                                             const ObjectiveOptions& options,
                                             const Interrupt& interrupt) {
  const auto make = [&]<class T>(T) -> std::unique_ptr<Objective> {
#if defined(TW_WITH_CUDA)
    if (model.device() == "cuda") {
      const cuda::DeviceScope scope(model.exchange()->device());
      return std::make_unique<CudaObjective<T>>(model, data, options, interrupt);
    }
#endif
    return std::make_unique<CpuObjective<T>>(model, data, options, interrupt);
  };
  return model.description().dtype == DType::kFloat64 ? make(0.0) : make(0.0f);
}

}  // namespace thalweg
