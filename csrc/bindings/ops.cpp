// Submodule _core.ops: the stateless operations of ops/ops.h on Python arrays. A call computes in
// float64 when one of its real arrays is float64, in float32 otherwise, and returns new arrays.
#include "ops/ops.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/numpy_arrays.h"
#include "bindings/python_call.h"

namespace thalweg::bindings {
namespace {

// An array argument with its view. None is refused, or gives an absent view where it is allowed.
class Argument {
 public:
  enum class None { kRefused, kAllowed };

  Argument(const char* operation, const char* name, py::handle object, None none = None::kRefused) {
    if (object.is_none() && none == None::kAllowed) return;
    array_.emplace(object, operation, name);
    view_ = array_->view();
  }

  const ArrayView& operator*() const { return view_; }
  const ArrayView* operator->() const { return &view_; }

 private:
  std::optional<InputArray> array_;
  ArrayView view_;
};

DType common_type(std::initializer_list<const Argument*> arguments) {
  for (const Argument* argument : arguments) {
    if ((*argument)->dtype == DType::kFloat64 && (*argument)->present()) return DType::kFloat64;
  }
  return DType::kFloat32;
}

// compute(T{}) without the GIL, T by dtype.
template <class Compute>
void run(DType dtype, Compute&& compute) {
  PythonCall().run(
      [&](const Interrupt&) { with_real_type(dtype, [&](auto zero) { compute(zero); }); });
}

template <class T>
T* data_of(py::array& array) {
  return static_cast<T*>(array.mutable_data());
}

ops::GemmForm form_of(const std::string& form) {
  if (form == "forward") return ops::GemmForm::kForward;
  if (form == "dgrad") return ops::GemmForm::kDgrad;
  expect<ValueError>(form == "wgrad", "[gemm] expected form 'forward', 'dgrad' or 'wgrad', got '",
                     form, "'");
  return ops::GemmForm::kWgrad;
}

py::array gemm(const py::object& a_object, const py::object& b_object, const std::string& form_name,
               int threads) {
  const Argument a("gemm", "a", a_object), b("gemm", "b", b_object);
  const ops::GemmForm form = form_of(form_name);
  const DType dtype = common_type({&a, &b});
  py::array c = new_array(dtype, {form == ops::GemmForm::kWgrad ? a->cols : a->rows,
                                  form == ops::GemmForm::kForward ? b->rows : b->cols});
  run(dtype, [&](auto zero) { ops::gemm(form, *a, *b, data_of<decltype(zero)>(c), threads); });
  return c;
}

py::array dense(const py::object& x_object, const py::object& weight_object,
                const py::object& bias_object, const std::string& activation, double parameter,
                int threads) {
  const Argument x("dense", "x", x_object), weight("dense", "weight", weight_object),
      bias("dense", "bias", bias_object, Argument::None::kAllowed);
  const DType dtype = common_type({&x, &weight, &bias});
  py::array y = new_array(dtype, {x->rows, weight->rows});
  run(dtype, [&](auto zero) {
    ops::dense(*x, *weight, *bias, activation, parameter, data_of<decltype(zero)>(y), threads);
  });
  return y;
}

py::tuple dense_backward(const py::object& x_object, const py::object& weight_object,
                         const py::object& dy_object, int threads) {
  const Argument x("dense_backward", "x", x_object),
      weight("dense_backward", "weight", weight_object), dy("dense_backward", "dy", dy_object);
  const DType dtype = common_type({&x, &weight, &dy});
  py::array dx = new_array(dtype, {x->rows, x->cols});
  py::array dweight = new_array(dtype, {weight->rows, weight->cols});
  py::array dbias = new_array(dtype, {weight->rows});
  run(dtype, [&](auto zero) {
    using T = decltype(zero);
    ops::dense_backward(*x, *weight, *dy, data_of<T>(dx), data_of<T>(dweight), data_of<T>(dbias),
                        threads);
  });
  return py::make_tuple(dx, dweight, dbias);
}

py::tuple batch_norm(const py::object& x_object, const py::object& gamma_object,
                     const py::object& beta_object, const py::object& weights_object, double eps,
                     int threads) {
  const Argument x("batch_norm", "x", x_object), gamma("batch_norm", "gamma", gamma_object),
      beta("batch_norm", "beta", beta_object),
      weights("batch_norm", "sample_weight", weights_object, Argument::None::kAllowed);
  const DType dtype = common_type({&x, &gamma, &beta});
  py::array y = new_array(dtype, {x->rows, x->cols});
  py::array mean = new_array(dtype, {x->cols});
  py::array variance = new_array(dtype, {x->cols});
  run(dtype, [&](auto zero) {
    using T = decltype(zero);
    ops::batch_norm(*x, *gamma, *beta, *weights, eps, data_of<T>(y), data_of<T>(mean),
                    data_of<T>(variance), threads);
  });
  return py::make_tuple(y, mean, variance);
}

py::array batch_norm_inference(const py::object& x_object, const py::object& gamma_object,
                               const py::object& beta_object, const py::object& mean_object,
                               const py::object& variance_object, double eps, int threads) {
  constexpr const char* kName = "batch_norm_inference";
  const Argument x(kName, "x", x_object), gamma(kName, "gamma", gamma_object),
      beta(kName, "beta", beta_object), mean(kName, "mean", mean_object),
      variance(kName, "variance", variance_object);
  const DType dtype = common_type({&x, &gamma, &beta, &mean, &variance});
  py::array y = new_array(dtype, {x->rows, x->cols});
  run(dtype, [&](auto zero) {
    ops::batch_norm_inference(*x, *gamma, *beta, *mean, *variance, eps, data_of<decltype(zero)>(y),
                              threads);
  });
  return y;
}

py::tuple batch_norm_backward(const py::object& x_object, const py::object& gamma_object,
                              const py::object& dy_object, const py::object& weights_object,
                              double eps, int threads) {
  constexpr const char* kName = "batch_norm_backward";
  const Argument x(kName, "x", x_object), gamma(kName, "gamma", gamma_object),
      dy(kName, "dy", dy_object),
      weights(kName, "sample_weight", weights_object, Argument::None::kAllowed);
  const DType dtype = common_type({&x, &gamma, &dy});
  py::array dx = new_array(dtype, {x->rows, x->cols});
  py::array dgamma = new_array(dtype, {x->cols});
  py::array dbeta = new_array(dtype, {x->cols});
  run(dtype, [&](auto zero) {
    using T = decltype(zero);
    ops::batch_norm_backward(*x, *gamma, *weights, *dy, eps, data_of<T>(dx), data_of<T>(dgamma),
                             data_of<T>(dbeta), threads);
  });
  return py::make_tuple(dx, dgamma, dbeta);
}

py::array activation(const std::string& name, const py::object& z_object, double parameter,
                     int threads) {
  const Argument z("activation", "z", z_object);
  const DType dtype = common_type({&z});
  py::array y = new_array(dtype, {z->rows, z->cols});
  run(dtype, [&](auto zero) {
    ops::activation(name, parameter, *z, data_of<decltype(zero)>(y), threads);
  });
  return y;
}

py::array activation_backward(const std::string& name, const py::object& z_object,
                              const py::object& dy_object, double parameter, int threads) {
  const Argument z("activation_backward", "z", z_object),
      dy("activation_backward", "dy", dy_object);
  const DType dtype = common_type({&z, &dy});
  py::array dz = new_array(dtype, {z->rows, z->cols});
  run(dtype, [&](auto zero) {
    ops::activation_backward(name, parameter, *z, *dy, data_of<decltype(zero)>(dz), threads);
  });
  return dz;
}

py::array dropout(const py::object& x_object, double p, std::uint64_t seed, std::uint64_t step,
                  std::uint32_t stream, std::int64_t first_row, int threads) {
  const Argument x("dropout", "x", x_object);
  const DType dtype = common_type({&x});
  py::array y = new_array(dtype, {x->rows, x->cols});
  run(dtype, [&](auto zero) {
    ops::dropout(*x, p, seed, step, stream, first_row, data_of<decltype(zero)>(y), threads);
  });
  return y;
}

py::array maxout(const py::object& z_object, std::int64_t pieces, int threads) {
  const Argument z("maxout", "z", z_object);
  expect<ValueError>(pieces >= 1 && z->cols % pieces == 0,
                     "[maxout] expected pieces that divide the ", z->cols, " columns of z, got ",
                     pieces);
  const DType dtype = common_type({&z});
  py::array y = new_array(dtype, {z->rows, z->cols / pieces});
  run(dtype, [&](auto zero) { ops::maxout(*z, pieces, data_of<decltype(zero)>(y), threads); });
  return y;
}

py::array maxout_backward(const py::object& z_object, const py::object& dy_object,
                          std::int64_t pieces, int threads) {
  const Argument z("maxout_backward", "z", z_object), dy("maxout_backward", "dy", dy_object);
  const DType dtype = common_type({&z, &dy});
  py::array dz = new_array(dtype, {z->rows, z->cols});
  run(dtype, [&](auto zero) {
    ops::maxout_backward(*z, *dy, pieces, data_of<decltype(zero)>(dz), threads);
  });
  return dz;
}

py::array softmax(const py::object& logits_object, int threads) {
  const Argument logits("softmax", "logits", logits_object);
  const DType dtype = common_type({&logits});
  py::array y = new_array(dtype, {logits->rows, logits->cols});
  run(dtype, [&](auto zero) { ops::softmax(*logits, data_of<decltype(zero)>(y), threads); });
  return y;
}

py::tuple softmax_cross_entropy(const py::object& logits_object, const py::object& target_object,
                                const py::object& weights_object, double label_smoothing,
                                int threads) {
  constexpr const char* kName = "softmax_cross_entropy";
  const Argument logits(kName, "logits", logits_object), target(kName, "target", target_object),
      weights(kName, "sample_weight", weights_object, Argument::None::kAllowed);
  const DType dtype = common_type({&logits});
  py::array gradient = new_array(dtype, {logits->rows, logits->cols});
  double value = 0.0;
  run(dtype, [&](auto zero) {
    value = ops::softmax_cross_entropy(*logits, *target, *weights, label_smoothing,
                                       data_of<decltype(zero)>(gradient), threads);
  });
  return py::make_tuple(value, gradient);
}

py::tuple elementwise_loss(const std::string& name, const py::object& output_object,
                           const py::object& target_object, double parameter,
                           const std::string& reduction, const py::object& weights_object,
                           int threads) {
  const Argument output("loss", "output", output_object), target("loss", "target", target_object),
      weights("loss", "sample_weight", weights_object, Argument::None::kAllowed);
  const DType dtype = common_type({&output});
  py::array gradient = new_array(dtype, {output->rows, output->cols});
  double value = 0.0;
  run(dtype, [&](auto zero) {
    value = ops::elementwise_loss(name, parameter, reduction, *output, *target, *weights,
                                  data_of<decltype(zero)>(gradient), threads);
  });
  return py::make_tuple(value, gradient);
}

// A new vector of dtype with the values of `source`.
py::array vector_copy(const char* operation, const char* name, const py::object& source,
                      DType dtype, std::int64_t size) {
  const Argument values(operation, name, source);
  expect<ValueError>(values->dimensions == 1 && values->rows == size, "[", operation, "] expected ",
                     name, " with shape (", size, ",), got ",
                     InputArray(source, operation, name).shape_text());
  py::array copy = new_array(dtype, {size});
  copy[py::ellipsis()] = source;
  return copy;
}

// (p, slots) after update t.
py::tuple optimizer_step(const std::string& name, const std::vector<double>& hyper,
                         const std::vector<double>& next_hyper, std::int64_t t,
                         const py::object& p_object, const py::object& g_object,
                         const std::vector<py::object>& slot_objects, int threads) {
  constexpr const char* kName = "optimizer_step";
  const Argument p_view(kName, "p", p_object), g_view(kName, "g", g_object);
  const DType dtype = common_type({&p_view, &g_view});
  const std::int64_t size = p_view->rows;
  py::array p = vector_copy(kName, "p", p_object, dtype, size);
  py::array g = vector_copy(kName, "g", g_object, dtype, size);
  py::list slots;
  std::vector<void*> slot_data(2, nullptr);
  for (std::size_t i = 0; i < slot_objects.size() && i < slot_data.size(); ++i) {
    py::array slot = vector_copy(kName, "slot", slot_objects[i], dtype, size);
    slot_data[i] = slot.mutable_data();
    slots.append(slot);
  }
  run(dtype, [&](auto zero) {
    using T = decltype(zero);
    ops::optimizer_step(name, hyper.data(), next_hyper.data(), t, data_of<T>(p), data_of<T>(g),
                        static_cast<T*>(slot_data[0]), static_cast<T*>(slot_data[1]), size,
                        threads);
  });
  return py::make_tuple(p, py::tuple(slots));
}

// (clipped g, norm before)
py::tuple clip_by_global_norm(const py::object& g_object, double max_norm, int threads) {
  constexpr const char* kName = "clip_by_global_norm";
  const Argument view(kName, "g", g_object);
  const DType dtype = common_type({&view});
  py::array g = vector_copy(kName, "g", g_object, dtype, view->rows);
  double norm = 0.0;
  run(dtype, [&](auto zero) {
    norm = ops::clip_by_global_norm(data_of<decltype(zero)>(g), view->rows, max_norm, threads);
  });
  return py::make_tuple(g, norm);
}

}  // namespace

void bind_ops(py::module_& parent) {
  py::module_ module =
      parent.def_submodule("ops", "Stateless operations. Private: use thalweg.ops.");
  module.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("form"), py::arg("threads"));
  module.def("dense", &dense, py::arg("x"), py::arg("weight"), py::arg("bias"),
             py::arg("activation"), py::arg("parameter"), py::arg("threads"));
  module.def("dense_backward", &dense_backward, py::arg("x"), py::arg("weight"), py::arg("dy"),
             py::arg("threads"));
  module.def("batch_norm", &batch_norm, py::arg("x"), py::arg("gamma"), py::arg("beta"),
             py::arg("sample_weight"), py::arg("eps"), py::arg("threads"));
  module.def("batch_norm_inference", &batch_norm_inference, py::arg("x"), py::arg("gamma"),
             py::arg("beta"), py::arg("mean"), py::arg("variance"), py::arg("eps"),
             py::arg("threads"));
  module.def("batch_norm_backward", &batch_norm_backward, py::arg("x"), py::arg("gamma"),
             py::arg("dy"), py::arg("sample_weight"), py::arg("eps"), py::arg("threads"));
  module.def("activation", &activation, py::arg("name"), py::arg("z"), py::arg("parameter"),
             py::arg("threads"));
  module.def("activation_backward", &activation_backward, py::arg("name"), py::arg("z"),
             py::arg("dy"), py::arg("parameter"), py::arg("threads"));
  module.def("dropout", &dropout, py::arg("x"), py::arg("p"), py::arg("seed"), py::arg("step"),
             py::arg("stream"), py::arg("first_row"), py::arg("threads"));
  module.def("maxout", &maxout, py::arg("z"), py::arg("pieces"), py::arg("threads"));
  module.def("maxout_backward", &maxout_backward, py::arg("z"), py::arg("dy"), py::arg("pieces"),
             py::arg("threads"));
  module.def("softmax", &softmax, py::arg("logits"), py::arg("threads"));
  module.def("softmax_cross_entropy", &softmax_cross_entropy, py::arg("logits"), py::arg("target"),
             py::arg("sample_weight"), py::arg("label_smoothing"), py::arg("threads"));
  module.def("elementwise_loss", &elementwise_loss, py::arg("name"), py::arg("output"),
             py::arg("target"), py::arg("parameter"), py::arg("reduction"),
             py::arg("sample_weight"), py::arg("threads"));
  module.def("optimizer_step", &optimizer_step, py::arg("name"), py::arg("hyper"),
             py::arg("next_hyper"), py::arg("t"), py::arg("p"), py::arg("g"), py::arg("slots"),
             py::arg("threads"));
  module.def("clip_by_global_norm", &clip_by_global_norm, py::arg("g"), py::arg("max_norm"),
             py::arg("threads"));
}

}  // namespace thalweg::bindings
