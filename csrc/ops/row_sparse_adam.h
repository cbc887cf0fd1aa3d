// Adam's steps on rows of a parameter, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

#include "kernels/optimizer_steps.h"

namespace torch_lsh {

void row_sparse_adam_(const torch::stable::Tensor& parameter, const torch::stable::Tensor& first,
                      const torch::stable::Tensor& second, const torch::stable::Tensor& rows,
                      const torch::stable::Tensor& gradient, std::optional<torch::stable::Tensor> decays,
                      double lr, double beta1, double beta2, double eps, double weight_decay,
                      double bias_correction1, double bias_correction2, bool decoupled, bool maximize,
                      std::optional<torch::stable::Tensor> factor, int64_t seed);

// Updates rows[begin] to rows[end - 1], given their gradient in the dtype of the parameter. Several threads
// may call it, for different rows.
using RowUpdate = std::function<void(int64_t begin, int64_t end, const void* gradient)>;

// row_sparse_adam_ for gradients that are not there yet. Checks the arguments at once.
RowUpdate row_sparse_adam_update(const torch::stable::Tensor& parameter, const torch::stable::Tensor& first,
                                 const torch::stable::Tensor& second, const torch::stable::Tensor& rows,
                                 const AdamStep& step);

}  // namespace torch_lsh
