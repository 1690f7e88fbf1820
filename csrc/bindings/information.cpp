// What this build and this machine are, for `thalweg doctor` and bug reports.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "core/device.h"
#include "core/processor.h"
#include "core/thread_pool.h"
#include "thalweg/version.h"

namespace thalweg::bindings {
namespace {

namespace py = pybind11;

py::dict information() {
  py::dict info;
  info["version"] = TW_VERSION_STRING;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "g++ " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["processor"] = processor_name();
  info["instruction_set"] = instruction_set_name(selected_instruction_set());
  info["best_instruction_set"] = instruction_set_name(detect_instruction_set());
  info["threads"] = ThreadPool::default_threads();
  info["cuda_available"] = cuda_available();
  info["why_not_cuda"] = why_not_cuda();
  info["cuda_report"] = cuda_report();
  return info;
}

}  // namespace

void bind_information(py::module_& module) {
  module.attr("__version__") = TW_VERSION_STRING;
  module.def("information", &information, "Build, processor, threads and GPU, as a dict.");
  module.def("check_cuda", &check_cuda, "Runs a kernel on the GPU: what went wrong, or ''.");
}

}  // namespace thalweg::bindings
