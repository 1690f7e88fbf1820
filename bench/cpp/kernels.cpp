// Times the CPU kernels on one thread, next to OpenBLAS and oneDNN where the build found them:
//
//   kernels gemm|optimizer|batch_norm [SECONDS]
//
// prints one JSON object per shape and library: median and best time over rounds in which the
// libraries take turns, and the median of the ratio to thalweg within each round. Operands are
// where each library wants them (panels here, packed weights for oneDNN, plain matrices for
// OpenBLAS); what a training step reuses is packed once, outside the timed part.
#include "cpu/kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/pack.h"
#include "core/thread_pool.h"
#include "cpu/weight_gradient.h"
#include "math/optimizers.h"

#if defined(TW_BENCH_OPENBLAS)
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif
#if defined(TW_BENCH_ONEDNN)
#include <dnnl.hpp>
#endif

namespace thalweg {
namespace {

using Clock = std::chrono::steady_clock;

struct Contender {
  const char* library;
  std::function<void()> run;
};

double seconds_of(const std::function<void()>& run, int repetitions) {
  const auto start = Clock::now();
  for (int i = 0; i < repetitions; ++i) run();
  return std::chrono::duration<double>(Clock::now() - start).count() / repetitions;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Rounds of turns of about 2 ms; the first contender is thalweg.
void compare(const std::string& what, double work, const char* unit,
             const std::vector<Contender>& contenders, double budget) {
  constexpr double kTurn = 2e-3;
  std::vector<int> repetitions;
  for (const Contender& contender : contenders) {
    contender.run();
    const double once = seconds_of(contender.run, 1);
    repetitions.push_back(std::max(1, static_cast<int>(kTurn / std::max(once, 1e-7))));
  }
  const int rounds =
      std::max(5, static_cast<int>(budget / (2 * kTurn * static_cast<double>(contenders.size()))));
  std::vector<std::vector<double>> times(contenders.size());
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      contenders[i].run();  // brings its operands back into the caches
      times[i].push_back(seconds_of(contenders[i].run, repetitions[i]));
    }
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    std::vector<double> ratios;
    for (int round = 0; round < rounds; ++round)
      ratios.push_back(times[i][static_cast<std::size_t>(round)] /
                       times[0][static_cast<std::size_t>(round)]);
    const double time = median(times[i]);
    const double best = *std::min_element(times[i].begin(), times[i].end());
    std::printf(
        "{%s, \"library\": \"%s\", \"microseconds\": %.3f, \"best\": %.3f, \"%s\": %.2f, "
        "\"ratio\": %.3f}\n",
        what.c_str(), contenders[i].library, time * 1e6, best * 1e6, unit, work / time / 1e9,
        median(ratios));
    std::fflush(stdout);
  }
}

Arena<float> random_values(std::int64_t size) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  Arena<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

// A [rows, width] matrix in panels, with zeros past its width.
struct PanelMatrix {
  Arena<float> memory;
  Panels<float> view;
  PanelMatrix(const Arena<float>& values, std::int64_t rows, std::int64_t width)
      : memory(panels_of(width) * rows * kPanel), view{memory.data(), rows, width} {
    cpu::kernels<float>().gather(ArrayView::matrix(values.data(), rows, width), nullptr, 0,
                                 {0, rows}, view);
  }
};

// ---- Products -----------------------------------------------------------------------------------

enum class Form { kForward, kInputGradient, kWeightGradient };
constexpr const char* kForms[] = {"forward", "dgrad", "wgrad"};

// One product with x [rows, in], w [out, in], dy [rows, out].
void gemm(Form form, std::int64_t rows, std::int64_t in, std::int64_t out, double budget) {
  const cpu::Kernels<float>& kernels = cpu::kernels<float>();
  const Arena<float> x = random_values(rows * in), w = random_values(out * in),
                     dy = random_values(rows * out);
  PanelMatrix x_panels(x, rows, in), dy_panels(dy, rows, out);
  PanelMatrix result(random_values(rows * std::max(in, out)), rows,
                     form == Form::kForward ? out : in);
  Arena<float> weight(panels_of(out) * panels_of(in) * kTile), transposed(weight.size()),
      gradient(weight.size());
  pack_weight(w.data(), out, in, weight.data());
  transpose_weight(weight.data(), out, in, transposed.data());

  cpu::Gemm<float> problem;
  problem.a = form == Form::kForward ? x_panels.view : dy_panels.view;
  problem.b = form == Form::kForward ? weight.data() : transposed.data();
  problem.c = result.view;
  std::vector<Contender> contenders;
  contenders.push_back(
      {"thalweg", [&] {
         if (form == Form::kWeightGradient) {
           const auto& left = x_panels.view;
           const auto& right = dy_panels.view;
           return cpu::weight_gradient(
               kernels, rows, left.panels(), {0, left.panels() * right.panels()}, false,
               gradient.data(), [] { return false; },
               [&](Range part, std::int64_t k, std::int64_t o, bool add, float* tile) {
                 kernels.wgrad_tile(left.row(k, part.begin), left.lanes(k),
                                    right.row(o, part.begin), right.lanes(o), part.size(), add,
                                    tile);
               });
         }
         kernels.gemm(problem, {0, rows}, {0, result.view.panels()});
       }});

  std::vector<float> c(static_cast<std::size_t>(std::max({rows * out, rows * in, out * in})));
#if defined(TW_BENCH_OPENBLAS)
  openblas_set_num_threads(1);
  contenders.push_back({"openblas", [&] {
                          const int m = static_cast<int>(rows), i = static_cast<int>(in),
                                    o = static_cast<int>(out);
                          if (form == Form::kForward)
                            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, o, i, 1.0f,
                                        x.data(), i, w.data(), i, 0.0f, c.data(), o);
                          else if (form == Form::kInputGradient)
                            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, i, o, 1.0f,
                                        dy.data(), o, w.data(), i, 0.0f, c.data(), i);
                          else
                            cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, o, i, m, 1.0f,
                                        dy.data(), o, x.data(), i, 0.0f, c.data(), i);
                        }});
#endif
#if defined(TW_BENCH_ONEDNN)
  // The form of each operand that oneDNN chooses for the right factor; the left one is plain.
  using dnnl::memory;
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  static dnnl::stream stream(engine);
  struct Operand {
    const float* data;
    std::int64_t rows, cols;
    bool is_transposed;
  };
  const Operand left = form == Form::kForward         ? Operand{x.data(), rows, in, false}
                       : form == Form::kInputGradient ? Operand{dy.data(), rows, out, false}
                                                      : Operand{dy.data(), out, rows, true};
  const Operand right = form == Form::kForward         ? Operand{w.data(), in, out, true}
                        : form == Form::kInputGradient ? Operand{w.data(), out, in, false}
                                                       : Operand{x.data(), rows, in, false};
  const auto plain = [](const Operand& operand) {
    return memory::desc({operand.rows, operand.cols}, memory::data_type::f32,
                        operand.is_transposed ? memory::format_tag::ba : memory::format_tag::ab);
  };
  const memory left_memory(plain(left), engine, const_cast<float*>(left.data));
  memory right_memory(plain(right), engine, const_cast<float*>(right.data));
  const memory::desc any(
      {right.rows, right.cols}, memory::data_type::f32,
      form == Form::kWeightGradient ? memory::format_tag::ab : memory::format_tag::any);
  const memory::desc product({left.rows, right.cols}, memory::data_type::f32,
                             memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc chosen(engine, plain(left), any, product);
#else
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(plain(left), any, product), engine);
#endif
  const memory packed(chosen.weights_desc(), engine);
  dnnl::reorder(right_memory, packed).execute(stream, right_memory, const_cast<memory&>(packed));
  const memory c_memory(product, engine, c.data());
  const dnnl::matmul matmul(chosen);
  contenders.push_back({"onednn", [&] {
                          matmul.execute(stream, {{DNNL_ARG_SRC, left_memory},
                                                  {DNNL_ARG_WEIGHTS, packed},
                                                  {DNNL_ARG_DST, c_memory}});
                          stream.wait();
                        }});
#endif
  char what[160];
  std::snprintf(what, sizeof what,
                "\"what\": \"gemm\", \"form\": \"%s\", \"rows\": %lld, \"in\": %lld, \"out\": %lld",
                kForms[static_cast<int>(form)], static_cast<long long>(rows),
                static_cast<long long>(in), static_cast<long long>(out));
  compare(what,
          2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out),
          "gflops", contenders, budget);
}

void gemms(double budget) {
  for (const Form form : {Form::kForward, Form::kInputGradient, Form::kWeightGradient}) {
    for (const std::int64_t width : {64, 128, 256, 512, 1024, 2048})
      for (const std::int64_t rows : {32, 128, 512, 1024, 4096})
        gemm(form, rows, width, width, budget);
    for (const std::int64_t rows : {32, 128, 1024, 4096}) gemm(form, rows, 512, 10, budget);
  }
}

// ---- Flat arenas: bytes per second next to the triad a = b + s c --------------------------------

void optimizers(double budget) {
  const cpu::Kernels<float>& kernels = cpu::kernels<float>();
  for (const std::int64_t count : {std::int64_t{1} << 14, std::int64_t{1} << 18,
                                   std::int64_t{1} << 20, std::int64_t{1} << 24}) {
    Arena<float> p = random_values(count), g = random_values(count), s0(count), s1(count);
    Arena<std::uint8_t> groups(count / kGroupBlock);
    const bool frozen[1] = {false};
    for (const char* name : {"sgd", "momentum", "adam"}) {
      const int id = optimizer_id(name);
      std::vector<double> hyper;
      for (const HyperParameter& row : optimizer_hyper(id)) hyper.push_back(row.default_value);
      double coefficients[kMaxCoefficients] = {};
      optimizer_coefficients(id, hyper.data(), hyper.data(), 10, coefficients);
      cpu::OptimizerStep<float> step;
      step.p = p.data();
      step.g = g.data();
      step.s0 = s0.data();
      step.s1 = s1.data();
      step.groups = groups.data();
      step.coefficients = coefficients;
      step.frozen = frozen;
      step.count = count;
      // Read p, g and the slots, write p and the slots.
      const double bytes = 4.0 * (3.0 + 2.0 * optimizer_slots(id)) * static_cast<double>(count);
      char what[120];
      std::snprintf(what, sizeof what,
                    "\"what\": \"optimizer\", \"optimizer\": \"%s\", \"count\": %lld", name,
                    static_cast<long long>(count));
      compare(what, bytes, "gigabytes_per_second",
              {{"thalweg", [&] { kernels.optimizer_step(id, step); }}}, budget);
    }
    char what[120];
    std::snprintf(what, sizeof what, "\"what\": \"triad\", \"count\": %lld",
                  static_cast<long long>(count));
    compare(what, 12.0 * static_cast<double>(count), "gigabytes_per_second",
            {{"thalweg",
              [&] {
                float* const a = s0.data();
                const float* const b = p.data();
                const float* const c = g.data();
#pragma GCC ivdep
                for (std::int64_t i = 0; i < count; ++i) a[i] = b[i] + 0.5f * c[i];
              }}},
            budget);
  }
}

// ---- Batch norm: bytes per second of the separate passes ----------------------------------------

void batch_norms(double budget) {
  const cpu::Kernels<float>& kernels = cpu::kernels<float>();
  for (const std::int64_t width : {64, 512})
    for (const std::int64_t rows : {128, 1024, 8192}) {
      PanelMatrix z(random_values(rows * width), rows, width),
          y(random_values(rows * width), rows, width);
      Arena<float> columns(4 * round_up(width, kPanel));
      for (float& value : columns) value = 1.0f;
      cpu::BatchNormApply<float> apply;
      apply.z = z.view;
      apply.y = y.view;
      apply.mean = apply.inv_std = apply.gamma = apply.beta = columns.data();
      Arena<cpu::BlockStatistics> blocks(row_blocks_of(rows) * z.view.panels());
      const auto run = [&](const char* pass, double passes, const std::function<void()>& body) {
        char what[140];
        std::snprintf(what, sizeof what,
                      "\"what\": \"batch_norm\", \"pass\": \"%s\", \"rows\": %lld, \"width\": %lld",
                      pass, static_cast<long long>(rows), static_cast<long long>(width));
        compare(what, 4.0 * passes * static_cast<double>(rows * width), "gigabytes_per_second",
                {{"thalweg", body}}, budget);
      };
      run("statistics", 1.0, [&] {
        kernels.column_statistics(z.view, nullptr, blocks.data(), {0, row_blocks_of(rows)},
                                  {0, z.view.panels()});
      });
      run("apply", 2.0, [&] { kernels.batch_norm(apply, {0, rows}, {0, z.view.panels()}); });
    }
}

}  // namespace
}  // namespace thalweg

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const double budget = argc > 2 ? std::atof(argv[2]) : 0.1;
  if (what == "gemm") {
    thalweg::gemms(budget);
  } else if (what == "optimizer") {
    thalweg::optimizers(budget);
  } else if (what == "batch_norm") {
    thalweg::batch_norms(budget);
  } else {
    std::fprintf(stderr, "usage: kernels gemm|optimizer|batch_norm [SECONDS per shape]\n");
    return 2;
  }
  return 0;
}
