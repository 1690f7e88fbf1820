// The values of a plan's parameters on the device: the arena, its bfloat16 planes where products
// read them, and batch norm's running statistics; conversion from and to the canonical flat vector.
// Calls return when the copies are complete.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/optimizer_step.h"
#include "cuda/resources.h"
#include "network/cuda_layout.h"
#include "network/cuda_precision.h"

namespace thalweg {

// Canonical flat vector, in host or device memory, <-> an arena of the layout: parameters,
// gradients, slots, averages.
template <class T>
void upload_flat(const Plan& plan, const CudaLayout& layout, const T* flat, T* arena,
                 cudaStream_t stream);
template <class T>
void download_flat(const Plan& plan, const CudaLayout& layout, const T* arena, T* flat,
                   cudaStream_t stream);

template <class T>
struct CudaParameters {
  CudaLayout layout;
  CudaPrecision precision;
  cuda::DeviceArray<T> values;              // [layout.size]
  cuda::DeviceArray<std::uint16_t> planes;  // [precision.planes()][layout.size]
  // Running mean and variance, where BatchNormState says, and num_batches_tracked. Both are whole
  // pieces of 16 bytes.
  cuda::DeviceArray<T> state;
  cuda::DeviceArray<std::int64_t> batches;

  // Values of zero; running statistics of a new network.
  CudaParameters(const Plan& plan, const CudaPrecision& precision, cudaStream_t stream);

  cuda::PlaneArena plane_arena() const {
    return {.data = planes.data(), .stride = layout.size, .count = precision.planes()};
  }
  // A weight as its products read it.
  cuda::Matrix<const T> weight(const Plan& plan, int tensor) const;
  const T* vector(int tensor) const { return values.data() + layout.tensors[tensor].offset; }
  const T* running_mean(const BatchNormState& norm) const { return state.data() + norm.offset; }
  const T* running_var(const BatchNormState& norm) const {
    return running_mean(norm) + norm.padded;
  }

  void set_flat(const Plan& plan, const T* flat, cudaStream_t stream);
  void get_flat(const Plan& plan, T* flat, cudaStream_t stream) const;
  // Running mean and variance of each batch norm in turn, [width] each.
  void set_state(const Plan& plan, const T* flat, cudaStream_t stream);
  void get_state(const Plan& plan, T* flat, cudaStream_t stream) const;
  void set_batches(const std::vector<std::int64_t>& counts, cudaStream_t stream);
  std::vector<std::int64_t> get_batches(const Plan& plan, cudaStream_t stream) const;
};

}  // namespace thalweg
