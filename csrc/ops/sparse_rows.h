// Checked compressed sparse matrices, as several operators take them.
#pragma once

#include <cstdint>

#include "checks.h"
#include "ops/gathered_product.h"

namespace torch_lsh {

// Runs of indices with values; the values may be missing.
struct SparseRows {
  const int64_t* start;
  const int32_t* index;
  const float* value;
  int64_t rows;

  int64_t count(int64_t row) const { return start[row + 1] - start[row]; }

  // Of rows that have values.
  void prefetch(int64_t row) const {
    constexpr int64_t kPerLine = 16;
    for (int64_t at = start[row]; at < start[row + 1]; at += kPerLine) {
      __builtin_prefetch(index + at);
      __builtin_prefetch(value + at);
    }
  }
};

inline SparseRows check_sparse_rows(const Tensor& start, const char* start_name, const Tensor& index,
                                    const char* index_name, const Tensor* value, const char* value_name,
                                    int64_t num_columns) {
  check_operand(index, index_name, 1, ScalarType::Int);
  const int64_t count = check_offsets(start, start_name, index.numel());
  SparseRows rows{start.const_data_ptr<int64_t>(), index.const_data_ptr<int32_t>(), nullptr, count};
  if (!all_below(rows.index, index.numel(), num_columns))
    for (int64_t i = 0; i < index.numel(); ++i)
      TORCH_LSH_CHECK(rows.index[i] >= 0 && rows.index[i] < num_columns, index_name, "[", i, "] is ",
                      rows.index[i], "; wanted 0 to ", num_columns - 1);
  if (value != nullptr) {
    check_operand(*value, value_name, 1, ScalarType::Float);
    check_size(*value, value_name, 0, index.numel());
    rows.value = value->const_data_ptr<float>();
  }
  return rows;
}

}  // namespace torch_lsh
