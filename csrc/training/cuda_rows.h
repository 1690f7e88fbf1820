// What passes on a device share around the walk: rows into a workspace, results out of it, and
// waiting.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cuda/resources.h"
#include "network/cuda_workspace.h"
#include "training/data.h"

namespace thalweg {

// Rows [first, first + rows) of a data set.
Data slice(const Data& data, std::int64_t first, std::int64_t rows);

// Queues the input, labels or targets, and row weights of the workspace's rows, from row `first` of
// data on the device; `fill_weights` where the pass needs weights of one as well. With `state`,
// that of an update.
template <class T>
void queue_rows(const Plan& plan, const Data& data, Targets targets, std::int64_t first,
                bool fill_weights, cuda::StepState* state, CudaWorkspace<T>& workspace,
                cudaStream_t stream);

// The value of a loss in Python on value(output) and, where the workspace has gradients, `scale`
// times its gradient to gradient(plan.output). Complete when it returns.
template <class T>
double call_custom_loss(const Plan& plan, CudaWorkspace<T>& workspace, int output,
                        const std::vector<std::int64_t>& row_index, const CustomLoss& loss,
                        double scale, cudaStream_t stream);

// Waits for what was queued before the event; false when the caller wants to stop.
bool wait_for(const cuda::Event& event, const Interrupt& interrupt, const char* operation);

// A matrix -> rows without gaps in host or device memory, when `stream` gets there.
template <class T>
void queue_download(const cuda::Matrix<T>& from, T* to, cudaStream_t stream,
                    const char* operation) {
  const std::size_t width = array_bytes(from.width, sizeof(T));
  cuda::check(cudaMemcpy2DAsync(to, width, from.data, array_bytes(from.pitch, sizeof(T)), width,
                                static_cast<std::size_t>(from.rows), cudaMemcpyDefault, stream),
              operation);
}

template <class T>
bool all_finite(const cuda::Matrix<T>& matrix, cudaStream_t stream, const char* operation) {
  std::vector<T> host(static_cast<std::size_t>(matrix.size()));
  cuda::download<T>(matrix.data, host.data(), matrix.size(), stream, operation);
  return std::all_of(host.begin(), host.end(), [](T value) { return std::isfinite(value); });
}

}  // namespace thalweg
