// Dense matrix products of an active set's shapes: thousands of rows, a batch, and the width of the layer.
// Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// GotoBLAS design (Goto & van de Geijn 2008): a tile of the result stays in registers; the right operand is
// packed into panels two vectors wide, which stay in L1; depth is split into blocks of kBlockDepth, so that a
// block of panels stays in L2. Left operands are read in place, unless numbers of a row are far apart: then
// they are packed in groups of rows. Every element is summed in the same order in any tile, so results do not
// depend on how rows and panels are split over threads.
//
// bfloat16 operands are multiplied in pairs adjacent along the depth. Without such an instruction there are
// no kernels for them: operators convert to float.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"
#include "kernels/row_prefetch.h"
#include "kernels/transpose.h"
#include "kernels/tuning.h"
#include "kernels/vectors.h"

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
constexpr int64_t kGroupRows = 4 * TORCH_LSH_TILE_ROWS;  // left rows packed at a time
constexpr int64_t kPackAhead = 16;                       // their prefetch distance, in depth
// Largest distance of numbers of a left row that is read in place, in bytes: a block of the depth stays in
// L2, on few pages.
constexpr int64_t kNearBytes = 1 << 10;

template <typename T>
constexpr int64_t kPanelWidth = kPanelVectors * Simd<SumOf<T>>::kWidth;

// Numbers of type P, adjacent along the depth, that one multiplication takes: a step.
template <typename P>
constexpr int64_t kTogether = sizeof(SumOf<P>) / sizeof(P);

// sum[r, :] += a[r * a_row] * panel[:], one step.
template <int64_t Rows, typename P>
inline void add_products(const P* a, int64_t a_row, const P* panel,
                         typename Simd<SumOf<P>>::Vector (&sum)[Rows][kPanelVectors]) {
  using Vector = typename Simd<P>::Vector;
  Vector b[kPanelVectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kPanelVectors; ++v)
    b[v] = *reinterpret_cast<const typename Simd<P>::Unaligned*>(panel + v * Simd<P>::kWidth);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    const Vector scalar = a[r * a_row] - Vector{};
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v) sum[r][v] += scalar * b[v];
  }
}

#ifdef TORCH_LSH_BF16_DOT
template <int64_t Rows>
inline void add_products(const BFloat16* a, int64_t a_row, const BFloat16* panel,
                         Simd<float>::Vector (&sum)[Rows][kPanelVectors]) {
  Pairs b[kPanelVectors];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kPanelVectors; ++v) b[v] = load_vector<Pairs>(panel + v * kLanes<BFloat16>);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r) {
    const Pairs scalars = same_pairs(a + r * a_row);
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v) sum[r][v] = add_pairs(sum[r][v], scalars, b[v]);
  }
}
#endif

// A tile of Rows rows and a panel's width: out = (first ? bias : out) + products of `steps` steps. Null bias:
// zeros. Steps of the left operand are a_step apart.
template <int64_t Rows, typename P>
__attribute__((always_inline)) inline void product_tile(const P* a, int64_t a_row, int64_t a_step,
                                                        int64_t steps, const P* panel, const SumOf<P>* bias,
                                                        bool first, SumOf<P>* out, int64_t stride) {
  using Vector = typename Simd<SumOf<P>>::Vector;
  using Unaligned = typename Simd<SumOf<P>>::Unaligned;
  constexpr int64_t kWidth = Simd<SumOf<P>>::kWidth;
  Vector sum[Rows][kPanelVectors];
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      sum[r][v] = first ? (bias == nullptr ? SumOf<P>(0) : bias[r]) - Vector{}
                        : *reinterpret_cast<const Unaligned*>(out + r * stride + v * kWidth);
  const auto add = [&](int64_t k) {
    add_products<Rows>(a + k * a_step, a_row, panel + k * kTogether<P> * kPanelWidth<P>, sum);
  };
  int64_t k = 0;
  // The result's lines may be in no cache, and the stores at the end would wait for them. A row's at a time:
  // all at once would keep the operands waiting.
  if (first)
    for (; k < steps && k < Rows; ++k) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kPanelVectors; ++v) __builtin_prefetch(out + k * stride + v * kWidth, 1);
      add(k);
    }
  for (; k < steps; ++k) add(k);
#pragma GCC unroll 16
  for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < kPanelVectors; ++v)
      *reinterpret_cast<Unaligned*>(out + r * stride + v * kWidth) = sum[r][v];
}

// product_tile for a last panel with fewer than kPanelWidth columns.
template <int64_t Rows, typename P>
inline void product_edge(const P* a, int64_t a_row, int64_t a_step, int64_t steps, const P* panel,
                         const SumOf<P>* bias, bool first, SumOf<P>* out, int64_t stride, int64_t columns) {
  SumOf<P> tile[Rows * kPanelWidth<P>];
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < kPanelWidth<P>; ++c)
      tile[r * kPanelWidth<P> + c] = c < columns ? out[r * stride + c] : 0;
  product_tile<Rows>(a, a_row, a_step, steps, panel, bias, first, tile, kPanelWidth<P>);
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = tile[r * kPanelWidth<P> + c];
}

// Rows rows of the result in all panels, for one block of the depth.
template <int64_t Rows, typename P>
__attribute__((always_inline)) inline void product_rows(const P* a, int64_t a_row, int64_t a_step,
                                                        int64_t steps, const P* panels, int64_t panel_size,
                                                        int64_t columns, const SumOf<P>* bias, bool first,
                                                        SumOf<P>* out, int64_t stride,
                                                        RowPrefetch& prefetch) {
  for (int64_t c = 0; c < columns; c += kPanelWidth<P>, panels += panel_size) {
    if (c + kPanelWidth<P> <= columns) {
      product_tile<Rows>(a, a_row, a_step, steps, panels, bias, first, out + c, stride);
    } else {
      product_edge<Rows>(a, a_row, a_step, steps, panels, bias, first, out + c, stride, columns - c);
    }
    prefetch.take_share();
  }
}

// Splits `rows` rows into tiles and calls run.operator()<rows of the tile>(first row). Four rows suffice to
// hide the latency of the sums.
template <typename Run>
inline void for_tiles(int64_t rows, const Run& run) {
  int64_t r = 0;
  for (; r + TORCH_LSH_TILE_ROWS <= rows; r += TORCH_LSH_TILE_ROWS)
    run.template operator()<TORCH_LSH_TILE_ROWS>(r);
  for (; r + 4 <= rows; r += 4) run.template operator()<4>(r);
  for (; r < rows; ++r) run.template operator()<1>(r);
}

// Packs one step of `count` rows or columns: to[i, j] = from[i * across + j * along], zero for j >= present.
template <typename T>
inline void pack_step(const T* __restrict from, int64_t across, int64_t along, int64_t present, int64_t count,
                      T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (kTogether<T> == 1) {
      to[i] = from[i * across];
    } else {
      const uint32_t high = present > 1 ? from[i * across + along].bits : 0;
      const uint32_t pair = from[i * across].bits | high << 16;
      __builtin_memcpy(to + 2 * i, &pair, sizeof(pair));
    }
  }
}

// Packs a group of left rows whose numbers are far apart, often in one cache set. The tile that begins at row
// r is [steps, rows of the tile, kTogether].
template <typename T>
inline void pack_left(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t block, T* packed) {
  const int64_t steps = (block + kTogether<T> - 1) / kTogether<T>;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t k = step * kTogether<T>;
    const T* const from = a + k * a_col;
    for (int64_t ahead = kPackAhead; ahead < kPackAhead + kTogether<T>; ++ahead)
      for (int64_t r = 0; r < rows; r += 64 / sizeof(T)) __builtin_prefetch(from + ahead * a_col + r * a_row);
    for_tiles(rows, [&]<int64_t Rows>(int64_t r) {
      T* const to = packed + (r * steps + step * Rows) * kTogether<T>;
      if (a_row == 1 && k + kTogether<T> <= block) {
        pack_step(from + r, 1, a_col, kTogether<T>, Rows, to);
      } else {
        pack_step(from + r * a_row, a_row, a_col, block - k, Rows, to);
      }
    });
  }
}

// Whether tiles can read a left operand where it lies.
template <typename T>
inline bool is_near(int64_t a_row, int64_t a_col) {
  return a_col == 1 ||
         (kTogether<T> == 1 && a_row == 1 && a_col * static_cast<int64_t>(sizeof(T)) <= kNearBytes);
}

template <typename T>
void product(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth, const SumOf<T>* panels,
             int64_t columns, const SumOf<T>* bias, bool add, SumOf<T>* out, int64_t stride,
             const RowsAhead& ahead) {
  T packed[kGroupRows * kBlockDepth];
  RowPrefetch prefetch(ahead, blocks_of(depth, kBlockDepth) * blocks_of(rows, TORCH_LSH_TILE_ROWS) *
                                  blocks_of(columns, kPanelWidth<T>));
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += kBlockDepth) {
    const int64_t block = depth - begin < kBlockDepth ? depth - begin : kBlockDepth;
    const int64_t steps = (block + kTogether<T> - 1) / kTogether<T>;
    const bool in_place = is_near<T>(a_row, a_col) && block % kTogether<T> == 0;
    for (int64_t group = 0; group < rows; group += kGroupRows) {
      const int64_t of_group = rows - group < kGroupRows ? rows - group : kGroupRows;
      const T* const from = a + group * a_row + begin * a_col;
      if (!in_place) pack_left(from, a_row, a_col, of_group, block, packed);
      const T* const left = in_place ? from : packed;
      // A panel stays in L1 while all rows of the group are multiplied with it, if they fit beside it.
      const int64_t bytes = (of_group + kPanelWidth<T>)*steps * static_cast<int64_t>(sizeof(SumOf<T>));
      const int64_t width = bytes <= tuning.l1_bytes ? kPanelWidth<T> : columns;
      for (int64_t first = 0; first < columns; first += width)
        for_tiles(of_group, [&]<int64_t Rows>(int64_t r) {
          const int64_t row = group + r;
          product_rows<Rows>(left + r * (in_place ? a_row : steps * kTogether<T>),
                             in_place ? a_row : kTogether<T>, (in_place ? a_col : Rows) * kTogether<T>, steps,
                             reinterpret_cast<const T*>(panels + first * depth) + begin * kPanelWidth<T>,
                             depth * kPanelWidth<T> * kTogether<T>,
                             columns - first < width ? columns - first : width,
                             bias == nullptr ? nullptr : bias + row, begin == 0 && !add,
                             out + row * stride + first, stride, prefetch);
        });
    }
  }
}

// Packs a step of a panel's width of columns that are next to each other.
template <typename T>
inline void pack_whole_step(const T* from, int64_t along, T* to) {
  if constexpr (kTogether<T> == 1) {
    using Unaligned = typename Simd<T>::Unaligned;
    for (int64_t i = 0; i < kPanelWidth<T>; i += Simd<T>::kWidth)  // of a loop over numbers, GCC makes a call
      *reinterpret_cast<Unaligned*>(to + i) = *reinterpret_cast<const Unaligned*>(from + i);
  } else {
    pack_step(from, 1, along, kTogether<T>, kPanelWidth<T>, to);
  }
}

// Packs a panel's width of columns, b_col apart, by squares of steps and columns where registers hold them;
// returns the first row of the panel that is left.
template <typename T>
inline int64_t pack_squares(const T* b, int64_t b_col, int64_t begin, int64_t end, T* panel) {
  int64_t k = begin;
  if constexpr (TORCH_LSH_VECTOR_BYTES == 64 && kTogether<T> * sizeof(T) == sizeof(uint32_t))
    for (; k + 16 * kTogether<T> <= end; k += 16 * kTogether<T>)
      for (int64_t c = 0; c < kPanelWidth<T>; c += 16) {
        Words16 words[16];
        for (int64_t i = 0; i < 16; ++i)
          __builtin_memcpy(&words[i], b + (c + i) * b_col + k, sizeof(words[i]));
        transpose_words(words);
        for (int64_t i = 0; i < 16; ++i)
          __builtin_memcpy(panel + k * kPanelWidth<T> + (i * kPanelWidth<T> + c) * kTogether<T>, &words[i],
                           sizeof(words[i]));
      }
  return k;
}

// A panel is [steps, panel width, kTogether], zero-padded to whole panels and steps.
template <typename T>
void pack_panel(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns, int64_t number,
                int64_t begin, int64_t end, SumOf<T>* panels) {
  T* const panel = reinterpret_cast<T*>(panels + number * depth * kPanelWidth<T>);
  const int64_t first = number * kPanelWidth<T>;
  const int64_t width = columns - first < kPanelWidth<T> ? columns - first : kPanelWidth<T>;
  int64_t k = begin;
  if (b_row == 1 && width == kPanelWidth<T>) k = pack_squares(b + first * b_col, b_col, begin, end, panel);
  for (; k < end; k += kTogether<T>) {
    const T* const from = b + k * b_row + first * b_col;
    T* const to = panel + k * kPanelWidth<T>;
    if (width == kPanelWidth<T> && b_col == 1 && k + kTogether<T> <= depth) {
      pack_whole_step(from, b_row, to);
    } else {
      pack_step(from, b_col, b_row, depth - k, width, to);
      for (int64_t i = width * kTogether<T>; i < kPanelWidth<T> * kTogether<T>; ++i) to[i] = T{};
    }
  }
}

template <typename T>
constexpr void fill(ProductKernels<T>& table) {
  if constexpr (__is_same(T, typename Operand<T, SumOf<T>>::type))
    table = {.product = product<T>,
             .pack_panel = pack_panel<T>,
             .panel_size = [](int64_t depth) { return depth * kPanelWidth<T>; },
             .panel_width = kPanelWidth<T>,
             .task_rows = kTaskRows};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
