// embedding_bag: weighted sums of a table's rows (sparse batch @ dense table), and its gradients.
// coalesce_rows: sums of repeated rows.
//
// The gradient of the table sums over the samples of each feature. The batch is transposed first: each row of
// the gradient is written by one thread, in an order independent of the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/group_rows.h"
#include "ops/memory_pool.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

// Work per task: several microseconds each.
constexpr int64_t kGrainSums = 16;        // samples
constexpr int64_t kGrainEntries = 128;    // entries plus sums
constexpr int64_t kSortedEntries = 1024;  // entries to sort, on average

// Returns an upper bound of the columns with as many bits as the largest.
uint64_t check_csr(const Tensor& crow, const Tensor& col, const std::optional<Tensor>& values,
                   int64_t num_rows, ScalarType dtype) {
  check_operand(col, "col", 1, ScalarType::Long);
  if (values.has_value()) {
    check_operand(*values, "values", 1, dtype);
    check_size(*values, "values", 0, col.numel());
  }
  check_offsets(crow, "crow", col.numel(), "samples");
  return check_rows_in_range(col.const_data_ptr<int64_t>(), col.numel(), num_rows, "col");
}

// Runs of entries: run r has entries start[r] to start[r + 1] - 1.
struct Runs {
  const int64_t* start;
  int64_t count;

  int64_t work_before(int64_t r) const { return start[r] + r; }  // entries plus sums
  int64_t first_from(int64_t work) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work_before(middle) < work) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Calls run(list, begin, end) for ranges of the lists' runs, balanced by entries plus sums.
template <typename Run>
void split_runs(const std::vector<Runs>& lists, const Run& run) {
  int64_t work = 0;
  for (const Runs& runs : lists) work += runs.work_before(runs.count);
  parallel_for(0, work, kGrainEntries, [&](int64_t begin, int64_t end) {
    for (size_t list = 0; list < lists.size(); ++list) {
      const Runs& runs = lists[list];
      const int64_t first = runs.first_from(begin), last = runs.first_from(end);
      if (first < last) run(list, first, last);
      begin -= runs.work_before(runs.count);
      end -= runs.work_before(runs.count);
    }
  });
}

Tensor embedding_bag(const Tensor& weight, const Tensor& crow, const Tensor& col,
                     const std::optional<Tensor>& values) {
  check_floating(weight, "weight");
  check_operand(weight, "weight", 2, weight.scalar_type());
  check_csr(crow, col, values, weight.size(0), weight.scalar_type());
  const int64_t batch = crow.numel() - 1, width = weight.size(1);
  Tensor out = new_tensor({batch, width}, weight.scalar_type());
  const auto* start = crow.const_data_ptr<int64_t>();
  const auto* rows = col.const_data_ptr<int64_t>();
  by_dtype(FloatingTypes{}, weight.scalar_type(), "weight", [&]<typename T>() {
    const auto weighted_sums = kernels<EmbeddingBagKernels<T>>().weighted_sums;
    const T *const table = data<T>(weight), *const factors = data<T>(values);
    T* const to = mutable_data<T>(out);
    split_runs({Runs{start, batch}}, [&](size_t, int64_t begin, int64_t end) {
      weighted_sums(table, start + begin, end - begin, rows, factors, width, to + begin * width);
    });
  });
  return out;
}

// Returns (unique rows, increasing; for each, the sum over its entries i, in order, of values[i] *
// table[source_of(i), :]). Null values: all ones. Each thread gets its own source_of from sources() and calls
// it for increasing i. largest: an upper bound of the rows.
template <typename T, typename Sources>
std::tuple<Tensor, Tensor> sums_of_equal(const int64_t* rows, int64_t count, uint64_t largest,
                                         const Tensor& table, const T* values, const Sources& sources) {
  const int64_t parts = std::clamp<int64_t>(count / kSortedEntries, 1, torch::stable::get_num_threads());
  const std::vector<uint64_t> border = split_rows(rows, count, largest, parts);
  // Owned by the calling thread. The thread that fills a range mostly reads it below, since equal shares of
  // both loops go to the same threads; only speed depends on that.
  thread_local std::vector<RowGroups<T>> scratch;
  scratch.resize(std::max<size_t>(scratch.size(), parts));
  RowGroups<T>* const groups = scratch.data();
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) group_rows(rows, count, border, p, values, sources, groups[p]);
  });

  std::vector<Runs> lists;
  std::vector<int64_t> offset{0};
  for (int64_t p = 0; p < parts; ++p) {
    lists.push_back({groups[p].start.data(), groups[p].count});
    offset.push_back(offset[p] + groups[p].count);
  }
  const int64_t width = table.dim() == 1 ? 1 : table.size(1);
  Tensor unique = new_tensor({offset[parts]}, ScalarType::Long);
  Tensor sums = table.dim() == 1 ? new_tensor({offset[parts]}, table.scalar_type())
                                 : pooled_tensor({offset[parts], width}, table.scalar_type());
  auto* const row = unique.mutable_data_ptr<int64_t>();
  T* const sum = mutable_data<T>(sums);
  const T* const from = data<T>(table);
  const auto weighted_sums = kernels<EmbeddingBagKernels<T>>().weighted_sums;
  split_runs(lists, [&](size_t p, int64_t begin, int64_t end) {
    const RowGroups<T>& own = groups[p];
    const int64_t to = offset[p] + begin;
    std::copy(own.row.data() + begin, own.row.data() + end, row + to);
    weighted_sums(from, own.start.data() + begin, end - begin, own.source.data(),
                  values == nullptr ? nullptr : own.factor.data(), width, sum + to * width);
  });
  return {unique, sums};
}

std::tuple<Tensor, Tensor> embedding_bag_backward(const Tensor& grad, const Tensor& crow, const Tensor& col,
                                                  const std::optional<Tensor>& values) {
  check_floating(grad, "grad");
  check_operand(grad, "grad", 2, grad.scalar_type());
  const uint64_t largest = check_csr(crow, col, values, INT64_MAX, grad.scalar_type());
  check_size(grad, "grad", 0, crow.numel() - 1);
  const auto samples = [start = crow.const_data_ptr<int64_t>()] {
    return [start, sample = int64_t{0}](int64_t i) mutable {
      while (i >= start[sample + 1]) ++sample;
      return sample;
    };
  };
  std::tuple<Tensor, Tensor> sums;
  by_dtype(FloatingTypes{}, grad.scalar_type(), "grad", [&]<typename T>() {
    sums = sums_of_equal(col.const_data_ptr<int64_t>(), col.numel(), largest, grad, data<T>(values), samples);
  });
  return sums;
}

Tensor embedding_bag_values_backward(const Tensor& grad, const Tensor& weight, const Tensor& crow,
                                     const Tensor& col) {
  check_floating(weight, "weight");
  check_operand(weight, "weight", 2, weight.scalar_type());
  check_operand(grad, "grad", 2, weight.scalar_type());
  check_size(grad, "grad", 1, weight.size(1));
  Tensor out = new_tensor({col.numel()}, weight.scalar_type());
  check_csr(crow, col, std::nullopt, weight.size(0), weight.scalar_type());
  check_size(grad, "grad", 0, crow.numel() - 1);
  const auto* starts = crow.const_data_ptr<int64_t>();
  const auto* rows = col.const_data_ptr<int64_t>();
  const int64_t width = grad.size(1);
  by_dtype(FloatingTypes{}, weight.scalar_type(), "weight", [&]<typename T>() {
    const auto dot_rows = kernels<DotKernels<T>>().dot_rows;
    const T *const grads = data<T>(grad), *const table = data<T>(weight);
    T* const to = mutable_data<T>(out);
    parallel_for(0, grad.size(0), kGrainSums, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        dot_rows(grads + b * width, table, rows + starts[b], starts[b + 1] - starts[b], width,
                 to + starts[b]);
    });
  });
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
  const auto* const row = rows.const_data_ptr<int64_t>();
  const uint64_t largest = check_rows_in_range(row, rows.numel(), INT64_MAX, "rows");
  const auto positions = [] { return [](int64_t i) { return i; }; };
  std::tuple<Tensor, Tensor> sums;
  by_dtype(FloatingTypes{}, values.scalar_type(), "values", [&]<typename T>() {
    sums = sums_of_equal<T>(row, rows.numel(), largest, values, nullptr, positions);
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "embedding_bag", &embedding_bag);
  TORCH_LSH_IMPL(m, "embedding_bag_backward", &embedding_bag_backward);
  TORCH_LSH_IMPL(m, "embedding_bag_values_backward", &embedding_bag_values_backward);
  TORCH_LSH_IMPL(m, "coalesce_rows", &coalesce_rows);
}

}  // namespace torch_lsh
