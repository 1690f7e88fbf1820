// The warp-wide matrix instructions: ldmatrix, stmatrix and mma.sync, with the fragment layouts of
// the PTX manual.
#pragma once

#include <cstdint>

#include "cuda/emulator/execution.h"

namespace thalweg::emulator {

// `count` 8x8 matrices of 16-bit elements. Lanes 8i to 8i+7 give the shared addresses of the rows
// of matrix i, 16 bytes each.
void load_matrices(std::uint32_t* registers, int count, bool transposed, std::uint32_t row,
                   const Site& site);
void store_matrices(const std::uint32_t* registers, int count, bool transposed, std::uint32_t row,
                    const Site& site);

enum class MmaType { kBFloat16, kFloat16, kTFloat32 };

// d += a b with a of 16 x k, row-major, and b of k x 8, column-major. Products are exact; every 8
// (kTFloat32: 4) of them are added to the accumulator exactly and truncated to float32, which is
// how published measurements describe the hardware; the order within is not specified.
void multiply_matrices(MmaType type, int k, float* d, const std::uint32_t* a,
                       const std::uint32_t* b, const Site& site);

float half_to_float(std::uint16_t bits);
std::uint16_t float_to_half(float value);
std::uint16_t float_to_bfloat16(float value);

}  // namespace thalweg::emulator
