// Products and sums of rows. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Four independent accumulators hide the latency of the additions.
template <typename T, typename Sum = SumOf<T>>
inline Sum dot(const T* a, const T* b, int64_t width) {
  constexpr int64_t kSums = 4, kVector = kLanes<Sum>;
  Vector<Sum> sum[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kVector <= width; i += kSums * kVector)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kSums; ++v)
      sum[v] += load_as<Sum>(a + i + v * kVector) * load_as<Sum>(b + i + v * kVector);
  for (; i + kVector <= width; i += kVector) sum[0] += load_as<Sum>(a + i) * load_as<Sum>(b + i);
  sum[0] += sum[1] + (sum[2] + sum[3]);
  Sum total = sum_lanes(sum[0]);
  for (; i < width; ++i) total += static_cast<Sum>(to_float(a[i])) * static_cast<Sum>(to_float(b[i]));
  return total;
}

#ifdef TORCH_LSH_ARM_BF16
inline float dot(const BFloat16* a, const BFloat16* b, int64_t width) {
  constexpr int64_t kSums = 4, kVector = kLanes<BFloat16>;
  Vector<float> sum[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kVector <= width; i += kSums * kVector)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kSums; ++v)
      sum[v] =
          add_pairs(sum[v], load_vector<Pairs>(a + i + v * kVector), load_vector<Pairs>(b + i + v * kVector));
  for (; i + kVector <= width; i += kVector)
    sum[0] = add_pairs(sum[0], load_vector<Pairs>(a + i), load_vector<Pairs>(b + i));
  if (i < width)
    sum[1] = add_pairs(sum[1], load_first_pairs(a + i, width - i), load_first_pairs(b + i, width - i));
  return sum_lanes(sum[0] + sum[1] + (sum[2] + sum[3]));
}
#endif

// out[i] = x · table[rows[i], :], 0 where rows[i] is negative.
template <typename T>
void dot_rows(const T* x, const T* table, const int64_t* rows, int64_t count, int64_t width, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count && rows[i + kPrefetchRows] >= 0)
      prefetch_row(table + rows[i + kPrefetchRows] * width, width);
    store(rows[i] < 0 ? SumOf<T>{0} : dot(x, table + rows[i] * width, width), out + i);
  }
}

template <typename T>
void add_row(const T* row, SumOf<T> factor, int64_t width, SumOf<T>* out) {
  using Sum = SumOf<T>;
  constexpr int64_t kVector = kLanes<Sum>;
  int64_t i = 0;
  for (; i + kVector <= width; i += kVector) {
    const Vector<Sum> sum = load_as<Sum>(out + i) + factor * load_as<Sum>(row + i);
    __builtin_memcpy(out + i, &sum, sizeof(sum));
  }
  for (; i < width; ++i) out[i] += factor * static_cast<Sum>(to_float(row[i]));
}

template <typename T>
constexpr void fill(DotKernels<T>& table) {
  table = {.dot_rows = dot_rows<T>, .dot = dot, .add_row = add_row<T>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
