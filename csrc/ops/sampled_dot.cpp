// sampled_dot: each sample's products with its own active rows (a sampled dense-dense matrix product).
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

Tensor sampled_dot(const Tensor& x, const Tensor& table, const Tensor& rows) {
  check_floating(table, "table");
  check_operand(x, "x", 2, table.scalar_type());
  check_operand(table, "table", 2, table.scalar_type());
  check_operand(rows, "rows", 2, ScalarType::Long);
  check_size(table, "table", 1, x.size(1));
  check_size(rows, "rows", 0, x.size(0));
  const auto* ids = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0, size = rows.numel(); i < size; ++i)
    TORCH_LSH_CHECK(ids[i] < table.size(0), "rows holds ", ids[i], "; wanted at most ", table.size(0) - 1);
  Tensor out = new_tensor({rows.size(0), rows.size(1)}, x.scalar_type());
  if (out.numel() == 0) return out;
  const int64_t width = x.size(1), count = rows.size(1);
  by_dtype(FloatingTypes{}, x.scalar_type(), "x", [&]<typename T>() {
    const auto dot_rows = kernels<DotKernels<T>>().dot_rows;
    const T *const samples = data<T>(x), *const rows_of_table = data<T>(table);
    T* const result = mutable_data<T>(out);
    parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        dot_rows(samples + b * width, rows_of_table, ids + b * count, count, width, result + b * count);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "sampled_dot", &sampled_dot);
}

}  // namespace torch_lsh
