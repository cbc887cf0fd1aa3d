// Weighted sums of scattered rows. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// The sums of a block of columns stay in registers while the rows stream by. Every column is summed in the
// order of the rows, so results do not depend on blocks or threads.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Half of the registers.
constexpr int64_t kSumVectors = TORCH_LSH_TILE_ROWS >= 12 ? 16 : 8;

// Prefetch distance of rows, across run boundaries. Measured: twice that of gathers.
constexpr int64_t kSumAhead = 16;

// Prefetch distance of results: with short runs, stores would wait for their cache lines.
constexpr int64_t kOutAhead = 8;

// Prefetches every other cache line; hardware fetches the neighbour. Prefetching all was up to 10 % slower on
// a busy memory bus.
inline void prefetch_pairs(const void* memory, int64_t size) {
  for (int64_t offset = 0; offset < size; offset += 128)
    __builtin_prefetch(static_cast<const char*>(memory) + offset);
}

template <typename T, typename Sum>
inline Sum weight_of(const T* values, int64_t i) {
  return values == nullptr ? Sum{1} : static_cast<Sum>(to_float(values[i]));
}

// Sums Vectors vectors of columns, starting at `table` and `out`. Prefetches up to rows[follow - 1].
template <int64_t Vectors, typename T, typename Sum>
inline void sum_columns(const T* table, const int64_t* rows, const T* values, int64_t count, int64_t follow,
                        int64_t width, T* out) {
  constexpr int64_t kColumns = Vectors * kLanes<Sum>;
  Vector<Sum> sum[Vectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    if (i + kSumAhead < follow)
      prefetch_pairs(table + rows[i + kSumAhead] * width, kColumns * static_cast<int64_t>(sizeof(T)));
    const T* const row = table + rows[i] * width;
    const Vector<Sum> value = weight_of<T, Sum>(values, i) - Vector<Sum>{};
#pragma GCC unroll 16
    for (int64_t v = 0; v < Vectors; ++v) sum[v] += value * load_as<Sum>(row + v * kLanes<Sum>);
  }
  if constexpr (__is_same(T, Sum)) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < Vectors; ++v) __builtin_memcpy(out + v * kLanes<Sum>, sum + v, sizeof(sum[v]));
  } else {
    Sum sums[kColumns];
    __builtin_memcpy(sums, sum, sizeof(sums));
    for (int64_t j = 0; j < kColumns; ++j) store(sums[j], out + j);
  }
}

// Sums the columns from `begin` on, in blocks of Vectors vectors, then of fewer. The last vector is shifted
// back to end with the row, and overlaps columns already summed.
template <int64_t Vectors, typename T, typename Sum>
inline void sum_blocks(const T* table, const int64_t* rows, const T* values, int64_t count, int64_t follow,
                       int64_t width, int64_t begin, T* out) {
  constexpr int64_t kColumns = Vectors * kLanes<Sum>;
  for (; begin + kColumns <= width; begin += kColumns)
    sum_columns<Vectors, T, Sum>(table + begin, rows, values, count, follow, width, out + begin);
  if (begin == width) return;
  if constexpr (Vectors > 1) {
    sum_blocks<Vectors / 2, T, Sum>(table, rows, values, count, follow, width, begin, out);
  } else {
    begin = width - kColumns;
    sum_columns<1, T, Sum>(table + begin, rows, values, count, follow, width, out + begin);
  }
}

// Rows shorter than a vector.
template <typename T, typename Sum>
inline void sum_short_rows(const T* table, const int64_t* rows, const T* values, int64_t count,
                           int64_t follow, int64_t width, T* out) {
  Sum sum[kLanes<Sum>] = {};
  for (int64_t i = 0; i < count; ++i) {
    if (i + kSumAhead < follow) __builtin_prefetch(table + rows[i + kSumAhead] * width);
    const T* const row = table + rows[i] * width;
    const Sum value = weight_of<T, Sum>(values, i);
    for (int64_t j = 0; j < width; ++j) sum[j] += value * static_cast<Sum>(to_float(row[j]));
  }
  for (int64_t j = 0; j < width; ++j) store(sum[j], out + j);
}

template <typename T>
void weighted_sums(const T* table, const int64_t* start, int64_t runs, const int64_t* rows, const T* values,
                   int64_t width, T* out) {
  using Sum = SumOf<T>;
  for (int64_t s = 0; s < runs; ++s) {
    if (s + kOutAhead < runs) prefetch_row(out + (s + kOutAhead) * width, width);
    const int64_t* const run = rows + start[s];
    const T* const weights = values == nullptr ? nullptr : values + start[s];
    const int64_t count = start[s + 1] - start[s], follow = start[runs] - start[s];
    if (width < kLanes<Sum>) {
      sum_short_rows<T, Sum>(table, run, weights, count, follow, width, out + s * width);
    } else {
      sum_blocks<kSumVectors, T, Sum>(table, run, weights, count, follow, width, 0, out + s * width);
    }
  }
}

template <typename T>
constexpr void fill(EmbeddingBagKernels<T>& table) {
  table = {.weighted_sums = weighted_sums<T>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
