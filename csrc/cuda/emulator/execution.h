// How the emulator runs a grid: one fiber per CUDA thread, collectives and barriers that complete
// when the last of their threads arrives, and faults for what the hardware leaves undefined.
//
// A wave is the set of clusters that are resident together. It belongs to one operating-system
// thread, so that nothing here needs a lock. A cooperative grid is one wave.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <source_location>
#include <string>
#include <vector>

#include "cuda/emulator/fiber.h"
#include "cuda/emulator/settings.h"

namespace thalweg::emulator {

inline constexpr int kWarpSize = 32;
inline constexpr std::uint32_t kAllLanes = 0xffffffffu;
inline constexpr int kBarriers = 16;

struct Index3 {
  int x, y, z;
};

// The line of the kernel that called a device function.
using Site = std::source_location;

struct Block;
struct Cluster;
class Wave;

enum class FaultKind {
  kLaunchFailure,       // undefined behaviour that the emulator detects
  kDeadlock,            // no thread can run
  kIllegalAddress,      // outside of an allocation
  kMisalignedAddress,   // not a multiple of the access size
  kIllegalInstruction,  // not on the architecture being emulated
};

// Thrown in the CUDA thread that detects it; run_grid() returns it.
struct Fault {
  FaultKind kind;
  std::string report;
};

// One cp.async that has been issued and not yet been carried out.
struct AsyncCopy {
  unsigned char* destination;
  const unsigned char* source;
  int bytes;   // written to the destination
  int filled;  // read from the source; the rest is zero
};

struct Warp;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Index3 index{};
  int rank = 0;  // in the block
  int lane = 0;
  bool exited = false;

  // What a thread that is not running waits for, for reports; nullptr before it has started.
  const char* waits_for = nullptr;
  Site site{};
  // Left here by the thread that completes the barrier.
  int votes = 0;

  bool arrived_at_cluster = false;
  std::uint64_t cluster_phase = 0;

  std::vector<AsyncCopy> copies;
  std::vector<std::size_t> copy_groups;  // ends of the committed groups in `copies`
};

// A warp-wide operation for which some lanes of `mask` have arrived.
struct Collective {
  std::uint32_t mask = 0;
  std::uint32_t arrived = 0;
  bool tolerates_exit = false;
  const char* name = nullptr;
  Site site{};
  std::array<void*, kWarpSize> operands{};
};

struct Warp {
  Block* block = nullptr;
  int index = 0;
  std::array<Thread*, kWarpSize> lanes{};
  std::uint32_t live = 0;
  std::uint64_t priority = 0;  // of the random schedule
  std::vector<Collective> pending;
};

struct Barrier {
  int arrived = 0;
  int expected = 0;  // named barriers only: barrier 0 expects all live threads
  int votes = 0;
  Site site{};
  std::vector<Thread*> waiting;
};

struct Block {
  Cluster* cluster = nullptr;
  Index3 index{};
  int rank = 0;  // in the cluster
  unsigned char* shared = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
  int live = 0;
};

struct Cluster {
  Wave* wave = nullptr;
  Index3 index{};
  std::vector<std::unique_ptr<Block>> blocks;
  std::uint64_t phase = 0;
  int arrived = 0;
  int live = 0;
  std::vector<Thread*> waiting;
};

struct Launch {
  std::string name;  // for reports
  const void* function = nullptr;
  Index3 grid{1, 1, 1};
  Index3 block{1, 1, 1};
  std::size_t dynamic_shared = 0;
  int cluster = 1;  // blocks, along x
  bool cooperative = false;
  std::function<void()> body;  // what every thread calls
};

// Runs the grid to its end, or to its first fault.
std::optional<Fault> run_grid(const Launch& launch);

// Counted over all launches since the last reset, by tests.
struct Counters {
  std::uint64_t matrix_rows = 0;       // 8-row phases of ldmatrix and stmatrix
  std::uint64_t matrix_conflicts = 0;  // further phases that bank conflicts cost
  std::uint64_t multiply_adds = 0;     // of mma.sync
};
Counters counters();
void reset_counters();

// ---- Called by device code; current() is the calling CUDA thread
// ---------------------------------

extern constinit thread_local Thread* current_thread_ __attribute__((tls_model("initial-exec")));
inline Thread& current() { return *current_thread_; }
// False on the host.
inline bool in_kernel() { return current_thread_ != nullptr; }

const Launch& current_launch();

// Ends the launch with a report, by throwing a Fault.
[[noreturn]] void fault(FaultKind kind, const std::string& what, const Site& site);
// The same where nothing can be thrown, on behalf of the instruction that a signal interrupted.
[[noreturn]] void fault_at_signal(FaultKind kind, const std::string& what);
// Faults where the emulated architecture is older than `arch`.
void require_arch(int arch, const char* instruction, const Site& site);
// Faults unless `address` is a multiple of `bytes`.
void require_aligned(const void* address, std::size_t bytes, const char* what, const Site& site);

// Where another thread may run first, if the schedule is random: before every access that orders
// threads.
void preemption_point();
// Lets others run. A launch in which threads do nothing but poll for long is a deadlock.
void poll(const char* what, const Site& site);
// Tells the deadlock detector that this thread does more than polling.
void made_progress();

// Combines the operands of all lanes of a mask, when the last of them has arrived.
using Combine = void (*)(void* const* operands, std::uint32_t mask, const Site& site);
// `tolerates_exit`: lanes of the mask that have exited are left out; otherwise they are a fault.
void warp_collective(std::uint32_t mask, const char* name, void* operand, Combine combine,
                     const Site& site, bool tolerates_exit = false);

// All live threads of the block, from one source line; returns how many had `vote` set.
int block_barrier(bool vote, const Site& site);
// Barriers 1 to 15, for `threads` threads; an arrival alone does not wait.
void named_barrier(int barrier, int threads, bool waits, const Site& site);
void cluster_arrive(const Site& site);
void cluster_wait(const Site& site);

// ---- Shared memory ------------------------------------------------------------------------------
// A block's shared memory is a window of its own. Addresses are offsets into it, as on the
// hardware.

unsigned char* dynamic_shared_memory(std::size_t alignment, const Site& site);
// The variable that `tag` identifies; allocated, and filled with NaN, when the first thread of a
// block comes by.
void* static_shared_memory(const void* tag, std::size_t bytes, std::size_t alignment,
                           const Site& site);
std::uint32_t shared_offset(const void* pointer, const Site& site);
// Bounds-checked: faults unless [offset, offset + bytes) lies in one variable.
unsigned char* shared_pointer(std::uint32_t offset, std::size_t bytes, const char* what,
                              const Site& site);
// The same place in the shared memory of another block of the cluster.
void* map_shared(const void* pointer, int rank, const Site& site);

// ---- Asynchronous copies ------------------------------------------------------------------------

void async_copy(std::uint32_t destination, const void* source, int bytes, int filled,
                const Site& site);
void async_commit();
// Carries out all but the `keep` latest groups; with a negative `keep`, uncommitted copies too.
void async_wait(int keep);

void count_matrix_phases(std::uint64_t phases, std::uint64_t conflicts);
void count_multiply_adds(std::uint64_t count);

}  // namespace thalweg::emulator
