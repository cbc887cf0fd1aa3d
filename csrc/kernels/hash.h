// Hash codes of rows. Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// A tile of products is kept in registers: 4 rows x 32 columns fill 8 of AVX-512's 32 registers, 16 of
// AVX2's.
constexpr int64_t kTileRows = 4, kTileColumns = 32;

// out[r, c] = x[r, :] · projections[:, c] for `columns` <= kTileColumns columns. Every product is summed in
// the order of the features, whatever the tile, so the code of a row does not depend on the rows around it.
template <int64_t Rows>
inline void project_tile(const float* __restrict x, int64_t width, const float* __restrict projections,
                         int64_t stride, int64_t columns, float* __restrict out) {
  float sum[Rows][kTileColumns] = {};
  if (columns == kTileColumns) {
    for (int64_t i = 0; i < width; ++i)
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r)
#pragma omp simd
        for (int64_t c = 0; c < kTileColumns; ++c)
          sum[r][c] += x[r * width + i] * projections[i * stride + c];
  } else {
    for (int64_t i = 0; i < width; ++i)
      for (int64_t r = 0; r < Rows; ++r)
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c) sum[r][c] += x[r * width + i] * projections[i * stride + c];
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = sum[r][c];
}

// Bit k of the code of table t is the sign of product t * bits + k: 1 where positive, so 0 for zero and NaN.
inline void pack_signs(const float* products, int64_t num_tables, int64_t bits, int32_t* codes) {
  for (int64_t t = 0; t < num_tables; ++t) {
    uint32_t code = 0;
    for (int64_t k = 0; k < bits; ++k) code |= static_cast<uint32_t>(products[t * bits + k] > 0) << k;
    codes[t] = static_cast<int32_t>(code);
  }
}

// products[count, columns] = x · projections.
inline void project(const float* x, int64_t count, int64_t width, const float* projections, int64_t columns,
                    float* products) {
  for (int64_t begin = 0; begin < count; begin += kTileRows) {
    const int64_t height = count - begin < kTileRows ? count - begin : kTileRows;
    const float* const rows = x + begin * width;
    float* const out = products + begin * columns;
    for (int64_t c = 0; c < columns; c += kTileColumns) {
      const int64_t some = columns - c < kTileColumns ? columns - c : kTileColumns;
      if (height == kTileRows) {
        project_tile<kTileRows>(rows, width, projections + c, columns, some, out + c);
      } else {
        for (int64_t r = 0; r < height; ++r)
          project_tile<1>(rows + r * width, width, projections + c, columns, some, out + c + r * columns);
      }
    }
  }
}

// scratch: kTileRows * (width + num_tables * bits) floats.
template <typename T>
void simhash(const T* x, int64_t count, int64_t width, const float* projections, int64_t num_tables,
             int64_t bits, float* scratch, int32_t* codes) {
  const int64_t columns = num_tables * bits;
  float* const rows = scratch;
  float* const products = scratch + kTileRows * width;
  for (int64_t begin = 0; begin < count; begin += kTileRows) {
    const int64_t height = count - begin < kTileRows ? count - begin : kTileRows;
    convert(x + begin * width, height * width, rows);
    project(rows, height, width, projections, columns, products);
    for (int64_t r = 0; r < height; ++r)
      pack_signs(products + r * columns, num_tables, bits, codes + (begin + r) * num_tables);
  }
}

// One sparse row. scratch: num_tables * bits floats. The same sums as for a dense row with the same nonzeros.
inline void simhash_sparse(const int64_t* columns, const float* values, int64_t count,
                           const float* projections, int64_t num_tables, int64_t bits,
                           float* __restrict scratch, int32_t* codes) {
  const int64_t stride = num_tables * bits;
  for (int64_t c = 0; c < stride; ++c) scratch[c] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float* __restrict projection = projections + columns[i] * stride;
    const float value = values[i];
#pragma omp simd
    for (int64_t c = 0; c < stride; ++c) scratch[c] += value * projection[c];
  }
  pack_signs(scratch, num_tables, bits, codes);
}

// out[i] = in how many bits codes[ids[i], :] differ from those of `query`.
inline void hamming(const int32_t* __restrict query, const int32_t* __restrict codes,
                    const int32_t* __restrict ids, int64_t count, int64_t num_tables,
                    int32_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + 2 * kPrefetchRows < count)
      prefetch_row(codes + ids[i + 2 * kPrefetchRows] * num_tables, num_tables);
    const int32_t* row = codes + ids[i] * num_tables;
    int32_t distance =
        num_tables % 2
            ? __builtin_popcount(static_cast<uint32_t>(query[num_tables - 1] ^ row[num_tables - 1]))
            : 0;
    for (int64_t t = 0; t + 1 < num_tables; t += 2) {
      uint64_t a, b;  // two codes at a time
      __builtin_memcpy(&a, query + t, sizeof(a));
      __builtin_memcpy(&b, row + t, sizeof(b));
      distance += __builtin_popcountll(a ^ b);
    }
    out[i] = distance;
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
