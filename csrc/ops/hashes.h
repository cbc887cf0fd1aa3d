// What the operators that compute hash codes have in common.
#pragma once

#include "checks.h"

namespace torch_lsh {

constexpr int64_t kMaxCodeBits = 30;  // so that codes are never negative

// Other bins that an empty one asks in turn; with half of the bins empty, all fail with probability 2^-100.
constexpr int64_t kBorrowAttempts = 100;

// The number of tables, after checking that the parameters of hashes of `bits` bits make whole tables.
inline int64_t count_tables(const Tensor& parameters, const char* name, int64_t dim, int64_t hashes_per_table,
                            int64_t bits) {
  TORCH_LSH_CHECK(hashes_per_table >= 1 && hashes_per_table * bits <= kMaxCodeBits, "hashes_per_table is ",
                  hashes_per_table, "; wanted 1 to ", kMaxCodeBits / bits);
  TORCH_LSH_CHECK(parameters.size(dim) % hashes_per_table == 0, name, " has shape ", shape_of(parameters),
                  "; wanted a multiple of hashes_per_table = ", hashes_per_table, " in dimension ", dim);
  return parameters.size(dim) / hashes_per_table;
}

inline void check_csr(const Tensor& crow, const Tensor& col, const Tensor& values, int64_t in_features) {
  check_operand(crow, "crow", 1, ScalarType::Long);
  check_operand(col, "col", 1, ScalarType::Long);
  check_operand(values, "values", 1, ScalarType::Float);
  check_size(values, "values", 0, col.size(0));
  TORCH_LSH_CHECK(crow.size(0) >= 1, "crow is empty; wanted one entry more than rows");
  const auto* offset = crow.const_data_ptr<int64_t>();
  const int64_t rows = crow.size(0) - 1;
  TORCH_LSH_CHECK(offset[0] == 0 && offset[rows] == col.size(0), "crow runs from ", offset[0], " to ",
                  offset[rows], "; wanted 0 to ", col.size(0));
  for (int64_t i = 0; i < rows; ++i)
    TORCH_LSH_CHECK(offset[i] <= offset[i + 1], "crow decreases after entry ", i);
  check_rows_in_range(col.const_data_ptr<int64_t>(), col.size(0), in_features, "col");
}

}  // namespace torch_lsh
