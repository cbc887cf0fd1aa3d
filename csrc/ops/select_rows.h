// select_rows, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace torch_lsh {

using ActiveSet =
    std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

ActiveSet select_rows(const torch::stable::Tensor& labels, const torch::stable::Tensor& candidates,
                      int64_t num_rows, int64_t active, int64_t num_random, int64_t seed, bool per_sample,
                      const std::optional<torch::stable::Tensor>& carried);

}  // namespace torch_lsh
