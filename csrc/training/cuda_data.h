// Data sets on their way to the device: whole, or minibatch by minibatch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/resources.h"
#include "training/data.h"

namespace thalweg {

// Bytes of device memory that the arrays of a data set which lie in host memory take.
std::int64_t device_bytes(const Data& data, std::int64_t rows);

// `data` with every array in device memory: those of the host as rows without gaps in `memory`,
// one after another, whose contents are the caller's affair.
Data device_view(const Data& data, std::int64_t rows, std::byte* memory);

// Copies all rows of the host's arrays to their places in device_view(). Complete when it returns;
// throws Interrupted.
void upload_rows(const Data& data, std::byte* memory, int threads, const Interrupt& interrupt,
                 cudaStream_t stream);

// Elements on the device -> rows without gaps on the host. Complete when it returns.
void fetch_rows(const ArrayView& array, std::byte* to, cudaStream_t stream);

// A copy of arrays on the device at addresses that stay the same from call to call, so that graphs
// that read them can be queued again.
class PlacedBatch {
 public:
  // Queues the copies; arrays whose rows have gaps between the columns stay where they are.
  Data place(const Data& data, cudaStream_t stream);

 private:
  cuda::DeviceArray<std::byte> memory_;
};

// The labels and weights of a data set in host memory, whatever memory they came in.
class HostTargets {
 public:
  HostTargets(const Data& data, cudaStream_t stream);
  const Data& data() const { return data_; }

 private:
  Data data_;
  std::vector<std::byte> y_, weights_;
};

// Two slots of rows: the host fills one while the device works on the other. Page-locked memory,
// and a stream of its own for the copies.
class CudaStaging {
 public:
  static constexpr int kSlots = 2;

  CudaStaging(const Data& data, std::int64_t capacity);

  // Whether rows of such arrays go through these slots.
  bool fits(const Data& data, std::int64_t rows) const {
    return device_bytes(data, rows) <= bytes_;
  }
  // Where the rows of a slot are read, when they are there.
  Data view(int slot, const Data& data, std::int64_t rows) const {
    return device_view(data, rows, device_.data() + slot * bytes_);
  }
  // Copies rows row_of(0), row_of(1), ... into a slot as soon as `compute` has passed used(slot);
  // what is queued there from now on finds them.
  template <class RowOf>
  void fill(int slot, const Data& data, std::int64_t rows, RowOf row_of, int threads,
            const Interrupt& interrupt, cudaStream_t compute) {
    copied_[slot].synchronize(kOperation);
    std::byte* to = pinned_.data() + slot * bytes_;
    const Data places = device_view(data, rows, to);
    for (const auto& [array, place] : pairs(data, places))
      if (array->present() && !array->on_device())
        copy_rows(*array, rows, row_of, to + offset_in(*place, to), threads, interrupt);
    send(slot, device_bytes(data, rows), compute);
  }
  void used(int slot, cudaStream_t compute) { used_[slot].record(compute, kOperation); }

 private:
  static constexpr const char* kOperation = "data";
  using Pairs = std::array<std::pair<const ArrayView*, const ArrayView*>, 3>;
  static Pairs pairs(const Data& a, const Data& b) {
    return {{{&a.x, &b.x}, {&a.y, &b.y}, {&a.weights, &b.weights}}};
  }
  static std::int64_t offset_in(const ArrayView& place, const std::byte* memory) {
    return static_cast<const std::byte*>(place.data) - memory;
  }
  void send(int slot, std::int64_t bytes, cudaStream_t compute);

  std::int64_t bytes_;  // of a slot
  cuda::Stream copies_;
  cuda::PinnedArray<std::byte> pinned_;
  cuda::DeviceArray<std::byte> device_;
  std::array<cuda::Event, kSlots> copied_, used_;
};

}  // namespace thalweg
