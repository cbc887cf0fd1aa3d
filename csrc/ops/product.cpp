// product: a dense matrix product in float32 or float64, for the shapes of an active set.
//
// Packs the right operand into panels, then splits the result into tasks of some rows and panels. Results do
// not depend on the split.
#include "ops/product.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "ops/tasks.h"

namespace torch_lsh {
namespace {

constexpr int64_t kTaskPanels = 8;  // 256 KB per block of depth

// Rows per task. Each task reads all panels, so with few rows a thread gets one task.
int64_t task_rows(int64_t rows) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share = ((rows + threads - 1) / threads + 3) / 4 * 4;
  return share > 256 ? kTaskRows : std::max<int64_t>(share, 16);
}

}  // namespace

template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b, const SumOf<T>* bias) {
  const int64_t rows = a.size(0), columns = b.size(1), a_row = a.stride(0), a_col = a.stride(1);
  const PackedMatrix<T> right(b);
  Tensor out = pooled_tensor({rows, columns}, dtype_of<SumOf<T>>);
  const T* left = data<T>(a);
  auto* result = mutable_data<SumOf<T>>(out);
  const int64_t of_task = task_rows(rows);
  const int64_t row_tasks = (rows + of_task - 1) / of_task;
  const int64_t panel_tasks = (right.panels() + kTaskPanels - 1) / kTaskPanels;
  share_tasks(row_tasks * panel_tasks, [&](const auto& next) {
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t row = task / panel_tasks * of_task;
      right.multiply(left + row * a_row, a_row, a_col, std::min(of_task, rows - row),
                     task % panel_tasks * kTaskPanels, kTaskPanels, bias == nullptr ? nullptr : bias + row,
                     result + row * columns, columns);
    }
  });
  return out;
}

template Tensor multiply<float>(const Tensor&, const Tensor&, const float*);
template Tensor multiply<double>(const Tensor&, const Tensor&, const double*);
template Tensor multiply<BFloat16>(const Tensor&, const Tensor&, const float*);

namespace {

Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  check_cpu(a, "a");
  check_dim(a, "a", 2);
  TORCH_LSH_CHECK(a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::Double,
                  "a has dtype ", torch::headeronly::toString(a.scalar_type()), "; wanted Float or Double");
  check_cpu(b, "b");
  check_dim(b, "b", 2);
  check_dtype(b, "b", a.scalar_type());
  check_size(b, "b", 0, a.size(1));
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, a.scalar_type());
    check_size(*bias, "bias", 0, a.size(0));
  }
  Tensor out;
  by_dtype(SumTypes{}, a.scalar_type(), "a", [&]<typename T>() { out = multiply<T>(a, b, data<T>(bias)); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("product", TORCH_BOX(&product));
}

}  // namespace torch_lsh
