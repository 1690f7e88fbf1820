// The primitives of the executor's walk on the CPU.
//
// Every thread of the team has a backend of its own over the same plan, parameters and workspace,
// and all of them make the same calls: a primitive spreads its chunks over the team and ends with
// the team's barrier (see core/thread_pool.h), so that a whole step is one parallel region. A pass
// may be left unfinished only when the team was stopped. A backend borrows everything and owns
// nothing.
//
// Or every thread keeps to rows of its own, from the input to the input gradients: then there is no
// barrier but for the statistics of batch norm, and what crosses from thread to thread is parts of
// the parameters' gradients in place of activations.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "network/cpu_phases.h"
#include "network/executor.h"
#include "network/parameters.h"
#include "network/workspace.h"

namespace thalweg {

// A weight and its transposed copy, each in tiles: of numbers, or both of pairs where products are
// of bfloat16.
template <class T>
struct CpuWeight {
  const T* values = nullptr;
  const T* transposed = nullptr;
  const BfloatPair* pairs = nullptr;
  const BfloatPair* transposed_pairs = nullptr;
};

// Panels that may be absent. A factor of products of bfloat16 numbers has pairs: whoever writes the
// panels rounds their values and writes the pairs with them.
template <class T>
struct CpuMatrix : Panels<T> {
  cpu::BfloatPanels pairs{};

  bool present() const { return this->data != nullptr; }
  // A panel of pairs in chunks of 32 rows, from a chunk's first row on.
  const BfloatPair* chunks(const BfloatPair* all, std::int64_t p, std::int64_t row) const {
    return all + (p * round_up(this->rows, kPanel) + row) * (kPanel / 2);
  }
};

template <class T>
class CpuBackend {
 public:
  using Element = T;
  using Matrix = CpuMatrix<T>;
  using Weight = CpuWeight<T>;
  using Vector = const T*;

  // `own_rows`: whole row blocks that this thread keeps to, or none.
  CpuBackend(const Plan& plan, const Parameters<T>& parameters, Workspace<T>& workspace,
             const cpu::Kernels<T>& kernels, Team& team, Range own_rows = {})
      : plan_(plan),
        parameters_(parameters),
        workspace_(workspace),
        kernels_(kernels),
        team_(team),
        own_rows_(own_rows) {}

  const Plan& plan() const { return plan_; }
  Matrix value(int buffer) const {
    return {workspace_.value(buffer), workspace_.value_pairs(buffer)};
  }
  Matrix gradient(int buffer) const {
    return {workspace_.gradient(buffer), workspace_.gradient_pairs(buffer)};
  }
  Vector vector(int tensor) const {
    return parameters_.values.data() + plan_.tensors[tensor].offset;
  }
  Weight weight(int tensor) const {
    const std::int64_t at = plan_.tensors[tensor].transposed_offset;
    Weight weight{vector(tensor)};
    if (parameters_.pairs.size() > 0) {
      weight.pairs = parameters_.pairs.data() + at / 2;
      weight.transposed_pairs = parameters_.transposed_pairs.data() + at / 2;
    } else {
      weight.transposed = parameters_.transposed.data() + at;
    }
    return weight;
  }

  void begin_forward(const Pass& pass);
  bool dense(const Pass& pass, const DenseForward<CpuBackend>& problem);
  static constexpr bool fuses_dropout(const Node&) { return false; }
  static constexpr bool gates_batch_norm() { return true; }
  void activation(const Matrix& z, const Matrix& y, const Activation& activation);
  void dropout(const Pass& pass, const Node& node, const Matrix& x, const Matrix& y,
               bool accumulate);
  void copy(const Matrix& x, const Matrix& y);
  void accumulate(const Matrix& x, const Matrix& y);
  void add(const Matrix& a, const Matrix& b, const Matrix& y);
  void maxout(const Matrix& z, const Matrix& y, std::int64_t pieces);
  // Mean and variance of the batch; `blocks_ready` when the dense node left those of the row
  // blocks.
  void batch_statistics(const Pass& pass, int state, const Matrix& z, bool blocks_ready);
  void batch_norm(const BatchNormForward<CpuBackend>& problem);

  // One thread adds to `totals`; null: the sums stay in the workspace for add_losses().
  void loss(const LossRequest& request, const Matrix& outputs, const Matrix& gradient,
            LossTotals* totals);
  // Not collective: block by block, any time after loss().
  void add_losses(LossTotals* totals) const;

  void activation_backward(const Matrix& dy, const Matrix& at, const Matrix& dz,
                           const Activation& activation, bool accumulate);
  void dense_input_gradient(const Pass& pass, const DenseInputGradient<CpuBackend>& problem);
  void maxout_backward(const Matrix& z, const Matrix& dy, const Matrix& dz, std::int64_t pieces);
  void batch_norm_backward(const Pass& pass, const BatchNormBackward<CpuBackend>& problem);

  // Into the tensor's place in an arena. No barrier until end_gradients(): the places are apart.
  void weight_gradient(int tensor, const Matrix& x, const Matrix& dy, bool accumulate, T* arena);
  void bias_gradient(int tensor, const Matrix& dy, bool accumulate, T* arena);
  void norm_gradient(int tensor, bool accumulate, T* arena);
  void end_gradients() { team_.barrier(); }

  // Not collective: the gradient of one update task, for an optimizer that uses it at once.
  void tile_gradient(const UpdateTask& task, T* tile);
  // Of a bias, to vector_place(): these panels.
  void bias_gradient(const UpdateTask& task, Range panels);
  // Not collective: what the rows of this thread add to the gradient of a weight or bias, `to` the
  // task's place in an arena of such parts.
  void partial_gradient(const UpdateTask& task, T* to);
  // Where a vector's gradient is.
  T* vector_place(int tensor) {
    return workspace_.vector_gradients() + plan_.tensors[tensor].vector_offset;
  }

 protected:
  const Plan& plan_;
  const Parameters<T>& parameters_;
  Workspace<T>& workspace_;
  const cpu::Kernels<T>& kernels_;
  Team& team_;
  Range own_rows_;

 private:
  bool apart() const { return own_rows_.size() > 0; }
  // Where threads that keep to their rows need those of others.
  void meet() {
    if (apart()) team_.barrier();
  }
  // Who reads next what a phase over a matrix writes: a thread that is given the same columns needs
  // to wait for nobody.
  enum class Reader { kAny, kSameColumns };
  // Whether every thread is given whole columns in phases over such a matrix, always the same.
  bool in_columns(std::int64_t rows, std::int64_t panels) const {
    return !apart() && shared_by_columns(rows, panels) && panels % team_.size() == 0;
  }
  void end_phase(std::int64_t rows, std::int64_t panels, Reader reader) {
    if (reader == Reader::kAny || !in_columns(rows, panels)) team_.barrier();
  }
  // Phases: f(row blocks, panels), f(rows, panels), f(rows) for at most a row block at a time, and
  // f(panel) for what concerns whole columns.
  template <class F>
  void spread(std::int64_t rows, std::int64_t panels, std::int64_t units, F&& f,
              Reader reader = Reader::kAny);
  template <class F>
  void spread(const Matrix& matrix, std::int64_t units, F&& f, Reader reader = Reader::kAny);
  template <class F>
  void spread_rows(const Matrix& matrix, F&& f);
  template <class F>
  void spread_columns(const Matrix& matrix, Reader reader, F&& f);
  // Whether so many row blocks of a matrix are shared in smaller parts. Pairs of bfloat16 numbers
  // are written in chunks of 32 rows.
  bool in_parts(std::int64_t blocks, const Matrix& matrix) const {
    return blocks < 2 * team_.size() && team_.size() > 1 && !matrix.pairs.columns;
  }
  // After a write of these rows and panels.
  void round(const Matrix& matrix, Range rows, Range panels);
  void product(const cpu::Gemm<T>& problem, const Matrix& c, Reader reader);
  void multiply_tile(const Matrix& x, const Matrix& dy, Range rows, std::int64_t in_panel,
                     std::int64_t out_panel, bool accumulate, T* tile);
  // sums: [panels of dy][kPanel]
  void sum_columns(const Panels<T>& dy, Range rows, Range panels, T* sums);
  void store_vector(int tensor, bool accumulate, T* arena);
};

extern template class Executor<CpuBackend<float>>;
extern template class Executor<CpuBackend<double>>;

}  // namespace thalweg
