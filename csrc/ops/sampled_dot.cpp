// sampled_dot: each sample's products with the rows of its own active set (a sampled dense-dense matrix
// product).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {
namespace {

template <typename T>
void compute(void (*kernel)(const T*, const T*, const int64_t*, int64_t, int64_t, T*), const Tensor& x,
             const Tensor& table, const Tensor& rows, Tensor& out) {
  const auto* samples = static_cast<const T*>(x.const_data_ptr());
  const auto* data = static_cast<const T*>(table.const_data_ptr());
  const auto* ids = rows.const_data_ptr<int64_t>();
  auto* result = static_cast<T*>(out.mutable_data_ptr());
  const int64_t width = x.size(1), count = rows.size(1);
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      kernel(samples + b * width, data, ids + b * count, count, width, result + b * count);
  });
}

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
  Tensor out = torch::stable::empty({rows.size(0), rows.size(1)}, x.scalar_type());
  if (x.scalar_type() == ScalarType::Float) {
    compute(kernels().dot_rows_f32, x, table, rows, out);
  } else if (x.scalar_type() == ScalarType::Double) {
    compute(kernels().dot_rows_f64, x, table, rows, out);
  } else {
    compute(kernels().dot_rows_bf16, x, table, rows, out);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("sampled_dot", TORCH_BOX(&sampled_dot));
}

}  // namespace torch_lsh
