// Dense matrix products of the shapes of an active set: one side thousands of rows, the other a batch, the
// third the width of the layer. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// The textbook design (Goto & van de Geijn 2008): a tile of the result stays in registers while its products
// are summed, the right operand is read from panels of two vectors' width that stay in the first-level cache,
// and sums are split into blocks of kBlockDepth so that a block of panels stays in the second. The left
// operand is read in place, an element at a time, whatever its strides: both a matrix and its transpose go
// without a copy. An element of the result is summed in the same order whatever the tile that it falls into,
// so results do not depend on how rows and panels are split over threads.
//
// bfloat16 operands are multiplied in pairs that are neighbours along the depth, summed in float. Where the
// CPU has no such instruction the two halves of a pair are widened in registers, one after the other.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T>
struct Simd {
  static constexpr int64_t kBytes = TORCH_LSH_VECTOR_BYTES > 0 ? TORCH_LSH_VECTOR_BYTES : sizeof(T);
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef T Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kWidth = kBytes / sizeof(T);
};

// How many numbers that follow each other along the depth are multiplied together.
template <typename T>
constexpr int64_t kTogether = sizeof(SumOf<T>) / sizeof(T);

constexpr int64_t kPanelVectors = 2;
constexpr int64_t kBlockDepth = 256;
constexpr int64_t kGroupRows = 4 * TORCH_LSH_TILE_ROWS;  // rows of a transposed operand packed at a time
constexpr int64_t kPackAhead = 16;                       // and asked for so many steps ahead

template <typename T>
constexpr int64_t kPanelWidth = kPanelVectors * Simd<SumOf<T>>::kWidth;

template <typename T>
constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kTogether<T> - 1) / kTogether<T> * kTogether<T>;
}

// sum[r, :] += a[r * a_row] * panel[:], one step along the depth.
template <int64_t Rows, typename T>
inline void add_products(const T* a, int64_t a_row, const T* panel,
                         typename Simd<SumOf<T>>::Vector (&sum)[Rows][kPanelVectors]) {
  using Vector = typename Simd<T>::Vector;
  Vector b[kPanelVectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kPanelVectors; ++v)
    b[v] = *reinterpret_cast<const typename Simd<T>::Unaligned*>(panel + v * Simd<T>::kWidth);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    const Vector scalar = a[r * a_row] - Vector{};
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v) sum[r][v] += scalar * b[v];
  }
}

// The same of a pair of bfloat16 numbers.
template <int64_t Rows>
inline void add_products(const BFloat16* a, int64_t a_row, const BFloat16* panel,
                         Simd<float>::Vector (&sum)[Rows][kPanelVectors]) {
  using Vector = Simd<float>::Vector;
  using Pairs = Simd<uint32_t>::Vector;
  const auto pairs_of_row = [&](int64_t r) {
    uint32_t pair;
    __builtin_memcpy(&pair, a + r * a_row, sizeof(pair));
    return pair - Pairs{};
  };
  const auto pairs_of_panel = [&](int64_t v) {
    return load_vector<Pairs>(panel + v * kTogether<BFloat16> * Simd<float>::kWidth);
  };
#ifdef TORCH_LSH_BF16_DOT
  __m512bh b[kPanelVectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kPanelVectors; ++v) b[v] = (__m512bh)pairs_of_panel(v);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    const auto scalars = (__m512bh)pairs_of_row(r);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      sum[r][v] = (Vector)_mm512_dpbf16_ps((__m512)sum[r][v], scalars, b[v]);
  }
#else
  const auto add_half = [&](const auto& widened) {
    Vector b[kPanelVectors];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v) b[v] = (Vector)widened(pairs_of_panel(v));
#pragma GCC unroll 16
    for (int64_t r = 0; r < Rows; ++r) {
      const auto scalar = (Vector)widened(pairs_of_row(r));
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanelVectors; ++v) sum[r][v] += scalar * b[v];
    }
  };
  add_half([&](Pairs pairs) { return pairs << 16; });
  add_half([&](Pairs pairs) { return pairs & 0xffff0000u; });
#endif
}

// out[r, :] of Rows rows and a panel's width: bias (null: zeros) plus the products of some steps along the
// depth, or what is there plus them. Steps of the left operand are a_step apart.
template <int64_t Rows, typename T>
inline void product_tile(const T* a, int64_t a_row, int64_t a_step, int64_t steps, const T* panel,
                         const SumOf<T>* bias, bool first, SumOf<T>* out, int64_t stride) {
  using Vector = typename Simd<SumOf<T>>::Vector;
  using Unaligned = typename Simd<SumOf<T>>::Unaligned;
  constexpr int64_t kWidth = Simd<SumOf<T>>::kWidth;
  Vector sum[Rows][kPanelVectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      sum[r][v] = first ? (bias == nullptr ? SumOf<T>(0) : bias[r]) - Vector{}
                        : *reinterpret_cast<const Unaligned*>(out + r * stride + v * kWidth);
  for (int64_t k = 0; k < steps; ++k)
    add_products<Rows>(a + k * a_step, a_row, panel + k * kTogether<T> * kPanelWidth<T>, sum);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      *reinterpret_cast<Unaligned*>(out + r * stride + v * kWidth) = sum[r][v];
}

// The same where fewer columns are wanted than a panel has.
template <int64_t Rows, typename T>
inline void product_edge(const T* a, int64_t a_row, int64_t a_step, int64_t steps, const T* panel,
                         const SumOf<T>* bias, bool first, SumOf<T>* out, int64_t stride, int64_t columns) {
  SumOf<T> tile[Rows * kPanelWidth<T>];
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < kPanelWidth<T>; ++c)
      tile[r * kPanelWidth<T> + c] = c < columns ? out[r * stride + c] : 0;
  product_tile<Rows>(a, a_row, a_step, steps, panel, bias, first, tile, kPanelWidth<T>);
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = tile[r * kPanelWidth<T> + c];
}

// Rows rows of the result in all panels, for one block of the depth.
template <int64_t Rows, typename T>
inline void product_rows(const T* a, int64_t a_row, int64_t a_step, int64_t steps, const T* panels,
                         int64_t panel_size, int64_t columns, const SumOf<T>* bias, bool first, SumOf<T>* out,
                         int64_t stride) {
  for (int64_t c = 0; c < columns; c += kPanelWidth<T>, panels += panel_size) {
    if (c + kPanelWidth<T> <= columns) {
      product_tile<Rows>(a, a_row, a_step, steps, panels, bias, first, out + c, stride);
    } else {
      product_edge<Rows>(a, a_row, a_step, steps, panels, bias, first, out + c, stride, columns - c);
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

// to[i, j] = from[i * across + j * along] for `count` numbers of a step, and zeros for j >= present.
template <typename T>
inline void pack_step(const T* __restrict from, int64_t across, int64_t along, int64_t present, int64_t count,
                      T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * across];
}
inline void pack_step(const BFloat16* __restrict from, int64_t across, int64_t along, int64_t present,
                      int64_t count, BFloat16* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t high = present > 1 ? from[i * across + along].bits : 0;
    const uint32_t pair = from[i * across].bits | high << 16;
    __builtin_memcpy(to + 2 * i, &pair, sizeof(pair));
  }
}

// A group of rows of a transposed operand, whose elements would else be far apart and often in the same cache
// set: the tile that begins at row r is [steps, rows of the tile] from packed + r * padded block.
template <typename T>
inline void pack_left(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t block, T* packed) {
  for (int64_t k = 0; k < block; k += kTogether<T>) {
    const T* const from = a + k * a_col;
    for (int64_t ahead = kPackAhead; ahead < kPackAhead + kTogether<T>; ++ahead)
      for (int64_t r = 0; r < rows; r += 64 / sizeof(T)) __builtin_prefetch(from + ahead * a_col + r * a_row);
    for_tiles(rows, [&]<int64_t Rows>(int64_t r) {
      T* const to = packed + r * padded_depth<T>(block) + k * Rows;
      if (a_row == 1 && k + kTogether<T> <= block) {
        pack_step(from + r, 1, a_col, kTogether<T>, Rows, to);
      } else {
        pack_step(from + r * a_row, a_row, a_col, block - k, Rows, to);
      }
    });
  }
}

// out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n] for `rows` rows and the columns of
// `panels`, which pack_panel made of b; out has the given stride between rows. bias may be null. If `add`,
// the sums go on top of what is there, without a bias.
template <typename T>
void product(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth, const T* panels,
             int64_t columns, const SumOf<T>* bias, bool add, SumOf<T>* out, int64_t stride) {
  T packed[kGroupRows * kBlockDepth];
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += kBlockDepth) {
    const int64_t block = depth - begin < kBlockDepth ? depth - begin : kBlockDepth;
    const int64_t padded = padded_depth<T>(block);
    const bool in_place = a_col == 1 && padded == block;
    for (int64_t group = 0; group < rows; group += kGroupRows) {
      const int64_t of_group = rows - group < kGroupRows ? rows - group : kGroupRows;
      const T* const left = a + group * a_row + begin * a_col;
      if (!in_place) pack_left(left, a_row, a_col, of_group, block, packed);
      for_tiles(of_group, [&]<int64_t Rows>(int64_t r) {
        const int64_t row = group + r;
        product_rows<Rows>(in_place ? left + r * a_row : packed + r * padded, in_place ? a_row : kTogether<T>,
                           (in_place ? 1 : Rows) * kTogether<T>, padded / kTogether<T>,
                           panels + begin * kPanelWidth<T>, padded_depth<T>(depth) * kPanelWidth<T>, columns,
                           bias == nullptr ? nullptr : bias + row, begin == 0 && !add, out + row * stride,
                           stride);
      });
    }
  }
}

// Rows `begin` (even) to `end` - 1 of one panel of b[k, n] = b[k * b_row + n * b_col], with zeros beyond the
// last column and the last row. The panels, each [steps, panel width], stand one behind the other.
template <typename T>
void pack_panel(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns, int64_t number,
                int64_t begin, int64_t end, T* panels) {
  T* panel = panels + number * padded_depth<T>(depth) * kPanelWidth<T>;
  const int64_t first = number * kPanelWidth<T>;
  const int64_t width = columns - first < kPanelWidth<T> ? columns - first : kPanelWidth<T>;
  for (int64_t k = begin; k < end; k += kTogether<T>) {
    const T* const from = b + k * b_row + first * b_col;
    T* const to = panel + k * kPanelWidth<T>;
    if (width == kPanelWidth<T> && b_col == 1 && k + kTogether<T> <= depth) {
      pack_step(from, 1, b_row, kTogether<T>, kPanelWidth<T>, to);
    } else {
      pack_step(from, b_col, b_row, depth - k, width, to);
      for (int64_t i = width * kTogether<T>; i < kPanelWidth<T> * kTogether<T>; ++i) to[i] = T{};
    }
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
