// largest_rows, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace torch_lsh {

// For operators that must not fail later. largest_rows checks, too.
void check_log_weights(const std::optional<torch::stable::Tensor>& log_weights, int64_t count);

// values: one of each row. count: at least 0.
torch::stable::Tensor largest_rows(const float* values, const torch::stable::Tensor& rows, int64_t count,
                                   const std::optional<torch::stable::Tensor>& log_weights);

}  // namespace torch_lsh
