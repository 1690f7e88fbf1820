// How many threads make a short update, found out by time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace thalweg {

// Whether a second thread helps an update of some microseconds depends on how far apart the
// processors are and on what else runs there; both change while a model trains. So now and then
// some updates are made with half or twice the threads, and the faster team goes on. Results do not
// depend on it.
class TeamSizer {
 public:
  // Starts anew when the limits change; `first` threads until there is something to compare.
  void set_limits(int first, int most) {
    if (first == first_ && most == most_) return;
    *this = TeamSizer();
    first_ = current_ = other_ = first;
    most_ = most;
  }

  int threads() const { return stage_ == Stage::kOther ? other_ : current_; }

  // The duration of an update with threads() threads.
  void add(double seconds) {
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
