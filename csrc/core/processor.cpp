// Detection of the processor by CPUID, and the choice of the kernel path.
#include "core/processor.h"

#include <cstdlib>
#include <cstring>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "core/error.h"

namespace thalweg {
namespace {

constexpr InstructionSet kInstructionSets[] = {InstructionSet::kBaseline, InstructionSet::kV3,
                                               InstructionSet::kV4, InstructionSet::kV4Bfloat16};

#if defined(__x86_64__)

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

// Zeros when the processor does not know the leaf.
Registers cpuid(unsigned leaf, unsigned part = 0) {
  Registers r{};
  __get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

constexpr bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }

// Which register files the operating system saves (XCR0).
unsigned saved_state() {
  unsigned low = 0;
  unsigned high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// The x86-64-v3 and x86-64-v4 levels of the System V ABI, and AVX512-BF16 on top.
InstructionSet detect() {
  constexpr unsigned kSavesYmm = 0x06;
  constexpr unsigned kSavesZmm = 0xe6;
  const Registers basic = cpuid(1);
  const Registers structured = cpuid(7);
  const Registers extended = cpuid(0x80000001);
  if (!has(basic.ecx, bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_FMA |
                          bit_F16C | bit_MOVBE | bit_AVX | bit_OSXSAVE) ||
      !has(structured.ebx, bit_AVX2 | bit_BMI | bit_BMI2) || !has(extended.ecx, bit_LZCNT) ||
      !has(saved_state(), kSavesYmm)) {
    return InstructionSet::kBaseline;
  }
  if (!has(structured.ebx,
           bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL) ||
      !has(saved_state(), kSavesZmm)) {
    return InstructionSet::kV3;
  }
  constexpr unsigned kBfloat16 = 1u << 5;  // AVX512_BF16
  return has(cpuid(7, 1).eax, kBfloat16) ? InstructionSet::kV4Bfloat16 : InstructionSet::kV4;
}

#if defined(__linux__)

bool lends_matrix_unit() {
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // of leaf 7
  if (!has(cpuid(7).edx, kBfloat16 | kTiles)) return false;
  // Linux wants to be asked before a process uses the tiles, whose state is 8 KiB per thread.
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else

bool lends_matrix_unit() { return false; }

#endif

#else

InstructionSet detect() { return InstructionSet::kBaseline; }
bool lends_matrix_unit() { return false; }

#endif

}  // namespace

const char* instruction_set_name(InstructionSet isa) {
  switch (isa) {
    case InstructionSet::kBaseline:
      return "baseline";
    case InstructionSet::kV3:
      return "v3";
    case InstructionSet::kV4:
      return "v4";
    case InstructionSet::kV4Bfloat16:
      return "v4_bf16";
  }
  return "unknown";
}

InstructionSet detect_instruction_set() {
  static const InstructionSet best = detect();
  return best;
}

InstructionSet selected_instruction_set() {
  const InstructionSet best = detect_instruction_set();
  const char* const wanted = std::getenv("THALWEG_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const InstructionSet isa : kInstructionSets) {
    if (std::string_view(wanted) != instruction_set_name(isa)) continue;
    expect<ValueError>(isa <= best,
                       "[processor] expected THALWEG_ISA to name an instruction set of ",
                       "this processor (up to ", instruction_set_name(best), "), got ", wanted,
                       "; unset it to choose the best one");
    return isa;
  }
  throw ValueError(
      concat("[processor] expected THALWEG_ISA to be baseline, v3, v4 or v4_bf16, got ", wanted,
             "; unset it to choose the best one"));
}

bool has_matrix_unit() {
  static const bool lent =
      detect_instruction_set() == InstructionSet::kV4Bfloat16 && lends_matrix_unit();
  return lent;
}

std::string processor_name() {
#if defined(__x86_64__)
  constexpr unsigned kBrand = 0x80000002;
  char text[3 * sizeof(Registers) + 1] = {};
  for (unsigned part = 0; part < 3; ++part) {
    const Registers r = cpuid(kBrand + part);
    std::memcpy(text + part * sizeof(Registers), &r, sizeof(Registers));
  }
  std::string_view name = text;
  while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
  while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
  if (!name.empty()) return std::string(name);
#endif
  return "unknown processor";
}

}  // namespace thalweg
