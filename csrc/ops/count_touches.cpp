// count_touches_: counts the updates of each row since it was last hashed, up to 255. Single-threaded: a few
// thousand rows are counted before other threads wake up.
#include "ops/count_touches.h"

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops/operator.h"

namespace torch_lsh {

void count_touches(uint8_t* touches, const Tensor& rows) {
  const auto* row = rows.const_data_ptr<int64_t>();
  constexpr int64_t kAhead = 16;  // prefetch distance
  for (int64_t i = 0, size = rows.numel(); i < size; ++i) {
    if (i + kAhead < size) __builtin_prefetch(touches + row[i + kAhead], 1);
    touches[row[i]] += touches[row[i]] < 255;
  }
}

namespace {

void count_touches_(Tensor touches, const Tensor& rows) {
  check_operand(touches, "touches", 1, ScalarType::Byte);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_rows_in_range(rows.const_data_ptr<int64_t>(), rows.numel(), touches.numel(), "rows");
  count_touches(touches.mutable_data_ptr<uint8_t>(), rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "count_touches_", &count_touches_);
}

}  // namespace torch_lsh
