// What the operators that change a partition of rows and those that search it have in common; the layout is
// told in partition.cpp.
#pragma once

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {

// The first block of a bucket's chain (-1: none), and how many rows are in it.
struct Head {
  int32_t block, rows;
};

inline void check_partition_shapes(const Tensor& codes, const Tensor& factors, const Tensor& ids,
                                   const Tensor& next, const Tensor& heads) {
  check_operand(codes, "codes", 3, ScalarType::Byte);
  check_operand(factors, "factors", 3, ScalarType::BFloat16);
  check_operand(ids, "ids", 2, ScalarType::Int);
  check_operand(next, "next", 1, ScalarType::Int);
  check_operand(heads, "heads", 2, ScalarType::Int);
  const int64_t blocks = codes.size(0);
  check_size(codes, "codes", 2, kSketchRows);
  check_size(factors, "factors", 0, blocks);
  check_size(factors, "factors", 1, 2);
  check_size(factors, "factors", 2, kSketchRows);
  check_size(ids, "ids", 0, blocks);
  check_size(ids, "ids", 1, kSketchRows);
  check_size(next, "next", 0, blocks);
  check_size(heads, "heads", 1, 2);
  TORCH_LSH_CHECK(blocks <= INT32_MAX / kSketchRows, "codes has shape ", shape_of(codes), "; wanted at most ",
                  INT32_MAX / kSketchRows, " blocks");
  TORCH_LSH_CHECK(heads.size(0) >= 2, "heads has shape ", shape_of(heads), "; wanted at least one bucket");
}

}  // namespace torch_lsh
