// Losses and their gradients by row block, and softmax.
#include "cpu/operations.h"
#include "cpu/panel_loops.h"
#include "math/loss/cross_entropy.h"
#include "math/losses.h"

namespace thalweg::cpu {
inline namespace TW_ISA {
namespace {

// Softmax works on strips of up to kStrip = 16 or 32 rows, transposed: the rows are the lanes of a
// vector, and every sum over the classes is an elementwise addition.
template <class T, std::int64_t kStrip>
struct Strip {
  T maximum[kStrip];
  FloatBits<T> argmax[kStrip];  // the first maximum
  double others[kStrip];        // sum of exp(z_j - maximum) over all classes but the label
  double label_exponential[kStrip];
  double label_shifted[kStrip];  // z_label - maximum
  double shifted_sum[kStrip];    // sum of z_j - maximum
};

// One panel of a strip, transposed: at[j * kPanel + i] is element (first + i, 32 p + j).
template <class T, std::int64_t kStrip>
class StripTile {
 public:
  alignas(64) T at[kTile];

  // Zero beyond `count` rows.
  void load(Panels<const T> x, std::int64_t p, std::int64_t first, std::int64_t count) {
    if (panel_ == p) return;
    panel_ = p;
    const T* from = x.row(p, first);
    alignas(64) T rows[kStrip * kPanel];
    if (count < kStrip) {
      for (std::int64_t i = 0; i < count * kPanel; ++i) rows[i] = from[i];
      for (std::int64_t i = count * kPanel; i < kStrip * kPanel; ++i) rows[i] = T(0);
      from = rows;
    }
    transpose_tile(from, kStrip, x.lanes(p), at);
  }

  // All lanes of the panel, zero past the width.
  void store(Panels<T> x, std::int64_t p, std::int64_t first, std::int64_t count) {
    const std::int64_t lanes = x.lanes(p);
    const std::int64_t whole = round_up(lanes, Vec<T>::kLanes);
    zero_columns(at + lanes * kPanel, whole - lanes, 0);
    T* const to = x.row(p, first);
    alignas(64) T rows[kStrip * kPanel];
    T* const transposed = count < kStrip ? rows : to;
    transpose_tile(at, whole, kStrip, transposed);
    zero_columns(transposed, kStrip, whole);
    if (transposed == to) return;
    for (std::int64_t i = 0; i < count * kPanel; ++i) to[i] = rows[i];
  }

  // After a change of the elements.
  void forget() { panel_ = -1; }

 private:
  std::int64_t panel_ = -1;
};

template <std::int64_t kStrip, class T>
void find_maxima(Panels<const T> z, std::int64_t first, std::int64_t count,
                 StripTile<T, kStrip>& tile, T* maximum, FloatBits<T>* argmax) {
  for (std::int64_t i = 0; i < kStrip; ++i) {
    maximum[i] = -static_cast<T>(__builtin_inf());
    argmax[i] = 0;
  }
  for (std::int64_t p = 0; p < z.panels(); ++p) {
    tile.load(z, p, first, count);
    for (std::int64_t j = 0; j < z.lanes(p); ++j) {
      const auto column = static_cast<FloatBits<T>>(p * kPanel + j);
      const T* const x = tile.at + j * kPanel;
      for (std::int64_t i = 0; i < kStrip; ++i) {
        const T before = maximum[i];
        const T now = cross_entropy::row_maximum(before, x[i]);
        argmax[i] = now == before || before != before ? argmax[i] : column;
        maximum[i] = now;
      }
    }
  }
}

// Fills everything but the maxima from them. All exponentials go to `e` unless its data is null.
template <class T, std::int64_t kStrip>
void sum_exponentials(Panels<const T> z, std::int64_t first, std::int64_t count,
                      StripTile<T, kStrip>& tile, const FloatBits<T>* labels, Panels<T> e,
                      Strip<T, kStrip>& strip) {
  for (std::int64_t i = 0; i < kStrip; ++i) {
    strip.others[i] = strip.label_exponential[i] = 0.0;
    strip.label_shifted[i] = strip.shifted_sum[i] = 0.0;
  }
  for (std::int64_t p = 0; p < z.panels(); ++p) {
    const std::int64_t lanes = z.lanes(p);
    tile.load(z, p, first, count);
    // Sums of at most 32 terms; across panels they are double.
    T others[kStrip] = {};
    T label_exponential[kStrip] = {};
    T label_shifted[kStrip] = {};
    T shifted_sum[kStrip] = {};
    for (std::int64_t j = 0; j < lanes; ++j) {
      const auto column = static_cast<FloatBits<T>>(p * kPanel + j);
      T* const x = tile.at + j * kPanel;
      T shifted[kStrip];
      for (std::int64_t i = 0; i < kStrip; ++i) shifted[i] = x[i] - strip.maximum[i];
      for (std::int64_t i = 0; i < kStrip; ++i) {
        x[i] = cross_entropy::shifted_exponential(x[i], strip.maximum[i]);
        shifted_sum[i] += shifted[i];
      }
      for (std::int64_t i = 0; i < kStrip; ++i) {
        // Selections by bits: g++ turns `+= condition ? x : 0` into branches.
        const FloatBits<T> is_label =
            FloatBits<T>{0} - static_cast<FloatBits<T>>(labels[i] == column);
        others[i] += from_bits<T>(to_bits(x[i]) & ~is_label);
        label_exponential[i] += from_bits<T>(to_bits(x[i]) & is_label);
        label_shifted[i] += from_bits<T>(to_bits(shifted[i]) & is_label);
      }
    }
    for (std::int64_t i = 0; i < kStrip; ++i) {
      strip.others[i] += static_cast<double>(others[i]);
      strip.label_exponential[i] += static_cast<double>(label_exponential[i]);
      strip.label_shifted[i] += static_cast<double>(label_shifted[i]);
      strip.shifted_sum[i] += static_cast<double>(shifted_sum[i]);
    }
    tile.forget();
    if (e.data) tile.store(e, p, first, count);
  }
}

// A label that no class has.
template <class T>
inline constexpr FloatBits<T> kNoLabel = ~FloatBits<T>{0};

template <class T>
double weight_of(const Loss<T>& problem, std::int64_t r) {
  return problem.row_weights ? static_cast<double>(problem.row_weights[r]) : 1.0;
}

// The sums over the rows of a strip, which are hits where the outputs' first maximum is that of the
// target. They reach memory once: the parts of other threads share its lines.
template <class T>
void sum_parts(const Loss<T>& problem, std::int64_t first, std::int64_t count, const double* loss,
               const FloatBits<T>* argmax, const FloatBits<T>* target) {
  for (std::int64_t begin = 0; begin < count; begin += kRowPart) {
    const std::int64_t end = begin + kRowPart < count ? begin + kRowPart : count;
    PartLoss part;
    for (std::int64_t i = begin; i < end; ++i) {
      const double weight = weight_of(problem, first + i);
      part.loss += weight * loss[i];
      const FloatBits<double> hit = -static_cast<FloatBits<double>>(argmax[i] == target[i]);
      part.hits += from_bits<double>(to_bits(weight) & hit);
      part.weight += weight;
    }
    problem.parts[(first + begin) / kRowPart] = part;
  }
}

template <class T>
T& element(Panels<T> x, std::int64_t r, std::int64_t column) {
  return x.row(column / kPanel, r)[column % kPanel];
}

// Rows [first, first + count) against integer labels.
template <std::int64_t kStrip, class T>
void label_strip(const Loss<T>& problem, std::int64_t first, std::int64_t count) {
  const Panels<const T> z = problem.outputs;
  const Panels<T> gradient = problem.gradient;
  const double smoothing = problem.label_smoothing;
  const auto classes = static_cast<double>(z.width);
  FloatBits<T> labels[kStrip];
  for (std::int64_t i = 0; i < kStrip; ++i) {
    labels[i] = i < count ? static_cast<FloatBits<T>>(problem.labels[first + i]) : 0;
  }
  StripTile<T, kStrip> tile;
  Strip<T, kStrip> strip;
  find_maxima(z, first, count, tile, strip.maximum, strip.argmax);
  sum_exponentials(z, first, count, tile, labels, gradient, strip);
  double loss[kStrip];
  double inverse_sum[kStrip];
  for (std::int64_t i = 0; i < kStrip; ++i) {
    loss[i] = cross_entropy::label_loss(strip.others[i], strip.label_exponential[i],
                                        strip.label_shifted[i]);
    inverse_sum[i] = 1.0 / (strip.others[i] + strip.label_exponential[i]);
  }
  if (smoothing != 0.0) {
    for (std::int64_t i = 0; i < kStrip; ++i) {
      const double log_sum = log(strip.others[i] + strip.label_exponential[i]);
      loss[i] = cross_entropy::label_loss_smoothed(loss[i], smoothing, log_sum,
                                                   strip.shifted_sum[i], classes);
    }
  }
  sum_parts(problem, first, count, loss, strip.argmax, labels);
  if (!gradient.data) return;
  const T label_target = static_cast<T>(cross_entropy::smoothed_target(true, smoothing, classes));
  const T other_target = static_cast<T>(cross_entropy::smoothed_target(false, smoothing, classes));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t r = first + i;
    const T factor = static_cast<T>(problem.gradient_scale * weight_of(problem, r));
    const T inverse = static_cast<T>(inverse_sum[i]);
    for (std::int64_t p = 0; p < z.panels(); ++p) {
      T* const g = gradient.row(p, r);
      transform(g, 1, z.lanes(p), [=](std::int64_t j) TW_ALWAYS_INLINE {
        return factor * cross_entropy::label_gradient(g[j], inverse, other_target);
      });
    }
    const T others = static_cast<T>(strip.others[i]);
    const T exponential = static_cast<T>(strip.label_exponential[i]);
    element(gradient, r, problem.labels[r]) =
        factor * (smoothing == 0.0
                      ? cross_entropy::label_gradient_at_label(others, inverse)
                      : cross_entropy::label_gradient(exponential, inverse, label_target));
  }
}

// The same against rows of target probabilities.
template <std::int64_t kStrip, class T>
void probability_strip(const Loss<T>& problem, std::int64_t first, std::int64_t count) {
  const Panels<const T> z = problem.outputs;
  const Panels<T> gradient = problem.gradient;
  const T keep = static_cast<T>(1.0 - problem.label_smoothing);
  const T uniform = static_cast<T>(problem.label_smoothing / static_cast<double>(z.width));
  FloatBits<T> labels[kStrip];
  for (auto& label : labels) label = kNoLabel<T>;
  StripTile<T, kStrip> tile;
  Strip<T, kStrip> strip;
  find_maxima(z, first, count, tile, strip.maximum, strip.argmax);
  sum_exponentials(z, first, count, tile, labels, gradient, strip);
  T target_maximum[kStrip];
  FloatBits<T> target_argmax[kStrip];
  StripTile<T, kStrip> targets;
  find_maxima(problem.targets, first, count, targets, target_maximum, target_argmax);

  T log_sum[kStrip];
  double loss[kStrip] = {};
  double target_sum[kStrip] = {};
  for (std::int64_t i = 0; i < kStrip; ++i) log_sum[i] = static_cast<T>(log(strip.others[i]));
  for (std::int64_t p = 0; p < z.panels(); ++p) {
    tile.load(z, p, first, count);
    targets.load(problem.targets, p, first, count);
    T panel_loss[kStrip] = {};
    T panel_sum[kStrip] = {};
    for (std::int64_t j = 0; j < z.lanes(p); ++j) {
      const T* const x = tile.at + j * kPanel;
      const T* const t = targets.at + j * kPanel;
      for (std::int64_t i = 0; i < kStrip; ++i) {
        const T target = madd(keep, t[i], uniform);
        panel_loss[i] +=
            cross_entropy::probability_term(target, log_sum[i], x[i] - strip.maximum[i]);
        panel_sum[i] += target;
      }
    }
    for (std::int64_t i = 0; i < kStrip; ++i) {
      loss[i] += static_cast<double>(panel_loss[i]);
      target_sum[i] += static_cast<double>(panel_sum[i]);
    }
  }
  sum_parts(problem, first, count, loss, strip.argmax, target_argmax);
  if (!gradient.data) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t r = first + i;
    const T factor = static_cast<T>(problem.gradient_scale * weight_of(problem, r));
    const T inverse_sum = static_cast<T>(1.0 / strip.others[i]);
    const T total = static_cast<T>(target_sum[i]);
    for (std::int64_t p = 0; p < z.panels(); ++p) {
      const T* const t = problem.targets.row(p, r);
      T* const g = gradient.row(p, r);
      transform(g, 1, z.lanes(p), [=](std::int64_t j) TW_ALWAYS_INLINE {
        return factor * cross_entropy::probability_gradient(g[j], inverse_sum,
                                                            madd(keep, t[j], uniform), total);
      });
    }
  }
}

template <class T>
TW_INLINE T sum_lanes(const T (&x)[kPanel]) {
  T total = x[0];
  for (std::int64_t j = 1; j < kPanel; ++j) total += x[j];
  return total;
}

// f.operator()<kStrip>(first row, number of rows) for the strips of some rows.
template <class F>
TW_INLINE void for_strips(Range rows, F&& f) {
  std::int64_t first = rows.begin;
  for (; rows.end - first > kRowPart; first += kPanel) {
    const std::int64_t left = rows.end - first;
    f.template operator()<kPanel>(first, left < kPanel ? left : kPanel);
  }
  if (first < rows.end) f.template operator()<kRowPart>(first, rows.end - first);
}

template <class Rule, class T>
PartLoss elementwise_part(const Loss<T>& problem, Range rows) {
  const Panels<const T> z = problem.outputs;
  const T parameter = static_cast<T>(problem.parameter);
  double loss[kPanel] = {};
  double hits[kPanel] = {};
  PartLoss part;
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const double weight = weight_of(problem, r);
    const T factor = static_cast<T>(problem.gradient_scale * weight);
    part.weight += weight;
    for (std::int64_t p = 0; p < z.panels(); ++p) {
      const T* const output = z.row(p, r);
      const T* const target = problem.targets.row(p, r);
      const std::int64_t lanes = z.lanes(p);
      for (std::int64_t j = 0; j < kPanel; ++j) {
        const double term =
            weight * static_cast<double>(Rule::value(output[j], target[j], parameter));
        loss[j] += j < lanes ? term : 0.0;
      }
      if constexpr (Rule::target != TargetKind::real) {
        for (std::int64_t j = 0; j < kPanel; ++j) {
          const double hit = agrees<Rule::target>(output[j], target[j]) ? weight : 0.0;
          hits[j] += j < lanes ? hit : 0.0;
        }
      }
      if (problem.gradient.data) {
        transform(problem.gradient.row(p, r), 1, lanes, [=](std::int64_t j) TW_ALWAYS_INLINE {
          return factor * Rule::gradient(output[j], target[j], parameter);
        });
      }
    }
  }
  part.loss = sum_lanes(loss);
  part.hits = sum_lanes(hits) / static_cast<double>(z.width);
  return part;
}

// Rows [first, first + count): a . (z' - sum a z') sum(y), whatever the labels are.
template <std::int64_t kStrip, class T>
void tangent_strip(const LossTangent<T>& problem, std::int64_t first, std::int64_t count) {
  const Panels<const T> z = problem.outputs;
  const Panels<T> out = problem.gradient_tangent;
  FloatBits<T> labels[kStrip];
  for (auto& label : labels) label = kNoLabel<T>;
  StripTile<T, kStrip> tile;
  Strip<T, kStrip> strip;
  find_maxima(z, first, count, tile, strip.maximum, strip.argmax);
  sum_exponentials(z, first, count, tile, labels, out, strip);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t r = first + i;
    const double inverse_sum = 1.0 / strip.others[i];
    double mean[kPanel] = {};
    double target_sum[kPanel] = {};
    for (std::int64_t p = 0; p < z.panels(); ++p) {
      const T* const e = out.row(p, r);
      const T* const tangent = problem.output_tangent.row(p, r);
      for (std::int64_t j = 0; j < kPanel; ++j) {
        mean[j] = madd(static_cast<double>(e[j]), static_cast<double>(tangent[j]), mean[j]);
      }
      if (!problem.targets.data) continue;
      const T* const t = problem.targets.row(p, r);
      for (std::int64_t j = 0; j < kPanel; ++j) target_sum[j] += static_cast<double>(t[j]);
    }
    const double total = problem.targets.data ? madd(1.0 - problem.label_smoothing,
                                                     sum_lanes(target_sum), problem.label_smoothing)
                                              : 1.0;
    const double weight = problem.row_weights ? static_cast<double>(problem.row_weights[r]) : 1.0;
    const T factor = static_cast<T>(problem.gradient_scale * weight * total);
    const T inverse = static_cast<T>(inverse_sum);
    const T centre = static_cast<T>(sum_lanes(mean) * inverse_sum);
    for (std::int64_t p = 0; p < z.panels(); ++p) {
      T* const to = out.row(p, r);
      const T* const tangent = problem.output_tangent.row(p, r);
      transform(to, 1, z.lanes(p), [=](std::int64_t j) TW_ALWAYS_INLINE {
        return cross_entropy::gradient_tangent(to[j] * inverse, tangent[j], centre, factor);
      });
    }
  }
}

}  // namespace

template <class T>
void softmax_cross_entropy(const Loss<T>& problem, Range rows) {
  for_strips(rows, [&]<std::int64_t kStrip>(std::int64_t first, std::int64_t count) {
    if (problem.labels) {
      label_strip<kStrip>(problem, first, count);
    } else {
      probability_strip<kStrip>(problem, first, count);
    }
  });
}

template <class T>
void elementwise_loss(int loss_id, const Loss<T>& problem, Range rows) {
  dispatch_loss(loss_id, [&](auto rule) {
    for (std::int64_t first = rows.begin; first < rows.end; first += kRowPart) {
      const std::int64_t end = first + kRowPart < rows.end ? first + kRowPart : rows.end;
      problem.parts[first / kRowPart] = elementwise_part<decltype(rule)>(problem, {first, end});
    }
  });
}

template <class T>
void softmax_cross_entropy_tangent(const LossTangent<T>& problem, Range blocks) {
  for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
    for_strips(row_block(block, problem.outputs.rows),
               [&]<std::int64_t kStrip>(std::int64_t first, std::int64_t count) {
                 tangent_strip<kStrip>(problem, first, count);
               });
  }
}

template <class T>
void elementwise_loss_tangent(int loss_id, const LossTangent<T>& problem, Range blocks) {
  const T parameter = static_cast<T>(problem.parameter);
  const Panels<T> out = problem.gradient_tangent;
  dispatch_loss(loss_id, [&](auto rule) {
    using Rule = decltype(rule);
    const Range rows{blocks.begin * kRowBlock,
                     blocks.end * kRowBlock < out.rows ? blocks.end * kRowBlock : out.rows};
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const double weight = problem.row_weights ? static_cast<double>(problem.row_weights[r]) : 1.0;
      const T factor = static_cast<T>(problem.gradient_scale * weight);
      for (std::int64_t p = 0; p < out.panels(); ++p) {
        const T* const output = problem.outputs.row(p, r);
        const T* const tangent = problem.output_tangent.row(p, r);
        const T* const target = problem.targets.row(p, r);
        transform(out.row(p, r), 1, out.lanes(p), [=](std::int64_t j) TW_ALWAYS_INLINE {
          return factor * Rule::second_derivative(output[j], target[j], parameter) * tangent[j];
        });
      }
    }
  });
}

template <class T>
void softmax(Panels<const T> logits, Panels<T> probabilities, Range rows) {
  for_strips(rows, [&]<std::int64_t kStrip>(std::int64_t first, std::int64_t count) {
    FloatBits<T> labels[kStrip];
    for (auto& label : labels) label = kNoLabel<T>;
    StripTile<T, kStrip> tile;
    Strip<T, kStrip> strip;
    find_maxima(logits, first, count, tile, strip.maximum, strip.argmax);
    sum_exponentials(logits, first, count, tile, labels, probabilities, strip);
    for (std::int64_t i = 0; i < count; ++i) {
      const T inverse_sum = static_cast<T>(1.0 / strip.others[i]);
      for (std::int64_t p = 0; p < logits.panels(); ++p) {
        T* const row = probabilities.row(p, first + i);
        transform(row, 1, logits.lanes(p),
                  [=](std::int64_t j) TW_ALWAYS_INLINE { return row[j] * inverse_sum; });
      }
    }
  });
}

#define TW_INSTANTIATE(T)                                                    \
  template void softmax_cross_entropy(const Loss<T>&, Range);                \
  template void elementwise_loss(int, const Loss<T>&, Range);                \
  template void softmax_cross_entropy_tangent(const LossTangent<T>&, Range); \
  template void elementwise_loss_tangent(int, const LossTangent<T>&, Range); \
  template void softmax(Panels<const T>, Panels<T>, Range);
TW_INSTANTIATE(float)
TW_INSTANTIATE(double)
#undef TW_INSTANTIATE

}  // namespace TW_ISA
}  // namespace thalweg::cpu
