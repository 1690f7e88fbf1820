// Many models in one call, one model per thread. What becomes of a model is what its own call would
// have made of it, bit for bit, whatever the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/error.h"
#include "core/export.h"
#include "core/thread_pool.h"
#include "training/model.h"

namespace thalweg {

// What is done with one member; passes the interrupt on to the model's call.
using MemberJob = std::function<void(std::int64_t member, const Interrupt& interrupt)>;

// job for each member in [0, count): as threads get free they take the next member. With one thread
// or one member, one after another on the threads of each model.
//
// interrupt() is asked by the calling thread only. It ends all jobs, and Interrupted is thrown; an
// exception of one job ends the others like an interrupt and is rethrown.
TW_INTERNAL_API void for_each_member(std::int64_t count, int threads, const char* operation,
                                     const Interrupt& interrupt, const MemberJob& job);

// A model and what it trains on.
struct Member {
  Model* model = nullptr;
  Data data;
  // Rows of data to train on, in this order; empty: all.
  std::vector<std::int64_t> rows;
  // Callbacks run on the thread that trains the model, those of several members at the same time.
  // The interrupt is that of the population.
  FitOptions options;
};

struct MemberResult {
  FitResult fit;  // up to the failure
  std::optional<NonFiniteError> failure;
};

// Trains every member. A member that becomes non-finite stops, at its last good update, and the
// others go on; any other error ends all. Data and options are checked before anything is written;
// data that the members share are looked at once.
TW_INTERNAL_API std::vector<MemberResult> fit_population(std::vector<Member> members, int threads,
                                                         const Interrupt& interrupt);

}  // namespace thalweg
