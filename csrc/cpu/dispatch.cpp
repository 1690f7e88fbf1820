// Chooses among the kernel tables of the instruction sets; compiled once, without their flags.
#include "cpu/kernels.h"

#define TW_DECLARE_TABLES(isa)             \
  namespace isa {                          \
  const Kernels<float>& float_kernels();   \
  const Kernels<double>& double_kernels(); \
  }

namespace thalweg::cpu {

#if defined(__x86_64__)
TW_DECLARE_TABLES(x86_64_baseline)
TW_DECLARE_TABLES(x86_64_v3)
TW_DECLARE_TABLES(x86_64_v4)
TW_DECLARE_TABLES(x86_64_v4_bf16)
#else
TW_DECLARE_TABLES(baseline)
#endif

template <>
const Kernels<float>& kernels(InstructionSet isa) {
#if defined(__x86_64__)
  if (isa == InstructionSet::kV4Bfloat16) return x86_64_v4_bf16::float_kernels();
  if (isa == InstructionSet::kV4) return x86_64_v4::float_kernels();
  if (isa == InstructionSet::kV3) return x86_64_v3::float_kernels();
  return x86_64_baseline::float_kernels();
#else
  static_cast<void>(isa);
  return baseline::float_kernels();
#endif
}

template <>
const Kernels<double>& kernels(InstructionSet isa) {
#if defined(__x86_64__)
  if (isa == InstructionSet::kV4Bfloat16) return x86_64_v4_bf16::double_kernels();
  if (isa == InstructionSet::kV4) return x86_64_v4::double_kernels();
  if (isa == InstructionSet::kV3) return x86_64_v3::double_kernels();
  return x86_64_baseline::double_kernels();
#else
  static_cast<void>(isa);
  return baseline::double_kernels();
#endif
}

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T>& chosen = kernels<T>(selected_instruction_set());
  return chosen;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace thalweg::cpu
