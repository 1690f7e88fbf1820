// What the processor can do and which kernel path is chosen.
#pragma once

#include <string>
#include <vector>

#include "core/export.h"

namespace thalweg {

enum class InstructionSet { kBaseline = 0, kV3 = 1, kV4 = 2, kV4Bfloat16 = 3 };

// "baseline", "v3", "v4", "v4_bf16"
TW_INTERNAL_API const char* instruction_set_name(InstructionSet isa);
// The best path that this processor and operating system support.
TW_INTERNAL_API InstructionSet detect_instruction_set();
// detect_instruction_set(), or the path that THALWEG_ISA names; ValueError for an unknown name or
// one that this processor lacks.
TW_INTERNAL_API InstructionSet selected_instruction_set();
TW_INTERNAL_API std::string processor_name();
// Whether the processor has a matrix unit for bfloat16 (AMX) and the system lends it to this
// process, which is asked for once.
TW_INTERNAL_API bool has_matrix_unit();

}  // namespace thalweg
