#include "training/population.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <set>
#include <utility>

#include "training/data.h"

namespace thalweg {
namespace {

// Between two questions of a thread that has nothing left to train.
constexpr std::chrono::milliseconds kPollEvery{20};

// A team trains one model this much slower than its threads train one each.
constexpr double kTeamEfficiency = 0.8;

// The threads of one call of for_each_member: who is next, and whether to stop.
class Crew {
 public:
  Crew(std::int64_t count, const Interrupt& interrupt, const MemberJob& job)
      : count_(count), interrupt_(interrupt), job_(job) {}

  bool working() const { return next_ < count_ && !stop_; }

  void work(Team& team) {
    const Interrupt ask = [&] { return team.rank() == 0 ? lead() : stop_.load(); };
    while (!stop_) {
      const std::int64_t member = next_.fetch_add(1);
      if (member >= count_) break;
      try {
        job_(member, ask);
      } catch (...) {
        if (!stop_.exchange(true)) error_ = std::current_exception();
      }
      // Another call has the workers, perhaps not for long.
      if (team.size() == 1) return;
    }
    std::unique_lock lock(mutex_);
    if (team.rank() != 0) {
      ++finished_;
      all_finished_.notify_one();
      return;
    }
    while (
        !all_finished_.wait_for(lock, kPollEvery, [&] { return finished_ == team.size() - 1; })) {
      lock.unlock();
      lead();
      lock.lock();
    }
    finished_ = 0;
  }

  void report(const char* operation) const {
    if (error_) std::rethrow_exception(error_);
    if (stop_) throw Interrupted(concat("[", operation, "] interrupted"));
  }

 private:
  bool lead() {
    if (!stop_ && interrupt_ && interrupt_()) stop_ = true;
    return stop_;
  }

  const std::int64_t count_;
  const Interrupt& interrupt_;
  const MemberJob& job_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;  // of the first job that failed
  std::mutex mutex_;
  std::condition_variable all_finished_;
  int finished_ = 0;  // threads besides the calling one
};

bool same(const ArrayView& a, const ArrayView& b) {
  return a.data == b.data && a.dtype == b.dtype && a.dimensions == b.dimensions &&
         a.rows == b.rows && a.cols == b.cols && a.row_stride == b.row_stride &&
         a.col_stride == b.col_stride;
}

bool same(const Data& a, const Data& b) {
  return same(a.x, b.x) && same(a.y, b.y) && same(a.weights, b.weights);
}

void check_rows(const Member& member) {
  for (const std::int64_t row : member.rows)
    expect<ValueError>(row >= 0 && row < member.data.x.rows, "[fit] expected rows in [0, ",
                       member.data.x.rows, "), got ", row);
  if (member.rows.empty() || !member.data.weights.present()) return;
  std::vector<std::byte> fetched;
  Data host;
  host.weights = on_host(member.data.weights, member.model->exchange(), &fetched);
  Batch batch;
  batch.data = &host;
  const bool positive = std::any_of(member.rows.begin(), member.rows.end(), [&](std::int64_t row) {
    return row_weight<double>(batch, row) > 0.0;
  });
  expect<ValueError>(positive,
                     "[fit] expected sample weights with a positive sum, got all zeros in rows");
}

// The shape of the data that a member trains on.
Data chosen_shape(const Member& member) {
  Data data = member.data;
  if (!member.rows.empty())
    for (ArrayView* array : {&data.x, &data.y, &data.weights})
      if (array->present()) array->rows = static_cast<std::int64_t>(member.rows.size());
  return data;
}

// All that can be wrong; after it, the data count as checked.
void check_members(std::vector<Member>& members, const Interrupt& interrupt) {
  std::set<const Model*> models;
  for (const Member& member : members)
    expect<ValueError>(models.insert(member.model).second,
                       "[fit] expected different models, got one of them twice");
  for (std::size_t i = 0; i < members.size(); ++i) {
    Member& member = members[i];
    FitOptions& options = member.options;
    options.interrupt = interrupt;
    const bool shared = i > 0 && same(member.data, members[0].data) &&
                        same(options.validation, members[0].options.validation);
    options.data_checked = shared;
    try {
      member.model->check_fit(member.data, options);
      check_rows(member);
      options.data_checked = true;
      member.model->check_fit(chosen_shape(member), options);
    } catch (const Interrupted&) {
      throw;
    } catch (const Error& error) {
      if (members.size() == 1) throw;
      throw Error(error.code(), concat(error.what(), " (network ", i, ")"));
    }
  }
}

FitResult fit_rows(const Member& member, const Interrupt& interrupt) {
  if (member.rows.empty()) return member.model->fit(member.data, member.options);
  // Rows are chosen on the host.
  const auto chosen = [&](const ArrayView& array) {
    std::vector<std::byte> fetched;
    return RowCopy(
        on_host(array, member.model->exchange(), &fetched),
        static_cast<std::int64_t>(member.rows.size()),
        [&](std::int64_t r) { return member.rows[static_cast<std::size_t>(r)]; },
        member.model->threads(), interrupt);
  };
  const RowCopy x = chosen(member.data.x), y = chosen(member.data.y),
                w = chosen(member.data.weights);
  return member.model->fit({x.view(), y.view(), w.view()}, member.options);
}

// Whether one model per thread takes less time than all threads on one model after another.
bool side_by_side(const std::vector<Member>& members, int threads) {
  const Member& first = members.front();
  const std::int64_t rows = chosen_shape(first).x.rows;
  const std::int64_t batch = first.options.batch_size;
  const int useful = first.model->useful_threads(batch == 0 ? rows : std::min(batch, rows));
  const auto count = static_cast<std::int64_t>(members.size());
  const double speedup = std::max(1.0, kTeamEfficiency * std::min(useful, threads));
  return static_cast<double>(ceil_div(count, threads)) <= static_cast<double>(count) / speedup;
}

}  // namespace

void for_each_member(std::int64_t count, int threads, const char* operation,
                     const Interrupt& interrupt, const MemberJob& job) {
  if (count == 1 || threads == 1) {
    for (std::int64_t member = 0; member < count; ++member) job(member, interrupt);
    return;
  }
  Crew crew(count, interrupt, job);
  const int wanted = static_cast<int>(std::min<std::int64_t>(threads, count));
  while (crew.working()) ThreadPool::shared().run(wanted, [&](Team& team) { crew.work(team); });
  crew.report(operation);
}

std::vector<MemberResult> fit_population(std::vector<Member> members, int threads,
                                         const Interrupt& interrupt) {
  std::vector<MemberResult> results(members.size());
  if (members.empty()) return results;
  check_members(members, interrupt);
  const int used = side_by_side(members, threads) ? threads : 1;
  const MemberJob train = [&](std::int64_t i, const Interrupt& ask) {
    Member& member = members[static_cast<std::size_t>(i)];
    MemberResult& result = results[static_cast<std::size_t>(i)];
    FitOptions& options = member.options;
    options.interrupt = ask;
    options.on_epoch = [&, report = std::move(options.on_epoch)](const EpochRecord& record) {
      result.fit.epochs.push_back(record);
      return !report || report(record);
    };
    try {
      result.fit = fit_rows(member, ask);
    } catch (const NonFiniteError& error) {
      result.fit.stopped_because = "non_finite";
      result.failure = error;
    }
    member.model->release_workspaces();  // of the validation: each thread needs one, not each model
  };
  for_each_member(static_cast<std::int64_t>(members.size()), used, "fit", interrupt, train);
  return results;
}

}  // namespace thalweg
