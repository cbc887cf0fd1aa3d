// query_tables, for use by other operators.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace torch_lsh {

torch::stable::Tensor query_tables(const torch::stable::Tensor& ids, const torch::stable::Tensor& counts,
                                   const std::optional<torch::stable::Tensor>& row_codes,
                                   const torch::stable::Tensor& buckets, int64_t max_candidates,
                                   int64_t min_matches, bool vanilla,
                                   const std::optional<torch::stable::Tensor>& query_codes);

}  // namespace torch_lsh
