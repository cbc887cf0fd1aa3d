// count_touches_, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace torch_lsh {

// touches: of all rows. The rows are in range.
void count_touches(uint8_t* touches, const torch::stable::Tensor& rows);

}  // namespace torch_lsh
