// Matrices of the device layout for the tests of kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda/matrix.h"
#include "cuda/scratch.h"
#include "kernel_test.h"

namespace thalweg::cuda::test {

inline double bfloat16_value(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return static_cast<double>(value);
}

// Everything is NaN before it is written, padding and planes too.
template <class T>
class DeviceMatrix {
 public:
  DeviceMatrix(int64_t rows, int64_t width, int planes = 0, bool rounded = false)
      : rows_(rows),
        width_(width),
        pitch_(pitch_of(width)),
        plane_count_(planes),
        rounded_(rounded),
        values_(rows * pitch_),
        planes_(planes * rows * pitch_) {}
  DeviceMatrix(int64_t rows, int64_t width, const std::vector<T>& dense)
      : DeviceMatrix(rows, width) {
    assign(dense);
  }
  // The values alone, without planes.
  void assign(const std::vector<T>& dense) {
    std::vector<T> padded(static_cast<std::size_t>(rows_ * pitch_), T(0));
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < width_; ++c) padded[r * pitch_ + c] = dense[r * width_ + c];
    values_.upload(padded);
  }

  Matrix<T> matrix() {
    Matrix<T> matrix;
    matrix.data = values_.data();
    matrix.rows = rows_;
    matrix.width = width_;
    matrix.pitch = pitch_;
    if (plane_count_ > 0) matrix.planes = planes_.data();
    matrix.plane_stride = rows_ * pitch_;
    matrix.plane_count = plane_count_;
    matrix.rounded = rounded_;
    return matrix;
  }
  operator Matrix<T>() { return matrix(); }
  operator Matrix<const T>() { return matrix(); }

  // The elements without the padding, which must be zero; the planes must add up to the elements.
  std::vector<T> dense() {
    const std::vector<T> all = values_.download();
    std::vector<T> out;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < pitch_; ++c) {
        const T value = all[static_cast<std::size_t>(r * pitch_ + c)];
        if (c < width_) {
          out.push_back(value);
        } else {
          expect_that(value == T(0), "padding [", r, ", ", c, "] of ", width_,
                      " columns: expected 0, got ", static_cast<double>(value));
        }
      }
    if (plane_count_ > 0) check_planes(all);
    return out;
  }

 private:
  void check_planes(const std::vector<T>& all) {
    const std::vector<std::uint16_t> planes = planes_.download();
    for (std::size_t i = 0; i < all.size(); ++i) {
      double sum = 0;
      for (int p = 0; p < plane_count_; ++p)
        sum += bfloat16_value(planes[static_cast<std::size_t>(p) * all.size() + i]);
      const double value = static_cast<double>(all[i]);
      // Eight bits per plane.
      const double bound = rounded_ ? 0.0 : std::abs(value) * std::pow(2.0, -8 * plane_count_);
      expect_that(std::abs(sum - value) <= bound || !std::isfinite(value), "planes at ", i,
                  ": expected the sum ", value, ", got ", sum);
      expect_that(std::isfinite(value) == std::isfinite(sum), "planes at ", i, " of ", value);
    }
  }

  int64_t rows_, width_, pitch_;
  int plane_count_;
  bool rounded_;
  DeviceArray<T> values_;
  DeviceArray<std::uint16_t> planes_;
};

// Counters that every launch must leave at zero, and memory full of NaN.
struct TestScratch {
  explicit TestScratch(std::size_t bytes, int64_t ticket_count = kTickets)
      : tickets(std::vector<unsigned>(static_cast<std::size_t>(ticket_count), 0u)),
        memory(static_cast<int64_t>(bytes)) {}
  Scratch scratch() { return {tickets.data(), memory.data(), tickets.size()}; }
  void expect_ready() {
    for (const unsigned ticket : tickets.download()) expect_that(ticket == 0, "a ticket is left");
    (void)memory.download();
  }
  DeviceArray<unsigned> tickets;
  DeviceArray<unsigned char> memory;
};

// Shapes with tails in both directions, and one with several blocks of work.
inline const std::vector<std::pair<int64_t, int64_t>>& odd_shapes() {
  static const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {1, 1}, {1, 100}, {7, 3}, {31, 33}, {33, 64}, {64, 7}, {65, 129}, {129, 65}, {200, 31}};
  return shapes;
}

}  // namespace thalweg::cuda::test
