// gather_rows, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

namespace torch_lsh {

torch::stable::Tensor gather_rows(const torch::stable::Tensor& table, const torch::stable::Tensor& rows,
                                  std::optional<torch::headeronly::ScalarType> dtype);

}  // namespace torch_lsh
