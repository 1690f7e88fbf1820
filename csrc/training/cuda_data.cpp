// Copies between the memories.
#include "training/cuda_data.h"

#include <algorithm>

#include "core/error.h"

namespace thalweg {
namespace {

constexpr const char* kOperation = "data";
constexpr std::int64_t kAlignment = 256;
// Of one piece of an upload: small enough that an interrupt is seen soon.
constexpr std::int64_t kUploadBytes = std::int64_t{8} << 20;

std::int64_t place_bytes(const ArrayView& array, std::int64_t rows) {
  if (!array.present() || array.on_device()) return 0;
  return round_up(element_count(rows, row_bytes_of(array)), kAlignment);
}

ArrayView fetch(const ArrayView& array, std::vector<std::byte>* bytes, cudaStream_t stream) {
  bytes->resize(array_bytes(array.rows, static_cast<std::size_t>(row_bytes_of(array))));
  fetch_rows(array, bytes->data(), stream);
  ArrayView view = contiguous_view(array, array.rows, bytes->data());
  view.memory = Memory::kHost;
  return view;
}

// Whether such an array's rows can be copied as they are.
bool has_dense_rows(const ArrayView& array) {
  const bool dense = array.col_stride == item_size(array.dtype) || array.cols == 1;
  return dense && (array.row_stride >= row_bytes_of(array) || array.rows == 1);
}

}  // namespace

std::int64_t device_bytes(const Data& data, std::int64_t rows) {
  return place_bytes(data.x, rows) + place_bytes(data.y, rows) + place_bytes(data.weights, rows);
}

Data device_view(const Data& data, std::int64_t rows, std::byte* memory) {
  Data view = data;
  for (ArrayView* array : {&view.x, &view.y, &view.weights}) {
    if (!array->present() || array->on_device()) continue;
    const std::int64_t bytes = place_bytes(*array, rows);
    *array = contiguous_view(*array, rows, memory);
    array->memory = Memory::kCuda;
    memory += bytes;
  }
  return view;
}

void upload_rows(const Data& data, std::byte* memory, int threads, const Interrupt& interrupt,
                 cudaStream_t stream) {
  const std::int64_t bytes = std::min(device_bytes(data, data.x.rows), 2 * kUploadBytes);
  if (bytes == 0) return;
  const Data places = device_view(data, data.x.rows, memory);
  const std::pair<const ArrayView*, const ArrayView*> pairs[] = {
      {&data.x, &places.x}, {&data.y, &places.y}, {&data.weights, &places.weights}};
  std::int64_t half = kAlignment;
  for (const auto& [array, place] : pairs)
    if (array->present()) half = std::max({half, bytes / 2, row_bytes_of(*array)});
  const cuda::PinnedArray<std::byte> pinned(2 * half, kOperation);
  std::array<cuda::Event, 2> copied{cuda::Event(kOperation), cuda::Event(kOperation)};
  int turn = 0;
  for (const auto& [array, place] : pairs) {
    if (!array->present() || array->on_device()) continue;
    const std::int64_t row_bytes = row_bytes_of(*array);
    const std::int64_t part =
        std::max<std::int64_t>(1, half / std::max<std::int64_t>(1, row_bytes));
    for (std::int64_t first = 0; first < array->rows; first += part, turn ^= 1) {
      const std::int64_t rows = std::min(part, array->rows - first);
      std::byte* from = pinned.data() + turn * half;
      copied[turn].synchronize(kOperation);
      copy_rows(*array, rows, [&](std::int64_t r) { return first + r; }, from, threads, interrupt);
      auto* to = static_cast<std::byte*>(const_cast<void*>(place->data)) + first * row_bytes;
      cuda::check(cudaMemcpyAsync(to, from, array_bytes(rows, static_cast<std::size_t>(row_bytes)),
                                  cudaMemcpyHostToDevice, stream),
                  kOperation);
      copied[turn].record(stream, kOperation);
    }
  }
  cuda::check(cudaStreamSynchronize(stream), kOperation);
}

void fetch_rows(const ArrayView& array, std::byte* to, cudaStream_t stream) {
  const std::int64_t item = item_size(array.dtype);
  const std::int64_t row_bytes = row_bytes_of(array);
  const bool dense = array.col_stride == item || array.cols == 1;
  const std::int64_t width = dense ? row_bytes : item;
  // Copies of many rows know no strides below the width.
  const std::int64_t together = array.row_stride >= width ? array.rows : 1;
  const auto* data = static_cast<const std::byte*>(array.data);
  for (std::int64_t r = 0; r < array.rows; r += together)
    for (std::int64_t c = 0; c < array.cols; c += dense ? array.cols : 1)
      cuda::check(
          cudaMemcpy2DAsync(to + r * row_bytes + c * item, static_cast<std::size_t>(row_bytes),
                            data + r * array.row_stride + c * array.col_stride,
                            static_cast<std::size_t>(std::max(array.row_stride, width)),
                            static_cast<std::size_t>(width), static_cast<std::size_t>(together),
                            cudaMemcpyDeviceToHost, stream),
          kOperation);
  cuda::check(cudaStreamSynchronize(stream), kOperation);
}

Data PlacedBatch::place(const Data& data, cudaStream_t stream) {
  std::int64_t bytes = 0;
  const auto moves = [](const ArrayView& array) {
    return array.on_device() && has_dense_rows(array);
  };
  const auto place_of = [](const ArrayView& array) {
    return round_up(element_count(array.rows, row_bytes_of(array)), kAlignment);
  };
  Data placed = data;
  for (const ArrayView* array : {&data.x, &data.y, &data.weights})
    if (moves(*array)) bytes += place_of(*array);
  if (memory_.size() < bytes) {
    memory_ = {};
    memory_ = cuda::DeviceArray<std::byte>(bytes, kOperation);
  }
  std::byte* to = memory_.data();
  for (ArrayView* array : {&placed.x, &placed.y, &placed.weights}) {
    if (!moves(*array)) continue;
    const auto row_bytes = static_cast<std::size_t>(row_bytes_of(*array));
    cuda::check(
        cudaMemcpy2DAsync(
            to, row_bytes, array->data,
            std::max(row_bytes,
                     static_cast<std::size_t>(std::max<std::int64_t>(array->row_stride, 0))),
            row_bytes, static_cast<std::size_t>(array->rows), cudaMemcpyDeviceToDevice, stream),
        kOperation);
    const std::int64_t taken = place_of(*array);
    *array = contiguous_view(*array, array->rows, to);
    to += taken;
  }
  return placed;
}

HostTargets::HostTargets(const Data& data, cudaStream_t stream) : data_(data) {
  if (data.y.on_device()) data_.y = fetch(data.y, &y_, stream);
  if (data.weights.on_device()) data_.weights = fetch(data.weights, &weights_, stream);
}

CudaStaging::CudaStaging(const Data& data, std::int64_t capacity)
    : bytes_(std::max(kAlignment, device_bytes(data, capacity))),
      copies_(kOperation),
      pinned_(kSlots * bytes_, kOperation),
      device_(kSlots * bytes_, kOperation),
      copied_{cuda::Event(kOperation), cuda::Event(kOperation)},
      used_{cuda::Event(kOperation), cuda::Event(kOperation)} {}

void CudaStaging::send(int slot, std::int64_t bytes, cudaStream_t compute) {
  used_[slot].wait_on(copies_, kOperation);
  if (bytes > 0)
    cuda::check(cudaMemcpyAsync(device_.data() + slot * bytes_, pinned_.data() + slot * bytes_,
                                static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, copies_),
                kOperation);
  copied_[slot].record(copies_, kOperation);
  copied_[slot].wait_on(compute, kOperation);
}

}  // namespace thalweg
