// What emulated threads do together: warp collectives and barriers; and the faults of single
// threads.
#include <bit>
#include <string_view>

#include "core/error.h"
#include "cuda/emulator/wave.h"

namespace thalweg::emulator {
namespace {

std::string text_of_thread(const Thread& thread) {
  return concat("block ", text_of(thread.block->index), " thread ", text_of(thread.index));
}

}  // namespace

const Launch& current_launch() { return current_wave().launch(); }

void fault(FaultKind kind, const std::string& what, const Site& site) {
  current_wave().stop(kind, concat(what, "\n  ", text_of_thread(current()), " at ", text_of(site)));
}

void fault_at_signal(FaultKind kind, const std::string& what) {
  const Thread& self = current();
  current_wave().stop_at_signal(
      kind, concat(what, "\n  ", text_of_thread(self),
                   self.waits_for == nullptr
                       ? std::string()
                       : concat(", last seen at ", text_of(self.site), " (", self.waits_for, ")")));
}

void require_arch(int arch, const char* instruction, const Site& site) {
  if (compiled_arch() < arch) {
    fault(FaultKind::kIllegalInstruction,
          concat(instruction, ": expected sm_", arch, " or newer, got sm_", compiled_arch()), site);
  }
}

void require_aligned(const void* address, std::size_t bytes, const char* what, const Site& site) {
  const std::size_t excess = reinterpret_cast<std::uintptr_t>(address) & (bytes - 1);
  if (excess != 0) {
    fault(FaultKind::kMisalignedAddress,
          concat(what, ": expected an address that is a multiple of ", bytes, ", got one ", excess,
                 " bytes further"),
          site);
  }
}

void preemption_point() {
  Wave& wave = current_wave();
  if (wave.shuffled() && wave.random().one_in(4)) wave.yield("running", current().site);
}

void poll(const char* what, const Site& site) { current_wave().poll(what, site); }

void made_progress() { current_wave().made_progress(); }

void warp_collective(std::uint32_t mask, const char* name, void* operand, Combine combine,
                     const Site& site, bool tolerates_exit) {
  Thread& self = current();
  Warp& warp = *self.warp;
  Wave& wave = current_wave();
  const std::uint32_t bit = 1u << self.lane;
  const auto diverged = [&](const std::string& what) {
    fault(FaultKind::kLaunchFailure,
          concat("warp divergence: ", name, " of warp ", warp.index, " ", what), site);
  };
  if ((mask & bit) == 0) diverged(concat("names lanes ", text_of_lanes(mask), ", not its own"));
  if (tolerates_exit) {
    mask &= warp.live;
  } else if ((mask & ~warp.live) != 0) {
    diverged(concat("waits for lanes ", text_of_lanes(mask & ~warp.live),
                    ", which have exited or do not exist"));
  }

  Collective* pending = nullptr;
  for (Collective& other : warp.pending) {
    if ((other.mask & mask) == 0) continue;
    const bool same_call =
        (other.name == name || std::string_view(other.name) == name) && same_line(other.site, site);
    if (other.mask != mask || !same_call) {
      diverged(concat("for lanes ", text_of_lanes(mask), ", while lanes ",
                      text_of_lanes(other.arrived), " wait in ", other.name, " for lanes ",
                      text_of_lanes(other.mask), " at ", text_of(other.site)));
    }
    pending = &other;
  }
  if (pending == nullptr) {
    pending = &warp.pending.emplace_back();
    pending->mask = mask;
    pending->tolerates_exit = tolerates_exit;
    pending->name = name;
    pending->site = site;
  }
  pending->operands[static_cast<std::size_t>(self.lane)] = operand;
  pending->arrived |= bit;
  if (pending->arrived != mask) {
    wave.suspend(name, site);
    return;
  }
  wave.made_progress();
  if (combine != nullptr) combine(pending->operands.data(), mask, site);
  warp.pending.erase(warp.pending.begin() + (pending - warp.pending.data()));
  for (std::uint32_t others = mask & ~bit; others != 0; others &= others - 1) {
    wave.make_ready(*warp.lanes[static_cast<std::size_t>(std::countr_zero(others))]);
  }
  preemption_point();
}

int block_barrier(bool vote, const Site& site) {
  Thread& self = current();
  Block& block = *self.block;
  Wave& wave = current_wave();
  Barrier& barrier = block.barriers[0];
  if (barrier.arrived == 0) {
    barrier.site = site;
  } else if (!same_line(barrier.site, site)) {
    fault(FaultKind::kLaunchFailure,
          concat("divergent block barrier: ", barrier.arrived, " threads wait at ",
                 text_of(barrier.site)),
          site);
  }
  ++barrier.arrived;
  barrier.votes += vote ? 1 : 0;
  if (barrier.arrived < block.live) {
    barrier.waiting.push_back(&self);
    wave.suspend("block barrier", site);
    return self.votes;
  }
  const int votes = barrier.votes;
  wave.complete(barrier);
  preemption_point();
  return votes;
}

void named_barrier(int id, int threads, bool waits, const Site& site) {
  Thread& self = current();
  Wave& wave = current_wave();
  const auto wrong = [&](const std::string& what) {
    fault(FaultKind::kLaunchFailure, concat("named barrier ", id, ": ", what), site);
  };
  if (id < 1 || id >= kBarriers) wrong(concat("expected a number from 1 to ", kBarriers - 1));
  if (threads <= 0 || threads % kWarpSize != 0) {
    wrong(concat("expected a multiple of ", kWarpSize, " threads, got ", threads));
  }
  Barrier& barrier = self.block->barriers[static_cast<std::size_t>(id)];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.site = site;
  } else if (barrier.expected != threads) {
    wrong(concat("expected ", barrier.expected, " threads as at ", text_of(barrier.site), ", got ",
                 threads));
  }
  if (++barrier.arrived < barrier.expected) {
    if (!waits) {
      preemption_point();
      return;
    }
    barrier.waiting.push_back(&self);
    wave.suspend("named barrier", site);
    return;
  }
  wave.complete(barrier);
  preemption_point();
}

void cluster_arrive(const Site& site) {
  Thread& self = current();
  Cluster& cluster = *self.block->cluster;
  if (self.arrived_at_cluster) {
    fault(FaultKind::kLaunchFailure, "cluster barrier: two arrivals without a wait", site);
  }
  self.arrived_at_cluster = true;
  self.cluster_phase = cluster.phase;
  if (++cluster.arrived == cluster.live) cluster.wave->complete(cluster);
  preemption_point();
}

void cluster_wait(const Site& site) {
  Thread& self = current();
  Cluster& cluster = *self.block->cluster;
  if (!self.arrived_at_cluster) {
    fault(FaultKind::kLaunchFailure, "cluster barrier: a wait without an arrival", site);
  }
  if (self.cluster_phase == cluster.phase) {
    cluster.waiting.push_back(&self);
    cluster.wave->suspend("cluster barrier", site);
  }
  self.arrived_at_cluster = false;
}

}  // namespace thalweg::emulator
