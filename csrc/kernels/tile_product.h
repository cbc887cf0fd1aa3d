// Dense matrix products by tiles (tiles.h): packing, edges, loops. Compiled once per instruction set: include
// only from kernels/levels/*.cpp.
//
// The right operand is packed into panels as wide as a block of tiles. The left one is read where it lies, if
// the instructions can and only whole tiles are wanted, else a group of rows is packed at a time. A panel
// stays in the first-level cache while all rows of a group are multiplied with it. As in product.h, an
// element of the result is summed in the same order whatever the block that it falls into.
#pragma once

#include "kernels/row_prefetch.h"
#include "kernels/tiles.h"
#include "kernels/transpose.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename Tiles>
struct TileProduct {
  using T = typename Tiles::Type;
  using Sum = typename Tiles::Sum;
  static constexpr int64_t kRows = Tiles::kRows, kDepth = Tiles::kDepth, kTogether = Tiles::kTogether;
  static constexpr int64_t kBlockRows = Tiles::kDown * kRows;
  static constexpr int64_t kPanelWidth = Tiles::kAcross * Tiles::kColumns;
  static constexpr int64_t kGroupRows = (64 + kBlockRows - 1) / kBlockRows * kBlockRows;
  static constexpr int64_t kBlockDepth = 256;
  // What is a word when numbers that are multiplied together stay together: 16 x 16 of them make a tile.
  static constexpr bool kTransposes =
      kTogether * sizeof(T) == 4 && kRows == 16 && Tiles::kColumns == 16 && kDepth == 16 * kTogether;
  // Whether all of a tile's depth is together. Then left and right tiles look alike, and those of a block
  // that are next to each other are packed at once.
  static constexpr bool kStrips = kTogether == kDepth;
  static_assert(kBlockDepth % kDepth == 0 && kPackRows % kDepth == 0);

  static constexpr int64_t steps_of(int64_t depth) { return blocks_of(depth, kDepth); }

  // Numbers of type T in a packed panel.
  static constexpr int64_t panel_numbers(int64_t depth) { return steps_of(depth) * kDepth * kPanelWidth; }

  static int64_t panel_size(int64_t depth) {
    return panel_numbers(depth) * static_cast<int64_t>(sizeof(T)) / static_cast<int64_t>(sizeof(Sum));
  }

  // --- packing ---

  // Two rows of Count times 16 numbers as Count times 16 pairs. Two at once take half the time of one each.
  template <int64_t Count>
  static void load_pairs(const T* first, const T* second, Words16 (&pairs)[Count]) {
    using Halves = typename VectorType<uint16_t, 16 * Count>::type;
    Halves one, other;
    __builtin_memcpy(&one, first, sizeof(one));
    __builtin_memcpy(&other, second, sizeof(other));
    if constexpr (Count == 1) {
      pairs[0] = __builtin_convertvector(one, Words16) | __builtin_convertvector(other, Words16) << 16;
    } else {
      static_assert(Count == 2);
      const auto interleave = [&]<int... I>(std::integer_sequence<int, I...>) {
        pairs[0] = (Words16)__builtin_shufflevector(one, other, (I / 2 + I % 2 * 32)...);
        pairs[1] = (Words16)__builtin_shufflevector(one, other, (I / 2 + I % 2 * 32 + 16)...);
      };
      interleave(std::make_integer_sequence<int, 32>{});
    }
  }

  // Count left tiles, next to each other, of a[r + k * a_col]: the numbers of a column are adjacent.
  template <int64_t Count>
  static void pack_left_columns(const T* __restrict a, int64_t a_col, T* __restrict to) {
    Words16 words[Count][16];
    for (int64_t k = 0; k < 16; ++k) {
      Words16 pairs[Count];
      load_pairs<Count>(a + 2 * k * a_col, a + (2 * k + 1) * a_col, pairs);
      for (int64_t i = 0; i < Count; ++i) words[i][k] = pairs[i];
    }
    for (int64_t i = 0; i < Count; ++i) transpose_words(words[i]);
    __builtin_memcpy(to, words, sizeof(words));
  }

  // A step of a panel of Count right tiles of b[k * b_row + n]: the numbers of a row are adjacent.
  template <int64_t Count>
  static void pack_right_rows(const T* __restrict b, int64_t b_row, T* __restrict to) {
    for (int64_t k = 0; k < 16; ++k) {
      Words16 pairs[Count];
      load_pairs<Count>(b + 2 * k * b_row, b + (2 * k + 1) * b_row, pairs);
      for (int64_t i = 0; i < Count; ++i)
        __builtin_memcpy(to + i * kDepth * Tiles::kColumns + 32 * k, &pairs[i], sizeof(pairs[i]));
    }
  }

  // Tiles to[Width, kDepth] of from[i * across + k * along] for i < count and k < depth, zeros beyond.
  template <int64_t Width>
  static void pack_strip(const T* __restrict from, int64_t across, int64_t along, int64_t count,
                         int64_t depth, T* __restrict to) {
    const bool whole = count >= Width && depth >= kDepth;
    if (whole && along == 1) {
#pragma GCC unroll 24
      for (int64_t i = 0; i < Width; ++i)
        __builtin_memcpy(to + i * kDepth, from + i * across, kDepth * sizeof(T));
      return;
    }
    if constexpr (requires { Tiles::template transpose<Width>(from, along, to); })
      if (whole && across == 1) return Tiles::template transpose<Width>(from, along, to);
    for (int64_t i = 0; i < Width; ++i)
      for (int64_t k = 0; k < kDepth; ++k)
        to[i * kDepth + k] = i < count && k < depth ? from[i * across + k * along] : T{};
  }

  // A left tile to[kRows, kDepth] of a[r * a_row + k * a_col] for r < rows and k < depth, zeros beyond.
  static void pack_left_tile(const T* __restrict a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                             T* __restrict to) {
    const bool whole = rows >= kRows && depth >= kDepth;
    if constexpr (kTransposes && sizeof(T) == 2)
      if (whole && a_row == 1) return pack_left_columns<1>(a, a_col, to);
    if (whole && a_col == 1) {
      for (int64_t r = 0; r < kRows; ++r)
        __builtin_memcpy(to + r * kDepth, a + r * a_row, kDepth * sizeof(T));
      return;
    }
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t k = 0; k < kDepth; ++k)
        to[r * kDepth + k] = r < rows && k < depth ? a[r * a_row + k * a_col] : T{};
  }

  // A right tile to[kDepth / kTogether, kColumns, kTogether] of b[k * b_row + n * b_col] for k < depth and n
  // < columns, zeros beyond.
  static void pack_right_tile(const T* __restrict b, int64_t b_row, int64_t b_col, int64_t depth,
                              int64_t columns, T* __restrict to) {
    constexpr int64_t kColumns = Tiles::kColumns;
    const bool whole = columns >= kColumns && depth >= kDepth;
    if constexpr (kTransposes) {
      if (whole && b_row == 1) {
        Words16 words[16];
        for (int64_t n = 0; n < 16; ++n) __builtin_memcpy(&words[n], b + n * b_col, sizeof(words[n]));
        transpose_words(words);
        __builtin_memcpy(to, words, sizeof(words));
        return;
      }
      if constexpr (sizeof(T) == 2)
        if (whole && b_col == 1) return pack_right_rows<1>(b, b_row, to);
    }
    for (int64_t k = 0; k < kDepth; ++k)
      for (int64_t n = 0; n < kColumns; ++n)
        to[(k / kTogether * kColumns + n) * kTogether + k % kTogether] =
            k < depth && n < columns ? b[k * b_row + n * b_col] : T{};
  }

  // Rows `begin` to `end` - 1 of panel `number`, [steps, kAcross, a right tile]. Panels are panel_size(depth)
  // sums apart.
  static void pack_panel(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns,
                         int64_t number, int64_t begin, int64_t end, Sum* panels) {
    T* to = reinterpret_cast<T*>(panels) + number * panel_numbers(depth) + begin * kPanelWidth;
    const int64_t first = number * kPanelWidth;
    if constexpr (kStrips) {
      for (int64_t k = begin; k < end; k += kDepth, to += kPanelWidth * kDepth)
        pack_strip<kPanelWidth>(b + k * b_row + first * b_col, b_col, b_row, columns - first, depth - k, to);
      return;
    }
    for (int64_t k = begin; k < end; k += kDepth) {
      if constexpr (kTransposes && sizeof(T) == 2 && Tiles::kAcross == 2)
        if (b_col == 1 && columns - first >= kPanelWidth && depth - k >= kDepth) {
          pack_right_rows<2>(b + k * b_row + first, b_row, to);
          to += kDepth * kPanelWidth;
          continue;
        }
      for (int64_t n = first; n < first + kPanelWidth; n += Tiles::kColumns, to += kDepth * Tiles::kColumns)
        pack_right_tile(b + k * b_row + n * b_col, b_row, b_col, depth - k, columns - n, to);
    }
  }

  // Left tiles of a group of rows: blocks of Down tiles one after the other, each [steps, Down, a left tile].
  static void pack_left(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth, T* to) {
    for (int64_t block = 0; block < rows; block += kBlockRows) {
      const int64_t end = rows - block < kBlockRows ? rows : block + kBlockRows;
      if constexpr (kStrips)
        if (end - block == kBlockRows) {
          for (int64_t k = 0; k < depth; k += kDepth, to += kBlockRows * kDepth)
            pack_strip<kBlockRows>(a + block * a_row + k * a_col, a_row, a_col, kBlockRows, depth - k, to);
          continue;
        }
      for (int64_t k = 0; k < depth; k += kDepth) {
        if constexpr (kTransposes && sizeof(T) == 2 && Tiles::kDown == 2)
          if (a_row == 1 && end - block == kBlockRows && depth - k >= kDepth) {
            pack_left_columns<2>(a + block + k * a_col, a_col, to);
            to += kBlockRows * kDepth;
            continue;
          }
        for (int64_t r = block; r < end; r += kRows, to += kRows * kDepth)
          pack_left_tile(a + r * a_row + k * a_col, a_row, a_col, rows - r, depth - k, to);
      }
    }
  }

  // --- blocks ---

  // multiply<down, kAcross> for a number of tiles that is known at run time, at least 1.
  template <int64_t Down = Tiles::kDown>
  static void multiply(int64_t down, const LeftTiles<T>& left, const T* right, int64_t steps, bool add,
                       Sum* out, int64_t stride) {
    if constexpr (Down > 1)
      if (down < Down) return multiply<Down - 1>(down, left, right, steps, add, out, stride);
    Tiles::template multiply<Down, Tiles::kAcross>(left, right, steps, add, out, stride);
  }

  // What the products are added to: what is there, or the bias of each row.
  static void start(const Sum* bias, bool first, int64_t rows, int64_t columns, const Sum* out,
                    int64_t stride, Sum* sums, int64_t sums_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      Sum* const row = sums + r * sums_stride;
      if (first) {
        for (int64_t c = 0; c < columns; ++c) row[c] = bias[r];
      } else {
        __builtin_memcpy(row, out + r * stride, static_cast<size_t>(columns) * sizeof(Sum));
      }
    }
  }

  // A block of the result, of up to kBlockRows rows and kPanelWidth columns.
  static void multiply_block(const LeftTiles<T>& left, const T* panel, int64_t steps, int64_t rows,
                             int64_t columns, const Sum* bias, bool first, Sum* out, int64_t stride) {
    const int64_t down = (rows + kRows - 1) / kRows;
    const bool add = !first || bias != nullptr;
    if (rows == down * kRows && columns == kPanelWidth) {
      if (first && add) start(bias, first, rows, kPanelWidth, out, stride, out, stride);
      multiply(down, left, panel, steps, add, out, stride);
      return;
    }
    alignas(64) Sum sums[kBlockRows * kPanelWidth];
    if (add) start(bias, first, rows, columns, out, stride, sums, kPanelWidth);
    multiply(down, left, panel, steps, add, sums, kPanelWidth);
    for (int64_t r = 0; r < rows; ++r)
      __builtin_memcpy(out + r * stride, sums + r * kPanelWidth, static_cast<size_t>(columns) * sizeof(Sum));
  }

  // A group of rows, for one block of the depth; panels points to the block's first step. Moves `scanned`, if
  // it is not null (LeftTiles), by the bytes of the block.
  static void multiply_group(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                             const T* panels, int64_t panel_stride, int64_t columns, const Sum* bias,
                             bool first, Sum* out, int64_t stride, RowPrefetch& prefetch,
                             const char*& scanned) {
    alignas(64) T packed[kGroupRows * kBlockDepth];
    const int64_t steps = steps_of(depth);
    const bool in_place = Tiles::kInPlace && a_col == 1 && depth % kDepth == 0 && rows % kRows == 0;
    if (!in_place) pack_left(a, a_row, a_col, rows, depth, packed);
    for (int64_t c = 0; c < columns; c += kPanelWidth, panels += panel_stride)
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        const int64_t of_block = rows - r < kBlockRows ? rows - r : kBlockRows;
        const int64_t down = (of_block + kRows - 1) / kRows;
        LeftTiles<T> left{packed + r * steps * kDepth, kRows * kDepth, down * kRows * kDepth, kDepth,
                          nullptr};
        if (in_place) left = {a + r * a_row, kRows * a_row, kDepth, a_row, c == 0 ? scanned : nullptr};
        if (left.scanned != nullptr) scanned += of_block * depth * static_cast<int64_t>(sizeof(T));
        multiply_block(left, panels, steps, of_block, columns - c < kPanelWidth ? columns - c : kPanelWidth,
                       bias == nullptr ? nullptr : bias + r, first, out + r * stride + c, stride);
        prefetch.take_share();
      }
  }

  // As ProductKernels::product, within a session. With `scans`, `a` is part of a table whose rows are read
  // from end to end: those that follow are fetched.
  static void run(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth, const Sum* panels,
                  int64_t columns, const Sum* bias, bool add, Sum* out, int64_t stride,
                  const RowsAhead& ahead, bool scans) {
    const char* scanned = scans ? reinterpret_cast<const char*>(a) : nullptr;
    RowPrefetch prefetch(
        ahead, blocks_of(depth, kBlockDepth) * blocks_of(rows, kBlockRows) * blocks_of(columns, kPanelWidth));
    for (int64_t begin = 0; begin == 0 || begin < depth; begin += kBlockDepth) {
      const int64_t block = depth - begin < kBlockDepth ? depth - begin : kBlockDepth;
      for (int64_t group = 0; group < rows; group += kGroupRows) {
        const int64_t of_group = rows - group < kGroupRows ? rows - group : kGroupRows;
        multiply_group(a + group * a_row + begin * a_col, a_row, a_col, of_group, block,
                       reinterpret_cast<const T*>(panels) + begin * kPanelWidth, panel_numbers(depth),
                       columns, bias == nullptr ? nullptr : bias + group, begin == 0 && !add,
                       out + group * stride, stride, prefetch, scanned);
      }
    }
  }

  static void product(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                      const Sum* panels, int64_t columns, const Sum* bias, bool add, Sum* out, int64_t stride,
                      const RowsAhead& ahead = {}) {
    const typename Tiles::Session session;
    run(a, a_row, a_col, rows, depth, panels, columns, bias, add, out, stride, ahead, false);
  }

  // out[rows, columns] of consecutive rows of a table that is read from end to end.
  static void scan(const T* rows, int64_t count, int64_t width, const Sum* panels, int64_t columns,
                   const Sum* bias, Sum* out) {
    const typename Tiles::Session session;
    run(rows, width, 1, count, width, panels, columns, bias, false, out, columns, {}, true);
  }
};

// Tables of a level that multiplies bfloat16 numbers by tiles.
template <typename Tiles>
constexpr void fill_product(ProductKernels<BFloat16>& table) {
  using Product = TileProduct<Tiles>;
  table = {.product = Product::product,
           .pack_panel = Product::pack_panel,
           .panel_size = Product::panel_size,
           .panel_width = Product::kPanelWidth,
           .task_rows = Product::kGroupRows};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
