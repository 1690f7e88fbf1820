// Turns a wild access of an emulated kernel into a fault of its launch.
#pragma once

#include <memory>

namespace thalweg::emulator {

// While one exists, the calling operating-system thread can run kernels: SIGSEGV and SIGBUS inside
// a kernel end the launch with FaultKind::kIllegalAddress; elsewhere they go where they went
// before. Under AddressSanitizer signals are left alone, since it names the line.
class KernelSignals {
 public:
  KernelSignals();
  ~KernelSignals();
  KernelSignals(const KernelSignals&) = delete;
  KernelSignals& operator=(const KernelSignals&) = delete;

 private:
  // The handler must not run on the stack of the fiber, which may be the one that overflowed.
  std::unique_ptr<char[]> stack_;
};

}  // namespace thalweg::emulator
