// largest_rows: the rows of the largest values, or values / weights, largest first.
#include "ops/largest_rows.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/radix_sort.h"
#include "ops/rank.h"

namespace torch_lsh {
namespace {

// values / exp(log_weights). There are few distinct weights, so the last factor is reused.
std::vector<float> unweighted(const float* values, const float* log_weights, int64_t count) {
  std::vector<float> out(count);
  float known = 0, factor = 1;
  for (int64_t i = 0; i < count; ++i) {
    if (log_weights[i] != 0 && log_weights[i] != known) {
      known = log_weights[i];
      factor = std::exp(-known);
    }
    out[i] = log_weights[i] == 0 ? values[i] : values[i] * factor;
  }
  return out;
}

}  // namespace

void check_log_weights(const std::optional<Tensor>& log_weights, int64_t count) {
  if (!log_weights.has_value()) return;
  check_operand(*log_weights, "log_weights", 1, ScalarType::Float);
  check_size(*log_weights, "log_weights", 0, count);
}

Tensor largest_rows(const float* value, const Tensor& rows, int64_t count,
                    const std::optional<Tensor>& log_weights) {
  const int64_t all = rows.numel();
  TORCH_LSH_CHECK(all <= UINT32_MAX, "rows has shape ", shape_of(rows), "; wanted fewer than 2^32 entries");
  thread_local std::vector<KeyAndIndex<uint32_t>> entries, spare;
  std::vector<float> own;
  check_log_weights(log_weights, all);
  if (log_weights.has_value()) {
    own = unweighted(value, log_weights->const_data_ptr<float>(), all);
    value = own.data();
  }
  // Inverted: larger values sort first.
  const auto key = [&](int64_t i) { return ~static_cast<uint32_t>(key_of(value[i], 0) >> 32); };
  if (count > 0) radix_sort<uint32_t>(all, key, UINT32_MAX, entries, spare);
  const int64_t taken = std::min(count, all);
  Tensor out = new_tensor({taken}, ScalarType::Long);
  const auto* row = rows.const_data_ptr<int64_t>();
  auto* result = out.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < taken; ++i) result[i] = row[entries[i].index];
  return out;
}

namespace {

Tensor largest_rows_of_tensor(const Tensor& values, const Tensor& rows, int64_t count,
                              const std::optional<Tensor>& log_weights) {
  check_operand(values, "values", 1, ScalarType::Float);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_size(rows, "rows", 0, values.numel());
  TORCH_LSH_CHECK(count >= 0, "count is ", count, "; wanted at least 0");
  return largest_rows(values.const_data_ptr<float>(), rows, count, log_weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "largest_rows", &largest_rows_of_tensor);
}

}  // namespace torch_lsh
