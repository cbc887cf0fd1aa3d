// Dense matrix products of the shapes of an active set: one side thousands of rows, the other a batch, the
// third the width of the layer. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// The textbook design (Goto & van de Geijn 2008): a tile of the result stays in registers while its products
// are summed, the right operand is read from panels of two vectors' width that stay in the first-level cache,
// and sums are split into blocks of kBlockDepth so that a block of panels stays in the second. The left
// operand is read in place, an element at a time, whatever its strides: both a matrix and its transpose go
// without a copy. An element of the result is summed in the same order whatever the tile that it falls into,
// so results do not depend on how rows and panels are split over threads.
#pragma once

#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T>
struct Simd {
  static constexpr int64_t kBytes = TORCH_LSH_VECTOR_BYTES > 0 ? TORCH_LSH_VECTOR_BYTES : sizeof(T);
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef T Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kWidth = kBytes / sizeof(T);
};

constexpr int64_t kPanelVectors = 2;
constexpr int64_t kBlockDepth = 256;
constexpr int64_t kGroupRows = 4 * TORCH_LSH_TILE_ROWS;  // rows of a transposed operand packed at a time
constexpr int64_t kPackAhead = 16;                       // and asked for so many steps ahead

template <typename T>
constexpr int64_t kPanelWidth = kPanelVectors * Simd<T>::kWidth;

// out[r, :] of Rows rows and a panel's width: bias (null: zeros) plus the products, or what is there plus
// them.
template <int64_t Rows, typename T>
inline void product_tile(const T* a, int64_t a_row, int64_t a_col, int64_t depth, const T* panel,
                         const T* bias, bool first, T* out, int64_t stride) {
  using Vector = typename Simd<T>::Vector;
  using Unaligned = typename Simd<T>::Unaligned;
  constexpr int64_t kWidth = Simd<T>::kWidth;
  Vector sum[Rows][kPanelVectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      sum[r][v] = first ? (bias == nullptr ? T(0) : bias[r]) - Vector{}
                        : *reinterpret_cast<const Unaligned*>(out + r * stride + v * kWidth);
  for (int64_t k = 0; k < depth; ++k) {
    Vector b[kPanelVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      b[v] = *reinterpret_cast<const Unaligned*>(panel + (k * kPanelVectors + v) * kWidth);
#pragma GCC unroll 16
    for (int64_t r = 0; r < Rows; ++r) {
      const Vector scalar = a[r * a_row + k * a_col] - Vector{};
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanelVectors; ++v) sum[r][v] += scalar * b[v];
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      *reinterpret_cast<Unaligned*>(out + r * stride + v * kWidth) = sum[r][v];
}

// The same where fewer columns are wanted than a panel has.
template <int64_t Rows, typename T>
inline void product_edge(const T* a, int64_t a_row, int64_t a_col, int64_t depth, const T* panel,
                         const T* bias, bool first, T* out, int64_t stride, int64_t columns) {
  T tile[Rows * kPanelWidth<T>];
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < kPanelWidth<T>; ++c)
      tile[r * kPanelWidth<T> + c] = c < columns ? out[r * stride + c] : 0;
  product_tile<Rows>(a, a_row, a_col, depth, panel, bias, first, tile, kPanelWidth<T>);
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = tile[r * kPanelWidth<T> + c];
}

// Rows rows of the result in all panels, for one block of the depth.
template <int64_t Rows, typename T>
inline void product_rows(const T* a, int64_t a_row, int64_t a_col, int64_t block, const T* panels,
                         int64_t panel_size, int64_t columns, const T* bias, bool first, T* out,
                         int64_t stride) {
  for (int64_t c = 0; c < columns; c += kPanelWidth<T>, panels += panel_size) {
    if (c + kPanelWidth<T> <= columns) {
      product_tile<Rows>(a, a_row, a_col, block, panels, bias, first, out + c, stride);
    } else {
      product_edge<Rows>(a, a_row, a_col, block, panels, bias, first, out + c, stride, columns - c);
    }
  }
}

// Calls run(first row, constant number of rows) for the tiles that `rows` rows are made of. Four rows are
// enough to hide the latency of the sums.
template <typename Run>
inline void for_tiles(int64_t rows, const Run& run) {
  int64_t r = 0;
  for (; r + TORCH_LSH_TILE_ROWS <= rows; r += TORCH_LSH_TILE_ROWS)
    run.template operator()<TORCH_LSH_TILE_ROWS>(r);
  for (; r + 4 <= rows; r += 4) run.template operator()<4>(r);
  for (; r < rows; ++r) run.template operator()<1>(r);
}

// A group of rows of a transposed operand, whose elements would else be far apart and often in the same cache
// set: the tile that begins at row r is [block, rows of the tile] from packed + r * block.
template <typename T>
inline void pack_left(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t block, T* packed) {
  for (int64_t k = 0; k < block; ++k) {
    const T* const from = a + k * a_col;
    for (int64_t r = 0; r < rows; r += 64 / sizeof(T))
      __builtin_prefetch(from + kPackAhead * a_col + r * a_row);
    for_tiles(rows, [&]<int64_t Rows>(int64_t r) {
      T* const to = packed + r * block + k * Rows;
      if (a_row == 1) {
        __builtin_memcpy(to, from + r, sizeof(T) * Rows);
      } else {
        for (int64_t i = 0; i < Rows; ++i) to[i] = from[(r + i) * a_row];
      }
    });
  }
}

// out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n] for `rows` rows and the columns of
// `panels`, which pack_panel made of b; out has the given stride between rows. bias may be null. If `add`,
// the sums go on top of what is there, without a bias.
template <typename T>
void product(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth, const T* panels,
             int64_t columns, const T* bias, bool add, T* out, int64_t stride) {
  T packed[kGroupRows * kBlockDepth];
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += kBlockDepth) {
    const int64_t block = depth - begin < kBlockDepth ? depth - begin : kBlockDepth;
    for (int64_t group = 0; group < rows; group += kGroupRows) {
      const int64_t of_group = rows - group < kGroupRows ? rows - group : kGroupRows;
      const T* const left = a + group * a_row + begin * a_col;
      if (a_col != 1) pack_left(left, a_row, a_col, of_group, block, packed);
      for_tiles(of_group, [&]<int64_t Rows>(int64_t r) {
        const bool in_place = a_col == 1;
        const int64_t row = group + r;
        product_rows<Rows>(in_place ? left + r * a_row : packed + r * block, in_place ? a_row : 1,
                           in_place ? 1 : Rows, block, panels + begin * kPanelWidth<T>,
                           depth * kPanelWidth<T>, columns, bias == nullptr ? nullptr : bias + row,
                           begin == 0 && !add, out + row * stride, stride);
      });
    }
  }
}

// Rows `begin` to `end` - 1 of one panel of b[k, n] = b[k * b_row + n * b_col], with zeros beyond the last
// column. The panels, each [depth, panel width], stand one behind the other.
template <typename T>
void pack_panel(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns, int64_t number,
                int64_t begin, int64_t end, T* panels) {
  T* panel = panels + number * depth * kPanelWidth<T>;
  const int64_t first = number * kPanelWidth<T>;
  const int64_t width = columns - first < kPanelWidth<T> ? columns - first : kPanelWidth<T>;
  for (int64_t k = begin; k < end; ++k) {
    const T* __restrict from = b + k * b_row + first * b_col;
    T* __restrict to = panel + k * kPanelWidth<T>;
    if (width == kPanelWidth<T> && b_col == 1) {
      __builtin_memcpy(to, from, sizeof(T) * kPanelWidth<T>);
    } else {
      for (int64_t c = 0; c < kPanelWidth<T>; ++c) to[c] = c < width ? from[c * b_col] : 0;
    }
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
