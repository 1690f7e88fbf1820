// Sizes and places of a workspace's buffers on the device.
#include "network/cuda_workspace.h"

#include <algorithm>
#include <optional>

#include "cuda/gemm.h"
#include "network/cuda_backend.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "workspace";

// The buffers that products on the tensor cores read.
struct Operands {
  std::vector<bool> values, gradients;
};

Operands operands_of(const Plan& plan, const CudaPrecision& precision) {
  Operands operands{std::vector<bool>(plan.buffers.size(), false),
                    std::vector<bool>(plan.buffers.size(), false)};
  for (const Node& node : plan.nodes) {
    if (node.weight >= 0 && precision.of(plan.tensors[node.weight]) != cuda::Precision::kSimt) {
      operands.values[node.input] = true;
      operands.values[plan.value_holder(node.input, true)] = true;
      operands.gradients[node.output] = true;
    }
    // The branch's gradient is the sum's, which somebody else writes.
    if (node.kind == NodeKind::kAdd && operands.gradients[node.second] &&
        plan.gradient_holder(node.second) == plan.gradient_holder(node.output))
      operands.gradients[node.output] = true;
  }
  return operands;
}

}  // namespace

template <class T>
CudaWorkspace<T>::Buffers::Buffers(const Plan& plan, const std::vector<int>& holder,
                                   const std::vector<bool>& has_planes, int planes,
                                   std::int64_t capacity, cuda::Region* region) {
  const std::size_t count = plan.buffers.size();
  std::vector<bool> needs_planes(count, false);  // by holder
  for (std::size_t b = 0; b < count; ++b)
    if (has_planes[b]) needs_planes[holder[b]] = true;
  std::vector<std::int64_t> offset(count), plane_offset(count);  // of holders, per row
  std::int64_t width = 0;
  std::int64_t plane_width = 0;
  for (std::size_t b = 0; b < count; ++b) {
    if (holder[b] != static_cast<int>(b)) continue;
    const std::int64_t pitch = cuda::pitch_of(plan.buffers[b].width);
    offset[b] = width;
    plane_offset[b] = plane_width;
    width += pitch;
    if (needs_planes[b]) plane_width += pitch;
  }
  data_ = cuda::DeviceArray<T>(element_count(capacity, width), kOperation, region);
  const std::int64_t stride = element_count(capacity, plane_width);
  planes_ = cuda::DeviceArray<std::uint16_t>(element_count(planes, stride), kOperation, region);
  for (std::size_t b = 0; b < count; ++b) {
    cuda::Matrix<T> matrix;
    matrix.data = data_.data() + offset[holder[b]] * capacity;
    matrix.width = plan.buffers[b].width;
    matrix.pitch = cuda::pitch_of(matrix.width);
    if (has_planes[b]) {
      matrix.planes = planes_.data() + plane_offset[holder[b]] * capacity;
      matrix.plane_stride = stride;
      matrix.plane_count = planes;
    }
    matrices_.push_back(matrix);
  }
}

template <class T>
CudaWorkspace<T>::CudaWorkspace(const Plan& plan, const CudaParameters<T>& parameters,
                                std::int64_t capacity, bool gradients, std::size_t scratch_bytes,
                                cuda::Region* region)
    : row_weights(capacity, kOperation, region),
      block_weights(row_blocks_of(capacity), kOperation, region),
      total_weight(1, kOperation, region),
      labels(capacity, kOperation, region),
      losses(1, kOperation, region),
      capacity_(capacity),
      has_gradients_(gradients),
      rows_(capacity),
      out_features_(plan.out_features) {
  const CudaPrecision& precision = parameters.precision;
  const Operands operands = operands_of(plan, precision);
  const auto buffers = static_cast<int>(plan.buffers.size());
  std::vector<int> own(plan.buffers.size()), shared(plan.buffers.size());
  for (int b = 0; b < buffers; ++b) {
    own[b] = b;
    shared[b] = plan.gradient_holder(b);
  }
  values_ = Buffers(plan, own, operands.values, precision.planes(), capacity, region);
  if (gradients)
    gradients_ = Buffers(plan, shared, operands.gradients, precision.planes(), capacity, region);
  if (precision.rounds()) {
    const int output = plan.value_holder(plan.output, true);
    for (int b = 1; b < buffers; ++b)
      if (b != plan.output && b != output) values_.round(b);
  }

  sign_offset_.assign(plan.buffers.size(), -1);
  std::int64_t signs = 0;
  for (const Node& node : plan.nodes) {
    if (!gradients || node.kind != NodeKind::kDense) continue;
    const std::optional<double> slope = CudaBackend<T>::slope_of_the_rest(node.activation);
    if (!slope || !(node.derivative_applied || (node.dropout >= 0 && *slope == 0.0))) continue;
    sign_offset_[node.output] = signs;
    signs += element_count(capacity, cuda::sign_words(plan.buffers[node.output].width));
  }
  signs_ = cuda::DeviceArray<std::uint32_t>(signs, kOperation, region);

  std::int64_t vectors = 0;
  std::int64_t widest = 0;
  for (const BatchNormState& state : plan.states) {
    vector_offset_.push_back(vectors);
    padded_.push_back(state.padded);
    vectors += 4 * state.padded;
    widest = std::max(widest, state.padded);
  }
  vectors_ = cuda::DeviceArray<T>(vectors, kOperation, region);
  statistics_ = cuda::DeviceArray<double>(vectors / 2, kOperation, region);
  if (gradients) unwanted_ = cuda::DeviceArray<T>(2 * widest, kOperation, region);
  targets_ = cuda::DeviceArray<T>(element_count(capacity, cuda::pitch_of(plan.out_features)),
                                  kOperation, region);
  std::int64_t columns = 0;
  for (const Buffer& buffer : plan.buffers) columns = std::max(columns, buffer.width);
  tickets_ = cuda::DeviceArray<unsigned>(cuda::tickets_for(columns), kOperation, region);
  const std::size_t most =
      std::max(scratch_bytes, CudaBackend<T>::scratch_bytes(plan, parameters, *this));
  scratch_ = cuda::DeviceArray<std::byte>(static_cast<std::int64_t>(most), kOperation, region);
}

template <class T>
void CudaWorkspace<T>::reserve_scratch(std::size_t bytes) {
  if (bytes <= scratch_bytes()) return;
  scratch_ = {};
  scratch_ = cuda::DeviceArray<std::byte>(static_cast<std::int64_t>(bytes), kOperation);
}

template class CudaWorkspace<float>;
template class CudaWorkspace<double>;

}  // namespace thalweg
