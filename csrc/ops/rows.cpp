// is_increasing, extremes: properties of lists of rows, in one pass. Single-threaded: a few thousand numbers
// are read before other threads wake up.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <tuple>

#include "checks.h"
#include "ops/operator.h"

namespace torch_lsh {
namespace {

bool is_increasing(const Tensor& rows, std::optional<int64_t> below) {
  check_operand(rows, "rows", 1, ScalarType::Long);
  const auto* const row = rows.const_data_ptr<int64_t>();
  const auto* const end = row + rows.numel();
  if (std::adjacent_find(row, end, std::greater_equal<>()) != end) return false;
  return !below.has_value() || row == end || (row[0] >= 0 && end[-1] < *below);
}

std::tuple<int64_t, int64_t> extremes(const Tensor& numbers) {
  check_cpu(numbers, "numbers");
  check_dtype(numbers, "numbers", ScalarType::Long);
  check_contiguous(numbers, "numbers");
  TORCH_LSH_CHECK(numbers.numel() > 0, "numbers has shape ", shape_of(numbers),
                  "; wanted at least one number");
  const auto* number = numbers.const_data_ptr<int64_t>();
  int64_t least = number[0], largest = number[0];
  for (int64_t i = 0, size = numbers.numel(); i < size; ++i) {  // vectorises
    least = std::min(least, number[i]);
    largest = std::max(largest, number[i]);
  }
  return {least, largest};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "is_increasing", &is_increasing);
  TORCH_LSH_IMPL(m, "extremes", &extremes);
}

}  // namespace torch_lsh
