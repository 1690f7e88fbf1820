// Who may use one model at a time: many readers, or one writer.
//
// A second writer is refused, not queued: two trainings of one model are a mistake of the caller.
// Readers wait for the writer. While a writer calls back into Python it is paused between two
// consistent states of the model: readers enter, in the callback's thread or any other, and the
// writer waits for them before it goes on. All waiting happens without the GIL.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "core/error.h"
#include "core/thread_pool.h"

namespace thalweg::bindings {

class ModelLock {
 public:
  class Read;
  class Write;
  class Pause;

 private:
  static constexpr std::chrono::milliseconds kPollEvery{50};

  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, const Interrupt& interrupt, Ready&& ready) {
    while (!changed_.wait_for(lock, kPollEvery, ready)) {
      if (!interrupt) continue;
      lock.unlock();
      const bool stop = interrupt();
      lock.lock();
      if (stop) throw Interrupted("interrupted while waiting for another thread's call");
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int readers_ = 0;
  bool writing_ = false;
  bool paused_ = false;
  std::thread::id writer_;
};

// The readers of a thread form a chain, so that a reader inside a reader's callback does not wait
// for a writer that waits for the outer one.
class ModelLock::Read {
 public:
  Read(ModelLock& owner, const Interrupt& interrupt) : owner_(owner), outer_(innermost_) {
    std::unique_lock lock(owner_.mutex_);
    if (owner_.writing_ && !owner_.paused_ && owner_.writer_ == std::this_thread::get_id()) {
      throw std::runtime_error(
          "[model] expected a signal handler that leaves the model alone, got one that uses it "
          "in the middle of an update; set a flag in the handler and look at it in a callback");
    }
    if (!held_by_this_thread(owner_)) {
      owner_.wait(lock, interrupt, [&] { return !owner_.writing_ || owner_.paused_; });
    }
    ++owner_.readers_;
    innermost_ = this;
  }
  ~Read() {
    innermost_ = outer_;
    const std::lock_guard lock(owner_.mutex_);
    if (--owner_.readers_ == 0) owner_.changed_.notify_all();
  }
  Read(const Read&) = delete;
  Read& operator=(const Read&) = delete;

  static bool held_by_this_thread(const ModelLock& owner) {
    for (const Read* read = innermost_; read; read = read->outer_) {
      if (&read->owner_ == &owner) return true;
    }
    return false;
  }

 private:
  ModelLock& owner_;
  Read* outer_;
  static inline thread_local Read* innermost_ = nullptr;
};

class ModelLock::Write {
 public:
  Write(ModelLock& owner, const char* operation, const Interrupt& interrupt) : owner_(owner) {
    std::unique_lock lock(owner_.mutex_);
    if (owner_.writing_ || Read::held_by_this_thread(owner_)) {
      throw std::runtime_error(concat(
          "[", operation,
          "] expected a model that no other call is using for writing, got one that is being "
          "trained or changed; wait for that call, or work on model.copy()"));
    }
    owner_.writing_ = true;
    owner_.writer_ = std::this_thread::get_id();
    try {
      owner_.wait(lock, interrupt, [&] { return owner_.readers_ == 0; });
    } catch (...) {
      owner_.writing_ = false;
      owner_.changed_.notify_all();
      throw;
    }
  }
  ~Write() {
    const std::lock_guard lock(owner_.mutex_);
    owner_.writing_ = false;
    owner_.changed_.notify_all();
  }
  Write(const Write&) = delete;
  Write& operator=(const Write&) = delete;

 private:
  ModelLock& owner_;
};

class ModelLock::Pause {
 public:
  explicit Pause(ModelLock& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.mutex_);
    owner_.paused_ = true;
    owner_.changed_.notify_all();
  }
  ~Pause() {
    std::unique_lock lock(owner_.mutex_);
    owner_.paused_ = false;
    owner_.changed_.wait(lock, [&] { return owner_.readers_ == 0; });
  }
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;

 private:
  ModelLock& owner_;
};

}  // namespace thalweg::bindings
