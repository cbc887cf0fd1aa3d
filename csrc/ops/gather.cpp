// gather_rows: copies the rows of a table that a step touches into a contiguous matrix.
#include "ops/gather.h"

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/memory_pool.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

// Rows per task: 64 rows of 512 bytes take microseconds, well above the cost of scheduling a task.
constexpr int64_t kGrainRows = 64;

}  // namespace

Tensor gather_rows(const Tensor& table, const Tensor& rows, std::optional<ScalarType> dtype) {
  check_cpu(table, "table");
  check_floating(table, "table");
  check_contiguous(table, "table");
  TORCH_LSH_CHECK(table.dim() == 1 || table.dim() == 2, "table has shape ", shape_of(table),
                  "; wanted one or two dimensions");
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_rows_in_range(rows.const_data_ptr<int64_t>(), rows.numel(), table.size(0), "rows");
  const ScalarType from = table.scalar_type(), to = dtype.value_or(from);
  Tensor out =
      table.dim() == 1 ? new_tensor({rows.numel()}, to) : pooled_tensor({rows.numel(), table.size(1)}, to);
  const auto* ids = rows.const_data_ptr<int64_t>();
  const int64_t width = table.dim() == 1 ? 1 : table.size(1);
  const bool found = by_dtypes(GatherTypes{}, from, to, [&]<typename From, typename To>() {
    const auto gather = kernels<GatherKernels<From, To>>().gather;
    const From* const source = data<From>(table);
    To* const target = mutable_data<To>(out);
    parallel_for(0, rows.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
      gather(source, ids + begin, end - begin, width, target + begin * width);
    });
  });
  TORCH_LSH_CHECK(found, "dtype is ", torch::headeronly::toString(to), "; wanted ",
                  from == ScalarType::Double ? "Double" : "Float or BFloat16", " for a table of dtype ",
                  torch::headeronly::toString(from));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "gather_rows", &gather_rows);
}

}  // namespace torch_lsh
