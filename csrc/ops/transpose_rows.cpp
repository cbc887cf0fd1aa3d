// transpose_rows: the columns of a sparse matrix that is stored by rows, by counting: two passes over its
// entries.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/sparse_rows.h"

namespace torch_lsh {
namespace {

std::tuple<Tensor, Tensor, Tensor> transpose_rows(const Tensor& row_start, const Tensor& row_columns,
                                                  const Tensor& row_values, int64_t num_columns) {
  TORCH_LSH_CHECK(num_columns >= 0, "num_columns is ", num_columns, "; wanted at least 0");
  const SparseRows rows = check_sparse_rows(row_start, "row_start", row_columns, "row_columns", &row_values,
                                            "row_values", num_columns);
  TORCH_LSH_CHECK(rows.rows <= INT32_MAX, "row_start has ", rows.rows, " rows; wanted at most ", INT32_MAX);
  const int64_t entries = row_columns.numel();
  Tensor column_start = new_tensor({num_columns + 1}, ScalarType::Long);
  Tensor column_rows = new_tensor({entries}, ScalarType::Int);
  Tensor column_values = new_tensor({entries}, ScalarType::Float);
  int64_t* start = column_start.mutable_data_ptr<int64_t>();
  int32_t* row_of = column_rows.mutable_data_ptr<int32_t>();
  float* value_of = column_values.mutable_data_ptr<float>();
  std::fill(start, start + num_columns + 1, 0);
  for (int64_t at = 0; at < entries; ++at) ++start[rows.index[at] + 1];
  for (int64_t column = 0; column < num_columns; ++column) start[column + 1] += start[column];
  std::vector<int64_t> next(start, start + num_columns);
  for (int64_t row = 0; row < rows.rows; ++row)
    for (int64_t at = rows.start[row]; at < rows.start[row + 1]; ++at) {
      const int64_t to = next[rows.index[at]]++;
      row_of[to] = static_cast<int32_t>(row);
      value_of[to] = rows.value[at];
    }
  return {column_start, column_rows, column_values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "transpose_rows", &transpose_rows);
}

}  // namespace torch_lsh
