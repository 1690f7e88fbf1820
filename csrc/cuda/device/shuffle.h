// Exchange between the lanes of a warp. All lanes of `mask` must arrive at the same call.
#pragma once

#include "cuda/device/launch.h"

#if !defined(__CUDACC__)
#include <cstring>
#endif

namespace thalweg::cuda {

inline constexpr std::uint32_t kFullWarp = 0xffffffffu;

#if defined(__CUDACC__)

// The value of lane `source`.
template <class T>
TW_DEVICE T shuffle(T value, int source, std::uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, value, source);
}
// The value of lane (own ^ lane_mask).
template <class T>
TW_DEVICE T shuffle_xor(T value, int lane_mask, std::uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
// The value of lane (own - distance), or the own value below lane 0.
template <class T>
TW_DEVICE T shuffle_up(T value, int distance, std::uint32_t mask = kFullWarp) {
  return __shfl_up_sync(mask, value, static_cast<unsigned>(distance));
}
// The value of lane (own + distance), or the own value beyond lane 31.
template <class T>
TW_DEVICE T shuffle_down(T value, int distance, std::uint32_t mask = kFullWarp) {
  return __shfl_down_sync(mask, value, static_cast<unsigned>(distance));
}

// One bit per lane of the mask.
TW_DEVICE std::uint32_t ballot(bool predicate, std::uint32_t mask = kFullWarp) {
  return __ballot_sync(mask, predicate);
}
TW_DEVICE bool warp_any(bool predicate, std::uint32_t mask = kFullWarp) {
  return __any_sync(mask, predicate) != 0;
}
TW_DEVICE bool warp_all(bool predicate, std::uint32_t mask = kFullWarp) {
  return __all_sync(mask, predicate) != 0;
}

// Orders the memory accesses of the lanes.
TW_DEVICE void sync_warp(std::uint32_t mask = kFullWarp) { __syncwarp(mask); }

#else

namespace internal {

struct ShuffleOperand {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};

inline void combine_shuffle(void* const* operands, std::uint32_t mask, const Site& site) {
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& own = *static_cast<ShuffleOperand*>(operands[lane]);
    if ((mask >> own.source & 1) == 0) {
      emulator::fault(emulator::FaultKind::kLaunchFailure,
                      "shuffle: lane " + std::to_string(lane) + " reads lane " +
                          std::to_string(own.source) + ", which is not in the mask",
                      site);
    }
    own.result = static_cast<const ShuffleOperand*>(operands[own.source])->value;
  }
}

template <class T>
T exchange(const char* name, T value, int source, std::uint32_t mask, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  ShuffleOperand operand{0, source, 0};
  std::memcpy(&operand.value, &value, sizeof(T));
  emulator::warp_collective(mask, name, &operand, combine_shuffle, site);
  std::memcpy(&value, &operand.result, sizeof(T));
  return value;
}

struct VoteOperand {
  bool predicate;
  std::uint32_t result;
};

inline void combine_vote(void* const* operands, std::uint32_t mask, const Site&) {
  std::uint32_t votes = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (static_cast<const VoteOperand*>(operands[lane])->predicate) votes |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    if ((mask >> lane & 1) != 0) static_cast<VoteOperand*>(operands[lane])->result = votes;
  }
}

inline std::uint32_t vote(const char* name, bool predicate, std::uint32_t mask, const Site& site) {
  VoteOperand operand{predicate, 0};
  emulator::warp_collective(mask, name, &operand, combine_vote, site);
  return operand.result;
}

inline int own_lane() { return emulator::current().lane; }

}  // namespace internal

template <class T>
T shuffle(T value, int source, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  return internal::exchange("shuffle", value, source & 31, mask, site);
}
template <class T>
T shuffle_xor(T value, int lane_mask, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  return internal::exchange("shuffle_xor", value, (internal::own_lane() ^ lane_mask) & 31, mask,
                            site);
}
template <class T>
T shuffle_up(T value, int distance, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  const int source = internal::own_lane() - distance;
  return internal::exchange("shuffle_up", value, source < 0 ? internal::own_lane() : source, mask,
                            site);
}
template <class T>
T shuffle_down(T value, int distance, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  const int source = internal::own_lane() + distance;
  return internal::exchange("shuffle_down", value, source > 31 ? internal::own_lane() : source,
                            mask, site);
}

inline std::uint32_t ballot(bool predicate, std::uint32_t mask = kFullWarp,
                            Site site = Site::current()) {
  return internal::vote("ballot", predicate, mask, site);
}
inline bool warp_any(bool predicate, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  return internal::vote("warp_any", predicate, mask, site) != 0;
}
inline bool warp_all(bool predicate, std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  return internal::vote("warp_all", predicate, mask, site) == mask;
}

inline void sync_warp(std::uint32_t mask = kFullWarp, Site site = Site::current()) {
  emulator::warp_collective(mask, "sync_warp", nullptr, nullptr, site, true);
}

#endif

}  // namespace thalweg::cuda
