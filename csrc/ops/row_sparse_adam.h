// row_sparse_adam_, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace torch_lsh {

void row_sparse_adam_(const torch::stable::Tensor& parameter, const torch::stable::Tensor& first,
                      const torch::stable::Tensor& second, const torch::stable::Tensor& rows,
                      const torch::stable::Tensor& gradient, std::optional<torch::stable::Tensor> decays,
                      double lr, double beta1, double beta2, double eps, double weight_decay,
                      double bias_correction1, double bias_correction2, bool decoupled, bool maximize,
                      std::optional<torch::stable::Tensor> factor, int64_t seed);

}  // namespace torch_lsh
