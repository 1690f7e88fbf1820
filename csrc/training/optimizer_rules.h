// What an optimizer's description says about the tensors of a plan, the same on every device:
// parameter groups, and the coefficients of each update.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "math/optimizers.h"
#include "network/plan.h"

namespace thalweg {

class OptimizerRules {
 public:
  // ValueError when a group matches nothing.
  OptimizerRules(const Plan& plan, const OptimizerDescription& description);

  int optimizer() const { return description_.optimizer; }
  int slots() const { return optimizer_slots(description_.optimizer); }
  int groups() const { return static_cast<int>(groups_.size()); }
  std::uint8_t group_of(int tensor) const { return group_of_tensor_[tensor]; }
  bool group_frozen(int group) const { return groups_[group].frozen; }
  bool frozen(int tensor) const { return group_frozen(group_of(tensor)); }

  // [groups][kMaxCoefficients] of update t (from 1); returns the learning rate of group 0.
  double coefficients(std::int64_t t, double steps_per_epoch, double* out) const;

 private:
  struct Group {
    double lr_scale = 1.0;
    std::optional<double> weight_decay;
    bool frozen = false;
  };

  OptimizerDescription description_;
  std::vector<Group> groups_;  // 0 is everything that no pattern matches
  std::vector<std::uint8_t> group_of_tensor_;
};

// Shell pattern over a parameter name: * any run of characters, ? one character.
bool matches(std::string_view pattern, std::string_view name);

}  // namespace thalweg
