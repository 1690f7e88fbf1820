// One call from Python into the engine: releases the GIL, polls for signals, and carries Python
// exceptions of callbacks through the engine unchanged.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"

namespace thalweg::bindings {

class PythonCall {
 public:
  PythonCall() : main_thread_(on_main_thread()) {}
  PythonCall(const PythonCall&) = delete;
  PythonCall& operator=(const PythonCall&) = delete;

  // work(interrupt) without the GIL. Raises what a callback or a signal handler raised.
  template <class Work>
  void run(Work&& work) {
    try {
      pybind11::gil_scoped_release release;
      work(interrupt());
    } catch (...) {
      if (!error_) throw;
    }
    if (error_) throw pybind11::error_already_set(std::move(*error_));
  }

  // body() with the GIL, from inside work. A Python exception is kept for run() and leaves as
  // CallbackFailed.
  template <class Body>
  auto with_gil(Body&& body) {
    pybind11::gil_scoped_acquire acquire;
    try {
      return body();
    } catch (pybind11::error_already_set& error) {
      error_.emplace(std::move(error));
    }
    throw CallbackFailed("a Python callback raised an exception");
  }

 private:
  // Signals arrive within the promised 250 ms, and other Python threads are rarely disturbed.
  static constexpr std::chrono::milliseconds kPollEvery{50};
  using Clock = std::chrono::steady_clock;

  // Python runs signal handlers on the main thread only.
  static bool on_main_thread() {
    const auto main = pybind11::module_::import("threading").attr("main_thread")();
    return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
  }

  Interrupt interrupt() {
    if (!main_thread_) return {};
    return [this, next = Clock::now() + kPollEvery]() mutable {
      if (Clock::now() < next) return false;
      bool raised = false;
      {
        pybind11::gil_scoped_acquire acquire;
        raised = PyErr_CheckSignals() != 0;
        if (raised) error_.emplace();
      }
      next = Clock::now() + kPollEvery;
      return raised;
    };
  }

  bool main_thread_;
  std::optional<pybind11::error_already_set> error_;
};

}  // namespace thalweg::bindings
