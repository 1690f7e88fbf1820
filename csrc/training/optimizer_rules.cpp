// Groups by name, and coefficients by schedule.
#include "training/optimizer_rules.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "training/schedule.h"

namespace thalweg {

bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

OptimizerRules::OptimizerRules(const Plan& plan, const OptimizerDescription& description)
    : description_(description), group_of_tensor_(plan.tensors.size(), 0) {
  const std::size_t count = description.groups.size() + 1;
  expect<ValueError>(count <= 256, "[optimizer] expected at most 255 parameter groups, got ",
                     count - 1);
  groups_.resize(count);
  for (std::size_t g = 1; g < count; ++g) {
    const ParameterGroup& group = description.groups[g - 1];
    groups_[g] = {group.lr_scale, group.weight_decay, group.frozen};
    bool matched = false;
    for (std::size_t t = 0; t < plan.tensors.size(); ++t) {
      if (!matches(group.match, plan.tensors[t].name)) continue;
      matched = true;
      if (group_of_tensor_[t] == 0) group_of_tensor_[t] = static_cast<std::uint8_t>(g);
    }
    expect<ValueError>(matched,
                       "[optimizer] expected a group pattern that matches a parameter, got '",
                       group.match, "'; parameters are named like ",
                       plan.tensors.empty() ? "layers.0.weight" : plan.tensors[0].name);
  }
}

double OptimizerRules::coefficients(std::int64_t t, double steps_per_epoch, double* out) const {
  double lr = 0.0;
  const HyperTable table = optimizer_hyper(description_.optimizer);
  const int decay = optimizer_hyper_index(description_.optimizer, "weight_decay");
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    std::array<double, kMaxHyperParameters> now{}, next{};
    for (int h = 0; h < table.count; ++h) {
      now[h] = evaluate(description_.hyper[h], t - 1, steps_per_epoch);
      next[h] = evaluate(description_.hyper[h], t, steps_per_epoch);
    }
    if (g == 0) lr = now[0];
    now[0] *= groups_[g].lr_scale;
    next[0] *= groups_[g].lr_scale;
    if (groups_[g].weight_decay) now[decay] = next[decay] = *groups_[g].weight_decay;
    optimizer_coefficients(description_.optimizer, now.data(), next.data(), t,
                           out + g * kMaxCoefficients);
  }
  return lr;
}

}  // namespace thalweg
