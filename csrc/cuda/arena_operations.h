// Operations on flat arenas that need not know their layout. Arenas are 16-byte aligned, and their
// lengths multiples of four elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/optimizer_step.h"
#include "cuda/runtime.h"
#include "cuda/scratch.h"
#include "cuda/step_state.h"

namespace thalweg::cuda {

// x *= factor
template <class T>
void scale(T* x, double factor, std::int64_t count, cudaStream_t stream);
// y += a x
template <class T>
void axpy(double a, const T* x, T* y, std::int64_t count, cudaStream_t stream);

// sums and rest as add_compensated() of math/compensated_sum.h; zero before the `first` term.
template <class T>
void add_compensated(const T* x, double* sums, double* rest, std::int64_t count, bool first,
                     cudaStream_t stream);

// *result = x . y in double, in an order that `count` fixes; x may be y.
std::size_t dot_scratch_bytes(std::int64_t count);
template <class T>
void dot(const T* x, const T* y, std::int64_t count, double* result, const Scratch& scratch,
         cudaStream_t stream);

// *bad += elements that are not finite.
template <class T>
void count_not_finite(const T* x, std::int64_t count, unsigned long long* bad, cudaStream_t stream);

// The planes of an arena from its values.
void split_planes(const float* x, std::int64_t count, const PlaneArena& planes,
                  cudaStream_t stream);

// A copy that is made only when updates_model(*state); a multiple of 16 bytes.
void copy_if_running(const StepState* state, const void* from, void* to, std::size_t bytes,
                     cudaStream_t stream);

}  // namespace thalweg::cuda
