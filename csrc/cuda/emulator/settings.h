// What the environment asks of the emulator, read once per process.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace thalweg::emulator {

struct Settings {
  // THALWEG_EMULATOR_SEED: 0 runs threads in order and copies as late as possible; any other value
  // draws every choice that hardware leaves open (order of threads and blocks, completion of
  // copies, progress of streams) from that seed.
  std::uint64_t seed = 0;
  // THALWEG_EMULATOR_THREADS: operating-system threads for the blocks of one launch; with a seed
  // always one, so that a failure repeats.
  int threads = 1;
  // THALWEG_EMULATOR_ARCH: compute capability times 10; instructions it lacks are faults.
  int arch = 90;
  // THALWEG_EMULATOR_CODE: the architecture that the kernels count as compiled for, where it is
  // older than that of the device.
  int code = 120;
  // THALWEG_EMULATOR_MULTIPROCESSORS: bounds the grid of a cooperative launch.
  int multiprocessors = 4;
  // THALWEG_EMULATOR_MEMORY_MB: device memory, beyond which cudaMalloc fails.
  std::size_t memory_bytes = std::size_t{4096} << 20;
  // THALWEG_EMULATOR_PROTECT: 1 makes host code that touches device memory crash, as it does with a
  // real device; slow with many or large allocations.
  bool protect = false;
};

// May be changed between launches, by tests.
Settings& settings();

// What the kernels count as compiled for.
inline int compiled_arch() { return std::min(settings().arch, settings().code); }

// Shared memory of the emulated architecture, in bytes: what one block may ask for.
inline std::size_t shared_memory_limit() {
  const int arch = settings().arch;
  std::size_t kilobytes = 99;
  if (arch == 75) kilobytes = 64;
  if (arch == 80 || arch == 87) kilobytes = 163;
  if (arch >= 90 && arch < 120) kilobytes = 227;
  return kilobytes * 1024;
}

// The choices of one run: splitmix64 of a seed.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t x = (state_ += 0x9e3779b97f4a7c15u);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() % bound); }
  bool one_in(std::size_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

}  // namespace thalweg::emulator
