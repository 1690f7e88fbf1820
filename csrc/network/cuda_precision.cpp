#include "network/cuda_precision.h"

#include "cuda/probe.h"
#include "cuda/resources.h"

namespace thalweg {
namespace {

// Below, a tile of a tensor-core kernel is mostly padding.
constexpr std::int64_t kSmallest = 32;

// Dense bfloat16 products per float32 fused multiply-add, about: 16 on the GPUs of data centres, 2
// on the others. Three or six products in place of one pay only on the former.
bool has_many_tensor_cores(int compute_capability) {
  const int major = compute_capability / 10;
  return compute_capability == 80 || major == 9 || major == 10;
}

}  // namespace

CudaPrecision CudaPrecision::choose(const Description& description, int compute_capability,
                                    int compiled_for) {
  CudaPrecision precision;
  precision.smallest = kSmallest;
  if (description.dtype != DType::kFloat32 || compiled_for < 80) return precision;
  const bool many = has_many_tensor_cores(compute_capability);
  switch (description.matmul_precision) {
    case MatmulPrecision::kHighest:
      if (many) precision.large = cuda::Precision::kThreePlanes;
      break;
    case MatmulPrecision::kHigh:
      if (many) precision.large = cuda::Precision::kTwoPlanes;
      break;
    case MatmulPrecision::kMedium:
      precision.large = cuda::Precision::kBfloat16;
      break;
  }
  return precision;
}

CudaPrecision CudaPrecision::choose(const Description& description, const char* operation) {
  const int device = cuda::current_device(operation);
  return choose(description, cuda::compute_capability(device, operation),
                cuda::compiled_architecture(operation));
}

}  // namespace thalweg
