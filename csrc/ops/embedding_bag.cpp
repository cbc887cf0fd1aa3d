// embedding_bag: weighted sums of a table's rows, the product of a sparse batch and a dense table; its
// gradients; and coalesce_rows, which is the same sum over repeated rows.
//
// The gradient of the table sums over the samples of each feature. The batch is transposed first, so that a
// row of the gradient is written by one thread only, in an order that does not depend on the number of
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/group_rows.h"
#include "ops/memory_pool.h"

namespace torch_lsh {
namespace {

// Tasks of this many sums: each reads some rows of the table, so several microseconds.
constexpr int64_t kGrainSums = 16;
constexpr int64_t kGrainEntries = 128;  // and of this many entries and results of sums

void check_csr(const Tensor& crow, const Tensor& col, const std::optional<Tensor>& values, int64_t num_rows,
               ScalarType dtype) {
  check_operand(crow, "crow", 1, ScalarType::Long);
  check_operand(col, "col", 1, ScalarType::Long);
  if (values.has_value()) {
    check_operand(*values, "values", 1, dtype);
    check_size(*values, "values", 0, col.numel());
  }
  TORCH_LSH_CHECK(crow.numel() > 0, "crow is empty; wanted one number more than there are samples");
  const auto* starts = crow.const_data_ptr<int64_t>();
  TORCH_LSH_CHECK(starts[0] == 0 && starts[crow.numel() - 1] == col.numel(), "crow runs from ", starts[0],
                  " to ", starts[crow.numel() - 1], "; wanted 0 to ", col.numel());
  for (int64_t i = 1; i < crow.numel(); ++i)
    TORCH_LSH_CHECK(starts[i] >= starts[i - 1], "crow decreases at ", i, "; wanted increasing offsets");
  check_rows_in_range(col.const_data_ptr<int64_t>(), col.numel(), num_rows, "col");
}

// Calls run(begin, end) for parts of the runs that have about as many entries and results together.
template <typename Run>
void split_runs(const int64_t* start, int64_t runs, const Run& run) {
  const auto work_before = [&](int64_t s) { return start[s] + s; };
  const auto first_from = [&](int64_t work) {
    int64_t low = 0, high = runs;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work_before(middle) < work) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  torch::stable::parallel_for(0, work_before(runs), kGrainEntries, [&](int64_t begin, int64_t end) {
    const int64_t first = first_from(begin), last = first_from(end);
    if (first < last) run(first, last);
  });
}

// out[s] = sum over the s-th run of `rows` of values * table[rows]; values may be null, which stands for
// ones.
template <typename T>
void sum_runs(void (*kernel)(const T*, const int64_t*, int64_t, const int64_t*, const T*, int64_t, T*),
              const void* table, const int64_t* start, int64_t runs, const int64_t* rows, const T* values,
              int64_t width, void* out) {
  split_runs(start, runs, [&](int64_t begin, int64_t end) {
    kernel(static_cast<const T*>(table), start + begin, end - begin, rows, values, width,
           static_cast<T*>(out) + begin * width);
  });
}

void sum_runs(const Tensor& table, const int64_t* start, int64_t runs, const int64_t* rows,
              const void* values, Tensor& out) {
  const Kernels& k = kernels();
  const int64_t width = table.dim() == 1 ? 1 : table.size(1);
  const void* from = table.const_data_ptr();
  void* to = out.mutable_data_ptr();
  if (table.scalar_type() == ScalarType::Float) {
    sum_runs(k.weighted_sums_f32, from, start, runs, rows, static_cast<const float*>(values), width, to);
  } else if (table.scalar_type() == ScalarType::Double) {
    sum_runs(k.weighted_sums_f64, from, start, runs, rows, static_cast<const double*>(values), width, to);
  } else {
    sum_runs(k.weighted_sums_bf16, from, start, runs, rows, static_cast<const BFloat16*>(values), width, to);
  }
}

Tensor embedding_bag(const Tensor& weight, const Tensor& crow, const Tensor& col,
                     const std::optional<Tensor>& values) {
  check_floating(weight, "weight");
  check_operand(weight, "weight", 2, weight.scalar_type());
  check_csr(crow, col, values, weight.size(0), weight.scalar_type());
  const int64_t batch = crow.numel() - 1;
  Tensor out = torch::stable::empty({batch, weight.size(1)}, weight.scalar_type());
  sum_runs(weight, crow.const_data_ptr<int64_t>(), batch, col.const_data_ptr<int64_t>(),
           values.has_value() ? values->const_data_ptr() : nullptr, out);
  return out;
}

Tensor as_tensor(const std::vector<int64_t>& numbers) {
  Tensor tensor = torch::stable::empty({static_cast<int64_t>(numbers.size())}, ScalarType::Long);
  std::copy(numbers.begin(), numbers.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor;
}

template <typename T>
void permute(const void* from, const std::vector<int64_t>& order, void* to) {
  for (size_t i = 0; i < order.size(); ++i) static_cast<T*>(to)[i] = static_cast<const T*>(from)[order[i]];
}

Tensor permuted(const Tensor& values, const std::vector<int64_t>& order) {
  Tensor out = torch::stable::empty({values.numel()}, values.scalar_type());
  if (values.scalar_type() == ScalarType::Float) {
    permute<float>(values.const_data_ptr(), order, out.mutable_data_ptr());
  } else if (values.scalar_type() == ScalarType::Double) {
    permute<double>(values.const_data_ptr(), order, out.mutable_data_ptr());
  } else {
    permute<BFloat16>(values.const_data_ptr(), order, out.mutable_data_ptr());
  }
  return out;
}

std::tuple<Tensor, Tensor> embedding_bag_backward(const Tensor& grad, const Tensor& crow, const Tensor& col,
                                                  const std::optional<Tensor>& values) {
  check_floating(grad, "grad");
  check_operand(grad, "grad", 2, grad.scalar_type());
  check_csr(crow, col, values, INT64_MAX, grad.scalar_type());
  check_size(crow, "crow", 0, grad.size(0) + 1);
  RowGroups groups = group_rows(col.const_data_ptr<int64_t>(), col.numel());
  std::optional<Tensor> transposed;
  if (values.has_value()) transposed = permuted(*values, groups.order);
  const auto* starts = crow.const_data_ptr<int64_t>();
  std::vector<int64_t> sample_of(col.numel());
  for (int64_t b = 0; b < grad.size(0); ++b)
    std::fill(sample_of.begin() + starts[b], sample_of.begin() + starts[b + 1], b);
  std::vector<int64_t> samples(col.numel());
  permute<int64_t>(sample_of.data(), groups.order, samples.data());
  const int64_t unique = static_cast<int64_t>(groups.rows.size());
  Tensor sums = pooled_tensor({unique, grad.size(1)}, grad.scalar_type());
  sum_runs(grad, groups.start.data(), unique, samples.data(),
           transposed.has_value() ? transposed->const_data_ptr() : nullptr, sums);
  return {as_tensor(groups.rows), sums};
}

template <typename T>
void products(void (*kernel)(const T*, const T*, const int64_t*, int64_t, int64_t, T*), const Tensor& grad,
              const Tensor& weight, const Tensor& crow, const Tensor& col, Tensor& out) {
  const auto* starts = crow.const_data_ptr<int64_t>();
  const auto* rows = col.const_data_ptr<int64_t>();
  const auto* grads = static_cast<const T*>(grad.const_data_ptr());
  const auto* table = static_cast<const T*>(weight.const_data_ptr());
  auto* to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t width = grad.size(1);
  torch::stable::parallel_for(0, grad.size(0), kGrainSums, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      kernel(grads + b * width, table, rows + starts[b], starts[b + 1] - starts[b], width, to + starts[b]);
  });
}

Tensor embedding_bag_values_backward(const Tensor& grad, const Tensor& weight, const Tensor& crow,
                                     const Tensor& col) {
  check_floating(weight, "weight");
  check_operand(weight, "weight", 2, weight.scalar_type());
  check_operand(grad, "grad", 2, weight.scalar_type());
  check_size(grad, "grad", 1, weight.size(1));
  Tensor out = torch::stable::empty({col.numel()}, weight.scalar_type());
  check_csr(crow, col, std::nullopt, weight.size(0), weight.scalar_type());
  check_size(crow, "crow", 0, grad.size(0) + 1);
  if (weight.scalar_type() == ScalarType::Float) {
    products(kernels().dot_rows_f32, grad, weight, crow, col, out);
  } else if (weight.scalar_type() == ScalarType::Double) {
    products(kernels().dot_rows_f64, grad, weight, crow, col, out);
  } else {
    products(kernels().dot_rows_bf16, grad, weight, crow, col, out);
  }
  return out;
}

std::tuple<Tensor, Tensor> coalesce_rows(const Tensor& rows, const Tensor& values) {
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_floating(values, "values");
  check_cpu(values, "values");
  check_contiguous(values, "values");
  TORCH_LSH_CHECK(values.dim() == 1 || values.dim() == 2, "values has shape ", shape_of(values),
                  "; wanted one or two dimensions");
  check_size(values, "values", 0, rows.numel());
  check_rows_in_range(rows.const_data_ptr<int64_t>(), rows.numel(), INT64_MAX, "rows");
  RowGroups groups = group_rows(rows.const_data_ptr<int64_t>(), rows.numel());
  const int64_t unique = static_cast<int64_t>(groups.rows.size());
  Tensor sums = values.dim() == 1 ? torch::stable::empty({unique}, values.scalar_type())
                                  : pooled_tensor({unique, values.size(1)}, values.scalar_type());
  sum_runs(values, groups.start.data(), unique, groups.order.data(), nullptr, sums);
  return {as_tensor(groups.rows), sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("embedding_bag", TORCH_BOX(&embedding_bag));
  m.impl("embedding_bag_backward", TORCH_BOX(&embedding_bag_backward));
  m.impl("embedding_bag_values_backward", TORCH_BOX(&embedding_bag_values_backward));
  m.impl("coalesce_rows", TORCH_BOX(&coalesce_rows));
}

}  // namespace torch_lsh
