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
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// Elements of a fragment's 32-bit register: two of 16 bits, or one of TF32, of which the hardware
// ignores the 13 low bits.
template <MmaType type>
std::array<float, type == MmaType::kTFloat32 ? 1 : 2> elements(std::uint32_t bits) {
  if constexpr (type == MmaType::kTFloat32) {
    return {std::bit_cast<float>(bits & 0xffffe000u)};
  } else if constexpr (type == MmaType::kBFloat16) {
    return {std::bit_cast<float>(bits << 16), std::bit_cast<float>(bits & 0xffff0000u)};
  } else {
    return {half_to_float(static_cast<std::uint16_t>(bits)),
            half_to_float(static_cast<std::uint16_t>(bits >> 16))};
  }
}

// Towards zero, to the 24 bits of a float; NaN stays what it is.
double truncate(double value) {
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(value) & ~std::uint64_t{0x1fffffff});
}

template <MmaType type, int depth>
void combine_multiply(void* const* operands, std::uint32_t, const Site&) {
  constexpr int kPerRegister = type == MmaType::kTFloat32 ? 1 : 2;
  constexpr int kColumns = 4 * kPerRegister;  // of a, that four lanes hold in a register each
  constexpr int kRegisters = depth / kColumns;
  double a[16][depth];
  double b[depth][8];
  double d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaOperands& own = *static_cast<const MmaOperands*>(operands[lane]);
    const int group = lane / 4;
    const int member = lane % 4;
    // Registers of a: rows group and group + 8, then the next columns.
    for (int r = 0; r < 2 * kRegisters; ++r) {
      const auto values = elements<type>(own.a[r]);
      for (int i = 0; i < kPerRegister; ++i)
        a[group + 8 * (r % 2)][kColumns * (r / 2) + member * kPerRegister + i] =
            static_cast<double>(values[static_cast<std::size_t>(i)]);
    }
    for (int r = 0; r < kRegisters; ++r) {
      const auto values = elements<type>(own.b[r]);
      for (int i = 0; i < kPerRegister; ++i)
        b[kColumns * r + member * kPerRegister + i][group] =
            static_cast<double>(values[static_cast<std::size_t>(i)]);
    }
    for (int i = 0; i < 4; ++i)
      d[group + 8 * (i / 2)][2 * member + i % 2] = static_cast<double>(own.d[i]);
  }
  count_multiply_adds(16 * 8 * depth);
  constexpr int kBlock = type == MmaType::kTFloat32 ? 4 : 8;
  for (int row = 0; row < 16; ++row) {
    double* const sums = d[row];
    for (int begin = 0; begin < depth; begin += kBlock) {
      for (int k = begin; k < begin + kBlock; ++k)
        for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
      for (int column = 0; column < 8; ++column) sums[column] = truncate(sums[column]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaOperands& own = *static_cast<const MmaOperands*>(operands[lane]);
    for (int i = 0; i < 4; ++i)
      own.d[i] = static_cast<float>(d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
  }
}

Combine multiplication(MmaType type, int k) {
  switch (type) {
    case MmaType::kBFloat16:
      return k == 8 ? combine_multiply<MmaType::kBFloat16, 8>
                    : combine_multiply<MmaType::kBFloat16, 16>;
    case MmaType::kFloat16:
      return k == 8 ? combine_multiply<MmaType::kFloat16, 8>
                    : combine_multiply<MmaType::kFloat16, 16>;
    default:
      return k == 4 ? combine_multiply<MmaType::kTFloat32, 4>
                    : combine_multiply<MmaType::kTFloat32, 8>;
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
  MmaOperands operands{d, a, b};
  warp_collective(kAllLanes, mma_name(type), &operands, multiplication(type, k), site);
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
