// The backward pass of linear_softmax_loss, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "ops/row_sparse_adam.h"

namespace torch_lsh {

// Updates the active rows of `weight` by their gradient, which is never all in memory. weight: float or
// double; x: the same, or bfloat16 with a float weight. Returns the gradients of x and bias, and the hardest
// rows.
std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor> linear_softmax_loss_backward(
    const torch::stable::Tensor& slopes, const torch::stable::Tensor& scale, const torch::stable::Tensor& x,
    const torch::stable::Tensor& weight, const torch::stable::Tensor& rows,
    std::optional<torch::stable::Tensor> grad, int64_t hardest,
    std::optional<torch::stable::Tensor> log_weights, const RowUpdate& update);

}  // namespace torch_lsh
