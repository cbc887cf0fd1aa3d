// product: a dense matrix product in float32, float64 or bfloat16, for the shapes of an active set.
//
// Packs the right operand into panels, then splits the result into tasks of some rows and panels. Results do
// not depend on the split.
#include "ops/product.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "ops/operator.h"
#include "ops/parallel.h"
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

// out[M, N] = a[M, K] @ right + bias, in Out: that of the sums, or rounded to it.
template <typename T, typename Out>
void multiply_into(const Tensor& a, const PackedMatrix<T>& right, const SumOf<T>* bias, Out* out) {
  using Sum = SumOf<T>;
  constexpr bool kRounds = !std::is_same_v<Out, Sum>;
  const int64_t rows = a.size(0), columns = right.columns(), a_row = a.stride(0), a_col = a.stride(1);
  const T* const left = data<T>(a);
  const int64_t of_task = task_rows(rows), row_tasks = (rows + of_task - 1) / of_task;
  const int64_t panel_tasks = (right.panels() + kTaskPanels - 1) / kTaskPanels;
  const int64_t task_columns = kTaskPanels * kernels<ProductKernels<T>>().panel_width;
  share_tasks(row_tasks * panel_tasks, [&](const auto& next) {
    const Workspace sums(kRounds ? sizeof(Sum) * of_task * columns : 0);
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t row = task / panel_tasks * of_task, of_rows = std::min(of_task, rows - row);
      const int64_t panel = task % panel_tasks * kTaskPanels;
      const Sum* const offset = bias == nullptr ? nullptr : bias + row;
      if constexpr (kRounds) {
        Sum* const block = static_cast<Sum*>(sums.data());
        right.multiply(left + row * a_row, a_row, a_col, of_rows, panel, kTaskPanels, offset, block, columns);
        const int64_t first = task % panel_tasks * task_columns, zero = 0;
        for (int64_t r = 0; r < of_rows; ++r)
          kernels<GatherKernels<Sum, Out>>().gather(block + r * columns + first, &zero, 1,
                                                    std::min(task_columns, columns - first),
                                                    out + (row + r) * columns + first);
      } else {
        right.multiply(left + row * a_row, a_row, a_col, of_rows, panel, kTaskPanels, offset,
                       out + row * columns, columns);
      }
    }
  });
}

}  // namespace

template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b, const SumOf<T>* bias) {
  Tensor out = pooled_tensor({a.size(0), b.size(1)}, dtype_of<SumOf<T>>);
  multiply_into<T>(a, PackedMatrix<T>(b), bias, mutable_data<SumOf<T>>(out));
  return out;
}

template Tensor multiply<float>(const Tensor&, const Tensor&, const float*);
template Tensor multiply<double>(const Tensor&, const Tensor&, const double*);
template Tensor multiply<BFloat16>(const Tensor&, const Tensor&, const float*);

namespace {

// A contiguous float copy of a bfloat16 tensor of one or two dimensions and any strides.
Tensor as_floats(const Tensor& tensor) {
  const bool is_matrix = tensor.dim() == 2;
  const int64_t rows = is_matrix ? tensor.size(0) : 1, columns = tensor.size(tensor.dim() - 1);
  const int64_t across = is_matrix ? tensor.stride(0) : 0, along = tensor.stride(tensor.dim() - 1);
  Tensor out = pooled_tensor({rows, columns}, ScalarType::Float);
  const auto* const from = data<BFloat16>(tensor);
  auto* const to = mutable_data<float>(out);
  parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < columns; ++c) to[r * columns + c] = number(from[r * across + c * along]);
  });
  return out;
}

// Sums are float, and rounded once.
Tensor product_of_bfloat16(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  Tensor out = pooled_tensor({a.size(0), b.size(1)}, ScalarType::BFloat16);
  std::optional<Tensor> offset;
  if (bias.has_value()) offset = as_floats(*bias);
  auto* const result = mutable_data<BFloat16>(out);
  if (kernels().multiplies_bfloat16) {
    multiply_into(a, PackedMatrix<BFloat16>(b), data<float>(offset), result);
  } else {
    multiply_into(as_floats(a), PackedMatrix<float>(as_floats(b)), data<float>(offset), result);
  }
  return out;
}

Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  check_cpu(a, "a");
  check_dim(a, "a", 2);
  check_floating(a, "a");
  check_cpu(b, "b");
  check_dim(b, "b", 2);
  check_dtype(b, "b", a.scalar_type());
  check_size(b, "b", 0, a.size(1));
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, a.scalar_type());
    check_size(*bias, "bias", 0, a.size(0));
  }
  if (a.scalar_type() == ScalarType::BFloat16) return product_of_bfloat16(a, b, bias);
  Tensor out;
  by_dtype(SumTypes{}, a.scalar_type(), "a", [&]<typename T>() { out = multiply<T>(a, b, data<T>(bias)); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "product", &product);
}

}  // namespace torch_lsh
