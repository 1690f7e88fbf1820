// What the CUDA back end answers about itself. Only check_cuda() creates a context on a GPU.
#include "core/device.h"

#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace thalweg {
namespace {

// Of a run-time API version number: 13020 is "13.2".
std::string version_text(int version) { return concat(version / 1000, ".", version % 1000 / 10); }

#if defined(TW_CUDA_EMULATED)

std::string why_unusable(int) { return {}; }
std::string compiled_for() { return "the emulator: kernels run on the processor, for tests"; }

#else

// One entry of CMake's list of architectures, such as "80-real", "90a-real" or "120".
struct Architecture {
  int major = 0;
  int minor = 0;
  bool specific = false;  // code for exactly this architecture
  bool real = true;       // machine code
  bool ptx = true;        // code that the driver compiles for newer architectures
};

std::vector<Architecture> architectures() {
  std::vector<Architecture> out;
  const std::string list = TW_CUDA_ARCHITECTURES;
  for (std::size_t begin = 0; begin < list.size();) {
    std::size_t end = list.find(',', begin);
    if (end == std::string::npos) end = list.size();
    const std::string entry = list.substr(begin, end - begin);
    int number = 0;
    std::size_t i = 0;
    for (; i < entry.size() && entry[i] >= '0' && entry[i] <= '9'; ++i)
      number = number * 10 + (entry[i] - '0');
    const std::string suffix = entry.substr(i);
    Architecture architecture;
    architecture.major = number / 10;
    architecture.minor = number % 10;
    architecture.specific = suffix.starts_with("a");
    if (suffix.ends_with("-real")) architecture.ptx = false;
    if (suffix.ends_with("-virtual")) architecture.real = false;
    out.push_back(architecture);
    begin = end + 1;
  }
  return out;
}

bool runs_on(const Architecture& code, int major, int minor) {
  if (code.specific) return major == code.major && minor == code.minor;
  const bool newer = major > code.major || (major == code.major && minor >= code.minor);
  return newer && (code.ptx || (code.real && major == code.major));
}

std::string compiled_for() { return concat("sm ", TW_CUDA_ARCHITECTURES); }

// Why no kernel of this build runs on that device, or empty.
std::string why_unusable(int device) {
  int major = 0;
  int minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  for (const Architecture& code : architectures())
    if (runs_on(code, major, minor)) return {};
  return concat("this build has no code for GPUs of compute capability ", major, ".", minor,
                " (compiled for ", compiled_for(),
                "); build with -DCMAKE_CUDA_ARCHITECTURES=", major, minor);
}

#endif

// Why no kernel can run, or empty.
std::string obstacle() {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) (void)cudaGetLastError();
  if (driver == 0) return "no NVIDIA driver was found; install one";
  if (status == cudaErrorInsufficientDriver)
    return concat("the NVIDIA driver supports CUDA ", version_text(driver), ", this build needs ",
                  runtime / 1000, ".0 or newer; update the driver");
  if (status != cudaSuccess && status != cudaErrorNoDevice)
    return concat("the CUDA driver reports ", cudaGetErrorName(status), " (",
                  cudaGetErrorString(status), ")");
  if (devices == 0) return "the NVIDIA driver sees no GPU; check CUDA_VISIBLE_DEVICES";
  int device = 0;
  (void)cudaGetDevice(&device);
  return why_unusable(device);
}

}  // namespace

bool cuda_available() noexcept {
  try {
    return obstacle().empty();
  } catch (...) {
    return false;
  }
}

void require_cuda() {
  const std::string reason = obstacle();
  expect<DeviceError>(reason.empty(),
                      "[device] expected a GPU that CUDA can use for device 'cuda', got none: ",
                      reason, "; device='cpu' needs none");
}

std::string why_not_cuda() {
  std::string reason = obstacle();
#if defined(TW_CUDA_EMULATED)
  if (reason.empty()) reason = "this build emulates CUDA, for tests: ask for 'cuda' by name";
#endif
  return reason;
}

std::string cuda_report() {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  std::string text = concat(
      "CUDA back end: compiled for ", compiled_for(), "\nCUDA run-time: ", version_text(runtime),
      "\nNVIDIA driver: ",
      driver == 0 ? std::string("not found") : concat("for CUDA ", version_text(driver)), "\n");
  const std::string reason = obstacle();
  if (!reason.empty()) return concat(text, "GPU: none that is usable: ", reason, "\n");
  int devices = 0;
  (void)cudaGetDeviceCount(&devices);
  for (int i = 0; i < devices; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    text +=
        concat("GPU ", i, ": ", static_cast<const char*>(properties.name), ", compute capability ",
               properties.major, ".", properties.minor, ", ", properties.multiProcessorCount,
               " multiprocessors, ", properties.totalGlobalMem >> 20, " MiB\n");
  }
  return text;
}

std::string check_cuda() {
  std::string reason = obstacle();
  if (!reason.empty()) return reason;
  try {
    cuda::probe_device();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

}  // namespace thalweg
