// How much dynamic shared memory the kernels are launched with (bench/gpu/objects.py): the
// product's own launchers, compiled as for the emulator, on an H200 that carries nothing out. One
// line per launch: the kernel's address, which `nm` knows the name of, and the bytes.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda/batch_norm.h"
#include "cuda/gemm.h"
#include "cuda/optimizer_step.h"
#include "cuda/runtime.h"
#include "math/optimizers.h"

namespace thalweg::emulator {

Settings& settings() {
  static Settings settings;
  settings.arch = 90;
  settings.multiprocessors = 132;
  return settings;
}

cudaError_t enqueue_launch(cudaStream_t, Launch launch, const std::vector<const void*>&) {
  std::printf("%lx %zu\n", reinterpret_cast<unsigned long>(launch.function), launch.dynamic_shared);
  return cudaSuccess;
}

int max_active_blocks(int, std::size_t) { return 1; }
std::string last_report() { return {}; }

}  // namespace thalweg::emulator

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? thalweg::emulator::settings().multiprocessors
               : static_cast<int>(thalweg::emulator::shared_memory_limit());
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = thalweg::emulator::settings().arch;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

namespace thalweg::cuda {
namespace {

// Nobody reads or writes there.
template <class T>
T* somewhere() {
  return reinterpret_cast<T*>(std::uintptr_t{1} << 20);
}

Matrix<float> matrix(std::int64_t rows, std::int64_t width) {
  return {somewhere<float>(),         rows,         width,     width,
          somewhere<std::uint16_t>(), rows * width, kMaxPlanes};
}

Scratch scratch() { return {somewhere<unsigned>(), somewhere<void>()}; }

void products(std::int64_t rows, std::int64_t width, Precision precision) {
  DenseForward<float> forward;
  forward.precision = precision;
  forward.x = matrix(rows, width);
  forward.weight = matrix(width, width);
  forward.y = matrix(rows, width);
  forward.scratch = scratch();
  dense_forward(forward, nullptr);
  DenseInputGradient<float> input;
  input.precision = precision;
  input.dy = matrix(rows, width);
  input.weight = matrix(width, width);
  input.dx = matrix(rows, width);
  input.scratch = scratch();
  dense_input_gradient(input, nullptr);
  DenseWeightGradient<float> weight;
  weight.precision = precision;
  weight.dy = matrix(rows, width);
  weight.x = matrix(rows, width);
  weight.dw = matrix(width, width);
  weight.scratch = scratch();
  dense_weight_gradient(weight, nullptr);
}

void batch_norms(std::int64_t rows, std::int64_t width, BatchNormPath path) {
  BatchNormApply<float> apply;
  apply.z = matrix(rows, width);
  apply.y = matrix(rows, width);
  batch_norm_forward<float>(apply, {}, {}, scratch(), nullptr, path);
  BatchNormBackward<float> backward;
  backward.z = matrix(rows, width);
  backward.dy = matrix(rows, width);
  backward.dz = matrix(rows, width);
  batch_norm_backward(backward, scratch(), nullptr, path);
}

void updates(std::int64_t count) {
  for (int optimizer = 0; optimizer < kOptimizerCount; ++optimizer) {
    OptimizerStep<float> step;
    step.optimizer = optimizer;
    step.count = count;
    optimizer_step(step, scratch(), nullptr);
    OptimizerTheta<float> theta;
    theta.optimizer = optimizer;
    theta.count = count;
    if (optimizer_looks_ahead(optimizer)) optimizer_theta(theta, nullptr);
  }
  advance_step(nullptr, 1, nullptr);
  GradientNorm<float> norm;
  norm.block_count = 1;
  gradient_norm(norm, scratch(), nullptr);
}

}  // namespace
}  // namespace thalweg::cuda

// ROWS COLUMNS of the matrices, and SLAB_ROWS that batch norm keeps in shared memory.
int main(int, char** arguments) {
  using namespace thalweg::cuda;
  const std::int64_t rows = std::atol(arguments[1]);
  const std::int64_t columns = std::atol(arguments[2]);
  const std::int64_t slab_rows = std::atol(arguments[3]);
  for (const Precision precision :
       {Precision::kSimt, Precision::kBfloat16, Precision::kTwoPlanes, Precision::kThreePlanes})
    products(rows, columns, precision);
  batch_norms(rows, columns, BatchNormPath::kTwoPasses);
  batch_norms(slab_rows, columns, BatchNormPath::kAutomatic);
  const RunningStatistics<float> running;
  update_running_statistics(&running, 1, nullptr, nullptr);
  BatchNormFold<float> fold;
  fold.width = columns;
  fold_batch_norm(&fold, 1, nullptr);
  updates(rows * columns);
}
