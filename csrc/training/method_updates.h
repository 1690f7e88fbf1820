// Updates by a method of minimize/: one step per update, on the loss of that update's rows with
// batch statistics and its dropout masks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "minimize/method.h"
#include "training/data.h"
#include "training/engine.h"
#include "training/objective.h"

namespace thalweg {

template <class T>
class MethodUpdates {
 public:
  // The model outlives this object.
  MethodUpdates(const Model& model, const Plan& plan, Engine<T>& engine);

  // What the method minimizes stays the same between begin_fit and end_fit when the rows do.
  void begin_fit(const FitSource& source);
  void end_fit() noexcept;
  // As Engine::run. The engine makes each update too, with a learning rate of 0: for the metrics
  // and finite checks at the parameters before the step, the running statistics and the counters.
  RunResult run(const Order& order, std::int64_t updates, const Interrupt& interrupt,
                Cursor* cursor);

  minimize::MethodState state() const { return method_->state(); }
  void set_state(const minimize::MethodState& state) { method_->set_state(state); }
  // Of the method, and "no_decrease": updates that left the parameters as they were.
  std::vector<std::pair<std::string, std::int64_t>> fallbacks() const;

 private:
  // Of one update; what the objective borrows stands before it.
  struct Rows {
    std::vector<std::int64_t> index;  // in the caller's data
    std::vector<double> weights;
    std::optional<RowCopy> x, y;
    bool all = false;  // of the data, in their own order
    std::unique_ptr<Objective> objective;
  };

  // False when the rows weigh nothing.
  bool select(const Part& part, const Order& order, const Interrupt& interrupt);
  // The parameters after the step, or those before it.
  minimize::Step step(const Cursor& cursor, const Interrupt& interrupt, std::vector<T>* theta);

  const Model& model_;
  const Plan& plan_;
  Engine<T>& engine_;
  std::unique_ptr<minimize::Method> method_;
  std::optional<FitSource> source_;
  std::array<std::vector<std::byte>, 3> fetched_;  // x, y and weights of the device, when needed
  std::unique_ptr<Rows> rows_;
  UpdateParts parts_;
  std::int64_t no_decrease_ = 0;
};

}  // namespace thalweg
