// Weighted sums of rows that are far apart in memory. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
//
// Sums of a block of columns stay in registers while the rows go by. A column is summed in the order of the
// rows whatever its block, so results depend neither on blocks nor on how runs are split over threads.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Half of the registers hold sums.
constexpr int64_t kSumVectors = TORCH_LSH_TILE_ROWS >= 12 ? 16 : 8;

// A row is asked for this many rows before it is added, across the ends of runs: by measurement, twice as
// early as where rows are copied.
constexpr int64_t kSumAhead = 16;

// A result is asked for this many results ahead: where runs are short, stores wait for the lines that they
// change.
constexpr int64_t kOutAhead = 8;

// Asks for `size` bytes, one of two cache lines. Asking for every line was slower, by a tenth where memory
// was busy.
inline void prefetch_pairs(const void* memory, int64_t size) {
  for (int64_t offset = 0; offset < size; offset += 128)
    __builtin_prefetch(static_cast<const char*>(memory) + offset);
}

template <typename T, typename Sum>
inline Sum weight_of(const T* values, int64_t i) {
  return values == nullptr ? Sum{1} : static_cast<Sum>(to_float(values[i]));
}

// out = the sums of Vectors vectors of columns, of which `table` and `out` point to the first. Rows up to
// rows[follow - 1] can be read ahead.
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

// The columns from `begin` on, in blocks of Vectors vectors and then of fewer. The last vector is moved back
// to end with the row, over columns that have been summed already.
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

// Rows that are shorter than a vector.
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

// out[s, :] = sum over i from start[s] to start[s + 1] - 1 of values[i] * table[rows[i], :] for s < runs,
// null values stand for ones.
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
