// Prints the one-way cache-line hop between two processors in nanoseconds: hop CPU CPU.
// Two pinned threads hand a counter in one line back and forth; the least of several bursts counts,
// because a burst in which either thread lost its processor says nothing about the distance.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

constexpr int kBursts = 20;
constexpr int kRoundTrips = 200;

alignas(128) std::atomic<int> turn{0};

bool pin(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

void wait_for(int value) {
  while (turn.load(std::memory_order_acquire) != value) {
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: hop CPU CPU\n");
    return 2;
  }
  const int first = std::atoi(argv[1]);
  const int second = std::atoi(argv[2]);
  std::atomic<int> pinned{0};
  std::atomic<bool> failed{false};
  const auto enter = [&](int processor) {
    if (!pin(processor)) failed = true;
    ++pinned;
    while (pinned < 2) std::this_thread::yield();
    return !failed;
  };
  std::thread answering([&] {
    if (!enter(second)) return;
    for (int i = 0; i < kBursts * kRoundTrips; ++i) {
      wait_for(2 * i + 1);
      turn.store(2 * i + 2, std::memory_order_release);
    }
  });
  double least = 1e30;
  if (enter(first)) {
    using Clock = std::chrono::steady_clock;
    for (int burst = 0; burst < kBursts; ++burst) {
      const auto start = Clock::now();
      for (int i = burst * kRoundTrips; i < (burst + 1) * kRoundTrips; ++i) {
        turn.store(2 * i + 1, std::memory_order_release);
        wait_for(2 * i + 2);
      }
      const std::chrono::duration<double, std::nano> elapsed = Clock::now() - start;
      least = std::min(least, elapsed.count() / (2.0 * kRoundTrips));
    }
  }
  answering.join();
  if (failed) {
    std::fprintf(stderr, "cannot pin to processors %d and %d\n", first, second);
    return 1;
  }
  std::printf("%.1f\n", least);
  return 0;
}
