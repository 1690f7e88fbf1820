// Values across the bus, and from one layout to the other.
#include "network/cuda_parameters.h"

#include <algorithm>
#include <type_traits>

#include "cuda/arena_operations.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "parameters";

bool on_device(const void* data) {
  cudaPointerAttributes attributes;
  cuda::check(cudaPointerGetAttributes(&attributes, data), kOperation);
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

// Flat vectors in device memory go tensor by tensor, straight from one layout to the other.
enum class Direction { kToArena, kToFlat };
template <class T>
void convert(const Plan& plan, const CudaLayout& layout, T* flat, T* arena, Direction direction,
             cudaStream_t stream) {
  for (std::size_t t = 0; t < layout.tensors.size(); ++t) {
    const Tensor& tensor = plan.tensors[t];
    const std::int64_t width = tensor.is_weight() ? tensor.in : tensor.out;
    const std::size_t bytes = array_bytes(width, sizeof(T));
    const std::size_t pitch = array_bytes(layout.tensors[t].pitch, sizeof(T));
    T* dense = flat + tensor.flat_offset;
    T* padded = arena + layout.tensors[t].offset;
    const bool to_flat = direction == Direction::kToFlat;
    cuda::check(cudaMemcpy2DAsync(to_flat ? dense : padded, to_flat ? bytes : pitch,
                                  to_flat ? padded : dense, to_flat ? pitch : bytes, bytes,
                                  static_cast<std::size_t>(tensor.size() / width),
                                  cudaMemcpyDeviceToDevice, stream),
                kOperation);
  }
  cuda::check(cudaStreamSynchronize(stream), kOperation);
}

// f(first element in the flat form, first in the state, count) for each running vector.
template <class F>
void for_each_running_vector(const Plan& plan, F&& f) {
  std::int64_t flat = 0;
  for (const BatchNormState& norm : plan.states) {
    for (const std::int64_t at : {norm.offset, norm.offset + norm.padded}) {
      f(flat, at, norm.width);
      flat += norm.width;
    }
  }
}

}  // namespace

template <class T>
void upload_flat(const Plan& plan, const CudaLayout& layout, const T* flat, T* arena,
                 cudaStream_t stream) {
  if (on_device(flat))
    return convert(plan, layout, const_cast<T*>(flat), arena, Direction::kToArena, stream);
  std::vector<T> host(static_cast<std::size_t>(layout.size), T(0));
  layout.for_each_row(plan, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    std::copy_n(flat + from, count, host.data() + to);
  });
  cuda::upload(host.data(), arena, layout.size, stream, kOperation);
}

template <class T>
void download_flat(const Plan& plan, const CudaLayout& layout, const T* arena, T* flat,
                   cudaStream_t stream) {
  if (on_device(flat))
    return convert(plan, layout, flat, const_cast<T*>(arena), Direction::kToFlat, stream);
  std::vector<T> host(static_cast<std::size_t>(layout.size));
  cuda::download(arena, host.data(), layout.size, stream, kOperation);
  layout.for_each_row(plan, [&](std::int64_t to, std::int64_t from, std::int64_t count) {
    std::copy_n(host.data() + from, count, flat + to);
  });
}

template <class T>
CudaParameters<T>::CudaParameters(const Plan& plan, const CudaPrecision& precision_,
                                  cudaStream_t stream)
    : layout(plan),
      precision(precision_),
      values(layout.size, kOperation),
      planes(layout.size * precision.planes(), kOperation),
      state(plan.state_size, kOperation),
      batches(round_up(static_cast<std::int64_t>(plan.states.size()), 2), kOperation) {
  std::vector<T> fresh(static_cast<std::size_t>(plan.state_size), T(0));
  for (const BatchNormState& norm : plan.states)
    std::fill_n(fresh.data() + norm.offset + norm.padded, norm.width, T(1));
  cuda::upload(fresh.data(), state.data(), plan.state_size, stream, kOperation);
}

template <class T>
cuda::Matrix<const T> CudaParameters<T>::weight(const Plan& plan, int tensor) const {
  cuda::Matrix<const T> weight = layout.matrix<const T>(plan, tensor, values.data());
  weight.plane_count = cuda::planes_of(precision.of(plan.tensors[tensor]));
  if (weight.plane_count > 0) {
    weight.planes = planes.data() + layout.tensors[tensor].offset;
    weight.plane_stride = layout.size;
  }
  return weight;
}

template <class T>
void CudaParameters<T>::set_flat(const Plan& plan, const T* flat, cudaStream_t stream) {
  upload_flat(plan, layout, flat, values.data(), stream);
  if constexpr (std::is_same_v<T, float>) {
    if (precision.planes() > 0) {
      cuda::split_planes(values.data(), layout.size, plane_arena(), stream);
      cuda::check(cudaStreamSynchronize(stream), kOperation);
    }
  }
}

template <class T>
void CudaParameters<T>::get_flat(const Plan& plan, T* flat, cudaStream_t stream) const {
  download_flat<T>(plan, layout, values.data(), flat, stream);
}

template <class T>
void CudaParameters<T>::set_state(const Plan& plan, const T* flat, cudaStream_t stream) {
  for_each_running_vector(plan, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    cuda::check(cudaMemcpyAsync(state.data() + to, flat + from, array_bytes(count, sizeof(T)),
                                cudaMemcpyDefault, stream),
                kOperation);
  });
  cuda::check(cudaStreamSynchronize(stream), kOperation);
}

template <class T>
void CudaParameters<T>::get_state(const Plan& plan, T* flat, cudaStream_t stream) const {
  for_each_running_vector(plan, [&](std::int64_t to, std::int64_t from, std::int64_t count) {
    cuda::check(cudaMemcpyAsync(flat + to, state.data() + from, array_bytes(count, sizeof(T)),
                                cudaMemcpyDefault, stream),
                kOperation);
  });
  cuda::check(cudaStreamSynchronize(stream), kOperation);
}

template <class T>
void CudaParameters<T>::set_batches(const std::vector<std::int64_t>& counts, cudaStream_t stream) {
  cuda::upload(counts.data(), batches.data(), static_cast<std::int64_t>(counts.size()), stream,
               kOperation);
}

template <class T>
std::vector<std::int64_t> CudaParameters<T>::get_batches(const Plan& plan,
                                                         cudaStream_t stream) const {
  std::vector<std::int64_t> counts(plan.states.size());
  cuda::download(batches.data(), counts.data(), static_cast<std::int64_t>(counts.size()), stream,
                 kOperation);
  return counts;
}

#define TW_INSTANTIATE(T)                                                                  \
  template void upload_flat(const Plan&, const CudaLayout&, const T*, T*, cudaStream_t);   \
  template void download_flat(const Plan&, const CudaLayout&, const T*, T*, cudaStream_t); \
  template struct CudaParameters<T>;
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace thalweg
