// Shared by the operators that compute hash codes.
#pragma once

#include "checks.h"

namespace torch_lsh {

constexpr int64_t kMaxCodeBits = 30;  // keeps codes non-negative

// Returns the number of tables; checks that the parameters fill whole tables of hashes of `bits` bits.
inline int64_t count_tables(const Tensor& parameters, const char* name, int64_t dim, int64_t hashes_per_table,
                            int64_t bits) {
  TORCH_LSH_CHECK(hashes_per_table >= 1 && hashes_per_table <= kMaxCodeBits / bits, "hashes_per_table is ",
                  hashes_per_table, "; wanted 1 to ", kMaxCodeBits / bits);
  TORCH_LSH_CHECK(parameters.size(dim) % hashes_per_table == 0, name, " has shape ", shape_of(parameters),
                  "; wanted a multiple of hashes_per_table = ", hashes_per_table, " in dimension ", dim);
  return parameters.size(dim) / hashes_per_table;
}

// Operators, for use by other operators. query_vectors: of the rows first, first + every, ... of x.
Tensor query_vectors(const Tensor& x, int64_t zeros, int64_t first, int64_t every);
Tensor simhash_codes(const Tensor& x, const Tensor& projections, int64_t hashes_per_table);

}  // namespace torch_lsh
