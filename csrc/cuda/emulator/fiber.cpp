// The context switch per processor, and the pool of stacks.
#include "cuda/emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <new>

#include "cuda/emulator/sanitizer.h"

#if !defined(THALWEG_EMULATOR_UCONTEXT)
// void thalweg_emulator_switch(void** saved_stack_pointer, void* next_stack_pointer): pushes the
// registers that a call preserves, changes stacks, pops them. Floating-point control words stay as
// they are: kernels do not change them.
extern "C" void thalweg_emulator_switch(void** saved_stack_pointer, void* next_stack_pointer);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.hidden thalweg_emulator_switch
.globl thalweg_emulator_switch
.type thalweg_emulator_switch, @function
thalweg_emulator_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size thalweg_emulator_switch, . - thalweg_emulator_switch
)");
#else
asm(R"(
.text
.p2align 4
.hidden thalweg_emulator_switch
.globl thalweg_emulator_switch
.type thalweg_emulator_switch, %function
thalweg_emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size thalweg_emulator_switch, . - thalweg_emulator_switch
)");
#endif
#endif

namespace thalweg::emulator {
namespace {

// AddressSanitizer puts red zones around every local variable.
constexpr std::size_t kStackBytes = (kAddressSanitizer ? 256 : 64) * std::size_t{1024};
constexpr std::size_t kStacksPerSlab = 32;

class StackPool {
 public:
  std::vector<Stack> acquire(std::size_t count) {
    const std::lock_guard lock(mutex_);
    while (free_.size() < count) add_slab();
    std::vector<Stack> stacks(free_.end() - static_cast<std::ptrdiff_t>(count), free_.end());
    free_.resize(free_.size() - count);
    return stacks;
  }

  void release(const std::vector<Stack>& stacks) {
    for (const Stack& stack : stacks) permit_access(stack.lowest, stack.bytes);
    const std::lock_guard lock(mutex_);
    free_.insert(free_.end(), stacks.begin(), stacks.end());
  }

 private:
  void add_slab() {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t stride = page + kStackBytes;
    void* slab = mmap(nullptr, kStacksPerSlab * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) throw std::bad_alloc();
    for (std::size_t i = 0; i < kStacksPerSlab; ++i) {
      char* guard = static_cast<char*>(slab) + i * stride;
      // A stack without a guard page works too, should the system run out of mappings.
      (void)mprotect(guard, page, PROT_NONE);
      free_.push_back({guard + page, kStackBytes});
    }
  }

  std::mutex mutex_;
  std::vector<Stack> free_;
};

StackPool& stack_pool() {
  static StackPool& pool = *new StackPool;  // outlives every thread
  return pool;
}

// The two ends of the switch that this thread is making.
thread_local Fiber* origin_ __attribute__((tls_model("initial-exec"))) = nullptr;
thread_local Fiber* destination_ __attribute__((tls_model("initial-exec"))) = nullptr;

}  // namespace

std::vector<Stack> acquire_stacks(std::size_t count) { return stack_pool().acquire(count); }

void release_stacks(const std::vector<Stack>& stacks) { stack_pool().release(stacks); }

void Fiber::begin() {
  arrive();
  destination_->entry_();
  __builtin_unreachable();
}

void Fiber::arrive() {
#if defined(TW_ADDRESS_SANITIZER)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(destination_->sanitizer_state_, &bottom, &bytes);
  // The sanitizer knows the bounds of the stack that a thread was born with.
  if (origin_->stack_.lowest == nullptr) {
    origin_->stack_ = {const_cast<char*>(static_cast<const char*>(bottom)), bytes};
  }
#endif
}

void Fiber::prepare(const Stack& stack, Entry entry) {
  stack_ = stack;
  entry_ = entry;
  sanitizer_state_ = nullptr;
#if defined(THALWEG_EMULATOR_UCONTEXT)
  if (!context_) context_ = std::make_unique<ucontext_t>();
  getcontext(context_.get());
  context_->uc_stack.ss_sp = stack.lowest;
  context_->uc_stack.ss_size = stack.bytes;
  context_->uc_link = nullptr;
  makecontext(context_.get(), &Fiber::begin, 0);
#else
  void** top = reinterpret_cast<void**>(stack.lowest + stack.bytes);
#if defined(__x86_64__)
  // The return address of begin(), which is none; the address that the switch returns to; six
  // registers. At begin() the stack pointer is 8 below a multiple of 16, as after any call.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(&Fiber::begin);  // x30, where the switch returns to
#endif
  stack_pointer_ = top;
#endif
}

void Fiber::change(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
  origin_ = &from;
  destination_ = &to;
#if defined(TW_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.sanitizer_state_, to.stack_.lowest,
                                 to.stack_.bytes);
#endif
#if defined(THALWEG_EMULATOR_UCONTEXT)
  if (!from.context_) from.context_ = std::make_unique<ucontext_t>();
  swapcontext(from.context_.get(), to.context_.get());
#else
  thalweg_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
  arrive();
}

}  // namespace thalweg::emulator
