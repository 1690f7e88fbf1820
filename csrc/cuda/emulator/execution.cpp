// Grids: which clusters are resident together, in which order, on which threads.
#include "cuda/emulator/execution.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "cuda/emulator/signals.h"
#include "cuda/emulator/wave.h"

namespace thalweg::emulator {
namespace {

// Threads that one wave holds when clusters are free to run one after another.
constexpr std::int64_t kWaveThreads = 4096;
// Launches below this many threads are not worth another operating-system thread.
constexpr std::int64_t kParallelThreads = 8192;

std::atomic<std::uint64_t> launches_{0};
std::atomic<std::uint64_t> matrix_rows_{0};
std::atomic<std::uint64_t> matrix_conflicts_{0};
std::atomic<std::uint64_t> multiply_adds_{0};

}  // namespace

void count_matrix_phases(std::uint64_t phases, std::uint64_t conflicts) {
  matrix_rows_.fetch_add(phases, std::memory_order_relaxed);
  matrix_conflicts_.fetch_add(conflicts, std::memory_order_relaxed);
}

void count_multiply_adds(std::uint64_t count) {
  multiply_adds_.fetch_add(count, std::memory_order_relaxed);
}

Counters counters() {
  return {matrix_rows_.load(), matrix_conflicts_.load(), multiply_adds_.load()};
}

void reset_counters() {
  matrix_rows_ = 0;
  matrix_conflicts_ = 0;
  multiply_adds_ = 0;
}

std::optional<Fault> run_grid(const Launch& launch) {
  const KernelSignals signals;
  const std::int64_t threads = std::int64_t{launch.block.x} * launch.block.y * launch.block.z;
  const std::int64_t blocks = std::int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const std::int64_t clusters = blocks / launch.cluster;
  const std::uint64_t seed = settings().seed + 0x632be59bd9b4e019u * ++launches_;

  if (launch.cooperative) {
    Wave wave(launch, seed, true);
    for (std::int64_t i = 0; i < clusters; ++i) wave.add_cluster(i);
    return wave.run();
  }

  if (settings().seed != 0) {
    // Clusters in any order, a few of them at a time.
    Random random(seed);
    std::vector<std::int64_t> order(static_cast<std::size_t>(clusters));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    const std::int64_t most =
        std::clamp<std::int64_t>(kWaveThreads / (threads * launch.cluster), 1, 4);
    for (std::size_t next = 0; next < order.size();) {
      Wave wave(launch, random.next(), true);
      std::size_t count = 1 + random.below(static_cast<std::size_t>(most));
      while (count-- > 0 && next < order.size()) wave.add_cluster(order[next++]);
      if (auto fault = wave.run()) return fault;
    }
    return std::nullopt;
  }

  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::optional<Fault> first_fault;
  const std::int64_t workers = blocks * threads < kParallelThreads
                                   ? 1
                                   : std::min<std::int64_t>(settings().threads, clusters);
  const auto work = [&] {
    for (std::int64_t i = next++; i < clusters; i = next++) {
      Wave wave(launch, seed, workers == 1);
      wave.add_cluster(i);
      if (auto fault = wave.run()) {
        const std::lock_guard lock(mutex);
        if (!first_fault) first_fault = std::move(fault);
        next = clusters;
      }
    }
  };
  std::vector<std::jthread> others;
  for (std::int64_t i = 1; i < workers; ++i) {
    others.emplace_back([&work] {
      const KernelSignals worker_signals;
      work();
    });
  }
  work();
  for (std::jthread& other : others) other.join();
  return first_fault;
}

}  // namespace thalweg::emulator
