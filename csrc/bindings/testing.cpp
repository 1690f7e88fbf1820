// Submodule _core._testing: the internals that tests reach for and users do not.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/numpy_arrays.h"
#include "bindings/python_call.h"
#include "core/arena.h"
#include "core/pack.h"
#include "core/processor.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "math/activations.h"
#include "math/losses.h"
#include "math/optimizers.h"
#include "math/permutation.h"
#include "math/philox.h"
#include "training/checkpoint_file.h"

namespace thalweg::bindings {
namespace {

// ---- random numbers -----------------------------------------------------------------------------

std::array<std::uint32_t, 4> philox_block(const std::array<std::uint32_t, 4>& counter,
                                          const std::array<std::uint32_t, 2>& key) {
  const PhiloxBlock block =
      philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

template <class T, class Value>
py::array generate(std::int64_t count, Value&& value) {
  py::array_t<T> out(count);
  T* data = out.mutable_data();
  for (std::int64_t i = 0; i < count; ++i) data[i] = value(static_cast<std::uint64_t>(i));
  return out;
}

// Variates of elements first, first + 1, ...
py::array random(const std::string& kind, std::uint64_t seed, std::uint16_t stream,
                 std::uint64_t step, std::uint64_t first, std::int64_t count) {
  const auto word = [&](std::uint64_t i) { return philox_word(seed, stream, step, first + i); };
  const auto bits = [&](std::uint64_t i) { return philox_bits53(seed, stream, step, first + i); };
  if (kind == "word") return generate<std::uint32_t>(count, word);
  if (kind == "uniform_float") {
    return generate<float>(count, [&](std::uint64_t i) { return uniform_float(word(i)); });
  }
  if (kind == "uniform_double") {
    return generate<double>(count, [&](std::uint64_t i) { return uniform_double(bits(i)); });
  }
  expect<ValueError>(
      kind == "normal",
      "[random] expected kind 'word', 'uniform_float', 'uniform_double' or 'normal', got '", kind,
      "'");
  return generate<double>(count, [&](std::uint64_t i) { return standard_normal(bits(i)); });
}

py::array permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch, std::int64_t first,
                      std::int64_t count, bool inverse) {
  expect<ValueError>(n >= 1 && first >= 0 && count >= 0 && first + count <= n,
                     "[permutation] expected a range inside [0, ", n, "), got [", first, ", ",
                     first + count, ")");
  const Permutation order(static_cast<std::uint64_t>(n), seed, epoch);
  const auto offset = static_cast<std::uint64_t>(first);
  return generate<std::int64_t>(count, [&](std::uint64_t i) {
    return static_cast<std::int64_t>(inverse ? order.inverse(offset + i) : order(offset + i));
  });
}

// ---- formulas -----------------------------------------------------------------------------------

template <class F>
py::array map_array(const py::array& x, F&& f) {
  const DType dtype = py::isinstance<py::array_t<double>>(x) ? DType::kFloat64 : DType::kFloat32;
  return with_real_type(dtype, [&](auto zero) -> py::array {
    using T = decltype(zero);
    const auto in = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(x);
    py::array_t<T> out(in.size());
    std::transform(in.data(), in.data() + in.size(), out.mutable_data(), f);
    return out.reshape(std::vector<py::ssize_t>(in.shape(), in.shape() + in.ndim()));
  });
}

py::array elementary(const std::string& name, const py::array& x) {
  if (name == "exp") return map_array(x, [](auto v) { return exp(v); });
  if (name == "log") return map_array(x, [](auto v) { return log(v); });
  if (name == "log1p") return map_array(x, [](auto v) { return log1p(v); });
  if (name == "expm1") return map_array(x, [](auto v) { return expm1(v); });
  if (name == "tanh") return map_array(x, [](auto v) { return tanh(v); });
  if (name == "erf") return map_array(x, [](auto v) { return erf(v); });
  if (name == "sigmoid") return map_array(x, [](auto v) { return sigmoid(v); });
  if (name == "softplus") return map_array(x, [](auto v) { return softplus(v); });
  throw ValueError(
      "[elementary] expected exp, log, log1p, expm1, tanh, erf, sigmoid or softplus, got '" + name +
      "'");
}

int listed(int id, const char* what, const std::string& name) {
  expect<ValueError>(id >= 0, "[", what, "] expected a listed name, got '", name, "'");
  return id;
}

// Value, first and second derivative at z.
std::array<double, 3> activation_terms(const std::string& name, double z, double parameter) {
  return dispatch_activation(
      listed(activation_id(name.c_str()), "activation", name), [&](auto activation) {
        using S = decltype(activation);
        const double y = S::value(z, parameter);
        const double at = S::backward_needs == ActivationNeeds::input ? z : y;
        return std::array{y, S::derivative(at, parameter), S::second_derivative(at, parameter)};
      });
}

std::array<double, 3> loss_terms(const std::string& name, double z, double t, double parameter) {
  return dispatch_loss(listed(loss_id(name.c_str()), "loss", name), [&](auto loss) {
    using S = decltype(loss);
    return std::array{S::value(z, t, parameter), S::gradient(z, t, parameter),
                      S::second_derivative(z, t, parameter)};
  });
}

std::array<double, kMaxCoefficients> optimizer_coefficients_of(
    const std::string& name, const std::vector<double>& hyper,
    const std::vector<double>& next_hyper, std::int64_t t) {
  const int id = listed(optimizer_id(name.c_str()), "optimizer", name);
  const auto count = static_cast<std::size_t>(optimizer_hyper(id).count);
  expect<ValueError>(hyper.size() == count && next_hyper.size() == count, "[optimizer] expected ",
                     count, " hyper-parameters, got ", hyper.size(), " and ", next_hyper.size());
  std::array<double, kMaxCoefficients> coefficients{};
  optimizer_coefficients(id, hyper.data(), next_hyper.data(), t, coefficients.data());
  return coefficients;
}

// ---- kernels of a chosen instruction set --------------------------------------------------------

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int isa = 0; isa <= static_cast<int>(detect_instruction_set()); ++isa) {
    names.emplace_back(instruction_set_name(static_cast<InstructionSet>(isa)));
  }
  return names;
}

InstructionSet instruction_set_of(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  const auto found = std::find(names.begin(), names.end(), name);
  expect<ValueError>(found != names.end(),
                     "[instruction_set] expected one that this processor has, got '", name, "'");
  return static_cast<InstructionSet>(found - names.begin());
}

ArrayView transposed(ArrayView view) {
  std::swap(view.rows, view.cols);
  std::swap(view.row_stride, view.col_stride);
  return view;
}

template <class T>
class PanelMatrix {
 public:
  PanelMatrix(std::int64_t rows, std::int64_t width)
      : storage_(Panels<T>{nullptr, rows, width}.size()), panels_{storage_.data(), rows, width} {}
  const Panels<T>& operator*() const { return panels_; }
  const Panels<T>* operator->() const { return &panels_; }

 private:
  Arena<T> storage_;
  Panels<T> panels_;
};

template <class T>
PanelMatrix<T> gathered(const cpu::Kernels<T>& kernels, const ArrayView& view) {
  PanelMatrix<T> panels(view.rows, view.cols);
  kernels.gather(view, nullptr, 0, {0, view.rows}, *panels);
  return panels;
}

// C[M, N] = A[M, K] W[N, K]^T
template <class T>
void dense_product(const cpu::Kernels<T>& kernels, const ArrayView& a, const ArrayView& weight,
                   T* c) {
  const PanelMatrix<T> rows = gathered(kernels, a);
  Arena<T> tiles(packed_weight_size(weight.rows, weight.cols));
  pack_weight_strided(weight, tiles.data());
  const PanelMatrix<T> product(a.rows, weight.rows);
  cpu::Gemm<T> problem;
  problem.a = *rows;
  problem.b = tiles.data();
  problem.c = *product;
  kernels.gemm(problem, {0, a.rows}, {0, product->panels()});
  kernels.scatter(*product, {0, a.rows}, c, weight.rows);
}

// C[M, N] = A[K, M]^T B[K, N]
template <class T>
void weight_gradient(const cpu::Kernels<T>& kernels, const ArrayView& a, const ArrayView& b, T* c) {
  const PanelMatrix<T> x = gathered(kernels, a), dy = gathered(kernels, b);
  Arena<T> tile(kTile);
  for (std::int64_t m = 0; m < x->panels(); ++m) {
    for (std::int64_t n = 0; n < dy->panels(); ++n) {
      kernels.wgrad_tile(x->panel(m), x->lanes(m), dy->panel(n), dy->lanes(n), a.rows, false,
                         tile.data());
      for (std::int64_t i = 0; i < x->lanes(m); ++i) {
        std::copy_n(tile.data() + i * kPanel, dy->lanes(n),
                    c + (m * kPanel + i) * b.cols + n * kPanel);
      }
    }
  }
}

py::array gemm(const py::object& a_object, const py::object& b_object, const std::string& form,
               const std::string& instruction_set) {
  const InputArray a_array(a_object, "gemm", "a"), b_array(b_object, "gemm", "b");
  const ArrayView a = a_array.view(), b = b_array.view();
  const InstructionSet isa = instruction_set_of(instruction_set);
  const bool forward = form == "forward", wgrad = form == "wgrad";
  expect<ValueError>(forward || wgrad || form == "dgrad",
                     "[gemm] expected form 'forward', 'dgrad' or 'wgrad', got '", form, "'");
  expect<ValueError>((wgrad ? a.rows : a.cols) == (forward ? b.cols : b.rows),
                     "[gemm] expected equal inner dimensions, got ", a_array.shape_text(), " and ",
                     b_array.shape_text());
  py::array c = new_array(a.dtype, {wgrad ? a.cols : a.rows, forward ? b.rows : b.cols});
  void* data = c.mutable_data();
  PythonCall().run([&](const Interrupt&) {
    with_real_type(a.dtype, [&](auto zero) {
      using T = decltype(zero);
      const cpu::Kernels<T>& kernels = cpu::kernels<T>(isa);
      T* out = static_cast<T*>(data);
      if (wgrad) {
        weight_gradient(kernels, a, b, out);
      } else {
        dense_product(kernels, a, forward ? b : transposed(b), out);
      }
    });
  });
  return c;
}

// The number of threads that a region asked for `threads` runs on.
int team_size(int threads) {
  int size = 0;
  PythonCall().run([&](const Interrupt&) {
    ThreadPool::shared().run(threads, [&](Team& team) {
      if (team.rank() == 0) size = team.size();
    });
  });
  return size;
}

// ---- checkpoint container -----------------------------------------------------------------------

py::dtype numpy_dtype(DType dtype) {
  // NumPy has no bfloat16: its bits come as uint16.
  return py::dtype(dtype == DType::kBFloat16 ? "uint16" : dtype_name(dtype));
}

void write_checkpoint(const std::string& path, const std::map<std::string, std::string>& metadata,
                      const std::map<std::string, py::array>& tensors) {
  CheckpointFile file;
  file.metadata = metadata;
  std::vector<py::array> kept;
  for (const auto& [name, values] : tensors) {
    kept.push_back(py::array::ensure(values, py::array::c_style));
    const InputArray array(kept.back(), "write_checkpoint", name);
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = array.dtype();
    for (int axis = 0; axis < array.dimensions(); ++axis) tensor.shape.push_back(array.shape(axis));
    tensor.data = kept.back().data();
    tensor.bytes = kept.back().nbytes();
    file.tensors.push_back(tensor);
  }
  PythonCall().run([&](const Interrupt&) { write_checkpoint_file(path, file); });
}

// (metadata, {name: array})
py::tuple read_checkpoint(const std::string& path, bool require_thalweg) {
  CheckpointFile file;
  PythonCall().run([&](const Interrupt&) { file = read_checkpoint_file(path, require_thalweg); });
  py::dict tensors;
  for (const StoredTensor& tensor : file.tensors) {
    py::array values(numpy_dtype(tensor.dtype),
                     std::vector<py::ssize_t>(tensor.shape.begin(), tensor.shape.end()));
    std::memcpy(values.mutable_data(), tensor.data, static_cast<std::size_t>(tensor.bytes));
    tensors[py::str(tensor.name)] = values;
  }
  return py::make_tuple(file.metadata, tensors);
}

}  // namespace

void bind_testing(py::module_& parent) {
  py::module_ module = parent.def_submodule("_testing", "Internals for the tests.");
  module.def("philox_block", &philox_block, py::arg("counter"), py::arg("key"));
  module.def("random", &random, py::arg("kind"), py::kw_only(), py::arg("seed"), py::arg("stream"),
             py::arg("step"), py::arg("first"), py::arg("count"));
  module.def("permutation", &permutation, py::arg("n"), py::kw_only(), py::arg("seed"),
             py::arg("epoch"), py::arg("first"), py::arg("count"), py::arg("inverse"));
  module.def("elementary", &elementary, py::arg("name"), py::arg("x"));
  module.def("activation_terms", &activation_terms, py::arg("name"), py::arg("z"),
             py::arg("parameter"));
  module.def("loss_terms", &loss_terms, py::arg("name"), py::arg("z"), py::arg("t"),
             py::arg("parameter"));
  module.def("optimizer_coefficients", &optimizer_coefficients_of, py::arg("name"),
             py::arg("hyper"), py::arg("next_hyper"), py::arg("t"));
  module.def("instruction_sets", &instruction_sets);
  module.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("form"),
             py::arg("instruction_set"));
  module.def("team_size", &team_size, py::arg("threads"));
  module.def("write_checkpoint", &write_checkpoint, py::arg("path"), py::arg("metadata"),
             py::arg("tensors"));
  module.def("read_checkpoint", &read_checkpoint, py::arg("path"), py::arg("require_thalweg"));
  module.def(
      "crc32c", [](std::string_view bytes) { return crc32c(0, bytes.data(), bytes.size()); },
      py::arg("data"));
}

}  // namespace thalweg::bindings
