// The pool's workers, how they are woken, how a team meets, and how a region stops.
//
// Waiting is one scheme throughout: spin for a bounded time, then park. Nothing spins when a team
// has more threads than there are processors.
#include "core/thread_pool.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string_view>
#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

#include "core/available_processors.h"
#include "core/cache_lines.h"
#include "core/error.h"

namespace thalweg {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpin{50};
constexpr std::chrono::microseconds kPause{5};
constexpr std::int64_t kPollMilliseconds = 5;
// Workers are woken along a tree: each wakes this many.
constexpr int kWakeFanOut = 4;

thread_local bool inside_region = false;
thread_local std::int64_t last_poll_milliseconds = 0;

// Marks the calling thread: what it starts from here on gets a team of one.
class InsideRegion {
 public:
  InsideRegion() { inside_region = true; }
  ~InsideRegion() { inside_region = outer_; }
  InsideRegion(const InsideRegion&) = delete;
  InsideRegion& operator=(const InsideRegion&) = delete;

 private:
  bool outer_ = inside_region;
};

void pause_processor() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `condition` came true within the time. What is waited for may be on its way on another
// processor, or held up by this thread's own use of the processor: pause first, then yield.
template <class Condition>
bool spin_until(std::chrono::microseconds limit, Condition condition) {
  if (condition()) return true;
  if (limit.count() == 0) return false;
  const Clock::time_point start = Clock::now();
  Clock::duration spent{0};
  while (spent < limit) {
    if (spent < kPause) {
      for (int i = 0; i < 16; ++i) {
        pause_processor();
        if (condition()) return true;
      }
    } else {
      std::this_thread::yield();
      if (condition()) return true;
    }
    spent = Clock::now() - start;
  }
  return false;
}

// A counter of events to wait on.
class alignas(kCacheLine) Gate {
 public:
  std::uint32_t count() const { return count_.load(std::memory_order_acquire); }

  void open() {
    // Sequentially consistent on both sides: either the opener sees the sleeper or the sleeper sees
    // the new count.
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) != 0) count_.notify_all();
  }

  // Until the gate is opened after `seen` was read.
  void wait(std::uint32_t seen, std::chrono::microseconds spin) {
    if (spin_until(spin, [&] { return count() != seen; })) return;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    count_.wait(seen, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

// Makes the calling thread compute in another environment; restores its own at the end.
class FloatingPoint {
 public:
  explicit FloatingPoint(Subnormals subnormals)
      : FloatingPoint(subnormals == Subnormals::kFlush ? kFlush : kDefault) {}
  explicit FloatingPoint(unsigned control) : saved_(get()), control_(control) {
    if (saved_ != control_) set(control_);
  }
  ~FloatingPoint() {
    if (saved_ != control_) set(saved_);
  }
  FloatingPoint(const FloatingPoint&) = delete;
  FloatingPoint& operator=(const FloatingPoint&) = delete;

  unsigned saved() const { return saved_; }

 private:
#if defined(__x86_64__) || defined(_M_X64)
  static constexpr unsigned kDefault = 0x1f80;           // exceptions masked, nearest
  static constexpr unsigned kFlush = kDefault | 0x8040;  // results (FTZ) and operands (DAZ)
  static constexpr unsigned kStatusFlags = 0x3f;         // sticky, without influence on results
  static unsigned get() { return _mm_getcsr() & ~kStatusFlags; }
  static void set(unsigned control) { _mm_setcsr(control | (_mm_getcsr() & kStatusFlags)); }
#elif defined(__aarch64__) && !defined(__clang__)
  static constexpr unsigned kDefault = 0;
  static constexpr unsigned kFlush = 1u << 24;
  static unsigned get() { return static_cast<unsigned>(__builtin_aarch64_get_fpcr()); }
  static void set(unsigned control) { __builtin_aarch64_set_fpcr(control); }
#else
  static constexpr unsigned kDefault = 0;
  static constexpr unsigned kFlush = 0;
  static unsigned get() { return kDefault; }
  static void set(unsigned) {}
#endif
  unsigned saved_;
  unsigned control_;
};

// Milliseconds of a clock that is read in a few nanoseconds; its steps may be as long as 10 ms.
std::int64_t coarse_milliseconds() {
#if defined(__linux__)
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
#else
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
      .count();
#endif
}

#if !defined(_WIN32)
// Signals are the business of the threads that the caller knows.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t saved_;
};
#else
struct BlockSignals {
  ~BlockSignals() {}
};
#endif

// A positive whole number, or 0.
int positive_number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value > 0 ? value : 0;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Thrown by barriers of a region in which another thread has failed.
struct RegionFailed {};

}  // namespace

// What the threads of one region share. Lives on the stack of rank 0, which leaves it last.
struct Team::Shared {
  Shared(const Interrupt& asked, Subnormals wanted, unsigned callers)
      : interrupt(asked), subnormals(wanted), caller_environment(callers) {}

  const Interrupt& interrupt;
  const Subnormals subnormals;
  const unsigned caller_environment;
  std::int64_t& last_poll = last_poll_milliseconds;  // of the calling thread, across regions
  std::chrono::microseconds spin{0};
  bool interrupted = false;  // rank 0 only

  alignas(kCacheLine) std::atomic<int> arrived{0};
  Gate phase;
  // Written by the last thread to arrive at a barrier and read after it: nobody can be late, since
  // the next barrier needs all of them.
  bool stop_agreed = false;

  // Written by rank 0 when interrupted, and by a thread that fails.
  alignas(kCacheLine) std::atomic<bool> stop{false};
  std::atomic<bool> failed{false};
  std::atomic<bool> has_error{false};
  std::exception_ptr error;

  // The region cannot go on; wakes the threads that wait.
  void fail(std::exception_ptr cause) {
    if (!has_error.exchange(true)) error = std::move(cause);
    stop.store(true, std::memory_order_relaxed);
    failed.store(true, std::memory_order_seq_cst);
    phase.open();
  }
};

struct ThreadPool::State {
  std::atomic<bool> busy{false};
  int processors = available_processors();
  int workers = 0;            // started; ranks 1 .. workers
  State* previous = nullptr;  // given up by a fork, kept reachable

  // The running region. Written before the gates open.
  RegionBody body{};
  Team::Shared* shared = nullptr;
  int size = 1;

  Gate gates[kMaxThreads];                          // by rank
  alignas(kCacheLine) std::atomic<int> running{0};  // workers still in the region
  std::atomic<bool> joiner_sleeps{false};

  void start_workers(int wanted);
  void wake_children(int rank);
  void execute(int rank);
  void work(int rank);
  void join(std::chrono::microseconds spin);
};

// Stops early when the system gives no more threads.
void ThreadPool::State::start_workers(int wanted) {
  if (workers >= wanted) return;
  const BlockSignals block;
  try {
    while (workers < wanted) {
      std::thread([this, rank = workers + 1] { work(rank); }).detach();
      ++workers;
    }
  } catch (const std::exception&) {
    return;
  }
}

void ThreadPool::State::wake_children(int rank) {
  const int first = rank * kWakeFanOut + 1;
  const int end = std::min(first + kWakeFanOut, size);
  for (int child = first; child < end; ++child) gates[child].open();
}

void ThreadPool::State::execute(int rank) {
  const FloatingPoint environment(shared->subnormals);
  try {
    Team team(*shared, size, rank);
    body.call(body.target, team);
  } catch (const RegionFailed&) {
  } catch (...) {
    shared->fail(std::current_exception());
  }
}

void ThreadPool::State::work(int rank) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "thalweg");
#endif
  const InsideRegion inside;
  std::chrono::microseconds spin = kSpin;
  for (std::uint32_t regions = 0;; ++regions) {
    gates[rank].wait(regions, spin);
    wake_children(rank);
    spin = shared->spin;
    execute(rank);
    if (running.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
        joiner_sleeps.load(std::memory_order_seq_cst)) {
      running.notify_one();
    }
  }
}

void ThreadPool::State::join(std::chrono::microseconds spin) {
  const auto done = [&] { return running.load(std::memory_order_acquire) == 0; };
  if (spin_until(spin, done)) return;
  joiner_sleeps.store(true, std::memory_order_seq_cst);
  while (const int left = running.load(std::memory_order_seq_cst)) running.wait(left);
  joiner_sleeps.store(false, std::memory_order_relaxed);
}

Team::Team(Shared& shared, int size, int rank)
    : shared_(shared),
      stop_(shared.stop),
      size_(size),
      rank_(rank),
      polls_(rank == 0 && shared.interrupt) {}

void Team::barrier() {
  if (size_ == 1) {
    shared_.stop_agreed = stop_.load(std::memory_order_relaxed);
    return;
  }
  // The phase is read before the flag: a failure that the flag does not show yet opens this phase.
  const std::uint32_t phase = shared_.phase.count();
  if (shared_.failed.load(std::memory_order_seq_cst)) throw RegionFailed{};
  if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    shared_.arrived.store(0, std::memory_order_relaxed);
    shared_.stop_agreed = stop_.load(std::memory_order_relaxed);
    shared_.phase.open();
  } else {
    shared_.phase.wait(phase, shared_.spin);
    if (shared_.failed.load(std::memory_order_seq_cst)) throw RegionFailed{};
  }
}

bool Team::stopped() {
  if (polls_) poll();
  barrier();
  return shared_.stop_agreed;
}

bool Team::commit() {
  if (stopped()) return false;
  committed_ = true;
  return true;
}

void Team::poll() {
  const std::int64_t now = coarse_milliseconds();
  if (now - shared_.last_poll < kPollMilliseconds) return;
  shared_.last_poll = now;
  {
    const FloatingPoint environment(shared_.caller_environment);
    if (!shared_.interrupt()) return;
  }
  polls_ = false;
  shared_.interrupted = true;
  if (!committed_) shared_.stop.store(true, std::memory_order_relaxed);
}

ThreadPool& ThreadPool::shared() {
  static constinit ThreadPool pool;
  return pool;
}

int ThreadPool::default_threads() {
  const char* own = std::getenv("THALWEG_NUM_THREADS");
  if (own != nullptr && *own != '\0') {
    const int threads = positive_number(trimmed(own));
    expect<ValueError>(threads >= 1 && threads <= kMaxThreads,
                       "[threads] expected THALWEG_NUM_THREADS to be a whole number from 1 to ",
                       int{kMaxThreads}, ", got '", own, "'; unset it to use all processors");
    return threads;
  }
  int threads = std::min(available_processors(), int{kMaxThreads});
  if (const char* openmp = std::getenv("OMP_NUM_THREADS")) {
    const std::string_view list = openmp;  // one number per nesting level
    const int outer = positive_number(trimmed(list.substr(0, list.find(','))));
    if (outer > 0) threads = std::min(threads, outer);
  }
  return threads;
}

bool ThreadPool::register_fork_handler() {
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, forget_workers);
#endif
  return true;
}

const bool ThreadPool::fork_handler_registered_ = ThreadPool::register_fork_handler();

void ThreadPool::forget_workers() noexcept {
  static constinit State* given_up = nullptr;
  if (State* state = shared().state_.exchange(nullptr)) {
    state->previous = given_up;
    given_up = state;
  }
}

ThreadPool::State& ThreadPool::state() {
  State* current = state_.load(std::memory_order_acquire);
  if (current != nullptr) return *current;
  auto fresh = std::make_unique<State>();
  if (state_.compare_exchange_strong(current, fresh.get(), std::memory_order_acq_rel))
    return *fresh.release();
  return *current;
}

bool ThreadPool::run_region(int threads, const RegionBody& body, const Interrupt& interrupt,
                            Subnormals subnormals) {
  const FloatingPoint environment(subnormals);
  Team::Shared shared(interrupt, subnormals, environment.saved());
  State* const pool = threads > 1 && !inside_region ? &state() : nullptr;
  const InsideRegion inside;
  if (pool == nullptr || pool->busy.exchange(true, std::memory_order_acquire)) {
    Team team(shared, 1, 0);
    body.call(body.target, team);
    return shared.interrupted;
  }
  pool->start_workers(std::min(threads, int{kMaxThreads}) - 1);
  const int size = std::min({threads, int{kMaxThreads}, pool->workers + 1});
  shared.spin = size > pool->processors ? std::chrono::microseconds{0} : kSpin;
  pool->body = body;
  pool->shared = &shared;
  pool->size = size;
  pool->running.store(size - 1, std::memory_order_relaxed);
  pool->wake_children(0);
  pool->execute(0);
  pool->join(shared.spin);
  pool->busy.store(false, std::memory_order_release);
  if (shared.error) std::rethrow_exception(shared.error);
  return shared.interrupted;
}

}  // namespace thalweg
