// The thread pool and the team of threads that runs one parallel region.
//
// A region is written once and executed by every thread of the team (single program, multiple
// data): all of them walk the same sequence of for_each, single and barrier calls. Which thread
// runs a chunk never changes a result: chunk boundaries come from the problem alone, and every
// thread computes in the floating-point environment that the region asks for (round to nearest;
// subnormal numbers kept or flushed), whatever the caller has.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

#include "core/export.h"
#include "core/layout.h"

namespace thalweg {

// Asked between chunks by the thread that entered the region; true means stop. Called at most every
// few milliseconds, and never again in a region after it has answered true.
using Interrupt = std::function<bool()>;

// What becomes of numbers nearer to zero than the smallest normal one. Products of whole networks
// flush them: the gradient of a saturated softmax and the momentum of a dead unit consist of them,
// and Intel's processors spend 150 cycles on each instruction that meets one.
enum class Subnormals { kKeep, kFlush };

class Team;

class TW_INTERNAL_API ThreadPool {
 public:
  static constexpr int kMaxThreads = 256;

  // The process-wide pool; workers start on first use and again after fork. They are never joined:
  // they wait, asleep and with all signals blocked, until the process ends.
  static ThreadPool& shared();
  // min(affinity, cgroup quota, OMP_NUM_THREADS), or THALWEG_NUM_THREADS; ValueError when the
  // latter is not a whole number in [1, kMaxThreads].
  static int default_threads();

  // Runs body(team) on `threads` threads (clamped to [1, kMaxThreads]); the calling thread is rank
  // 0. When another region is running, when this call comes from inside one, or when the system
  // gives no more threads, the team is smaller: same bits. Allocates only to start workers.
  //
  // Returns whether interrupt() answered true; after Team::commit the region has run to its end
  // even so, and the caller reports the interrupt then. An exception that leaves the body on any
  // thread ends the region on all of them at their next barrier and is rethrown here. interrupt()
  // runs in the caller's floating-point environment.
  template <class Body>
  bool run(int threads, Body&& body, const Interrupt& interrupt = {},
           Subnormals subnormals = Subnormals::kKeep) {
    using Target = std::remove_reference_t<Body>;
    const RegionBody region{
        const_cast<void*>(static_cast<const void*>(std::addressof(body))),
        [](void* target, Team& team) { (*static_cast<Target*>(target))(team); }};
    return run_region(threads, region, interrupt, subnormals);
  }

 private:
  friend class Team;
  struct State;
  // A borrowed callable: a region must not allocate, as std::function may.
  struct RegionBody {
    void* target;
    void (*call)(void* target, Team& team);
  };

  constexpr ThreadPool() = default;
  bool run_region(int threads, const RegionBody& body, const Interrupt& interrupt,
                  Subnormals subnormals);
  State& state();
  // In the child of a fork only the forking thread exists: the workers' state is given up.
  static void forget_workers() noexcept;
  static bool register_fork_handler();
  static const bool fork_handler_registered_;

  std::atomic<State*> state_{nullptr};
};

class TW_INTERNAL_API Team {
 public:
  int size() const { return size_; }
  int rank() const { return rank_; }

  // All threads of the team arrive before any leaves.
  void barrier();

  // This thread's part of [0, count): contiguous, and as large as the others' to within one. Calls
  // with successive turns give what is left over to one thread after the other.
  Range share(std::int64_t count, std::int64_t turn = 0) const {
    const std::int64_t shift = turn % size_;
    const auto first = [&](std::int64_t rank) {
      return rank == 0 ? 0 : rank == size_ ? count : (count * rank + shift) / size_;
    };
    return {first(rank_), first(rank_ + 1)};
  }

  // f(chunk) once for each chunk in [0, count), contiguous ranges per thread, then a barrier. After
  // a stop request remaining chunks are skipped, unless the region is committed.
  template <class F>
  void for_each(std::int64_t count, F&& f) {
    const Range own = share(count);
    for (std::int64_t chunk = own.begin; chunk < own.end; ++chunk) {
      if (stop_requested()) break;
      f(chunk);
    }
    barrier();
  }

  // f() on rank 0 only, then a barrier.
  template <class F>
  void single(F&& f) {
    if (rank_ == 0 && !stop_requested()) f();
    barrier();
  }

  // True once interrupt() has answered true and the region is not committed. Cheap.
  bool stop_requested() {
    if (polls_) poll();
    return stop_.load(std::memory_order_relaxed);
  }
  // Collective. The value of stop_requested() agreed on by all threads.
  bool stopped();
  // Collective. From here on the region runs to its end whatever interrupt() says. Returns false
  // when a stop was agreed before: then nothing may be written any more.
  bool commit();

 private:
  friend class ThreadPool;
  struct Shared;
  Team(Shared& shared, int size, int rank);
  void poll();

  Shared& shared_;
  const std::atomic<bool>& stop_;
  int size_;
  int rank_;
  bool polls_;              // rank 0 of a region that has an interrupt()
  bool committed_ = false;  // only rank 0 stops a region, so only rank 0 needs to know
};

}  // namespace thalweg
