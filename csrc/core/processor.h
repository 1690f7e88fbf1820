// What the processor can do and which kernel path is chosen.
#pragma once

#include <string>
#include <vector>

#include "core/export.h"

namespace thalweg {

enum class InstructionSet { kBaseline = 0, kV3 = 1, kV4 = 2 };

TW_INTERNAL_API const char* instruction_set_name(InstructionSet isa);  // "baseline", "v3", "v4"
// The best path that this processor and operating system support.
TW_INTERNAL_API InstructionSet detect_instruction_set();
// detect_instruction_set(), or the path that THALWEG_ISA names; ValueError for an unknown name or
// one that this processor lacks.
TW_INTERNAL_API InstructionSet selected_instruction_set();
TW_INTERNAL_API std::string processor_name();

}  // namespace thalweg
