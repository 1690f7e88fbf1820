// The matrix instructions, carried out for a whole warp by the lane that arrives last.
#include "cuda/emulator/matrix.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace thalweg::emulator {
namespace {

constexpr int kRowBytes = 16;
constexpr int kMatrixRows = 8;

struct MatrixAccess {
  std::uint32_t* registers;
  std::uint32_t row;
  int count;
  bool transposed;
};

// Eight rows are one phase if their 16-byte units lie in different banks, or are the same unit.
void count_conflicts(const std::array<std::uint32_t, kMatrixRows>& rows) {
  std::array<int, 8> used{};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (std::find(rows.begin(), rows.begin() + i, rows[i]) != rows.begin() + i) continue;
    ++used[rows[i] / kRowBytes % used.size()];
  }
  count_matrix_phases(1,
                      static_cast<std::uint64_t>(*std::max_element(used.begin(), used.end()) - 1));
}

// Row `r` of the matrix is at the pointer that visit(matrix, r, pointer) gets.
template <class Visit>
void for_each_row(void* const* operands, const char* what, const Site& site, const Visit& visit) {
  const int count = static_cast<const MatrixAccess*>(operands[0])->count;
  for (int matrix = 0; matrix < count; ++matrix) {
    std::array<std::uint32_t, kMatrixRows> rows;
    for (int r = 0; r < kMatrixRows; ++r) {
      const auto* access = static_cast<const MatrixAccess*>(operands[matrix * kMatrixRows + r]);
      rows[static_cast<std::size_t>(r)] = access->row;
      unsigned char* pointer = shared_pointer(access->row, kRowBytes, what, site);
      require_aligned(pointer, kRowBytes, what, site);
      visit(matrix, r, pointer);
    }
    count_conflicts(rows);
  }
}

// The element (row, column) of a matrix that half `half` of a lane's register holds.
struct Position {
  int row, column;
};
Position position(int lane, int half, bool transposed) {
  const Position p{lane / 4, lane % 4 * 2 + half};
  return transposed ? Position{p.column, p.row} : p;
}

void combine_load(void* const* operands, std::uint32_t, const Site& site) {
  std::uint16_t matrices[4][kMatrixRows][8];
  for_each_row(operands, "ldmatrix", site, [&](int matrix, int row, const unsigned char* pointer) {
    std::memcpy(matrices[matrix][row], pointer, kRowBytes);
  });
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& access = *static_cast<const MatrixAccess*>(operands[lane]);
    for (int matrix = 0; matrix < access.count; ++matrix) {
      std::uint32_t value = 0;
      for (int half = 0; half < 2; ++half) {
        const Position p = position(lane, half, access.transposed);
        value |= std::uint32_t{matrices[matrix][p.row][p.column]} << (16 * half);
      }
      access.registers[matrix] = value;
    }
  }
}

void combine_store(void* const* operands, std::uint32_t, const Site& site) {
  std::uint16_t matrices[4][kMatrixRows][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& access = *static_cast<const MatrixAccess*>(operands[lane]);
    for (int matrix = 0; matrix < access.count; ++matrix) {
      for (int half = 0; half < 2; ++half) {
        const Position p = position(lane, half, access.transposed);
        matrices[matrix][p.row][p.column] =
            static_cast<std::uint16_t>(access.registers[matrix] >> (16 * half));
      }
    }
  }
  for_each_row(operands, "stmatrix", site, [&](int matrix, int row, unsigned char* pointer) {
    std::memcpy(pointer, matrices[matrix][row], kRowBytes);
  });
}

struct MmaOperands {
  MmaType type;
  int k;
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

// Element `i` of the 32-bit registers of a fragment; 16-bit elements are two to a register.
float element(MmaType type, const std::uint32_t* registers, int i) {
  if (type == MmaType::kTFloat32) {
    // The hardware ignores the 13 low bits.
    return std::bit_cast<float>(registers[i] & 0xffffe000u);
  }
  const auto bits = static_cast<std::uint16_t>(registers[i / 2] >> (16 * (i % 2)));
  return type == MmaType::kBFloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
}

float truncate(double value) {
  const float rounded = static_cast<float>(value);
  if (!(std::fabs(static_cast<double>(rounded)) > std::fabs(value)) || std::isinf(rounded)) {
    return rounded;
  }
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) - 1);
}

void combine_multiply(void* const* operands, std::uint32_t, const Site&) {
  const MmaOperands& first = *static_cast<const MmaOperands*>(operands[0]);
  const int per_register = first.type == MmaType::kTFloat32 ? 1 : 2;
  const int block = first.type == MmaType::kTFloat32 ? 4 : 8;
  float a[16][16];
  double b[16][8];
  double d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaOperands& own = *static_cast<const MmaOperands*>(operands[lane]);
    const int group = lane / 4;
    const int member = lane % 4;
    // Registers of a: rows group and group + 8, then the next 4 * per_register columns.
    for (int i = 0; i < own.k / 2; ++i) {
      const int r = i / per_register;
      const int column = 4 * per_register * (r / 2) + member * per_register + i % per_register;
      a[group + 8 * (r % 2)][column] = element(own.type, own.a, i);
    }
    for (int i = 0; i < own.k / 4; ++i) {
      const int r = i / per_register;
      const int row = 4 * per_register * r + member * per_register + i % per_register;
      b[row][group] = static_cast<double>(element(own.type, own.b, i));
    }
    for (int i = 0; i < 4; ++i) {
      d[group + 8 * (i / 2)][2 * member + i % 2] = static_cast<double>(own.d[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int begin = 0; begin < first.k; begin += block) {
      for (int k = begin; k < begin + block; ++k) {
        const auto factor = static_cast<double>(a[row][k]);
        for (int column = 0; column < 8; ++column) d[row][column] += factor * b[k][column];
      }
      for (double& value : d[row]) value = static_cast<double>(truncate(value));
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaOperands& own = *static_cast<const MmaOperands*>(operands[lane]);
    for (int i = 0; i < 4; ++i) {
      own.d[i] = static_cast<float>(d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
    }
  }
}

const char* mma_name(MmaType type) {
  switch (type) {
    case MmaType::kBFloat16:
      return "mma.sync bf16";
    case MmaType::kFloat16:
      return "mma.sync f16";
    default:
      return "mma.sync tf32";
  }
}

}  // namespace

void load_matrices(std::uint32_t* registers, int count, bool transposed, std::uint32_t row,
                   const Site& site) {
  MatrixAccess access{registers, row, count, transposed};
  warp_collective(kAllLanes, "ldmatrix", &access, combine_load, site);
}

void store_matrices(const std::uint32_t* registers, int count, bool transposed, std::uint32_t row,
                    const Site& site) {
  require_arch(90, "stmatrix", site);
  MatrixAccess access{const_cast<std::uint32_t*>(registers), row, count, transposed};
  warp_collective(kAllLanes, "stmatrix", &access, combine_store, site);
}

void multiply_matrices(MmaType type, int k, float* d, const std::uint32_t* a,
                       const std::uint32_t* b, const Site& site) {
  // Turing has the f16 form with k = 8 alone.
  require_arch(type == MmaType::kFloat16 && k == 8 ? 75 : 80, "mma.sync", site);
  MmaOperands operands{type, k, d, a, b};
  warp_collective(kAllLanes, mma_name(type), &operands, combine_multiply, site);
}

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(0x7fffu);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14f) {
    return static_cast<std::uint16_t>(
        sign | static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const std::uint32_t absolute = bits & 0x7fffffffu;
  const std::uint32_t rounded = absolute + 0xfffu + (absolute >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(0x7fffu);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace thalweg::emulator
