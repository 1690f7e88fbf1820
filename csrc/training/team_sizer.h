// How many threads make a short update, found out by time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

namespace thalweg {

// Whether a second thread helps an update of some microseconds depends on how far apart the
// processors are and on what else runs there; both change while a model trains. So now and then
// some updates are made with half or twice the threads, and the faster team goes on. Results do not
// depend on it.
class TeamSizer {
 public:
  // Threads for the next update, of that many rows: `first` until there is something to compare, at
  // most `most`. Only updates of the same number of rows are compared; a smaller one at the end of
  // an epoch takes what the others have found.
  int threads(std::int64_t rows, int first, int most) {
    counts_ = rows == rows_ && first == first_ && most == most_;
    if (!counts_ && ++others_ > kOthers) {
      *this = TeamSizer();
      rows_ = rows;
      first_ = current_ = other_ = first;
      most_ = most;
      counts_ = true;
    }
    if (!counts_) return std::min(current_, most);
    others_ = 0;
    return stage_ == Stage::kOther ? other_ : current_;
  }

  // The duration of the update that threads() was asked for last, once.
  void add(double seconds) {
    if (!std::exchange(counts_, false)) return;
    settled_ += seconds;
    switch (stage_) {
      case Stage::kSettled:
        if (most_ == 1 || settled_ < kSettled) return;
        if (up_ ? current_ == most_ : current_ == 1) up_ = !up_;
        other_ = up_ ? std::min(2 * current_, most_) : current_ / 2;
        begin(Stage::kCurrent);
        return;
      case Stage::kCurrent:
        if (time(seconds)) return;
        current_seconds_ = fastest_;
        begin(Stage::kOther);
        return;
      case Stage::kOther:
        if (time(seconds)) return;
        settled_ = 0.0;
        if (fastest_ < kFaster * current_seconds_) {
          current_ = other_;
          settled_ = kSettled;  // go on in this direction
        } else {
          up_ = !up_;
        }
        stage_ = Stage::kSettled;
        return;
    }
  }

 private:
  // Between comparisons. Caches and sleeping threads make the first updates of a team slow: what
  // counts is its fastest.
  static constexpr double kSettled = 0.05;
  static constexpr int kUpdates = 8;
  static constexpr double kFaster = 0.97;
  // Updates of another size in a row, after which that is the usual one.
  static constexpr int kOthers = 4;

  enum class Stage { kSettled, kCurrent, kOther };

  void begin(Stage stage) {
    stage_ = stage;
    left_ = kUpdates;
    fastest_ = std::numeric_limits<double>::infinity();
  }
  // Whether more updates are wanted.
  bool time(double seconds) {
    fastest_ = std::min(fastest_, seconds);
    return --left_ > 0;
  }

  std::int64_t rows_ = 0;
  int others_ = kOthers;
  bool counts_ = false;
  int first_ = 1;
  int most_ = 1;
  int current_ = 1;
  int other_ = 1;
  bool up_ = true;
  Stage stage_ = Stage::kSettled;
  int left_ = 0;
  double fastest_ = 0.0;
  double current_seconds_ = 0.0;
  double settled_ = kSettled;
};

}  // namespace thalweg
