// Checks of a caller's data before anything is written, and the gathering of minibatches from it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "core/layout.h"
#include "core/thread_pool.h"
#include "math/order.h"
#include "network/plan.h"
#include "network/workspace.h"
#include "training/device_exchange.h"
#include "training/model.h"

namespace thalweg {

enum class Targets { kNone, kLabels, kDense };

// f(Range) for all rows of a large array, on some threads, until interrupt() answers true: then
// Interrupted. Each range holds about kScanElements elements.
inline constexpr std::int64_t kScanElements = std::int64_t{1} << 16;
template <class F>
void scan_rows(std::int64_t rows, std::int64_t cols, int threads, const Interrupt& interrupt,
               const std::string& operation, F&& f) {
  const std::int64_t part =
      std::max<std::int64_t>(1, kScanElements / std::max<std::int64_t>(1, cols));
  const std::int64_t parts = ceil_div(rows, part);
  const bool interrupted = ThreadPool::shared().run(
      static_cast<int>(std::min<std::int64_t>(threads, parts)),
      [&](Team& team) {
        team.for_each(parts,
                      [&](std::int64_t i) { f(Range{i * part, std::min(rows, (i + 1) * part)}); });
      },
      interrupt);
  if (interrupted) throw Interrupted(concat("[", operation, "] interrupted"));
}

// The bytes of one row, without gaps.
inline std::int64_t row_bytes_of(const ArrayView& array) {
  return array.cols * item_size(array.dtype);
}

// Rows row_of(0), row_of(1), ... of an array to contiguous memory; same element type.
template <class RowOf>
void copy_rows(const ArrayView& array, std::int64_t rows, RowOf row_of, std::byte* to, int threads,
               const Interrupt& interrupt) {
  const std::int64_t item = item_size(array.dtype);
  const std::int64_t row_bytes = row_bytes_of(array);
  scan_rows(rows, array.cols, threads, interrupt, "fit", [&](Range range) {
    for (std::int64_t r = range.begin; r < range.end; ++r) {
      const std::byte* from =
          static_cast<const std::byte*>(array.data) + row_of(r) * array.row_stride;
      std::byte* row = to + r * row_bytes;
      if (array.col_stride == item || array.cols == 1) {
        std::memcpy(row, from, static_cast<std::size_t>(row_bytes));
        continue;
      }
      for (std::int64_t c = 0; c < array.cols; ++c, row += item)
        std::memcpy(row, from + c * array.col_stride, static_cast<std::size_t>(item));
    }
  });
}

// How such a copy is read.
inline ArrayView contiguous_view(const ArrayView& array, std::int64_t rows, const void* data) {
  ArrayView view = array;
  view.data = data;
  view.rows = rows;
  view.row_stride = row_bytes_of(array);
  view.col_stride = item_size(array.dtype);
  return view;
}

// An array in host memory: itself, or a copy in `bytes`, which are kept if they are there already.
ArrayView on_host(const ArrayView& array, const DeviceExchange* exchange,
                  std::vector<std::byte>* bytes);

// A copy of `rows` rows in the order row_of(0), row_of(1), ...
class RowCopy {
 public:
  template <class RowOf>
  RowCopy(const ArrayView& array, std::int64_t rows, RowOf row_of, int threads,
          const Interrupt& interrupt)
      : view_(array) {
    if (!array.present()) return;
    bytes_ = Arena<std::byte>(element_count(rows, row_bytes_of(array)));
    copy_rows(array, rows, row_of, bytes_.data(), threads, interrupt);
    view_ = contiguous_view(array, rows, bytes_.data());
  }
  const ArrayView& view() const { return view_; }

 private:
  ArrayView view_;
  Arena<std::byte> bytes_;
};

// What a check of data runs with.
struct DataCheck {
  const Plan& plan;
  std::string operation;        // begins the messages
  bool require_finite = false;  // x
  int threads = 1;
  const Interrupt& interrupt;
  bool elements = true;                      // or shapes and types only
  const DeviceExchange* exchange = nullptr;  // of a model on a device
};

// Throw ValueError or TypeError, or Interrupted.
void check_input(const DataCheck& check, const ArrayView& x);
Targets check_data(const DataCheck& check, const Data& data);
// Class weights go with integer labels; one finite weight >= 0 per output.
void check_class_weights(const Plan& plan, const std::vector<double>& weights, Targets targets,
                         const std::string& operation);

// One minibatch of a data set.
struct Batch {
  const Data* data = nullptr;
  Targets targets = Targets::kNone;
  const std::vector<double>* class_weights = nullptr;  // null: ones
  const Order* order = nullptr;                        // of the data set's rows; null: as they lie
  std::int64_t first = 0;                              // position in that order
  std::int64_t rows = 0;
  std::int64_t classes = 0;   // labels are below
  bool fill_weights = false;  // fill the row weights even when they are all one

  bool weighted() const { return data->weights.present() || class_weights != nullptr; }
};

// Weight of row r of the data set, as training uses it (rounded to T).
template <class T>
double row_weight(const Batch& batch, std::int64_t row);

// Sum of row_weight over row_of(0 .. rows), by row blocks, whose sums go to `blocks`, in the order
// in which the weights of a loss are summed.
template <class T, class RowOf>
double total_weight(const Batch& batch, RowOf row_of, double* blocks, int threads,
                    const Interrupt& interrupt, const std::string& operation) {
  const std::int64_t count = row_blocks_of(batch.rows);
  scan_rows(count, kRowBlock, threads, interrupt, operation, [&](Range part) {
    for (std::int64_t block = part.begin; block < part.end; ++block) {
      const Range parts = row_parts_of(row_block(block, batch.rows));
      blocks[block] = 0.0;
      for (std::int64_t p = parts.begin; p < parts.end; ++p) {
        const std::int64_t end = std::min((p + 1) * kRowPart, batch.rows);
        double sum = 0.0;
        for (std::int64_t r = p * kRowPart; r < end; ++r) sum += row_weight<T>(batch, row_of(r));
        blocks[block] += sum;
      }
    }
  });
  double total = 0.0;
  for (std::int64_t block = 0; block < count; ++block) total += blocks[block];
  return total;
}

// Collective: fills value(0), labels or targets, row weights and, in an order, row_index of the
// workspace; with own rows, those alone and without a barrier. ValueError for labels that the
// caller has changed to invalid ones since they were checked.
template <class T>
void gather(Team& team, const Batch& batch, const cpu::Kernels<T>& kernels, Workspace<T>& workspace,
            Range own = {});

}  // namespace thalweg
