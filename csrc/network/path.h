// Paths from the inputs of a network to its outputs (Neyshabur, Salakhutdinov, Srebro 2015).
//
// With every weight replaced by |w|^p, every activation by the identity and every input by one,
// the sum of the outputs is the sum over all paths of the product of their |w|^p: gamma_p^p, whose
// p-th root is the path norm. A bias is the weight of a unit that is always one. Residual additions
// add paths, the pieces of a maxout unit are paths of their own, dropout is left out.
#pragma once

#include "core/export.h"
#include "network/plan.h"

namespace thalweg {

// Both throw ValueError for p <= 0 and for networks with batch norm, naming the layer.

// Of canonical flat parameters.
TW_INTERNAL_API double path_norm(const Description& description, const double* parameters, double p,
                                 bool biases);

// kappa[w] = (in_u out_v)^(2 / p), with the sums of |w|^p over the paths that lead to the weight's
// input u and from its output v; in_u is one for a bias. Zero where no path passes.
TW_INTERNAL_API void path_scales(const Description& description, const double* parameters, double p,
                                 double* kappa);
void path_scales(const Plan& plan, const double* parameters, double p, double* kappa);

}  // namespace thalweg
