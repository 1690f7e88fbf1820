// The words that let one kernel source go through nvcc, as CUDA, and through g++, for the emulator.
// Every other header of this folder has two halves: PTX or CUDA intrinsics under nvcc, calls of
// "cuda/emulator/" otherwise.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#define TW_KERNEL __global__
// At most `threads` threads per block, at least `blocks` blocks per multiprocessor.
#define TW_KERNEL_BOUNDS(threads, blocks) __global__ __launch_bounds__(threads, blocks)
#define TW_DEVICE __device__ __forceinline__
// Before a by-value struct parameter whose address is taken; repeat it in explicit instantiations.
#define TW_GRID_CONSTANT __grid_constant__
#define TW_UNROLL _Pragma("unroll")
#define TW_NO_UNROLL _Pragma("unroll 1")

// The architecture being compiled for, as in __CUDA_ARCH__; the host pass parses everything.
#if defined(__CUDA_ARCH__)
#define TW_CUDA_ARCH __CUDA_ARCH__
#else
#define TW_CUDA_ARCH 9900
#endif

namespace thalweg::cuda {

// Stands for an instruction that the architecture lacks: the launcher must not get there.
TW_DEVICE void unsupported_instruction() { __trap(); }

}  // namespace thalweg::cuda

#else

#include "cuda/emulator/execution.h"

#define TW_KERNEL
#define TW_KERNEL_BOUNDS(threads, blocks)
#define TW_DEVICE inline
#define TW_GRID_CONSTANT
#define TW_UNROLL
#define TW_NO_UNROLL

namespace thalweg::cuda {

// The line of the kernel that calls a device function: a default argument of the emulated halves.
using Site = emulator::Site;

}  // namespace thalweg::cuda

#endif
