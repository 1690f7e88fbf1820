// The resident clusters of a launch and their schedule. Internal to the emulator.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/emulator/execution.h"

namespace thalweg::emulator {

// Around every variable in shared memory.
inline constexpr std::size_t kRedZone = 128;
inline constexpr std::size_t kWindowBytes = std::size_t{384} * 1024;

// The memory that holds a block's shared memory, from a process-wide pool.
unsigned char* acquire_window();
void release_window(unsigned char* window);

// Parts of reports: "gemm.cu:88", "(1,0,0)", "0-15, 31".
std::string text_of(const Site& site);
std::string text_of(const Index3& index);
std::string text_of_lanes(std::uint32_t lanes);
bool same_line(const Site& a, const Site& b);

class Wave {
 public:
  Wave(const Launch& launch, std::uint64_t seed, bool alone)
      : launch_(launch), random_(seed), shuffled_(settings().seed != 0), alone_(alone) {}
  ~Wave();
  Wave(const Wave&) = delete;
  Wave& operator=(const Wave&) = delete;

  void add_cluster(std::int64_t cluster);
  std::optional<Fault> run();

  const Launch& launch() const { return launch_; }
  Random& random() { return random_; }
  bool shuffled() const { return shuffled_; }

  void make_ready(Thread& thread) {
    if (shuffled_) {
      ready_.push_back(&thread);
    } else {
      ready_[(first_ready_ + ready_count_) % ready_.size()] = &thread;
    }
    ++ready_count_;
  }
  void made_progress() { idle_polls_ = 0; }
  // Lets the waiting threads of a barrier go on, which starts its next round.
  void complete(Barrier& barrier);
  void complete(Cluster& cluster);
  // Runs other threads until something makes the calling one ready.
  void suspend(const char* waits_for, const Site& site);
  void yield(const char* waits_for, const Site& site) {
    make_ready(current());
    suspend(waits_for, site);
  }
  void poll(const char* what, const Site& site);
  [[noreturn]] void exit_thread();
  [[noreturn]] void stop(FaultKind kind, const std::string& report) const {
    throw described(kind, report);
  }
  [[noreturn]] void stop_at_signal(FaultKind kind, const std::string& report) {
    end_with(described(kind, report));
  }

  std::string waiting_threads() const;

  struct StaticVariable {
    const void* tag;
    std::size_t offset, bytes;
  };
  const StaticVariable& static_variable(const void* tag, std::size_t bytes, std::size_t alignment,
                                        const Site& site);
  bool within_variable(std::size_t offset, std::size_t bytes) const;
  std::size_t window_offset(const Block& block, const void* pointer) const {
    return static_cast<std::size_t>(static_cast<const unsigned char*>(pointer) - block.shared);
  }

 private:
  void add_block(Cluster& cluster, std::int64_t block);
  Thread* next_ready();
  void check_red_zones(const Block& block);
  void retire_block(Block& block);
  Fault described(FaultKind kind, const std::string& report) const;
  // Leaves all fibers where they are: kernels own nothing that would need a destructor.
  [[noreturn]] void end_with(Fault fault);
  static void run_thread();

  const Launch& launch_;
  Random random_;
  const bool shuffled_;
  const bool alone_;  // no other wave runs at the same time

  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<Stack> stacks_;
  std::vector<StaticVariable> variables_;
  Fiber host_;

  // In order: a ring of all threads. Shuffled: the ready threads in no order.
  std::vector<Thread*> ready_;
  std::size_t first_ready_ = 0;
  std::size_t ready_count_ = 0;
  std::int64_t live_ = 0;
  std::uint64_t idle_polls_ = 0;
  std::chrono::steady_clock::time_point idle_since_;
  std::optional<Fault> fault_;
};

inline Wave& current_wave() { return *current().block->cluster->wave; }

}  // namespace thalweg::emulator
