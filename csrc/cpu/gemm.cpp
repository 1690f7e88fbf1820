// The dense layer's forward pass and its input gradient: C = A B with everything that follows done
// while a block of C is in the first-level cache.
#include <type_traits>

#include "cpu/amx.h"
#include "cpu/micro_kernel.h"
#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/activations.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Rows x (kVectors vectors) of C; all pointers at its first row and column. Factors are T or pairs
// of bfloat16 numbers, of which a panel of A has half as many columns and one of B half as many
// rows.
template <class T, class E>
struct BlockArguments {
  const E* a;
  std::int64_t a_stride;  // between panels of A
  bool fetch_a;           // A is larger than the caches near the processor
  const E* b;
  std::int64_t depth;  // factors of this call, from the first column of a panel of A
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

// Rows of C and of the gate that are fetched while one panel of A is multiplied.
inline constexpr int kFetchedRows = 2;

// Panels of A between the one that is multiplied and those that are fetched into the first- and
// second-level cache. Panels may share their places in the first, which holds few of them.
inline constexpr std::int64_t kFirstLevelPanels = 2;
inline constexpr std::int64_t kSecondLevelPanels = 5;

template <class E>
inline constexpr int kLine = 64 / sizeof(E);  // of a cache

// Of A, which a second-level cache keeps while B streams by, panel after panel.
inline constexpr std::int64_t kCachedBytes = 384 << 10;

// Factors in a row of a panel of A.
template <class E>
inline constexpr std::int64_t kDepth = kPanel / Factor<E>::kProducts;

template <class T, class E, int kVectors>
struct DenseBlock {
  template <int kRows>
  struct Rows {
    static void run(const BlockArguments<T, E>& arguments) {
      const BlockArguments<T, E> block = arguments;
      Accumulator<T, kRows, kVectors> sum;
      sum.clear();
      const E* a = block.a;
      const E* b = block.b;
      int fetched = 0;
      const std::int64_t panels = block.depth / kDepth<E>;
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        sum.template multiply<kDepth<E>, 1>(a, b, kDepth<E>);
        if constexpr (kVectors == 1) {
          if (block.fetch_a) {
            fetch_factors<3>(factors_ahead(block, panel + kFirstLevelPanels, panels));
            if (panels > kSecondLevelPanels)
              fetch_factors<2>(factors_ahead(block, panel + kSecondLevelPanels, panels));
          }
        }
        for (const int end = fetched + kFetchedRows; fetched < end; ++fetched)
          if (fetched < kRows) fetch(block, fetched);
        a += block.a_stride;
        b += kDepth<E> * kPanel;
      }
      sum.template multiply<kDepth<E>, 1>(a, b, block.depth % kDepth<E>);
      if (block.add) {
        each(sum, [&](Vec<T>& x, std::int64_t at, int)
                      TW_ALWAYS_INLINE { x = Vec<T>::load(block.c + at) + x; });
      }
      if (block.last) finish(sum, block);
      each(sum, [&](Vec<T>& x, std::int64_t at, int) TW_ALWAYS_INLINE { x.store(block.c + at); });
    }

    // Of this block, or of the next rows, which follow these in every panel; of two panels or more.
    static TW_INLINE const E* factors_ahead(const BlockArguments<T, E>& block, std::int64_t panel,
                                            std::int64_t panels) {
      return panel < panels ? block.a + panel * block.a_stride
                            : block.a + kRows * kDepth<E> + (panel - panels) * block.a_stride;
    }

    // One vector of columns needs a panel of A in half the time, too little for its way from
    // memory.
    template <int kLocality>
    static TW_INLINE void fetch_factors(const E* a) {
      TW_UNROLL(16)
      for (int i = 0; i < kRows; ++i) {
        TW_UNROLL(4)
        for (int j = 0; j < kDepth<E>; j += kLine<E>)
          __builtin_prefetch(a + i * kDepth<E> + j, 0, kLocality);
      }
    }

    // Row `row` of what is added to, written and gated by, into the cache.
    static TW_INLINE void fetch(const BlockArguments<T, E>& block, int row) {
      TW_UNROLL(2)
      for (int j = 0; j < kVectors * Vec<T>::kLanes; j += kLine<T>) {
        __builtin_prefetch(block.c + row * kPanel + j, 1);
        if (block.gate) __builtin_prefetch(block.gate + row * kPanel + j);
      }
    }

    static TW_INLINE void finish(Accumulator<T, kRows, kVectors>& sum,
                                 const BlockArguments<T, E>& block) {
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
template <class T, class E, int kVectors>
void multiply_group(BlockArguments<T, E> block, std::int64_t depth, std::int64_t rows) {
  constexpr int kMost = kMaxRows<kVectors>;
  constexpr std::int64_t kProducts = Factor<E>::kProducts;
  static constexpr BlockTable<DenseBlock<T, E, kVectors>::template Rows, BlockArguments<T, E>,
                              kMost>
      kTable;
  const BlockArguments<T, E> origin = block;
  std::int64_t begin = 0;
  do {
    const std::int64_t products = depth - begin < kPromote ? depth - begin : kPromote;
    block.depth = ceil_div(products, kProducts);
    block.last = begin + products == depth;
    for_row_parts<kMost>(rows, [&](std::int64_t row, std::int64_t count) TW_ALWAYS_INLINE {
      const std::int64_t offset = row * kPanel;
      block.a = origin.a + begin / kPanel * origin.a_stride + row * kDepth<E>;
      block.b = origin.b + begin / kProducts * kPanel;
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

// Rows [row, row + rows) of panel p of C, within one row block. `a` and `b` are the factors of all
// of A and B.
template <class T, class E>
void multiply_block(const Gemm<T>& g, const E* a, const E* b, std::int64_t row, std::int64_t rows,
                    std::int64_t p) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const std::int64_t lanes = g.c.lanes(p);
  const std::int64_t offset = (p * g.c.rows + row) * kPanel;
  const bool simple = g.activation.id == kActivationIdentity || g.activation.id == kActivationRelu;
  const bool gated = simple && g.has_derivative && g.derivative.id == kActivationRelu;
  T* const c = g.c.data + offset;
  T* const pre = advance(g.pre, offset);
  const T* const at = advance(g.derivative_at, offset);

  bool add = g.accumulate;
  std::int64_t depth = g.a.width;
#if defined(TW_AMX)
  if constexpr (std::is_same_v<E, BfloatPair>) {
    if (has_matrix_unit()) {
      const Tiles tiles;
      for (std::int64_t r = 0; r < rows; r += kPanel)
        multiply_on_tiles(a + (row + r) * kDepth<E>, g.a.rows * kDepth<E>,
                          b + p * panels_of(depth) * kDepth<E> * kPanel, panels_of(depth),
                          rows - r < kPanel ? rows - r : kPanel, add, c + r * kPanel);
      // What is left is what follows the sum.
      add = true;
      depth = 0;
    }
  }
#endif
  const std::int64_t vectors = ceil_div(lanes, kLanes);
  for (std::int64_t vector = 0; vector < vectors; vector += kGroupVectors) {
    const std::int64_t column = vector * kLanes;
    const BlockArguments<T, E> group{
        .a = advance(a, row * kDepth<E>),
        .a_stride = g.a.rows * kDepth<E>,
        .fetch_a = g.a.size() * std::int64_t{sizeof(T)} > kCachedBytes,
        .b = advance(b, p * panels_of(g.a.width) * kDepth<E> * kPanel + column),
        .depth = 0,
        .c = c + column,
        .add = add,
        .last = false,
        .column = column,
        .lanes = lanes,
        .scale = advance(g.scale, p * kPanel + column),
        .shift = advance(g.shift, p * kPanel + column),
        .pre = advance(pre, column),
        .relu = g.activation.id == kActivationRelu,
        .gate = gated ? at + column : nullptr};
    if (vectors - vector >= kGroupVectors) {
      multiply_group<T, E, kGroupVectors>(group, depth, rows);
    } else {
      multiply_group<T, E, 1>(group, depth, rows);
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
  const std::int64_t row_bytes = problem.a.panels() * kPanel * std::int64_t{sizeof(T)};
  const std::int64_t blocks = kCachedBytes / (kRowBlock * row_bytes + 1);
  const std::int64_t most = blocks > 1 ? blocks * kRowBlock : kRowBlock;
  for (std::int64_t first = rows.begin; first < rows.end; first += most) {
    const std::int64_t end = rows.end - first < most ? rows.end : first + most;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      for (std::int64_t row = first; row < end; row += kRowBlock) {
        const std::int64_t count = end - row < kRowBlock ? end - row : kRowBlock;
        if constexpr (std::is_same_v<T, float>) {
          if (problem.b_pairs) {
            multiply_block(problem, problem.a_pairs, problem.b_pairs, row, count, p);
            continue;
          }
        }
        multiply_block(problem, problem.a.data, problem.b, row, count, p);
      }
    }
  }
}

template void gemm(const Gemm<float>&, Range, Range);
template void gemm(const Gemm<double>&, Range, Range);

}  // namespace TW_ISA
}  // namespace thalweg::cpu
