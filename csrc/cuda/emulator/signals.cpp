// The signal handler: from a bad address in a kernel to the fault of its launch.
#include "cuda/emulator/signals.h"

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <mutex>

#include "core/error.h"
#include "cuda/emulator/device_memory.h"
#include "cuda/emulator/execution.h"
#include "cuda/emulator/sanitizer.h"

namespace thalweg::emulator {
namespace {

constexpr std::size_t kSignalStackBytes = std::size_t{64} * 1024;
constexpr std::array kSignals{SIGSEGV, SIGBUS};

std::array<struct sigaction, kSignals.size()> previous_;
thread_local void* bad_address_ = nullptr;

// Runs on the fiber, at the instruction that faulted.
[[noreturn]] void report_bad_address() {
  fault_at_signal(FaultKind::kIllegalAddress,
                  concat("illegal access to global memory: ", describe_address(bad_address_)));
}

// Makes the interrupted code continue in report_bad_address(); false on an unknown processor.
bool redirect([[maybe_unused]] ucontext_t& context) {
#if defined(__linux__) && defined(__x86_64__)
  auto& registers = context.uc_mcontext.gregs;
  // Past the red zone of the interrupted function, aligned as after a call.
  registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~greg_t{15}) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&report_bad_address);
  return true;
#elif defined(__linux__) && defined(__aarch64__)
  context.uc_mcontext.sp = (context.uc_mcontext.sp - 256) & ~__u64{15};
  context.uc_mcontext.pc = reinterpret_cast<__u64>(&report_bad_address);
  return true;
#else
  return false;
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
  if (in_kernel()) {
    const Stack& stack = current().fiber.stack();
    const char* address = static_cast<const char*>(info->si_addr);
    const bool overflow = address < stack.lowest && address >= stack.lowest - stack.bytes;
    bad_address_ = info->si_addr;
    if (!overflow && redirect(*static_cast<ucontext_t*>(context))) return;
  }
  if (!in_kernel()) {
    const auto allocation = find_allocation(info->si_addr);
    if (allocation && allocation->kind == MemoryKind::kDevice) {
      constexpr char kText[] = "[emulator] host code accesses device memory\n";
      (void)!write(STDERR_FILENO, kText, sizeof(kText) - 1);
    }
  }
  // Not a kernel's: what was installed before takes over when the instruction runs again.
  const std::size_t which = signal == SIGSEGV ? 0 : 1;
  if ((previous_[which].sa_flags & SA_SIGINFO) != 0) {
    previous_[which].sa_sigaction(signal, info, context);
  } else {
    sigaction(signal, &previous_[which], nullptr);
  }
}

}  // namespace

KernelSignals::KernelSignals() {
  if (kAddressSanitizer) return;
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &action, &previous_[i]);
    }
  });
  stack_t own{};
  sigaltstack(nullptr, &own);
  if ((own.ss_flags & SS_DISABLE) == 0) return;
  stack_ = std::make_unique_for_overwrite<char[]>(kSignalStackBytes);
  own.ss_sp = stack_.get();
  own.ss_size = kSignalStackBytes;
  own.ss_flags = 0;
  sigaltstack(&own, nullptr);
}

KernelSignals::~KernelSignals() {
  if (!stack_) return;
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, nullptr);
}

}  // namespace thalweg::emulator
