// Sizes and places of a workspace's buffers.
#include "network/workspace.h"

#include "network/parameters.h"

namespace thalweg {

template <class T>
Workspace<T>::Workspace(const Plan& plan, std::int64_t capacity, bool gradients)
    : capacity_(capacity), gradients_(gradients), rows_(capacity) {
  const std::int64_t blocks = row_blocks_of(capacity);
  std::int64_t value_width = 0;
  std::int64_t gradient_width = 0;
  const auto buffers = static_cast<int>(plan.buffers.size());
  gradient_offset_.assign(plan.buffers.size(), 0);
  for (int b = 0; b < buffers; ++b) {
    const std::int64_t padded = round_up(plan.buffers[b].width, kPanel);
    width_.push_back(plan.buffers[b].width);
    value_offset_.push_back(value_width);
    value_width += padded;
    if (gradients && plan.buffers[b].gradient_alias < 0) {
      gradient_offset_[b] = gradient_width;
      gradient_width += padded;
    }
  }
  for (int b = 0; b < buffers; ++b) gradient_offset_[b] = gradient_offset_[plan.gradient_holder(b)];
  place_pairs(plan);
  std::int64_t statistics = 0;
  for (const BatchNormState& state : plan.states) {
    statistics_offset_.push_back(statistics);
    padded_.push_back(state.padded);
    statistics += 4 * state.padded;
  }
  values_ = Arena<T>(element_count(capacity, value_width));
  gradient_values_ = Arena<T>(element_count(capacity, gradient_width));
  statistics_ = Arena<T>(statistics);
  batch_statistics_ = Arena<double>(statistics);
  vector_gradients_ = Arena<T>(gradients ? plan.vector_size : 0);
  block_statistics = Arena<cpu::BlockStatistics>(element_count(blocks, plan.max_batch_norm_panels));
  block_sums =
      Arena<cpu::BlockSums>(element_count(gradients ? blocks : 0, plan.max_batch_norm_panels));
  block_rows = Arena<double>(blocks);
  block_weights = Arena<double>(blocks);
  part_losses = Arena<cpu::PartLoss>(row_parts_of(capacity));
  row_weights = Arena<T>(capacity);
  labels = Arena<std::int64_t>(capacity);
  row_index = Arena<std::int64_t>(capacity);
  targets = Arena<T>(element_count(capacity, round_up(plan.out_features, kPanel)));
}

// The factors of products are the inputs of dense nodes and the gradients of their outputs.
template <class T>
void Workspace<T>::place_pairs(const Plan& plan) {
  value_pairs_.assign(plan.buffers.size(), -1);
  gradient_pairs_.assign(plan.buffers.size(), -1);
  if (!multiplies_bfloat16<T>(plan)) return;
  std::int64_t width = 0;
  const auto place = [&](std::int64_t* offset, int buffer) {
    if (*offset >= 0) return;
    *offset = width;
    width += round_up(plan.buffers[buffer].width, kPanel) / 2;
  };
  for (const Node& node : plan.nodes) {
    if (node.weight < 0) continue;
    for (const bool inference : {false, true}) {
      const int buffer = plan.value_holder(node.input, inference);
      place(&value_pairs_[buffer], buffer);
    }
    if (gradients_) place(&gradient_pairs_[node.output], node.output);
  }
  // The gradient of a sum is that of its branch where they share memory: nobody writes it again.
  for (const Node& node : plan.nodes)
    if (node.second >= 0 && plan.gradient_holder(node.second) == plan.gradient_holder(node.output))
      gradient_pairs_[node.output] = gradient_pairs_[node.second];
  constexpr std::int64_t kReadBeyond = kTile;
  column_pairs_ = Arena<BfloatPair>(element_count(capacity_, width) + kReadBeyond);
  if (gradients_) row_pairs_ = Arena<BfloatPair>(element_count(round_up(capacity_, kPanel), width));
}

template class Workspace<float>;
template class Workspace<double>;

}  // namespace thalweg
