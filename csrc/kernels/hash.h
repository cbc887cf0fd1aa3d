// Hash codes of rows. Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"
#include "kernels/product.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// out[r, :] = x[r, :] · projections for Rows rows and Vectors vectors of columns. Every product is summed in
// feature order in any tile, so a row's code does not depend on its neighbours.
template <int64_t Rows, int64_t Vectors>
inline void project_tile(const float* x, int64_t width, const float* projections, int64_t stride,
                         float* out) {
  Vector<float> sum[Rows][Vectors] = {};
  for (int64_t i = 0; i < width; ++i) {
    Vector<float> projection[Vectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < Vectors; ++v)
      projection[v] = load_as<float>(projections + i * stride + v * kLanes<float>);
#pragma GCC unroll 16
    for (int64_t r = 0; r < Rows; ++r) {
      const Vector<float> value = x[r * width + i] - Vector<float>{};
#pragma GCC unroll 2
      for (int64_t v = 0; v < Vectors; ++v) sum[r][v] += value * projection[v];
    }
  }
  for (int64_t r = 0; r < Rows; ++r) __builtin_memcpy(out + r * stride, sum[r], sizeof(sum[r]));
}

// All columns. The last vector is shifted back to end with the row, and overlaps columns already written.
template <int64_t Rows>
inline void project_rows(const float* x, int64_t width, const float* projections, int64_t columns,
                         float* out) {
  constexpr int64_t kVector = kLanes<float>;
  int64_t c = 0;
  for (; c + 2 * kVector <= columns; c += 2 * kVector)
    project_tile<Rows, 2>(x, width, projections + c, columns, out + c);
  for (; c + kVector <= columns; c += kVector)
    project_tile<Rows, 1>(x, width, projections + c, columns, out + c);
  if (c < columns && columns >= kVector) {
    c = columns - kVector;
    return project_tile<Rows, 1>(x, width, projections + c, columns, out + c);
  }
  for (; c < columns; ++c)
    for (int64_t r = 0; r < Rows; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += x[r * width + i] * projections[i * columns + c];
      out[r * columns + c] = sum;
    }
}

// Bit k of table t's code: products[t * bits + k] > 0, so 0 for zero and NaN. Reads kCodeBits products per
// code, a constant number, so past the end of the last code.
inline void pack_signs(const float* products, int64_t num_tables, int64_t bits, int32_t* codes) {
  for (int64_t t = 0; t < num_tables; ++t) {
    uint32_t code = 0;
#pragma omp simd reduction(| : code)
    for (int64_t k = 0; k < kCodeBits; ++k) code |= static_cast<uint32_t>(products[t * bits + k] > 0) << k;
    codes[t] = static_cast<int32_t>(code & ((uint32_t{1} << bits) - 1));
  }
}

inline void project(const float* x, int64_t count, int64_t width, const float* projections, int64_t columns,
                    float* products) {
  for_tiles(count, [&]<int64_t Rows>(int64_t r) {
    project_rows<Rows>(x + r * width, width, projections, columns, products + r * columns);
  });
}

template <typename T>
void simhash(const T* x, int64_t count, int64_t width, const float* projections, int64_t num_tables,
             int64_t bits, float* scratch, int32_t* codes) {
  const int64_t columns = num_tables * bits;
  float* const rows = scratch;
  float* const products = scratch + kHashRows * width;
  for (int64_t begin = 0; begin < count; begin += kHashRows) {
    const int64_t height = count - begin < kHashRows ? count - begin : kHashRows;
    convert(x + begin * width, height * width, rows);
    project(rows, height, width, projections, columns, products);
    for (int64_t r = 0; r < height; ++r)
      pack_signs(products + r * columns, num_tables, bits, codes + (begin + r) * num_tables);
  }
}

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

template <typename T>
constexpr void fill(SimHashKernels<T>& table) {
  table = {.simhash = simhash<T>};
}

constexpr void fill(HashKernels& table) {
  table = {.project = project, .hamming = hamming};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
