// linear_softmax_loss_backward, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace torch_lsh {

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
           torch::stable::Tensor>
linear_softmax_loss_backward(const torch::stable::Tensor& slopes, const torch::stable::Tensor& scale,
                             const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                             const torch::stable::Tensor& rows, bool needs_weight,
                             std::optional<torch::stable::Tensor> grad, int64_t hardest,
                             std::optional<torch::stable::Tensor> log_weights);

}  // namespace torch_lsh
