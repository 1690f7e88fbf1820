// Tests of for_each_member and fit_population without Python, for the thread sanitizer too. Prints
// every failure; the exit code is 1 if there was one.
#include "training/population.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace {

using namespace thalweg;

constexpr std::int64_t kMembers = 7;
constexpr std::int64_t kRows = 150;
constexpr std::int64_t kFeatures = 6;

int failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  std::printf("failed: %s\n", what.c_str());
  ++failures;
}

struct Arrays {
  std::vector<float> x = std::vector<float>(kRows * kFeatures);
  std::vector<std::int64_t> y = std::vector<std::int64_t>(kRows);
  Arrays() {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i * i % 977));
    for (std::size_t r = 0; r < y.size(); ++r) y[r] = x[r * kFeatures] > 0.0f ? 1 : 0;
  }
  Data data() const {
    Data data;
    data.x = ArrayView::matrix(x.data(), kRows, kFeatures);
    data.y = ArrayView::vector(y.data(), kRows);
    return data;
  }
};

std::unique_ptr<Model> model(std::int64_t seed, const char* lr = "0.1") {
  const std::string text = concat(
      R"({"in_features": 6, "layers": [{"type": "dense", "units": 40}, {"type": "batch_norm"},
          {"type": "relu"}, {"type": "dropout", "p": 0.2}, {"type": "dense", "units": 2}],
          "loss": {"type": "cross_entropy"}, "seed": )",
      seed, R"(, "optimizer": {"type": "momentum", "lr": )", lr, "}}");
  return Model::create(parse_description(text), "cpu", 1);
}

std::vector<float> parameters(const Model& of) {
  std::vector<float> values(static_cast<std::size_t>(of.num_parameters()));
  of.get_parameters(values.data());
  return values;
}

FitOptions options_of(const Arrays& arrays, std::int64_t epochs) {
  FitOptions options;
  options.epochs = epochs;
  options.validation = arrays.data();
  return options;
}

struct Crowd {
  std::vector<std::unique_ptr<Model>> models;
  std::vector<Member> members;
  Crowd(const Arrays& arrays, const FitOptions& options) {
    for (std::int64_t i = 0; i < kMembers; ++i) {
      models.push_back(model(i));
      members.push_back({models.back().get(), arrays.data(), {}, options});
    }
  }
};

void test_same_bits(const Arrays& arrays, int threads) {
  const FitOptions options = options_of(arrays, 5);
  Crowd crowd(arrays, options);
  std::atomic<std::int64_t> epochs{0};
  for (Member& member : crowd.members)
    member.options.on_epoch = [&](const EpochRecord&) { return ++epochs > 0; };
  const std::vector<MemberResult> results = fit_population(crowd.members, threads, {});
  check(epochs == kMembers * 5, "on_epoch after each epoch");
  for (std::int64_t i = 0; i < kMembers; ++i) {
    const auto alone = model(i);
    const FitResult expected = alone->fit(arrays.data(), options);
    const FitResult& got = results[static_cast<std::size_t>(i)].fit;
    check(parameters(*alone) == parameters(*crowd.models[static_cast<std::size_t>(i)]),
          concat("parameters of member ", i, " with ", threads, " threads"));
    check(got.epochs.size() == 5 && got.stopped_because == expected.stopped_because &&
              got.epochs.back().train.loss == expected.epochs.back().train.loss &&
              got.epochs.back().validation->loss == expected.epochs.back().validation->loss,
          concat("history of member ", i));
  }
}

void test_divergence(const Arrays& arrays, int threads) {
  Crowd crowd(arrays, options_of(arrays, 2));
  crowd.models[2] = Model::create(
      parse_description(R"({"in_features": 6, "layers": [{"type": "dense", "units": 2}],
                            "loss": {"type": "squared_error"}})"),
      "cpu", 1);
  std::vector<float> huge(static_cast<std::size_t>(crowd.models[2]->num_parameters()), 1e38f);
  crowd.models[2]->set_parameters(huge.data());
  static const std::vector<float> targets(kRows * 2, 1.0f);
  crowd.members[2].model = crowd.models[2].get();
  crowd.members[2].data.y = ArrayView::matrix(targets.data(), kRows, 2);
  crowd.members[2].options.validation = {};
  const std::vector<MemberResult> results = fit_population(crowd.members, threads, {});
  for (std::size_t i = 0; i < results.size(); ++i) {
    check(results[i].failure.has_value() == (i == 2), concat("failure of member ", i));
    check(results[i].fit.stopped_because == (i == 2 ? "non_finite" : "epochs"),
          concat("reason of member ", i));
  }
}

void test_bad_data(const Arrays& arrays, int threads) {
  Crowd crowd(arrays, options_of(arrays, 1));
  Arrays poisoned;
  poisoned.x[8] = std::nanf("");
  crowd.members[4].data = poisoned.data();
  std::string message;
  try {
    fit_population(crowd.members, threads, {});
  } catch (const Error& error) {
    message = error.what();
    check(error.code() == ErrorCode::kValue, "code of bad data");
  }
  check(message.find("(network 4)") != std::string::npos, concat("number in '", message, "'"));
  for (const auto& one : crowd.models) check(one->steps_done() == 0, "nothing was changed");
}

void test_interrupt(const Arrays& arrays, int threads) {
  using Clock = std::chrono::steady_clock;
  Crowd crowd(arrays, options_of(arrays, 1000000));
  crowd.members[0].options.epochs = 1;  // its thread has to go on asking
  const auto asker = std::this_thread::get_id();
  const auto end = Clock::now() + std::chrono::milliseconds(200);
  bool right_thread = true, interrupted = false;
  try {
    fit_population(crowd.members, threads, [&] {
      right_thread = right_thread && std::this_thread::get_id() == asker;
      return Clock::now() > end;
    });
  } catch (const Interrupted&) {
    interrupted = true;
  }
  check(interrupted && right_thread, concat("interrupt with ", threads, " threads"));
}

void test_failing_job(int threads) {
  std::atomic<int> started{0};
  std::string message;
  try {
    for_each_member(kMembers, threads, "test", {}, [&](std::int64_t member, const Interrupt& ask) {
      ++started;
      if (member == 1) throw ValueError("mine");
      for (int i = 0; i < 1000 && threads > 1 && !(ask && ask()); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  } catch (const ValueError& error) {
    message = error.what();
  }
  check(message == "mine" && started <= threads + 1, "a failing job ends the others");
}

}  // namespace

int main() {
  const Arrays arrays;
  for (const int threads : {1, 2, 4}) {
    test_same_bits(arrays, threads);
    test_divergence(arrays, threads);
    test_bad_data(arrays, threads);
    test_interrupt(arrays, threads);
    test_failing_job(threads);
  }
  if (failures == 0) std::printf("all populations passed\n");
  return failures == 0 ? 0 : 1;
}
