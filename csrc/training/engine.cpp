// The choice of an engine, and the rules that all of them follow.
#include "training/engine.h"

#include <algorithm>

#include "core/error.h"
#include "training/cpu_engine.h"

namespace thalweg {

#if defined(TW_WITH_CUDA)
template <class T>
std::unique_ptr<Engine<T>> make_cuda_engine(const Plan& plan, int threads,
                                            void* stream);  // cuda_engine.cpp
#endif

template <class T>
std::unique_ptr<Engine<T>> make_engine([[maybe_unused]] const std::string& device, const Plan& plan,
                                       int threads, void* stream) {
#if defined(TW_WITH_CUDA)
  if (device == "cuda") return make_cuda_engine<T>(plan, threads, stream);
#endif
  expect<DeviceError>(stream == nullptr,
                      "[model] expected no stream for a model on the CPU, got one");
  return std::make_unique<CpuEngine<T>>(plan, threads);
}

namespace {

// A thread is worth waking for about 5 microseconds of work per phase.
int threads_for_flops(double flops, int phases, int threads) {
  constexpr double kFlopsPerPhase = 5e5;
  const double useful = flops / (kFlopsPerPhase * std::max(1, phases));
  return static_cast<int>(std::clamp(useful, 1.0, static_cast<double>(threads)));
}

}  // namespace

int useful_threads(const Plan& plan, std::int64_t rows, double passes, int threads) {
  const double flops = passes * plan.flops_per_row * static_cast<double>(rows);
  return threads_for_flops(flops, plan.phases, threads);
}

int inference_threads(const Plan& plan, std::int64_t rows, int threads) {
  const double flops = plan.flops_per_row * static_cast<double>(rows);
  int sharing_rows = threads_for_flops(flops, 1, threads);
  while (!shares_rows(rows, sharing_rows)) --sharing_rows;
  const auto phases = std::count_if(plan.nodes.begin(), plan.nodes.end(), runs_in_inference);
  return std::max(sharing_rows, threads_for_flops(flops, static_cast<int>(phases), threads));
}

bool shares_rows(std::int64_t rows, int threads) {
  const std::int64_t blocks = row_blocks_of(rows);
  return threads == 1 ||
         (blocks >= threads && 8 * ceil_div(blocks, threads) * threads <= 9 * blocks);
}

double loss_scale_divisor(const Plan& plan) {
  switch (plan.description.loss.reduction) {
    case Reduction::kBatchMean:
      return 1.0;
    case Reduction::kElementMean:
      return static_cast<double>(plan.out_features);
    case Reduction::kSum:
      break;
  }
  return 0.0;
}

double loss_scale(const Plan& plan, double weight) {
  const double divisor = loss_scale_divisor(plan);
  return divisor == 0.0 ? 1.0 : 1.0 / (weight * divisor);
}

double average_weight(const Plan& plan, const Cursor& cursor) {
  const Averaging& averaging = plan.description.averaging;
  if (averaging.kind == Averaging::Kind::kEma)
    return cursor.averaged == 0 ? 1.0 : 1.0 - averaging.decay;
  if (averaging.kind == Averaging::Kind::kPolyak && cursor.steps >= averaging.start)
    return 1.0 / static_cast<double>(cursor.averaged + 1);
  return 0.0;
}

void check_total_weight(const Plan& plan, double weight, const char* operation) {
  expect<ValueError>(weight > 1.0 || !plan.has_weighted_batch_norm(), "[", operation,
                     "] expected a total weight above 1 in a batch with weighted batch norm, got ",
                     weight);
}

void next_parts(const Plan& plan, const Cursor& cursor, UpdateParts* update) {
  update->parts.clear();
  update->lone_rows = 0;
  update->end = cursor.position;
  while (update->end < cursor.rows &&
         static_cast<std::int64_t>(update->parts.size()) < cursor.accumulate) {
    const std::int64_t size = std::min(cursor.batch_size, cursor.rows - update->end);
    if (size == 1 && plan.has_batch_norm())
      ++update->lone_rows;
    else
      update->parts.push_back({update->end, size});
    update->end += size;
  }
}

template std::unique_ptr<Engine<float>> make_engine(const std::string&, const Plan&, int, void*);
template std::unique_ptr<Engine<double>> make_engine(const std::string&, const Plan&, int, void*);

}  // namespace thalweg
