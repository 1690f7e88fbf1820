// The step of a method as an update of training.
#include "training/method_updates.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "minimize/problem.h"
#include "training/schedule.h"

namespace thalweg {
namespace {

const MethodDescription& method_of(const Plan& plan) { return *plan.description.optimizer.method; }

const minimize::MethodInfo& info_of(const Plan& plan) {
  return minimize::methods()[static_cast<std::size_t>(method_of(plan).method)];
}

}  // namespace

template <class T>
MethodUpdates<T>::MethodUpdates(const Model& model, const Plan& plan, Engine<T>& engine)
    : model_(model),
      plan_(plan),
      engine_(engine),
      method_(info_of(plan).make(plan.num_parameters)) {}

template <class T>
void MethodUpdates<T>::begin_fit(const FitSource& source) {
  source_ = source;
}

template <class T>
void MethodUpdates<T>::end_fit() noexcept {
  rows_.reset();
  source_.reset();
  for (std::vector<std::byte>& rows : fetched_) rows = {};
}

template <class T>
bool MethodUpdates<T>::select(const Part& part, const Order& order, const Interrupt& interrupt) {
  const bool has_dropout = std::any_of(plan_.nodes.begin(), plan_.nodes.end(),
                                       [](const Node& node) { return node.rate > 0.0; });
  // The masks of an update belong to its step and its order of rows.
  const bool all =
      part.rows == source_->data.x.rows && !has_dropout && source_->shuffle != Shuffle::kIid;
  if (all && rows_ && rows_->all) return true;
  rows_.reset();  // its memory, before the next one's
  auto rows = std::make_unique<Rows>();
  rows->all = all;
  rows->index.resize(static_cast<std::size_t>(part.rows));
  for (std::int64_t r = 0; r < part.rows; ++r)
    rows->index[static_cast<std::size_t>(r)] = all ? r : order(part.position + r);
  const std::vector<std::int64_t>& index = rows->index;

  // Rows are selected on the host.
  Data data = source_->data;
  Data host;
  Batch batch;
  batch.data = &host;
  batch.targets = source_->targets;
  batch.class_weights = source_->class_weights.empty() ? nullptr : &source_->class_weights;
  batch.rows = part.rows;
  batch.classes = plan_.out_features;
  if (data.weights.present() || batch.class_weights != nullptr) {
    host.y = on_host(data.y, engine_.exchange(), &fetched_[1]);
    host.weights = on_host(data.weights, engine_.exchange(), &fetched_[2]);
    double total = 0.0;
    for (const std::int64_t row : index) {
      rows->weights.push_back(row_weight<T>(batch, row));
      total += rows->weights.back();
    }
    if (!(total > 0.0)) return false;
    data.weights = ArrayView::vector(rows->weights.data(), part.rows);
  }
  if (!all) {
    const auto row_of = [&](std::int64_t r) { return index[static_cast<std::size_t>(r)]; };
    host.x = on_host(data.x, engine_.exchange(), &fetched_[0]);
    host.y = on_host(data.y, engine_.exchange(), &fetched_[1]);
    rows->x.emplace(host.x, part.rows, row_of, model_.threads(), interrupt);
    rows->y.emplace(host.y, part.rows, row_of, model_.threads(), interrupt);
    data.x = rows->x->view();
    data.y = rows->y->view();
  }
  ObjectiveOptions options;
  options.dropout = true;
  if (source_->custom_loss) {
    options.custom_loss = [this, mapped = std::vector<std::int64_t>(index.size()), &index](
                              const void* outputs, const std::int64_t* row_index,
                              std::int64_t count, void* gradient) mutable {
      for (std::int64_t r = 0; r < count; ++r)
        mapped[static_cast<std::size_t>(r)] = index[static_cast<std::size_t>(row_index[r])];
      return source_->custom_loss(outputs, mapped.data(), count, gradient);
    };
  }
  rows->objective = Objective::create(model_, data, options, interrupt);
  rows_ = std::move(rows);
  return true;
}

template <class T>
minimize::Step MethodUpdates<T>::step(const Cursor& cursor, const Interrupt& interrupt,
                                      std::vector<T>* theta) {
  const MethodDescription& description = method_of(plan_);
  std::vector<double> now;
  std::vector<double> next;
  for (const HyperValue& value : description.values) {
    now.push_back(evaluate(value, cursor.updates, cursor.steps_per_epoch));
    next.push_back(evaluate(value, cursor.updates + 1, cursor.steps_per_epoch));
  }
  Objective& objective = *rows_->objective;
  minimize::check_method(description.method, now.data(), objective);
  objective.set_interrupt(interrupt);
  minimize::Problem problem(objective);
  minimize::Iterate at;
  at.x.assign(theta->begin(), theta->end());
  problem.evaluate(at);
  // The engine says which layer is to blame.
  if (!minimize::finite(at)) return {};
  const minimize::Step step =
      method_->step(problem, at, {cursor.updates + 1, now.data(), next.data()});
  if (step.end == minimize::StepEnd::kNoDecrease) {
    ++no_decrease_;
  } else {
    std::transform(at.x.begin(), at.x.end(), theta->begin(),
                   [](double x) { return static_cast<T>(x); });
  }
  return step;
}

template <class T>
RunResult MethodUpdates<T>::run(const Order& order, std::int64_t updates,
                                const Interrupt& interrupt, Cursor* cursor) {
  RunResult result;
  std::vector<T> theta(static_cast<std::size_t>(plan_.num_parameters));
  while (result.end == RunEnd::kComplete && result.updates < updates &&
         cursor->position < cursor->rows) {
    next_parts(plan_, *cursor, &parts_);
    if (parts_.parts.empty() || !select(parts_.parts.front(), order, interrupt)) {
      cursor->position = parts_.end;
      cursor->skipped_rows += parts_.lone_rows;
      for (const Part& part : parts_.parts) cursor->skipped_rows += part.rows;
      continue;
    }
    engine_.get_parameters(theta.data());
    minimize::Step step;
    try {
      step = this->step(*cursor, interrupt, &theta);
    } catch (const Interrupted&) {
      result.end = RunEnd::kDiscarded;
      break;
    }
    if (!std::all_of(theta.begin(), theta.end(), [](T x) { return std::isfinite(x); })) {
      result.end = RunEnd::kGradientNotFinite;
      result.layer = concat("the step of ", info_of(plan_).name);
      break;
    }
    const std::int64_t made = result.updates;
    // Not interrupted: the method has made its step already.
    result = engine_.run(order, 1, {}, cursor);
    if (result.updates > 0) engine_.set_parameters(theta.data());
    result.updates += made;
    result.lr = step.size;
  }
  return result;
}

template <class T>
std::vector<std::pair<std::string, std::int64_t>> MethodUpdates<T>::fallbacks() const {
  auto counts = method_->fallbacks().counts();
  if (no_decrease_ > 0) counts.emplace_back("no_decrease", no_decrease_);
  return counts;
}

template class MethodUpdates<float>;
template class MethodUpdates<double>;

}  // namespace thalweg
