// Matrix products by instructions that multiply tiles: the shapes, what a level has to provide, and its twin
// in plain code. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// Such an instruction adds to a tile of sums [kRows, kColumns] the product of a left tile [kRows, kDepth] and
// a right tile [kDepth, kColumns]. The numbers of a left tile's row are next to each other. A right tile is
// stored as [kDepth / kTogether, kColumns, kTogether]: of each column as many numbers as the instruction
// multiplies together are next to each other.
//
//                              T         kRows x kDepth x kColumns   kTogether
//   AMX, TDPBF16PS             BFloat16  16 x 32 x 16                2
//   AMX, TDPBSSD               int8_t    16 x 64 x 16                4
//   Arm, BFMMLA                BFloat16  2 x 4 x 2                   4
//   Arm, SMMLA                 int8_t    2 x 8 x 2                   8
//
// A level defines a class, such as AmxTiles<T>, with these members:
//
//   using Type = T; using Sum = float or int32_t; the constants of a TileShape;
//   class Session          whatever the calling thread must set up before it multiplies, for as long as it
//   lives; template <int64_t Down, int64_t Across> static void multiply(const LeftTiles<T>& left, const T*
//   right, int64_t steps, bool add, Sum* out,
//                        int64_t stride);
//
// multiply() computes a block of Down x Across tiles, at most kDown x kAcross, whose sums stay in registers:
// out[Down * kRows, Across * kColumns], rows `stride` apart, becomes the product, or the old values plus it.
// The depth is steps * kDepth. `right` is [steps, Across, kDepth / kTogether, kColumns, kTogether], so a
// packed operand is read from its beginning to its end.
//
// Everything else (packing, edges, loops, blocks of the depth) is written once, for any such class, and
// padded with zeros: multiply() never sees part of a tile.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <int64_t Rows, int64_t Depth, int64_t Columns, int64_t Together, int64_t Down, int64_t Across,
          bool InPlace>
struct TileShape {
  static constexpr int64_t kRows = Rows, kDepth = Depth, kColumns = Columns, kTogether = Together;
  // Tiles of the largest block.
  static constexpr int64_t kDown = Down, kAcross = Across;
  // Whether the rows of a left tile may be any distance apart; else left tiles are packed, and a tile's rows
  // are kDepth apart.
  static constexpr bool kInPlace = InPlace;
};

// The left tiles of a block: row r of tile i at step s begins at from + i * tile + s * step + r * row. Where
// they are of a table that is read from end to end, `scanned` is the first byte that was not yet counted as
// read, else null.
template <typename T>
struct LeftTiles {
  const T* from;
  int64_t tile, step, row;
  const char* scanned;
};

template <typename T>
struct TileSum;
template <>
struct TileSum<BFloat16> {
  using type = float;
};
template <>
struct TileSum<int8_t> {
  using type = int32_t;
};

// The twin of any shape. It adds in the order of TDPBF16PS: the products of each of the kTogether places in a
// sum of its own, which are then added to the tile.
template <typename T, typename Shape>
struct PortableTiles : Shape {
  using Type = T;
  using Sum = typename TileSum<T>::type;
  using Shape::kColumns, Shape::kDepth, Shape::kRows, Shape::kTogether;

  class Session {
   public:
    Session() {}
    ~Session() {}
  };

  static Sum widened(BFloat16 value) { return to_float(value); }
  static Sum widened(int8_t value) { return value; }

  // sums[kRows, kColumns] += left · right
  static void add_product(const T* left, int64_t row, const T* right, Sum* sums, int64_t stride) {
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kColumns; ++c) {
        Sum places[kTogether] = {}, sum = 0;
        for (int64_t k = 0; k < kDepth; ++k)
          places[k % kTogether] += widened(left[r * row + k]) *
                                   widened(right[(k / kTogether * kColumns + c) * kTogether + k % kTogether]);
        for (const Sum place : places) sum += place;
        sums[r * stride + c] += sum;
      }
  }

  template <int64_t Down, int64_t Across>
  static void multiply(const LeftTiles<T>& left, const T* right, int64_t steps, bool add, Sum* out,
                       int64_t stride) {
    if (!add)
      for (int64_t r = 0; r < Down * kRows; ++r)
        for (int64_t c = 0; c < Across * kColumns; ++c) out[r * stride + c] = 0;
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t i = 0; i < Down; ++i)
        for (int64_t j = 0; j < Across; ++j)
          add_product(left.from + i * left.tile + step * left.step, left.row,
                      right + (step * Across + j) * kDepth * kColumns,
                      out + i * kRows * stride + j * kColumns, stride);
  }
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
