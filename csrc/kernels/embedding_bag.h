// Weighted sums of rows that are far apart in memory. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// out = sum over i of values[i] * table[rows[i], :], accumulated in Sum; values may be null, which stands for
// ones.
template <typename T, typename Sum>
void weighted_sum(const T* table, const int64_t* rows, const T* values, int64_t count, int64_t width,
                  T* out) {
  constexpr int64_t kColumns = 512;  // sums that stay in the first-level cache
  Sum sum[kColumns];
  for (int64_t start = 0; start < width; start += kColumns) {
    const int64_t columns = width - start < kColumns ? width - start : kColumns;
    for (int64_t j = 0; j < columns; ++j) sum[j] = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (i + kPrefetchRows < count) prefetch_row(table + rows[i + kPrefetchRows] * width + start, columns);
      const T* __restrict row = table + rows[i] * width + start;
      const Sum value = values == nullptr ? Sum{1} : static_cast<Sum>(to_float(values[i]));
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) sum[j] += value * static_cast<Sum>(to_float(row[j]));
    }
    for (int64_t j = 0; j < columns; ++j) store(sum[j], out + start + j);
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
