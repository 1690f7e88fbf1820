// The schedule of a wave: start, choice of the next thread, exit, deadlock reports.
#include "cuda/emulator/wave.h"

#include <bit>
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "cuda/emulator/sanitizer.h"

namespace thalweg::emulator {
namespace {

constexpr int kReportedWarps = 16;
// A kernel that polls this often in a row, all threads together, waits for nothing.
constexpr std::uint64_t kIdlePolls = 1'000'000;
constexpr std::chrono::seconds kIdleTime{10};

Index3 index_of(std::int64_t linear, const Index3& extent) {
  return {static_cast<int>(linear % extent.x), static_cast<int>(linear / extent.x % extent.y),
          static_cast<int>(linear / extent.x / extent.y)};
}

}  // namespace

thread_local Thread* current_thread_ = nullptr;

// "gemm.cu:88"
std::string text_of(const Site& site) {
  const std::string_view path = site.file_name();
  const auto slash = path.rfind('/');
  return concat(slash == path.npos ? path : path.substr(slash + 1), ":",
                static_cast<std::int64_t>(site.line()));
}

std::string text_of(const Index3& i) { return concat("(", i.x, ",", i.y, ",", i.z, ")"); }

bool same_line(const Site& a, const Site& b) {
  return a.line() == b.line() &&
         (a.file_name() == b.file_name() || std::string_view(a.file_name()) == b.file_name());
}

// "0-15, 31"
std::string text_of_lanes(std::uint32_t lanes) {
  std::string text;
  for (int first = 0; first < kWarpSize; ++first) {
    if (((lanes >> first) & 1) == 0) continue;
    int last = first;
    while (last + 1 < kWarpSize && ((lanes >> (last + 1)) & 1) != 0) ++last;
    if (!text.empty()) text += ", ";
    text += first == last ? concat(first) : concat(first, "-", last);
    first = last;
  }
  return text;
}

Wave::~Wave() {
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) release_window(block->shared);
  }
  release_stacks(stacks_);
}

void Wave::add_cluster(std::int64_t index) {
  auto cluster = std::make_unique<Cluster>();
  cluster->wave = this;
  Index3 extent = launch_.grid;
  extent.x /= launch_.cluster;
  cluster->index = index_of(index, extent);
  const std::int64_t first = index / extent.x * launch_.grid.x + index % extent.x * launch_.cluster;
  for (int rank = 0; rank < launch_.cluster; ++rank) add_block(*cluster, first + rank);
  clusters_.push_back(std::move(cluster));
}

void Wave::add_block(Cluster& cluster, std::int64_t index) {
  auto block = std::make_unique<Block>();
  const int count = launch_.block.x * launch_.block.y * launch_.block.z;
  block->cluster = &cluster;
  block->index = index_of(index, launch_.grid);
  block->rank = static_cast<int>(cluster.blocks.size());
  block->shared = acquire_window();
  std::memset(block->shared, kPoison, launch_.dynamic_shared);
  std::memset(block->shared + launch_.dynamic_shared, kGuard, kRedZone);
  forbid_access(block->shared + launch_.dynamic_shared, kWindowBytes - launch_.dynamic_shared);
  block->live = count;
  cluster.live += count;
  live_ += count;

  block->warps.resize(static_cast<std::size_t>((count + kWarpSize - 1) / kWarpSize));
  for (std::size_t w = 0; w < block->warps.size(); ++w) {
    block->warps[w].block = block.get();
    block->warps[w].index = static_cast<int>(w);
    block->warps[w].priority = random_.next();
  }
  block->threads.resize(static_cast<std::size_t>(count));
  for (int rank = 0; rank < count; ++rank) {
    Thread& thread = block->threads[static_cast<std::size_t>(rank)];
    Warp& warp = block->warps[static_cast<std::size_t>(rank / kWarpSize)];
    thread.block = block.get();
    thread.warp = &warp;
    thread.index = index_of(rank, launch_.block);
    thread.rank = rank;
    thread.lane = rank % kWarpSize;
    warp.lanes[static_cast<std::size_t>(thread.lane)] = &thread;
    warp.live |= 1u << thread.lane;
  }
  cluster.blocks.push_back(std::move(block));
}

void Wave::run_thread() {
  Wave& wave = *current().block->cluster->wave;
  Fault fault{};
  try {
    wave.launch_.body();
    wave.exit_thread();
  } catch (Fault& thrown) {
    fault = std::move(thrown);
  }
  wave.end_with(std::move(fault));
}

Fault Wave::described(FaultKind kind, const std::string& report) const {
  return {kind, concat("[emulator] ", launch_.name, " (grid ", text_of(launch_.grid), ", block ",
                       text_of(launch_.block), ", seed ", settings().seed, "): ", report)};
}

void Wave::end_with(Fault fault) {
  fault_ = std::move(fault);
  Fiber::leave_for(current().fiber, host_);
  __builtin_unreachable();
}

std::optional<Fault> Wave::run() {
  stacks_ = acquire_stacks(static_cast<std::size_t>(live_));
  if (!shuffled_) ready_.resize(static_cast<std::size_t>(live_));
  std::size_t next_stack = 0;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (Thread& thread : block->threads) {
        thread.fiber.prepare(stacks_[next_stack++], &Wave::run_thread);
        make_ready(thread);
      }
    }
  }
  current_thread_ = next_ready();
  Fiber::switch_to(host_, current_thread_->fiber);
  current_thread_ = nullptr;
  return std::move(fault_);
}

Thread* Wave::next_ready() {
  if (ready_count_ == 0) return nullptr;
  --ready_count_;
  if (!shuffled_) {
    Thread* thread = ready_[first_ready_];
    first_ready_ = (first_ready_ + 1) % ready_.size();
    return thread;
  }
  // Warps of high priority stay ahead for a while: skew is what exposes a missing barrier.
  std::size_t chosen = random_.below(ready_.size());
  for (int i = 0; i < 3; ++i) {
    const std::size_t other = random_.below(ready_.size());
    if (ready_[other]->warp->priority > ready_[chosen]->warp->priority) chosen = other;
  }
  Thread* thread = ready_[chosen];
  ready_[chosen] = ready_.back();
  ready_.pop_back();
  if (random_.one_in(64)) thread->warp->priority = random_.next();
  return thread;
}

void Wave::suspend(const char* waits_for, const Site& site) {
  Thread& self = current();
  self.waits_for = waits_for;
  self.site = site;
  Thread* next = next_ready();
  if (next == nullptr) {
    stop(FaultKind::kDeadlock, concat("deadlock: no thread can run\n", waiting_threads()));
  }
  if (next != &self) {
    current_thread_ = next;
    Fiber::switch_to(self.fiber, next->fiber);
  }
}

void Wave::poll(const char* what, const Site& site) {
  if (idle_polls_ == 0) idle_since_ = std::chrono::steady_clock::now();
  if (++idle_polls_ % kIdlePolls == 0) {
    current().waits_for = what;
    current().site = site;
    // The awaited block may belong to a wave that runs on another processor.
    if (alone_ || std::chrono::steady_clock::now() - idle_since_ > kIdleTime) {
      stop(FaultKind::kDeadlock,
           concat("deadlock: all threads that can run poll\n", waiting_threads()));
    }
  }
  yield(what, site);
}

void Wave::complete(Barrier& barrier) {
  made_progress();
  for (Thread* waiting : barrier.waiting) {
    waiting->votes = barrier.votes;
    make_ready(*waiting);
  }
  barrier.waiting.clear();
  barrier.arrived = 0;
  barrier.votes = 0;
}

void Wave::complete(Cluster& cluster) {
  made_progress();
  for (Thread* waiting : cluster.waiting) make_ready(*waiting);
  cluster.waiting.clear();
  cluster.arrived = 0;
  ++cluster.phase;
}

void Wave::exit_thread() {
  Thread& self = current();
  Warp& warp = *self.warp;
  Block& block = *self.block;
  Cluster& cluster = *block.cluster;
  self.exited = true;
  warp.live &= ~(1u << self.lane);
  --block.live;
  --cluster.live;
  --live_;
  made_progress();

  const std::uint32_t bit = 1u << self.lane;
  for (std::size_t i = 0; i < warp.pending.size(); ++i) {
    Collective& pending = warp.pending[i];
    if ((pending.mask & bit) == 0) continue;
    if (!pending.tolerates_exit) {
      stop(FaultKind::kLaunchFailure,
           concat("warp divergence: block ", text_of(block.index), " warp ", warp.index, " lane ",
                  self.lane, " exits, while lanes ", text_of_lanes(pending.arrived),
                  " wait for it in ", pending.name, " at ", text_of(pending.site)));
    }
    pending.mask &= ~bit;
    if (pending.arrived == pending.mask) {
      for (int lane = 0; lane < kWarpSize; ++lane) {
        if ((pending.mask >> lane & 1) != 0)
          make_ready(*warp.lanes[static_cast<std::size_t>(lane)]);
      }
      warp.pending.erase(warp.pending.begin() + static_cast<std::ptrdiff_t>(i));
    }
    break;
  }
  Barrier& barrier = block.barriers[0];
  if (barrier.arrived > 0 && barrier.arrived == block.live) complete(barrier);
  if (cluster.arrived > 0 && cluster.arrived == cluster.live) complete(cluster);
  if (block.live == 0) retire_block(block);

  if (live_ == 0) Fiber::leave_for(self.fiber, host_);
  Thread* next = next_ready();
  if (next == nullptr) {
    stop(FaultKind::kDeadlock, concat("deadlock: no thread can run\n", waiting_threads()));
  }
  current_thread_ = next;
  Fiber::leave_for(self.fiber, next->fiber);
  __builtin_unreachable();
}

std::string Wave::waiting_threads() const {
  std::string text;
  int reported = 0;
  int omitted = 0;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const Warp& warp : block->warps) {
        std::uint32_t left = warp.live;
        if (left == 0) continue;
        if (reported == kReportedWarps) {
          ++omitted;
          continue;
        }
        ++reported;
        text += concat("  block ", text_of(block->index), " warp ", warp.index, ":");
        while (left != 0) {
          const Thread& first = *warp.lanes[static_cast<std::size_t>(std::countr_zero(left))];
          std::uint32_t alike = 0;
          for (int lane = 0; lane < kWarpSize; ++lane) {
            if ((left >> lane & 1) == 0) continue;
            const Thread& other = *warp.lanes[static_cast<std::size_t>(lane)];
            if (other.waits_for == first.waits_for && same_line(other.site, first.site)) {
              alike |= 1u << lane;
            }
          }
          left &= ~alike;
          text += concat(" lanes ", text_of_lanes(alike));
          text += first.waits_for == nullptr
                      ? std::string(" have not started")
                      : concat(" wait at ", text_of(first.site), " (", first.waits_for, ")");
          if (left != 0) text += ";";
        }
        text += "\n";
      }
      for (int i = 0; i < kBarriers; ++i) {
        const Barrier& barrier = block->barriers[static_cast<std::size_t>(i)];
        if (barrier.arrived == 0 || reported == kReportedWarps) continue;
        text += concat("  block ", text_of(block->index), " barrier ", i, ": ", barrier.arrived,
                       " of ", i == 0 ? block->live : barrier.expected, " threads have arrived\n");
      }
    }
  }
  if (omitted > 0) text += concat("  and ", omitted, " more warps\n");
  return text;
}

}  // namespace thalweg::emulator
