// The dense layer's forward pass and its input gradient: C = A B with everything that follows done
// while a block of C is in the first-level cache.
#include "cpu/micro_kernel.h"
#include "cpu/operations.h"
#include "math/activations.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Rows x (kVectors vectors) of C; all pointers at its first row and column.
template <class T>
struct BlockArguments {
  const T* a;
  std::int64_t a_stride;  // between panels of A
  const T* b;
  std::int64_t depth;  // products of this call, from the first column of a panel of A
  T* c;
  bool add;             // to what C holds
  bool last;            // the sum is complete: do what follows
  std::int64_t column;  // of the block within its panel
  std::int64_t lanes;   // valid columns of the panel
  const T* scale;       // or null
  const T* shift;       // or null
  T* pre;               // or null
  bool relu;            // applied to C
  const T* gate;        // C *= the derivative of ReLU at its output `gate`, or null
};

template <class T, int kVectors>
struct DenseBlock {
  template <int kRows>
  struct Rows {
    static void run(const BlockArguments<T>& arguments) {
      const BlockArguments<T> block = arguments;
      Accumulator<T, kRows, kVectors> sum;
      sum.clear();
      const T* a = block.a;
      const T* b = block.b;
      for (std::int64_t panel = block.depth / kPanel; panel > 0; --panel) {
        sum.template multiply<kPanel, 1>(a, b, kPanel);
        a += block.a_stride;
        b += kTile;
      }
      sum.template multiply<kPanel, 1>(a, b, block.depth % kPanel);
      if (block.add) {
        each(sum, [&](Vec<T>& x, std::int64_t at, int)
                      TW_ALWAYS_INLINE { x = Vec<T>::load(block.c + at) + x; });
      }
      if (block.last) finish(sum, block);
      each(sum, [&](Vec<T>& x, std::int64_t at, int) TW_ALWAYS_INLINE { x.store(block.c + at); });
    }

    static TW_INLINE void finish(Accumulator<T, kRows, kVectors>& sum,
                                 const BlockArguments<T>& block) {
      if (block.scale) {
        Vec<T> scale[kVectors];
        for (int j = 0; j < kVectors; ++j)
          scale[j] = Vec<T>::load(block.scale + j * Vec<T>::kLanes);
        each(sum, [&](Vec<T>& x, std::int64_t, int j) TW_ALWAYS_INLINE { x = x * scale[j]; });
      }
      if (block.shift) {
        Vec<T> shift[kVectors];
        for (int j = 0; j < kVectors; ++j)
          shift[j] = Vec<T>::load(block.shift + j * Vec<T>::kLanes);
        each(sum, [&](Vec<T>& x, std::int64_t, int j) TW_ALWAYS_INLINE { x = x + shift[j]; });
      }
      if (block.lanes < block.column + kVectors * Vec<T>::kLanes) {
        each(sum, [&](Vec<T>& x, std::int64_t, int j) TW_ALWAYS_INLINE {
          x = keep_lanes(x, block.column + j * Vec<T>::kLanes, block.lanes);
        });
      }
      if (block.pre) {
        each(sum,
             [&](Vec<T>& x, std::int64_t at, int) TW_ALWAYS_INLINE { x.store(block.pre + at); });
      }
      if (block.relu) {
        each(sum, [&](Vec<T>& x, std::int64_t, int)
                      TW_ALWAYS_INLINE { x = at_least(x, Vec<T>::zero()); });
      }
      if (block.gate) {
        each(sum, [&](Vec<T>& x, std::int64_t at, int) TW_ALWAYS_INLINE {
          x = x * one_where_positive(Vec<T>::load(block.gate + at));
        });
      }
    }

    // f(vector, its offset in C, its column in the group)
    template <class F>
    static TW_INLINE void each(Accumulator<T, kRows, kVectors>& sum, F&& f) {
      TW_UNROLL(16)
      for (int i = 0; i < kRows; ++i) {
        TW_UNROLL(2)
        for (int j = 0; j < kVectors; ++j) f(sum.at[i][j], i * kPanel + j * Vec<T>::kLanes, j);
      }
    }
  };
};

// One row block x one group of columns.
template <class T, int kVectors>
void multiply_group(BlockArguments<T> block, std::int64_t depth, std::int64_t rows) {
  constexpr int kMost = kMaxRows<kVectors>;
  static constexpr BlockTable<DenseBlock<T, kVectors>::template Rows, BlockArguments<T>, kMost>
      kTable;
  const BlockArguments<T> origin = block;
  std::int64_t begin = 0;
  do {
    block.depth = depth - begin < kPromote ? depth - begin : kPromote;
    block.last = begin + block.depth == depth;
    for_row_parts<kMost>(rows, [&](std::int64_t row, std::int64_t count) TW_ALWAYS_INLINE {
      const std::int64_t offset = row * kPanel;
      block.a = origin.a + begin / kPanel * origin.a_stride + offset;
      block.b = origin.b + begin * kPanel;
      block.c = origin.c + offset;
      block.pre = origin.pre ? origin.pre + offset : nullptr;
      block.gate = origin.gate ? origin.gate + offset : nullptr;
      kTable.run[count - 1](block);
    });
    block.add = true;
    begin += kPromote;
  } while (begin < depth);
}

template <class T>
T* advance(T* pointer, std::int64_t offset) {
  return pointer ? pointer + offset : nullptr;
}

template <class T>
void zero_columns(T* c, std::int64_t rows, std::int64_t first) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = first; j < kPanel; ++j) c[r * kPanel + j] = T(0);
  }
}

// Rows [row, row + rows) of panel p of C, within one row block.
template <class T>
void multiply_block(const Gemm<T>& g, std::int64_t row, std::int64_t rows, std::int64_t p) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const std::int64_t lanes = g.c.lanes(p);
  const std::int64_t offset = (p * g.c.rows + row) * kPanel;
  const bool simple = g.activation.id == kActivationIdentity || g.activation.id == kActivationRelu;
  const bool gated = simple && g.has_derivative && g.derivative.id == kActivationRelu;
  T* const c = g.c.data + offset;
  T* const pre = advance(g.pre, offset);
  const T* const at = advance(g.derivative_at, offset);

  const std::int64_t vectors = ceil_div(lanes, kLanes);
  for (std::int64_t vector = 0; vector < vectors; vector += kGroupVectors) {
    const std::int64_t column = vector * kLanes;
    const BlockArguments<T> group{.a = advance(g.a.data, row * kPanel),
                                  .a_stride = g.a.rows * kPanel,
                                  .b = advance(g.b, p * panels_of(g.a.width) * kTile + column),
                                  .depth = 0,
                                  .c = c + column,
                                  .add = g.accumulate,
                                  .last = false,
                                  .column = column,
                                  .lanes = lanes,
                                  .scale = advance(g.scale, p * kPanel + column),
                                  .shift = advance(g.shift, p * kPanel + column),
                                  .pre = advance(pre, column),
                                  .relu = g.activation.id == kActivationRelu,
                                  .gate = gated ? at + column : nullptr};
    if (vectors - vector >= kGroupVectors) {
      multiply_group<T, kGroupVectors>(group, g.a.width, rows);
    } else {
      multiply_group<T, 1>(group, g.a.width, rows);
    }
  }
  if (vectors * kLanes < kPanel) {
    zero_columns(c, rows, vectors * kLanes);
    if (pre) zero_columns(pre, rows, vectors * kLanes);
  }
  if (!simple) activate_block(g.activation, c, c, rows, lanes);
  if (g.has_derivative && !gated && g.derivative.id != kActivationIdentity) {
    differentiate_block(g.derivative, c, at, c, false, rows, lanes);
  }
  if (g.statistics) {
    block_statistics(c, advance(g.row_weights, row), rows, lanes,
                     g.statistics[row / kRowBlock * g.c.panels() + p]);
  }
}

}  // namespace

template <class T>
void gemm(const Gemm<T>& problem, Range rows, Range panels) {
  for (std::int64_t row = rows.begin; row < rows.end; row += kRowBlock) {
    const std::int64_t count = rows.end - row < kRowBlock ? rows.end - row : kRowBlock;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) multiply_block(problem, row, count, p);
  }
}

template void gemm(const Gemm<float>&, Range, Range);
template void gemm(const Gemm<double>&, Range, Range);

}  // namespace TW_ISA
}  // namespace thalweg::cpu
