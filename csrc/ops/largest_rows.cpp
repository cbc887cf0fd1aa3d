// largest_rows: the rows with the largest values, in that order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "ops/radix_sort.h"
#include "ops/rank.h"

namespace torch_lsh {
namespace {

Tensor largest_rows(const Tensor& values, const Tensor& rows, int64_t count) {
  check_operand(values, "values", 1, ScalarType::Float);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_size(rows, "rows", 0, values.numel());
  const int64_t all = values.numel();
  TORCH_LSH_CHECK(count >= 0, "count is ", count, "; wanted 0 or more");
  TORCH_LSH_CHECK(all <= UINT32_MAX, "values has shape ", shape_of(values), "; wanted fewer than 2^32");
  thread_local std::vector<KeyAndIndex<uint32_t>> entries, spare;
  const auto* value = values.const_data_ptr<float>();
  // Smaller keys for larger values.
  const auto key = [&](int64_t i) { return ~static_cast<uint32_t>(key_of(value[i], 0) >> 32); };
  radix_sort<uint32_t>(all, key, UINT32_MAX, entries, spare);
  const int64_t taken = std::min(count, all);
  Tensor out = torch::stable::empty({taken}, ScalarType::Long);
  const auto* row = rows.const_data_ptr<int64_t>();
  auto* result = out.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < taken; ++i) result[i] = row[entries[i].index];
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("largest_rows", TORCH_BOX(&largest_rows));
}

}  // namespace torch_lsh
