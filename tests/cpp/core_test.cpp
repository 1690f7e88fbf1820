// Tests what everything stands on: the thread pool, arenas, JSON, descriptions, schedules and
// checkpoint files. Prints every failure; the exit code is 1 if anything failed. Arguments name the
// parts to run (pool, arena, json, description, schedule, checkpoint); without arguments all of
// them run.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/available_processors.h"
#include "core/error.h"
#include "core/json.h"
#include "core/thread_pool.h"
#include "network/description.h"
#include "training/checkpoint_file.h"
#include "training/gradient_parts.h"
#include "training/schedule.h"
#include "training/team_sizer.h"

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

namespace {

using thalweg::concat;
using Clock = std::chrono::steady_clock;

std::atomic<int> failures{0};

void expect(bool condition, const std::string& what) {
  if (condition) return;
  if (++failures <= 100) std::printf("FAILED %s\n", what.c_str());
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The message of the E that f() throws; a failure when it throws nothing or something else.
template <class E>
std::string message_of(const std::string& what, const std::function<void()>& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    expect(false, what + ": other error: " + error.what());
    return {};
  }
  expect(false, what + ": no error");
  return {};
}

void expect_contains(const std::string& text, std::string_view part, const std::string& what) {
  expect(text.find(part) != std::string::npos, concat(what, ": '", text, "' without '", part, "'"));
}

// ---- Thread pool

thalweg::ThreadPool& pool() { return thalweg::ThreadPool::shared(); }

// Sums of for_each chunks that read what the previous phase wrote anywhere.
std::int64_t phases(int threads, int rounds, int* size = nullptr) {
  constexpr std::int64_t kCount = 37;
  std::vector<std::int64_t> a(kCount, 1);
  std::vector<std::int64_t> b(kCount, 0);
  pool().run(threads, [&](thalweg::Team& team) {
    if (size != nullptr && team.rank() == 0) *size = team.size();
    for (int round = 0; round < rounds; ++round) {
      team.for_each(kCount,
                    [&](std::int64_t i) { b[i] = a[(i + 1) % kCount] + a[(i * 7) % kCount]; });
      team.single([&] { b[0] %= 1000003; });
      team.for_each(kCount, [&](std::int64_t i) { a[i] = b[kCount - 1 - i] % 1000003; });
    }
  });
  std::int64_t sum = 0;
  for (const std::int64_t x : a) sum = (sum * 31 + x) % 1000000007;
  return sum;
}

void test_team_sizes() {
  const std::int64_t want = phases(1, 50);
  for (int threads = 1; threads <= 8; ++threads) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      int size = 0;
      expect(phases(threads, 50, &size) == want, concat("phases on ", threads, " threads"));
      expect(size == threads, concat("team of ", threads, ", got ", size));
    }
  }
  expect(phases(-3, 5) == phases(1, 5), "a negative number of threads");
  int size = 0;
  phases(100000, 1, &size);
  expect(size == thalweg::ThreadPool::kMaxThreads, concat("largest team, got ", size));
}

void test_every_chunk_once() {
  for (const std::int64_t count : {0, 1, 2, 3, 7, 100}) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
    pool().run(5, [&](thalweg::Team& team) {
      team.for_each(count, [&](std::int64_t chunk) { ++seen[static_cast<std::size_t>(chunk)]; });
    });
    expect(std::all_of(seen.begin(), seen.end(), [](const auto& n) { return n == 1; }),
           concat("every chunk of ", count, " once"));
  }
}

void test_oversubscription() {
  const Clock::time_point start = Clock::now();
  const std::int64_t want = phases(1, 200);
  for (const int threads : {8, 16, 32}) expect(phases(threads, 200) == want, "oversubscribed");
  expect(seconds_since(start) < (kThreadSanitizer ? 60 : 10),
         concat("oversubscription took ", seconds_since(start), " s"));
}

void test_nested_and_busy() {
  std::atomic<int> inner{0};
  pool().run(3, [&](thalweg::Team& team) {
    pool().run(4, [&](thalweg::Team& nested) {
      expect(nested.size() == 1 && nested.rank() == 0, "a nested team has one thread");
      nested.for_each(10, [&](std::int64_t) { ++inner; });
    });
    team.barrier();
  });
  expect(inner == 30, concat("nested chunks, got ", inner.load()));

  std::vector<std::thread> callers;
  const std::int64_t want = phases(1, 30);
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) expect(phases(4, 30) == want, "concurrent callers");
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_interrupt() {
  for (const int threads : {1, 2, 4}) {
    const Clock::time_point start = Clock::now();
    std::atomic<int> disagreements{0};
    std::atomic<bool> wrote{false};
    int asked = 0;
    const bool interrupted = pool().run(
        threads,
        [&](thalweg::Team& team) {
          for (int round = 0; round < 1000 && !team.stopped(); ++round) {
            team.for_each(64, [](std::int64_t) {
              std::this_thread::sleep_for(std::chrono::microseconds(200));
            });
          }
          if (team.commit()) {
            wrote = true;
          } else if (!team.stop_requested()) {
            ++disagreements;
          }
        },
        [&] { return ++asked == 3; });
    expect(interrupted, "run reports the interrupt");
    expect(asked == 3, concat("interrupt() is not asked again, got ", asked));
    expect(!wrote && disagreements == 0, "no commit after a stop");
    expect(seconds_since(start) < 0.25, concat("stopped after ", seconds_since(start), " s"));
  }
}

// Every thread gets the same answer, whenever the interrupt comes.
void test_commit_agreement() {
  using std::chrono::milliseconds;
  std::mt19937 random(7);
  int committed = 0;
  for (int repeat = 0; repeat < 60; ++repeat) {
    const int threads = 2 + repeat % 3;
    const auto start = Clock::now();
    const auto when = start + std::chrono::microseconds(random() % 20000);
    std::atomic<int> yes{0};
    std::atomic<int> written{0};
    bool over = false;  // set by rank 0 inside single()
    const bool interrupted = pool().run(
        threads,
        [&](thalweg::Team& team) {
          do {
            team.for_each(8, [](std::int64_t) {});
            team.single([&] { over = Clock::now() >= start + milliseconds(10); });
          } while (!team.stopped() && !over);
          if (!team.commit()) return;
          ++yes;
          do {
            team.for_each(team.size(), [&](std::int64_t) { ++written; });
            team.single([&] { over = Clock::now() >= start + milliseconds(20); });
            expect(!team.stopped(), "a committed region does not stop");
          } while (!over);
        },
        [&] { return Clock::now() >= when; });
    expect(yes == 0 || yes == threads, concat("commit agreed by ", yes.load(), " of ", threads));
    expect(yes == threads || interrupted, "a region that stops was interrupted");
    expect(written % threads == 0 && (written > 0) == (yes > 0),
           "a committed region runs all chunks");
    committed += yes == threads;
  }
  expect(committed > 0 && committed < 60, concat("both outcomes seen, committed ", committed));
}

void test_polls_are_rare() {
  int asked = 0;
  std::int64_t chunks = 0;
  const Clock::time_point start = Clock::now();
  while (seconds_since(start) < 0.2) {
    pool().run(
        1, [&](thalweg::Team& team) { team.for_each(1000, [&](std::int64_t) { ++chunks; }); },
        [&] {
          ++asked;
          return false;
        });
  }
  expect(asked >= 5 && asked <= 42, concat("polls in 0.2 s: ", asked));
}

void test_exceptions() {
  for (const int threads : {1, 2, 4}) {
    for (int rank = 0; rank < threads; ++rank) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const std::string message = message_of<std::runtime_error>("body throws", [&] {
          pool().run(threads, [&](thalweg::Team& team) {
            for (int round = 0; round < 10; ++round) {
              team.for_each(16, [](std::int64_t) {});
              if (team.rank() == rank && round == repeat % 10)
                throw std::runtime_error("from a body");
            }
          });
        });
        expect(message == "from a body", "the exception is the body's");
      }
    }
    message_of<std::runtime_error>("all throw", [&] {
      pool().run(threads, [](thalweg::Team&) { throw std::runtime_error("all"); });
    });
    message_of<std::runtime_error>("interrupt throws", [&] {
      for (int i = 0; i < 1000; ++i) {
        pool().run(
            threads,
            [](thalweg::Team& team) { team.for_each(8, [](std::int64_t) { usleep(100); }); },
            []() -> bool { throw std::runtime_error("interrupt"); });
      }
    });
    expect(phases(threads, 10) == phases(1, 10), "the pool works after an exception");
  }
}

// 0 when the child worked.
int fork_and_train() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    int size = 0;
    const bool same = phases(3, 20, &size) == phases(1, 20);
    _exit(same && size == 3 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

void test_fork() {
  for (int i = 0; i < 20; ++i) {
    phases(4, 3);
    expect(fork_and_train() == 0, concat("child ", i, " of an idle pool"));
  }
  std::atomic<bool> done{false};
  std::thread busy([&] {
    while (!done) phases(4, 20);
  });
  for (int i = 0; i < 20; ++i)
    expect(fork_and_train() == 0, concat("child ", i, " of a busy pool"));
  done = true;
  busy.join();
}

void test_floating_point_environment() {
#if defined(__x86_64__)
  const unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);  // flush to zero, denormals are zero
  std::atomic<int> kept{0};
  for (const int threads : {1, 3}) {
    pool().run(threads, [&](thalweg::Team&) {
      const volatile float tiny = std::numeric_limits<float>::min();
      if (tiny * 0.5f != 0.0f) ++kept;
    });
  }
  expect(kept == 4, "regions compute with subnormal numbers");
  expect((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040, "the caller's environment comes back");
  __builtin_ia32_ldmxcsr(before);

  std::atomic<int> flushed{0};
  bool callers = true;
  const auto interrupt = [&] {
    callers = callers && (__builtin_ia32_stmxcsr() & 0x8040) == 0;
    return false;
  };
  for (const int threads : {1, 3}) {
    pool().run(
        threads,
        [&](thalweg::Team& team) {
          std::this_thread::sleep_for(std::chrono::milliseconds(30));  // the next poll asks
          team.stop_requested();
          const volatile float tiny = std::numeric_limits<float>::min();
          if (tiny * 0.5f == 0.0f) ++flushed;
        },
        interrupt, thalweg::Subnormals::kFlush);
    // The same workers, asked to keep them.
    pool().run(threads, [&](thalweg::Team&) {
      const volatile float tiny = std::numeric_limits<float>::min();
      if (tiny * 0.5f != 0.0f) ++kept;
    });
  }
  expect(flushed == 4, "regions flush subnormal numbers on request");
  expect(kept == 8, "a region that flushes leaves nothing behind");
  expect(callers, "interrupt() runs in the caller's environment");
  expect((__builtin_ia32_stmxcsr() & 0x8040) == 0, "the caller keeps subnormal numbers");
#endif
}

void test_default_threads() {
  const auto with = [](const char* own, const char* openmp) {
    own ? setenv("THALWEG_NUM_THREADS", own, 1) : unsetenv("THALWEG_NUM_THREADS");
    openmp ? setenv("OMP_NUM_THREADS", openmp, 1) : unsetenv("OMP_NUM_THREADS");
    return thalweg::ThreadPool::default_threads();
  };
  const int processors = thalweg::available_processors();
  expect(with(nullptr, nullptr) == std::min(processors, 256), "default threads");
  expect(with(nullptr, "1") == 1 && with(nullptr, " 1,4") == 1, "OMP_NUM_THREADS");
  expect(with(nullptr, "nonsense") == std::min(processors, 256), "invalid OMP_NUM_THREADS");
  expect(with("7", "1") == 7 && with("", "1") == 1, "THALWEG_NUM_THREADS");
  for (const char* wrong : {"0", "-1", "two", "2x", "257", "1.5", "99999999999999999999"}) {
    const std::string message =
        message_of<thalweg::ValueError>(wrong, [&] { with(wrong, nullptr); });
    expect_contains(message, "THALWEG_NUM_THREADS", "threads message");
    expect_contains(message, wrong, "threads message");
  }
  with(nullptr, nullptr);
}

void write_text(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A folder that is removed with what is in it.
class Folder {
 public:
  Folder() {
    char path[] = "/tmp/thalweg_core_test_XXXXXX";
    if (mkdtemp(path) == nullptr) std::abort();
    path_ = path;
  }
  ~Folder() { std::system(("rm -rf " + path_).c_str()); }
  std::string operator/(std::string_view name) const { return concat(path_, "/", name); }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    DIR* const folder = opendir(path_.c_str());
    while (const dirent* entry = readdir(folder)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") found.push_back(name);
    }
    closedir(folder);
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  std::string path_;
};

void test_cgroup_quota() {
  const Folder root;
  const auto quota = [&](const std::string& text) {
    return thalweg::cgroup_cpu_quota(text, root / "");
  };
  std::system(("mkdir -p " + (root / "a/b") + " " + (root / "cpu,cpuacct/x/y")).c_str());
  expect(std::isinf(quota("0::/a/b\n")), "no quota");
  write_text(root / "a/cpu.max", "150000 100000\n");
  write_text(root / "a/b/cpu.max", "max 100000\n");
  expect(quota("0::/a/b\n") == 1.5, "the parent's quota");
  write_text(root / "cpu,cpuacct/x/y/cpu.cfs_quota_us", "-1\n");
  write_text(root / "cpu,cpuacct/x/y/cpu.cfs_period_us", "100000\n");
  expect(std::isinf(quota("4:cpu,cpuacct:/x/y\n")), "no quota in version 1");
  write_text(root / "cpu,cpuacct/x/y/cpu.cfs_quota_us", "250000\n");
  expect(quota("4:cpu,cpuacct:/x/y\n0::/a\n") == 1.5, "the smaller of both");
  expect(quota("4:cpu,cpuacct:/x/y\n") == 2.5, "version 1");
  expect(std::isinf(quota("4:memory:/x/y\nnonsense\n:\n")), "other controllers");
}

// The threads that most of `updates` updates used, whose seconds `time` says, and the most.
template <class Time>
std::pair<int, int> settled_threads(thalweg::TeamSizer& sizer, int first, int limit, int updates,
                                    Time time) {
  int most = 0;
  std::vector<int> used(257, 0);
  for (int i = 0; i < updates; ++i) {
    const int threads = sizer.threads(32, first, limit);
    most = std::max(most, threads);
    ++used[threads];
    sizer.add(time(threads));
  }
  return {static_cast<int>(std::max_element(used.begin(), used.end()) - used.begin()), most};
}

void test_team_sizer() {
  const auto scales = [](int threads) { return 1e-3 / threads; };
  const auto slower = [](int threads) { return 1e-4 * threads; };
  const auto valley = [](int threads) { return 1e-4 * (8.0 / threads + threads / 2.0); };
  thalweg::TeamSizer sizer;
  expect(settled_threads(sizer, 1, 6, 2000, scales) == std::pair(6, 6),
         "threads that help are used");
  expect(settled_threads(sizer, 1, 6, 4000, slower).first == 1, "given back when they hinder");
  expect(settled_threads(sizer, 1, 6, 4000, valley).first == 4, "the best number between");
  expect(settled_threads(sizer, 2, 2, 1000, scales) == std::pair(2, 2), "never more than allowed");
  expect(settled_threads(sizer, 1, 1, 1000, scales) == std::pair(1, 1), "one thread");

  // A comparison of equals changes nothing, and costs few updates; nor does a shorter update of
  // fewer rows now and then.
  int others = 0;
  for (int i = 0; i < 100000; ++i) {
    others += sizer.threads(32, 2, 4) != 2 && i > 100 ? 1 : 0;
    sizer.add(2e-5);
    if (i % 10 == 0) {
      expect(sizer.threads(7, 1, 1) == 1, "no more than a small update may have");
      sizer.add(2e-6);
    }
  }
  expect(others > 0 && others < 500, concat("equal teams: ", others, " updates with others"));
  // Many of them in a row are the usual ones then.
  for (int i = 0; i < 10; ++i) sizer.threads(7, 3, 3);
  expect(sizer.threads(7, 3, 3) == 3, "the size of the minibatches has changed");
}

// ---- Threads that keep to rows of their own

void test_gradient_parts() {
  const auto plan_of = [](int width) {
    return thalweg::compile(
        thalweg::parse_description(concat(R"({"in_features":64,"layers":[{"type":"dense","units":)",
                                          width, R"(},"relu",{"type":"dense","units":)", width,
                                          R"(},"relu",{"type":"dense","units":64}]})")));
  };
  const thalweg::Plan plan = plan_of(64);
  thalweg::GradientParts<float> parts(plan);
  // Halves of 4 x 128 rows, of 7 x 128 + 104, and so on.
  for (const std::int64_t rows : {512, 1000, 1024, 4096, 100000}) {
    for (const int threads : {2, 4}) {
      std::int64_t next = 0;
      for (int rank = 0; rank < threads; ++rank) {
        const thalweg::Range own = parts.rows_of(rows, rank, threads);
        expect(own.begin == next && own.begin % thalweg::kGradientRows == 0 && own.size() > 0,
               concat("thread ", rank, " of ", threads, " and ", rows, " rows"));
        expect(own.size() * threads * 4 <= rows * 5, "no thread has much more than its share");
        next = own.end;
      }
      expect(next == rows, "all rows belong to a thread");
    }
  }
  const auto shared = [&](thalweg::GradientParts<float>& of, std::int64_t rows, int threads) {
    return of.rows_of(rows, 0, threads).size() == 0;
  };
  expect(shared(parts, 1024, 1), "one thread has all rows anyway");
  expect(shared(parts, 1024, 3) && shared(parts, 1024, 6), "three parts do not fit the tree");
  expect(shared(parts, 512, 8), "parts of less than a leaf");
  expect(shared(parts, 769, 2), "halves that are too different");
  expect(shared(parts, 32, 2), "few rows");
  thalweg::GradientParts<float> large(plan_of(4096));
  expect(!shared(large, 16384, 16) && shared(large, 16384, 64),
         "parts that would take more memory than twice the activations");
  expect(!shared(parts, 256, 2) && shared(large, 256, 2), "many weights for few rows");

  // Parts add up in pairs, as the rows do.
  expect(!parts.has(4), "no memory until it is needed");
  parts.reserve(1024, 4);
  expect(parts.has(4) && !parts.has(8), "memory for four");
  const std::int64_t count = 2 * thalweg::kTile + 256;
  std::vector<float> expected(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    float part[4];
    for (int rank = 0; rank < 4; ++rank)
      parts.part(rank)[256 + i] = part[rank] =
          std::sin(static_cast<float>(i + 1000 * rank)) * (rank % 2 ? 1e-3f : 1e3f);
    expected[static_cast<std::size_t>(i)] = (part[0] + part[1]) + (part[2] + part[3]);
  }
  std::vector<float> sum(static_cast<std::size_t>(count));
  parts.add_up(thalweg::cpu::kernels<float>(), {0, 4}, 256, count, sum.data());
  expect(sum == expected, "the sum of four parts");
}

void test_pool() {
  test_team_sizes();
  test_every_chunk_once();
  test_oversubscription();
  test_nested_and_busy();
  test_interrupt();
  test_commit_agreement();
  test_polls_are_rare();
  test_exceptions();
  // The thread sanitizer cannot start threads in the child of a threaded process.
  if (!kThreadSanitizer) test_fork();
  test_floating_point_environment();
  test_default_threads();
  test_cgroup_quota();
  test_team_sizer();
  test_gradient_parts();
}

// ---- Arenas

void test_arena() {
  for (const std::int64_t size : {1, 7, 1000, 1023, 1024, 3001, 524287, 524288, 3000001}) {
    thalweg::Arena<float> arena(size);
    const auto address = reinterpret_cast<std::uintptr_t>(arena.data());
    const std::uintptr_t alignment = size < 1024 ? 64 : size < 524288 ? 4 << 10 : 2 << 20;
    expect(address % alignment == 0, concat("alignment of ", size));
    expect(std::all_of(arena.begin(), arena.end(), [](float x) { return x == 0.0f; }), "zeroed");
    arena[size - 1] = 1.0f;
    thalweg::Arena<float> other = std::move(arena);
    expect(other[size - 1] == 1.0f && arena.data() == nullptr && arena.size() == 0, "moved");
  }
  expect(thalweg::Arena<float>(0).data() == nullptr, "an empty arena");
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t size : {std::int64_t{-1}, kMost, kMost / 8, kMost / 8 + 1, kMost / 16}) {
    message_of<std::bad_alloc>(concat("arena of ", size), [&] { thalweg::Arena<double> a(size); });
  }
}

// ---- JSON

using thalweg::Json;

void test_json_values() {
  const auto same = [](std::string_view text) { return Json::parse(text).text() == text; };
  for (const char* text :
       {"null", "true", "false", "0", "-1", "9223372036854775807", "-9223372036854775808",
        "18446744073709551615", "0.1", "1e-07", "-2.5e+300", "\"\"", "\"a\\\"\\\\b\\n\\u0001\"",
        "[]", "{}", "[1,[2,{\"a\":null}],\"x\"]", "\"\u00e9\u4e2d\U0001f600\"", "-0"}) {
    expect(same(text), concat("round trip of ", text, ", got ", Json::parse(text).text()));
  }
  expect(Json::parse(" \t\r\n [ 1 , 2 ] ").text() == "[1,2]", "white space");
  expect(Json::parse("\"\\u00e9\\ud83d\\ude00\\/\\b\\f\\r\\t\"").text() ==
             "\"\u00e9\U0001f600/\\u0008\\u000c\\u000d\\u0009\"",
         "escapes");
  expect(std::signbit(*Json::parse("-0").number()), "minus zero");
  expect(Json::parse("9007199254740993").int64() == 9007199254740993, "exact integers");
  expect(Json::parse("1e3").int64() == 1000 && !Json::parse("1.5").int64(), "whole reals");
  expect(!Json::parse("9223372036854775808").int64() && !Json::parse("1e19").int64(), "too large");
  expect(Json::parse("18446744073709551615").uint64() == UINT64_MAX, "64 bits unsigned");
  expect(!Json::parse("-1").uint64() && !Json::parse("18446744073709551616").uint64(),
         "not unsigned");
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    const auto bits = random();
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    if (!std::isfinite(value)) continue;
    const double back = Json::parse(Json(value).text()).number().value_or(0.0);
    expect(std::memcmp(&back, &value, sizeof(value)) == 0, concat("number ", value));
  }
  message_of<thalweg::ValueError>("nan", [] { Json(std::nan("")).text(); });
  message_of<thalweg::ValueError>("utf-8", [] { Json("\xff").text(); });
  expect(thalweg::quoted("a\xff\xc3\xa9\n") == "\"a\\xff\u00e9\\n\"", "quoted bytes");
  expect(thalweg::quoted(std::string(100, 'x'), 10) == "\"xxxxxxxxxx...\"", "quoted long text");
}

void test_json_errors() {
  const std::pair<const char*, const char*> cases[] = {
      {"", "byte 0"},
      {"nul", "byte 0"},
      {"[1,]", "byte 3"},
      {"[1 2]", "',' or ']'"},
      {"{\"a\":1,}", "a string"},
      {"{\"a\" 1}", "':'"},
      {"{a:1}", "a string"},
      {"{\"a\":1,\"a\":2}", "\"a\" twice"},
      {"{\"a\":1,\"\\u0061\":2}", "\"a\" twice"},
      {"01", "end of the text"},
      {"1.", "a digit"},
      {".5", "a value"},
      {"+1", "a value"},
      {"-", "a digit"},
      {"1e", "a digit"},
      {"1e999", "fits a double"},
      {"NaN", "a value"},
      {"Infinity", "a value"},
      {"0x10", "end of the text"},
      {"\"", "'\"'"},
      {"\"\n\"", "control"},
      {"\"\\x\"", "an escape"},
      {"\"\\u12g4\"", "hexadecimal"},
      {"\"\\u12", "hexadecimal"},
      {"\"\\ud800\"", "surrogate"},
      {"\"\\ud800\\u0041\"", "surrogate"},
      {"\"\\udc00\"", "surrogate"},
      {"\"\x80\"", "UTF-8"},
      {"\"\xc0\xaf\"", "UTF-8"},
      {"\"\xed\xa0\x80\"", "UTF-8"},
      {"\"\xf4\x90\x80\x80\"", "UTF-8"},
      {"\"\xe4\xb8", "UTF-8"},
      {"1 1", "end of the text"},
      {"\xef\xbb\xbf{}", "byte 0xef"},
  };
  for (const auto& [text, part] : cases) {
    const std::string message =
        message_of<thalweg::ValueError>(text, [text = text] { Json::parse(text); });
    expect_contains(message, part, text);
  }
  const std::string nul("[\0]", 3);
  message_of<thalweg::ValueError>("null byte", [&] { Json::parse(nul); });
  expect(Json::parse(std::string(64, '[') + std::string(64, ']')).array() != nullptr, "64 levels");
  expect_contains(
      message_of<thalweg::ValueError>("deep", [] { Json::parse(std::string(100000, '[')); }),
      "nesting", "deep");
  expect_contains(
      message_of<thalweg::ValueError>("long", [] { Json::parse(std::string(2 << 20, ' ')); }),
      "at most", "long");
  std::string many = "{";
  for (int i = 0; i < 60000; ++i) many += concat(i ? "," : "", "\"k", i, "\":0");
  const Clock::time_point start = Clock::now();
  Json::parse(many + "}");
  expect(seconds_since(start) < 2.0, "many keys");
}

// Bytes changed, removed, doubled, cut or spliced in; `fragments` are what the format knows.
std::string mutate(std::string text, std::mt19937_64& random,
                   const std::vector<std::string>& fragments) {
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : random() % n; };
  for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
    const std::size_t at = below(text.size());
    switch (below(6)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, 1 + below(8));
        break;
      case 2:
        text.insert(at, text.substr(below(text.size()), below(40)));
        break;
      case 3:
        text.insert(at, fragments[below(fragments.size())]);
        break;
      case 4:
        text.replace(at, 1 + below(12), fragments[below(fragments.size())]);
        break;
      default:
        if (below(8) == 0) text.resize(at);
        break;
    }
  }
  return text;
}

constexpr const char* kDescription = R"({"in_features":5,"dtype":"float64","seed":3,"layers":[
  {"type":"dense","units":7,"init":{"type":"normal","std":0.1}},{"type":"batch_norm","momentum":null},
  "relu",{"type":"residual","layers":[{"type":"dense","units":7,"bias":true},{"type":"elu","alpha":0.5}]},
  {"type":"maxout","units":4,"pieces":3},{"type":"dropout","p":0.25},{"type":"sequential","layers":["tanh"]},
  {"type":"dense","units":3,"init":"orthogonal"}],
  "loss":{"type":"huber","delta":2,"reduction":"sum"},
  "optimizer":{"type":"nesterov","lr":{"schedule":"warmup","steps":10,"then":{"schedule":"linear","start":0.1,
  "tau_epochs":3}},"momentum":"nesterov_convex","torch_compat":true,"groups":[{"match":"*.bias","weight_decay":0}]},
  "averaging":{"type":"ema","decay":0.99},"clip_norm":1.5,"check_finite":"gradients",
  "matmul_precision":"medium"})";

void test_json_mutants() {
  std::mt19937_64 random(11);
  const std::vector<std::string> fragments = {
      "{",  "}",       "[",    "]",       ",",  ":",    "\"", "\\",  "null",   "1e308",
      "-0", "\\ud83d", "\xf0", "\"a\":1", "\t", "true", "0.", "1e-", "[[[[[[", "/*"};
  int parsed = 0;
  for (int i = 0; i < 30000; ++i) {
    const std::string text = mutate(kDescription, random, fragments);
    try {
      const std::string canonical = Json::parse(text).text();
      expect(Json::parse(canonical).text() == canonical, "canonical text is a fixed point");
      ++parsed;
    } catch (const thalweg::ValueError&) {
    }
  }
  expect(parsed > 100, "some mutants stay valid");
}

void test_json() {
  test_json_values();
  test_json_errors();
  test_json_mutants();
}

// ---- Descriptions

thalweg::Description parse_layer(const std::string& layer) {
  return thalweg::parse_description(R"({"in_features":2,"layers":[)" + layer + "]}");
}
thalweg::Description parse_optimizer(const std::string& optimizer) {
  return thalweg::parse_description(R"({"in_features":2,"layers":["relu"],"optimizer":)" +
                                    optimizer + "}");
}

void test_description_values() {
  const thalweg::Description d = thalweg::parse_description(kDescription);
  const std::string text = thalweg::to_json(d);
  expect(thalweg::to_json(thalweg::parse_description(text)) == text, "canonical description");
  expect(d.in_features == 5 && d.seed == 3 && d.dtype == thalweg::DType::kFloat64, "head");
  expect(d.layers.size() == 8 && d.layers[0].units == 7 && !d.layers[0].bias &&
             d.layers[0].init.type == "normal" && d.layers[0].init.value == 0.1,
         "dense");
  expect(!d.layers[1].momentum && d.layers[1].eps == 1e-5, "batch norm");
  expect(d.layers[3].layers.size() == 2 && d.layers[3].zero_init &&
             d.layers[3].layers[0].bias == true && d.layers[3].layers[1].parameter == 0.5,
         "residual");
  expect(d.layers[4].pieces == 3 && d.layers[5].rate == 0.25, "maxout, dropout");
  expect(d.layers[7].init.type == "orthogonal" && d.layers[7].init.value == 1.0,
         "initializer by name");
  expect(d.loss.kind == thalweg::LossDescription::Kind::kElementwise && d.loss.parameter == 2.0 &&
             d.loss.reduction == thalweg::Reduction::kSum,
         "loss");
  expect(d.optimizer.hyper.size() == 4 && d.optimizer.hyper[0].schedule->then->tau_epochs == 3.0 &&
             d.optimizer.hyper[2].value == 1.0 && d.optimizer.groups[0].weight_decay == 0.0,
         "optimizer");
  expect(d.averaging.kind == thalweg::Averaging::Kind::kEma && d.averaging.decay == 0.99 &&
             d.clip_norm == 1.5 && d.check_finite == thalweg::CheckFinite::kGradients &&
             d.matmul_precision == thalweg::MatmulPrecision::kMedium,
         "options");
  const thalweg::Description defaults = parse_layer("\"relu\"");
  expect(defaults.loss.kind == thalweg::LossDescription::Kind::kCrossEntropy &&
             defaults.optimizer.hyper.at(0).value == 1e-3 && defaults.seed == 0 &&
             !defaults.clip_norm,
         "defaults");
  expect(thalweg::parse_description(
             R"({"in_features":1,"layers":["tanh"],"seed":18446744073709551615})")
                 .seed == UINT64_MAX,
         "largest seed");
}

void test_description_errors() {
  const std::pair<const char*, const char*> layers[] = {
      {R"({"type":"dense"})",
       "layers[0].units: expected a whole number from 1 to 2147483647, got nothing"},
      {R"({"type":"dense","units":0})", "got 0"},
      {R"({"type":"dense","units":2.5})", "got 2.5"},
      {R"({"type":"dense","units":"2"})", "got \"2\""},
      {R"({"type":"dense","units":3000000000})", "layers[0].units"},
      {R"({"type":"dense","units":2,"bias":1})",
       "layers[0].bias: expected true, false or null, got 1"},
      {R"({"type":"dense","units":2,"init":"nope"})",
       "layers[0].init.type: expected one of auto, deck"},
      {R"({"type":"dense","units":2,"init":{"type":"normal"}})", "layers[0].init.std"},
      {R"({"type":"dense","units":2,"init":{"type":"uniform","bound":0}})", "(0, 1e+30], got 0"},
      {R"({"type":"dense","units":2,"init":{"type":"zeros","gain":1}})",
       "only the keys type, got \"gain\""},
      {R"({"type":"dense","units":2,"unit":3})",
       "only the keys type, units, bias, init, got \"unit\""},
      {R"({"type":"maxout","units":2,"pieces":0})", "layers[0].pieces"},
      {R"({"type":"maxout","units":2147483647,"pieces":2})", "layers[0].pieces"},
      {R"({"type":"batch_norm","eps":1e-38})",
       "layers[0].eps: expected a number in [1e-30, 1e+30], got 1e-38"},
      {R"({"type":"batch_norm","momentum":1.5})", "layers[0].momentum"},
      {R"({"type":"dropout","p":1})", "layers[0].p: expected a number in [0, 1), got 1"},
      {R"({"type":"relu","slope":1})", "got \"slope\""},
      {R"({"type":"leaky_relu","slope":null})", "got null"},
      {R"({"type":"residual","layers":[]})", "layers[0].layers: expected at least one layer"},
      {R"({"type":"residual","layers":["relu",{"type":"rel"}]})",
       "layers[0].layers[1].type: expected one of dense"},
      {R"({"type":"sequential"})", "layers[0].layers: expected an array of layers, got nothing"},
      {"3", "layers[0]: expected an object, got 3"},
      {"{}", "layers[0].type"},
  };
  for (const auto& [layer, part] : layers) {
    expect_contains(message_of<thalweg::ValueError>(layer, [layer = layer] { parse_layer(layer); }),
                    part, layer);
  }
  const std::pair<const char*, const char*> optimizers[] = {
      {"\"sdg\"", "optimizer.type: expected one of sgd, momentum"},
      {R"({"type":"sgd","lr":-1})", "optimizer.lr"},
      {R"({"type":"sgd","momentum":0.5})", "only the keys type, lr"},
      {R"({"type":"adam","beta1":1})", "optimizer.beta1"},
      {R"({"type":"adam","beta1":{"schedule":"constant","value":0.5}})", "optimizer.beta1"},
      {R"({"type":"momentum","torch_compat":1})", "true or false"},
      {R"({"type":"sgd","lr":{"schedule":"linear","start":1}})", "exactly one of tau"},
      {R"({"type":"sgd","lr":{"schedule":"linear","start":1,"tau":1,"tau_epochs":1}})",
       "exactly one of tau"},
      {R"({"type":"sgd","lr":{"schedule":"cosine","start":1}})", "optimizer.lr.steps"},
      {R"({"type":"sgd","lr":{"schedule":"warmup","steps":3,"then":{"schedule":"x"}}})",
       "optimizer.lr.then.schedule"},
      {R"({"type":"momentum","momentum":{"schedule":"constant","value":1.5}})",
       "optimizer.momentum.value"},
      {R"({"type":"sgd","groups":[{"lr_scale":1}]})", "optimizer.groups[0].match"},
      {R"({"type":"sgd","groups":[{"match":"*","lr_scale":-1}]})", "optimizer.groups[0].lr_scale"},
      {R"({"type":"sgd","groups":3})", "optimizer.groups"},
  };
  for (const auto& [optimizer, part] : optimizers) {
    expect_contains(message_of<thalweg::ValueError>(
                        optimizer, [optimizer = optimizer] { parse_optimizer(optimizer); }),
                    part, optimizer);
  }
  for (const char* text :
       {"", "[]", "{}", R"({"in_features":0,"layers":["relu"]})",
        R"({"in_features":1,"layers":{}})", R"({"in_features":1,"layers":["relu"],"seed":-1})",
        R"({"in_features":1,"layers":["relu"],"dtype":"float16"})",
        R"({"in_features":1,"layers":["relu"],"clip_norm":0})",
        R"({"in_features":1,"layers":["relu"],"averaging":"mean"})",
        R"({"in_features":1,"layers":["relu"],"extra":0})"}) {
    message_of<thalweg::ValueError>(text, [&] { thalweg::parse_description(text); });
  }
}

void test_description_mutants() {
  std::mt19937_64 random(5);
  const std::vector<std::string> fragments = {"null",
                                              "-1",
                                              "0",
                                              "1e300",
                                              "\"relu\"",
                                              "{}",
                                              "[]",
                                              "\"x\"",
                                              "\"type\":",
                                              "\"adam\"",
                                              "18446744073709551616",
                                              "{\"type\":\"dense\",\"units\":1}",
                                              "true"};
  for (int i = 0; i < 20000; ++i) {
    const std::string text = mutate(kDescription, random, fragments);
    try {
      const std::string canonical = thalweg::to_json(thalweg::parse_description(text));
      expect(thalweg::to_json(thalweg::parse_description(canonical)) == canonical,
             "canonical mutant");
    } catch (const thalweg::ValueError&) {
    }
  }
}

void test_description() {
  test_description_values();
  test_description_errors();
  test_description_mutants();
}

// ---- Schedules

void test_schedule() {
  struct Case {
    const char* json;
    std::int64_t k;
    double want;
  };
  const Case cases[] = {
      {R"({"schedule":"constant","value":0.3})", 1000, 0.3},
      {R"({"schedule":"linear","start":0.1,"tau":10})", 0, 0.1},
      {R"({"schedule":"linear","start":0.1,"tau":10})", 5, 0.0505},
      {R"({"schedule":"linear","start":0.1,"tau":10})", 99, 0.001},
      {R"({"schedule":"linear","start":0.1,"end":0.2,"tau_epochs":2})", 4, 0.15},
      {R"({"schedule":"robbins_monro","start":0.5,"k0":100})", 100, 0.25},
      {R"({"schedule":"robbins_monro","start":0.6,"k0":1,"power":0.5})", 8, 0.2},
      {R"({"schedule":"step","start":1,"factor":0.5,"every":4})", 3, 1.0},
      {R"({"schedule":"step","start":1,"factor":0.5,"every":4})", 9, 0.25},
      {R"({"schedule":"cosine","start":1,"end":0.5,"steps":4})", 0, 1.0},
      {R"({"schedule":"cosine","start":1,"end":0.5,"steps":4})", 2, 0.75},
      {R"({"schedule":"cosine","start":1,"end":0.5,"steps":4})", 400, 0.5},
      {R"({"schedule":"warmup","steps":4,"then":{"schedule":"linear","start":1,"end":0,"tau":10}})",
       0, 0.25},
      {R"({"schedule":"warmup","steps":4,"then":{"schedule":"linear","start":1,"end":0,"tau":10}})",
       3, 1.0},
      {R"({"schedule":"warmup","steps":4,"then":{"schedule":"linear","start":1,"end":0,"tau":10}})",
       4, 1.0},
      {R"({"schedule":"warmup","steps":4,"then":{"schedule":"linear","start":1,"end":0,"tau":10}})",
       9, 0.5},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":0.5})", 0, 0.04},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":0.5})", 2, 0.52},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":0.5})", 4, 1.0},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":0.5})", 9, 4e-6},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":0.5})", 1000, 4e-6},
      {R"({"schedule":"one_cycle","peak":1,"steps":10,"start_fraction":1})", 20, 1.0},
      {R"({"schedule":"one_cycle","peak":1,"steps":1,"start_fraction":1})", 0, 1.0},
      {R"({"schedule":"nesterov_convex"})", 0, 0.0},
      {R"({"schedule":"nesterov_convex"})", 9, 0.75},
      {"0.25", 7, 0.25},
  };
  for (const Case& c : cases) {
    const auto d = parse_optimizer(concat(R"({"type":"sgd","lr":)", c.json, "}"));
    const double got = thalweg::evaluate(d.optimizer.hyper[0], c.k, 4.0);
    expect(std::fabs(got - c.want) <= 1e-15,
           concat(c.json, " at ", c.k, ": got ", got, ", want ", c.want));
  }
  const auto epochs =
      parse_optimizer(R"({"type":"sgd","lr":{"schedule":"linear","start":1,"tau_epochs":2}})");
  expect_contains(message_of<thalweg::ValueError>(
                      "epochs", [&] { thalweg::evaluate(epochs.optimizer.hyper[0], 0, 0.0); }),
                  "tau_epochs", "unknown epoch length");
}

// ---- Checkpoint files

using thalweg::CheckpointError;
using thalweg::CheckpointFile;
using thalweg::DType;

struct Sample {
  std::vector<float> weight{1.0f, -2.5f, 3e-39f, std::numeric_limits<float>::infinity(),
                            5.0f, 6.0f};
  std::vector<double> wide{0.1, -0.2, 1e300};
  std::int64_t count = 1234567890123;
  std::uint8_t flags[3] = {0, 1, 255};

  CheckpointFile file() const {
    CheckpointFile out;
    out.metadata = {{"description", kDescription}, {"name", "\u00e9 \"quoted\"\n"}};
    out.tensors = {
        {"layers.0.flags", DType::kBool, {3}, flags, 3},
        {"layers.0.weight", DType::kFloat32, {2, 3}, weight.data(), 24},
        {"layers.1.count", DType::kInt64, {}, &count, 8},
        {"layers.2.empty", DType::kFloat16, {0, 7}, nullptr, 0},
        {"layers.3.w\u00efde", DType::kFloat64, {3, 1}, wide.data(), 24},
    };
    return out;
  }
};

void expect_same(const CheckpointFile& a, const CheckpointFile& b) {
  for (const auto& [key, value] : a.metadata)
    expect(b.metadata.count(key) == 1 && b.metadata.at(key) == value, "metadata " + key);
  expect(a.tensors.size() == b.tensors.size(), "number of tensors");
  for (const thalweg::StoredTensor& tensor : a.tensors) {
    const thalweg::StoredTensor* other = b.find(tensor.name);
    expect(other != nullptr && other->dtype == tensor.dtype && other->shape == tensor.shape &&
               other->bytes == tensor.bytes &&
               (tensor.bytes == 0 ||
                std::memcmp(other->data, tensor.data, static_cast<std::size_t>(tensor.bytes)) == 0),
           "tensor " + tensor.name);
    if (other != nullptr)
      expect(reinterpret_cast<std::uintptr_t>(other->data) % 8 == 0, "alignment of " + tensor.name);
  }
}

void test_crc32c() {
  expect(thalweg::crc32c(0, "123456789", 9) == 0xe3069283, "CRC32C check value");
  const std::vector<unsigned char> zeros(32, 0);
  expect(thalweg::crc32c(0, zeros.data(), 32) == 0x8a9136aa, "CRC32C of zeros (RFC 3720)");
  // Bit by bit, and cut anywhere.
  std::mt19937 random(3);
  std::vector<unsigned char> data(257);
  for (unsigned char& byte : data) byte = static_cast<unsigned char>(random());
  std::uint32_t want = ~0u;
  for (const unsigned char byte : data) {
    want ^= byte;
    for (int bit = 0; bit < 8; ++bit) want = (want >> 1) ^ (want & 1 ? 0x82f63b78 : 0);
  }
  for (std::size_t cut = 0; cut <= data.size(); ++cut) {
    const std::uint32_t head = thalweg::crc32c(0, data.data(), cut);
    expect(thalweg::crc32c(head, data.data() + cut, data.size() - cut) == ~want,
           "CRC32C in two parts");
  }
}

void test_checkpoint_round_trip(const Folder& folder) {
  const Sample sample;
  const CheckpointFile file = sample.file();
  const std::string path = folder / "m\u00f6del \u4e2d.safetensors";
  thalweg::write_checkpoint_file(path, file);
  expect_same(file, thalweg::read_checkpoint_file(path, true));
  expect_same(file, thalweg::read_checkpoint_file(path, false));
  const std::string bytes = read_text(path);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  expect(length % 8 == 0 && bytes[8] == '{' && bytes.size() == 8 + length + 59, "file layout");
  CheckpointFile again = thalweg::read_checkpoint_file(path, true);
  thalweg::write_checkpoint_file(path, again);
  expect(read_text(path) == bytes, "written again, the same bytes");
  thalweg::write_checkpoint_file(folder / "empty.safetensors", CheckpointFile{});
  expect(thalweg::read_checkpoint_file(folder / "empty.safetensors", true).tensors.empty(),
         "no tensors");
  expect(folder.names().size() == 2, "no temporary files");
}

void test_checkpoint_errors(const Folder& folder) {
  const Sample sample;
  const auto read = [&](const std::string& path) {
    return message_of<CheckpointError>(path, [&] { thalweg::read_checkpoint_file(path, true); });
  };
  expect_contains(read(folder / "missing"), "open failed: No such file", "missing file");
  expect_contains(read(folder / "missing"), folder / "missing", "path in the message");
  expect_contains(read(folder / "."), "a folder", "folder");
  expect_contains(read("/dev/null"), "regular file", "device");
  expect_contains(read(""), "path", "empty path");
  mkfifo((folder / "pipe").c_str(), 0600);
  expect_contains(read(folder / "pipe"), "regular file", "pipe");
  unlink((folder / "pipe").c_str());

  const auto write = [&](const std::string& path, const CheckpointFile& file) {
    return message_of<CheckpointError>(path, [&] { thalweg::write_checkpoint_file(path, file); });
  };
  expect_contains(write(folder / "no/such/file", sample.file()), "open failed", "no folder");
  mkdir((folder / "folder").c_str(), 0700);
  expect_contains(write(folder / "folder", sample.file()), "rename failed", "target is a folder");
  rmdir((folder / "folder").c_str());
  expect_contains(write(folder / "", sample.file()), "file name", "no file name");
  CheckpointFile wrong = sample.file();
  wrong.tensors[1].bytes = 20;
  write(folder / "wrong", wrong);
  wrong = sample.file();
  wrong.tensors[1].name = wrong.tensors[0].name;
  write(folder / "wrong", wrong);
  wrong.tensors[1].name = "__metadata__";
  write(folder / "wrong", wrong);
  wrong.tensors[1].name = "\xff";
  write(folder / "wrong", wrong);
  expect(access((folder / "wrong").c_str(), F_OK) != 0, "nothing written");
}

// A file with that header (padded like ours) and that many bytes of data.
std::string with_header(std::string header, std::size_t data, bool pad = true) {
  if (pad) header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data, 'x');
}

void test_foreign_files(const Folder& folder) {
  const std::string path = folder / "foreign";
  const auto load = [&](const std::string& bytes) {
    write_text(path, bytes);
    return thalweg::read_checkpoint_file(path, false);
  };
  // Out of order, unaligned, without metadata: valid.
  const CheckpointFile valid = load(with_header(
      R"({"b":{"dtype":"F64","shape":[1],"data_offsets":[3,11]},"a":{"shape":[3,1],"data_offsets":[0,3],"dtype":"U8"},"e":{"dtype":"F32","shape":[0,2147483648],"data_offsets":[3,3]}})",
      11));
  expect(valid.tensors.size() == 3 && valid.tensors[0].name == "a" && valid.find("b")->bytes == 8,
         "valid");
  expect_contains(
      message_of<CheckpointError>("no format", [&] { thalweg::read_checkpoint_file(path, true); }),
      "expected the format thalweg.1, got none", "foreign format");

  const std::pair<std::string, const char*> cases[] = {
      {"", "got 0 bytes"},
      {"1234567", "got 7 bytes"},
      {std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), "at most 2 bytes"},
      {std::string("\0\0\0\0\1\0\0\0{}  ", 12), "at most 4 bytes, got 4294967296"},
      {std::string(8, '\0'), "'{'"},
      {with_header("[]", 0), "'{'"},
      {with_header(" {}", 0), "'{'"},
      {with_header("{}", 1), "expected 0 bytes of data, got 1"},
      {with_header("{}x", 0), "end of the text"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3),
       "expected 4 bytes of data, got 3"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5),
       "expected 4 bytes of data, got 5"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8),
       "at offset 0, got 4"},
      {with_header(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
           6),
       "at offset 4, got 2"},
      {with_header(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})",
           9),
       "at offset 4, got 5"},
      {with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
       "8 bytes apart"},
      {with_header(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4),
       "fewer than 2^63"},
      {with_header(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                   0),
       "fewer than 2^63"},
      {with_header(
           R"({"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0),
       "fewer than 2^63"},
      {with_header(R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0),
       "64-bit integer"},
      {with_header(R"({"a":{"dtype":"F64","shape":[2147483648,2147483648],"data_offsets":[0,9]}})",
                   9),
       "fewer than 2^63"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4),
       "64-bit integer"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "bytes apart"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4), "bytes apart"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4), "two offsets"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4),
       "two offsets"},
      {with_header(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4), "got \"F33\""},
      {with_header(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "got fewer"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4),
       "once"},
      {with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4),
       "got \"x\""},
      {with_header(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
           2),
       "\"a\" twice"},
      {with_header(R"({"a":3})", 0), "an object"},
      {with_header(R"({"__metadata__":{"a":1}})", 0), "a string"},
      {with_header(R"({"__metadata__":{"a":"1","a":"2"}})", 0), "\"a\" twice"},
      {with_header(R"({"__metadata__":{},"__metadata__":{}})", 0), "one __metadata__"},
      {with_header(R"({"__metadata__":{"format":"thalweg.1"}})", 0),
       "crc32c of 8 digits, got none"},
      {with_header(R"({"__metadata__":{"format":"thalweg.1","crc32c":"0000000"}})", 0), "got none"},
      {with_header(R"({"__metadata__":{"format":"thalweg.1","crc32c":"00000000"}})", 0),
       "checksum"},
      {with_header(std::string(200000, '['), 0, false), "'{'"},
      {with_header("{\"a\":" + std::string(200000, '['), 0), "an object"},
      {with_header("{\"" + std::string(9 << 20, 'n') + "\":0}", 0), "a string of at most"},
  };
  for (const auto& [bytes, part] : cases) {
    const std::string label = bytes.substr(0, 120);
    expect_contains(message_of<CheckpointError>(label, [&, &bytes = bytes] { load(bytes); }), part,
                    label);
  }
  std::string many = "{";
  for (int i = 0; i < 200000; ++i)
    many +=
        concat(i ? "," : "", "\"", i, "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}");
  expect_contains(message_of<CheckpointError>("many", [&] { load(with_header(many + "}", 0)); }),
                  "MiB", "too many tensors");
  unlink(path.c_str());
}

void test_corruption(const Folder& folder) {
  const std::string path = folder / "corrupt";
  const Sample sample;
  thalweg::write_checkpoint_file(path, sample.file());
  const std::string good = read_text(path);
  const auto rejected = [&](const std::string& bytes) {
    // In place: file systems write a file that is cut to nothing and filled again to the disk at
    // once.
    const int fd = open(path.c_str(), O_WRONLY);
    expect(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) &&
               ftruncate(fd, static_cast<off_t>(bytes.size())) == 0,
           "test write");
    close(fd);
    try {
      thalweg::read_checkpoint_file(path, true);
    } catch (const CheckpointError&) {
      return true;
    }
    return false;
  };
  std::mt19937_64 random(17);
  const std::size_t bits = good.size() * 8;
  for (int i = 0; i < 3000; ++i) {
    const std::size_t bit = i < 1000 ? static_cast<std::size_t>(i) % bits : random() % bits;
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    expect(rejected(bad), concat("flipped bit ", bit));
  }
  for (std::size_t size = 0; size < good.size(); ++size)
    expect(rejected(good.substr(0, size)), concat("cut at ", size));
  expect(rejected(good + '\0'), "a byte appended");

  std::uint64_t length = 0;
  std::memcpy(&length, good.data(), 8);
  const std::string header = good.substr(8, length);
  const std::string data = good.substr(8 + length);
  const std::vector<std::string> fragments = {"{",
                                              "}",
                                              "[",
                                              "]",
                                              ",",
                                              ":",
                                              "\"",
                                              "-1",
                                              "0",
                                              "2147483648",
                                              "\\",
                                              "F32",
                                              "I64",
                                              "null",
                                              "4294967296",
                                              "9223372036854775807",
                                              "1e9",
                                              "\"shape\":[",
                                              "[0,0]",
                                              "\"dtype\":\"U8\"",
                                              "\"__metadata__\":{}",
                                              "18446744073709551616",
                                              "\"data_offsets\":[0,24]"};
  for (int i = 0; i < 6000; ++i) {
    std::string mutant = mutate(header, random, fragments);
    const std::string bytes = with_header(mutant, 0, random() % 2 == 0) + data;
    if (bytes == good) continue;
    expect(rejected(bytes), concat("mutant ", i));
    // Without the checksum any outcome but an untyped error is right.
    try {
      thalweg::read_checkpoint_file(path, false);
    } catch (const CheckpointError&) {
    }
  }
  unlink(path.c_str());
}

void test_stale_temporaries(const Folder& folder) {
  const Sample sample;
  const std::string path = folder / "model";
  thalweg::write_checkpoint_file(path, sample.file());
  const std::string good = read_text(path);
  // A writer that is killed in the middle, and one that lives.
  write_text(folder / ".model.123.0123456789abcdef.tmp", "half");
  write_text(folder / ".model.124.0123456789abcdef.tmp", "alive");
  write_text(folder / ".model.notes.tmp", "a user's");
  write_text(folder / ".other.123.0123456789abcdef.tmp", "another's");
  const int alive = open((folder / ".model.124.0123456789abcdef.tmp").c_str(), O_RDONLY);
  flock(alive, LOCK_EX);
  thalweg::write_checkpoint_file(path, sample.file());
  close(alive);
  const std::vector<std::string> left = folder.names();
  const auto has = [&](const char* name) {
    return std::find(left.begin(), left.end(), name) != left.end();
  };
  expect(!has(".model.123.0123456789abcdef.tmp"), "a dead writer's file is removed");
  expect(has(".model.124.0123456789abcdef.tmp") && has(".model.notes.tmp") &&
             has(".other.123.0123456789abcdef.tmp"),
         "other files stay");
  expect(read_text(path) == good, "the checkpoint is written");

  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) {
    writers.emplace_back([&] {
      for (int k = 0; k < 25; ++k) thalweg::write_checkpoint_file(path, sample.file());
    });
  }
  for (std::thread& writer : writers) writer.join();
  expect(read_text(path) == good, "concurrent writers");
  const auto names = folder.names();
  expect(std::count_if(names.begin(), names.end(),
                       [](const std::string& name) { return name.starts_with(".model."); }) == 1,
         "nothing stale after concurrent writers");
}

void test_checkpoint() {
  test_crc32c();
  test_checkpoint_round_trip(Folder());
  test_checkpoint_errors(Folder());
  test_foreign_files(Folder());
  test_corruption(Folder());
  test_stale_temporaries(Folder());
}

}  // namespace

int main(int count, char** arguments) {
  const std::pair<std::string_view, void (*)()> parts[] = {
      {"pool", test_pool},         {"arena", test_arena},
      {"json", test_json},         {"description", test_description},
      {"schedule", test_schedule}, {"checkpoint", test_checkpoint},
  };
  for (const auto& [name, part] : parts) {
    if (count > 1 && std::find(arguments + 1, arguments + count, name) == arguments + count)
      continue;
    const Clock::time_point start = Clock::now();
    const int before = failures;
    try {
      part();
    } catch (const std::exception& error) {
      expect(false, concat(name, " ended by: ", error.what()));
    }
    std::printf("%-12s %s %.2f s\n", std::string(name).c_str(),
                failures == before ? "ok" : "FAILED", seconds_since(start));
  }
  return failures == 0 ? 0 : 1;
}
