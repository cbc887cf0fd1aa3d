// simd_level, use_simd_level: the instruction set of the kernels.
#include <torch/csrc/stable/library.h>

#include <string>

#include "kernels/kernels.h"

namespace torch_lsh {
namespace {

std::string simd_level() {
  return kernels().name;
}
void use_simd_level(const std::string& level) {
  use_level(level.c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&simd_level));
  m.impl("use_simd_level", TORCH_BOX(&use_simd_level));
}

}  // namespace torch_lsh
