// Fibers: stacks of their own and a switch between them that costs some 20 ns. Own assembly on
// x86-64 and aarch64; elsewhere, and with THALWEG_EMULATOR_UCONTEXT, the ucontext functions.
#pragma once

#include <cstddef>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(THALWEG_EMULATOR_UCONTEXT)
#define THALWEG_EMULATOR_UCONTEXT
#endif
#if defined(THALWEG_EMULATOR_UCONTEXT)
#include <ucontext.h>

#include <memory>
#endif

namespace thalweg::emulator {

// The memory of one stack, above a page that may not be touched.
struct Stack {
  char* lowest = nullptr;
  std::size_t bytes = 0;
};

// Takes `count` stacks from the process-wide pool, which grows on demand; throws std::bad_alloc.
std::vector<Stack> acquire_stacks(std::size_t count);
// Gives stacks back. Whatever ran on them may have been abandoned half-way.
void release_stacks(const std::vector<Stack>& stacks);

// A place to continue at. Default-constructed, it stands for the code that switches away from it.
class Fiber {
 public:
  using Entry = void (*)();

  // Makes the first switch to this fiber call entry(), which must never return.
  void prepare(const Stack& stack, Entry entry);
  const Stack& stack() const { return stack_; }

  // Continues `to`; returns when something switches back to `from`.
  static void switch_to(Fiber& from, Fiber& to) { change(from, to, false); }
  // The same for a fiber that ends here.
  static void leave_for(Fiber& from, Fiber& to) { change(from, to, true); }

 private:
  static void change(Fiber& from, Fiber& to, bool ends);
  // What a fiber does first after every switch to it.
  static void arrive();
  static void begin();

  Stack stack_;
  Entry entry_ = nullptr;
  void* sanitizer_state_ = nullptr;
#if defined(THALWEG_EMULATOR_UCONTEXT)
  std::unique_ptr<ucontext_t> context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace thalweg::emulator
