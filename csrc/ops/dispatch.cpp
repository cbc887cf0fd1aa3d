// simd_level, use_simd_level, multiplies_bfloat16, cpu_tuning: the instruction set of the kernels, and what
// they choose by the CPU.
#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels/kernels.h"
#include "kernels/tuning.h"

namespace torch_lsh {
namespace {

std::string simd_level() {
  return kernels().name;
}
std::string cpu_tuning() {
  kernels();  // it is chosen with them
  return std::string("rows prefetched to ") + (tuning.prefetches_to_l2 ? "L2" : "L1") + ", L1 of " +
         std::to_string(tuning.l1_bytes / 1024) + " KiB";
}
bool multiplies_bfloat16() {
  return kernels().multiplies_bfloat16;
}
void use_simd_level(const std::string& level) {
  use_level(level.c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
  m.impl("cpu_tuning", TORCH_BOX(&cpu_tuning));
  m.impl("multiplies_bfloat16", TORCH_BOX(&multiplies_bfloat16));
  m.impl("use_simd_level", TORCH_BOX(&use_simd_level));
}

}  // namespace torch_lsh
