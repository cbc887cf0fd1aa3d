// What the CPU and the system under it can do.
#pragma once

#include <string>

#include "kernels/tuning.h"

namespace torch_lsh {

// An empty string if CPU and system have AMX tiles of bfloat16 and int8 numbers, else the reason why not.
// With `ask`, the system is asked for the permission, which holds for the whole process from then on.
std::string why_no_amx(bool ask);

// Whether the CPU multiplies pairs of bfloat16 numbers by VDPBF16PS faster than it multiplies the same
// numbers as floats: AMD's do twice as many per cycle, Intel's as many.
bool prefers_bfloat16_pairs();

// An empty string if this CPU has Arm's instructions for bfloat16 and int8 numbers, else the reason why not:
// for vectors of 128 bits, and for SVE's of 256.
std::string why_no_neon_bf16();
std::string why_no_sve256();

Tuning tuning_of_cpu();

}  // namespace torch_lsh
