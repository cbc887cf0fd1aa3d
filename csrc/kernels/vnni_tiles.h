// Tiles of int8 numbers by AVX512-VNNI, whose VPDPBUSD adds the products of four unsigned bytes with four
// signed ones. A left tile is four numbers of a row, which the instruction reads from where they lie into all
// 16 lanes; the right one, which has to be unsigned, is used with 128 added to each number, and 128 times the
// sum of a row is subtracted in the end. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include <immintrin.h>

#include "kernels/tiles.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

struct VnniTiles : TileShape<1, 4, 16, 4, 8, 3, true> {
  using Type = int8_t;
  using Sum = int32_t;

  class Session {
   public:
    Session() {}
    ~Session() {}
  };

  static __m512i all(const int8_t* four) {
    int32_t word;
    __builtin_memcpy(&word, four, sizeof(word));
    return _mm512_set1_epi32(word);
  }

  // 128 times the sum of a row, in all lanes.
  static __m512i excess(const int8_t* row, int64_t step, int64_t steps) {
    const __m512i ones = _mm512_set1_epi8(static_cast<char>(128));
    __m512i sums = _mm512_setzero_si512();
    int64_t i = 0;
    if (step == kDepth)
      for (; i + 16 <= steps; i += 16)
        sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(row + i * kDepth));
    __m512i total = _mm512_set1_epi32(_mm512_reduce_add_epi32(sums));
    for (; i < steps; ++i) total = _mm512_dpbusd_epi32(total, ones, all(row + i * step));
    return total;
  }

  template <int64_t Down, int64_t Across>
  static void multiply(const LeftTiles<int8_t>& left, const int8_t* right, int64_t steps, bool add,
                       int32_t* out, int64_t stride) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(128));
    __m512i sums[Down][Across];
#pragma GCC unroll 8
    for (int64_t i = 0; i < Down; ++i) {
      const __m512i start =
          _mm512_sub_epi32(_mm512_setzero_si512(), excess(left.from + i * left.tile, left.step, steps));
#pragma GCC unroll 3
      for (int64_t j = 0; j < Across; ++j)
        sums[i][j] =
            add ? _mm512_add_epi32(start, _mm512_loadu_si512(out + i * stride + j * kColumns)) : start;
    }
    for (int64_t step = 0; step < steps; ++step, right += Across * kDepth * kColumns) {
      __m512i numbers[Across];
#pragma GCC unroll 3
      for (int64_t j = 0; j < Across; ++j)
        numbers[j] = _mm512_xor_si512(sign, _mm512_loadu_si512(right + j * kDepth * kColumns));
#pragma GCC unroll 8
      for (int64_t i = 0; i < Down; ++i) {
        const __m512i row = all(left.from + i * left.tile + step * left.step);
#pragma GCC unroll 3
        for (int64_t j = 0; j < Across; ++j) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], numbers[j], row);
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < Down; ++i)
#pragma GCC unroll 3
      for (int64_t j = 0; j < Across; ++j) _mm512_storeu_si512(out + i * stride + j * kColumns, sums[i][j]);
  }
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
