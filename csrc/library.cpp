// Every operator of the library: its schema. Implementations are in ops/*.cpp; fake kernels, autograd,
// autocast and documentation in torch_lsh/ops.py; the plain-PyTorch twin of each in torch_lsh/reference.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torch_lsh, m) {
  // dispatch
  m.def("simd_level() -> str");
  m.def("use_simd_level(str level) -> ()");

  // rows
  m.def("gather_rows(Tensor table, Tensor rows, ScalarType? dtype=None) -> Tensor");
  m.def("sampled_dot(Tensor x, Tensor table, Tensor rows) -> Tensor");

  // active sets
  m.def(
      "select_rows(Tensor labels, Tensor candidates, int num_rows, int active, int num_random, int seed, "
      "bool per_sample) -> (Tensor rows, Tensor is_random, Tensor positions)");
}
