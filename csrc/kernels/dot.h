// Dot products with rows that are far apart in memory. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T, typename Sum>
inline Sum dot(const T* __restrict a, const T* __restrict b, int64_t width) {
  Sum sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i)
    sum += static_cast<Sum>(to_float(a[i])) * static_cast<Sum>(to_float(b[i]));
  return sum;
}

// out[i] = x · table[rows[i], :] in Sum precision, 0 where rows[i] is negative.
template <typename T, typename Sum>
void dot_rows(const T* x, const T* table, const int64_t* rows, int64_t count, int64_t width, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count && rows[i + kPrefetchRows] >= 0)
      prefetch_row(table + rows[i + kPrefetchRows] * width, width);
    store(rows[i] < 0 ? Sum{0} : dot<T, Sum>(x, table + rows[i] * width, width), out + i);
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
