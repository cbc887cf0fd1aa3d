// count_touches_: counts the updates of each row since it was last hashed, up to 255. Single-threaded: a few
// thousand rows are counted before other threads wake up.
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops/operator.h"

namespace torch_lsh {
namespace {

void count_touches_(Tensor touches, const Tensor& rows) {
  check_operand(touches, "touches", 1, ScalarType::Byte);
  check_operand(rows, "rows", 1, ScalarType::Long);
  const auto* row = rows.const_data_ptr<int64_t>();
  check_rows_in_range(row, rows.numel(), touches.numel(), "rows");
  auto* count = touches.mutable_data_ptr<uint8_t>();
  constexpr int64_t kAhead = 16;  // prefetch distance
  for (int64_t i = 0, size = rows.numel(); i < size; ++i) {
    if (i + kAhead < size) __builtin_prefetch(count + row[i + kAhead], 1);
    count[row[i]] += count[row[i]] < 255;
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "count_touches_", &count_touches_);
}

}  // namespace torch_lsh
