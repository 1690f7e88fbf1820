// Checks of the arguments of an operation, with messages of one form:
// "[dense] expected weight.shape[1] == x.shape[1] (784), got (512, 780)".
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/array_view.h"
#include "core/error.h"

namespace thalweg::ops {

inline std::string shape_text(const ArrayView& view) {
  return view.dimensions == 1 ? concat("(", view.rows, ",)")
                              : concat("(", view.rows, ", ", view.cols, ")");
}

inline void expect_matrix(std::string_view op, std::string_view name, const ArrayView& view) {
  expect<ValueError>(view.dimensions == 2, "[", op, "] expected ", name,
                     " with 2 dimensions, got shape ", shape_text(view));
}

inline void expect_rows(std::string_view op, std::string_view name, const ArrayView& view,
                        std::string_view equal_to, std::int64_t rows) {
  expect<ValueError>(view.rows == rows, "[", op, "] expected ", name, ".shape[0] == ", equal_to,
                     " (", rows, "), got ", shape_text(view));
}

inline void expect_cols(std::string_view op, std::string_view name, const ArrayView& view,
                        std::string_view equal_to, std::int64_t cols) {
  expect<ValueError>(view.cols == cols, "[", op, "] expected ", name, ".shape[1] == ", equal_to,
                     " (", cols, "), got ", shape_text(view));
}

inline void expect_same_shape(std::string_view op, std::string_view name, const ArrayView& view,
                              std::string_view other_name, const ArrayView& other) {
  expect<ValueError>(view.rows == other.rows && view.cols == other.cols, "[", op, "] expected ",
                     name, ".shape == ", other_name, ".shape ", shape_text(other), ", got ",
                     shape_text(view));
}

inline void expect_vector(std::string_view op, std::string_view name, const ArrayView& view,
                          std::string_view equal_to, std::int64_t length) {
  expect<ValueError>(view.dimensions == 1, "[", op, "] expected ", name,
                     " with 1 dimension, got shape ", shape_text(view));
  expect_rows(op, name, view, equal_to, length);
}

inline void expect_in(std::string_view op, std::string_view name, double value, double lowest,
                      double highest) {
  expect<ValueError>(value >= lowest && value <= highest, "[", op, "] expected ", name, " in [",
                     lowest, ", ", highest, "], got ", value);
}

// The activation's or the loss's position in its list.
int find_activation(std::string_view op, const std::string& name, double parameter);
int find_elementwise_loss(const std::string& name, double parameter);
int find_optimizer(const std::string& name);

}  // namespace thalweg::ops
