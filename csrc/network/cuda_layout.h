// Where the tensors of a plan lie in an arena of the CUDA back end: a weight is a row-major matrix
// with the pitch of cuda/matrix.h, a vector one row of it, each from a multiple of kGroupBlock
// elements on. Parameters, gradients, optimizer slots and averages share the layout; what lies
// between the tensors is zero.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/matrix.h"
#include "network/plan.h"

namespace thalweg {

struct CudaLayout {
  struct Place {
    std::int64_t offset = 0;
    std::int64_t pitch = 0;
    std::int64_t padded = 0;  // elements up to the next tensor, a multiple of kGroupBlock
  };
  std::vector<Place> tensors;  // in the order of the plan
  std::int64_t size = 0;       // of an arena

  explicit CudaLayout(const Plan& plan) {
    for (const Tensor& tensor : plan.tensors) {
      const std::int64_t rows = tensor.is_weight() ? tensor.out : 1;
      const std::int64_t width = tensor.is_weight() ? tensor.in : tensor.out;
      Place place;
      place.offset = size;
      place.pitch = cuda::pitch_of(width);
      place.padded = round_up(rows * place.pitch, kGroupBlock);
      size += place.padded;
      tensors.push_back(place);
    }
  }

  // A weight in an arena.
  template <class T>
  cuda::Matrix<T> matrix(const Plan& plan, int tensor, T* arena) const {
    const Tensor& weight = plan.tensors[tensor];
    const Place& place = tensors[tensor];
    return {
        .data = arena + place.offset, .rows = weight.out, .width = weight.in, .pitch = place.pitch};
  }

  // f(first element in the canonical flat vector, first in the arena, count), for each row.
  template <class F>
  void for_each_row(const Plan& plan, F&& f) const {
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const Tensor& tensor = plan.tensors[t];
      const std::int64_t width = tensor.is_weight() ? tensor.in : tensor.out;
      for (std::int64_t r = 0; r < tensor.size() / width; ++r)
        f(tensor.flat_offset + r * width, tensors[t].offset + r * tensors[t].pitch, width);
    }
  }
};

}  // namespace thalweg
