// Products of int8 numbers by AVX512-VNNI, for the exact top-k: VPDPBUSD adds the products of four unsigned
// bytes with four signed ones. The unsigned ones are a row's, with 128 added. Lanes are samples, and four
// features of a row are broadcast, as in topk.h. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/int8_topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Numbers of samples are packed as [ceil(width / 4), lanes, 4].
struct VnniProduct {
  static constexpr int64_t kGroup = kTopkVectors * kLanes<float>, kRows = 128;
  static constexpr int64_t kAdded = 128, kTogether = 4;
  static constexpr int64_t kTilesAhead = 4;  // prefetch distance

  static int64_t floats(int64_t lanes, int64_t width) { return (width + kTogether - 1) / kTogether * lanes; }
  static int64_t place(int64_t lanes, int64_t width, int64_t sample, int64_t i) {
    return (i / kTogether * lanes + sample) * kTogether + i % kTogether;
  }

  template <int64_t Rows, int64_t Vectors>
  static void multiply_tile(const int8_t* rows, int64_t width, const int8_t* numbers,
                            Vector<int32_t> (&sums)[Rows][Vectors]) {
    const __m512i added = _mm512_set1_epi8(static_cast<char>(kAdded));
    const auto add = [&](int64_t i, const auto& four) {
      Vector<int32_t> x[Vectors];
#pragma GCC unroll 3
      for (int64_t v = 0; v < Vectors; ++v)
        x[v] = load_vector<Vector<int32_t>>(numbers + (i * Vectors + v * kTogether) * kLanes<float>);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r) {
        // By XOR, GCC would add before it broadcasts, which is slower.
        const __m512i row = _mm512_add_epi8(_mm512_set1_epi32(four(rows + r * width + i)), added);
#pragma GCC unroll 3
        for (int64_t v = 0; v < Vectors; ++v)
          sums[r][v] = (Vector<int32_t>)_mm512_dpbusd_epi32((__m512i)sums[r][v], row, (__m512i)x[v]);
      }
    };
    const int64_t whole = width / kTogether * kTogether;
    const int8_t* const ahead = rows + kTilesAhead * Rows * width;
    for (int64_t i = 0; i < whole; i += kTogether) {
      __builtin_prefetch(ahead + Rows * i);
      add(i, [](const int8_t* from) {
        int32_t word;
        __builtin_memcpy(&word, from, sizeof(word));
        return word;
      });
    }
    if (whole < width)
      add(whole, [&](const int8_t* from) {
        int32_t word = 0;
        __builtin_memcpy(&word, from, static_cast<size_t>(width - whole));
        return word;
      });
  }

  template <int64_t Vectors>
  static void multiply_panel(const int8_t* rows, int64_t count, int64_t width, const int8_t* numbers,
                             Int8Bounds bounds, Affine<float, true> affine, float* out) {
    const auto tile = [=]<int64_t Rows>(int64_t begin) {
      Vector<int32_t> sums[Rows][Vectors];
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 3
        for (int64_t v = 0; v < Vectors; ++v) sums[r][v] = Vector<int32_t>{};
      multiply_tile<Rows, Vectors>(rows + begin * width, width, numbers, sums);
#pragma GCC unroll 8
      for (int64_t r = 0; r < Rows; ++r)
        bounds.write(sums[r], affine, begin + r, out + (begin + r) * Vectors * kLanes<float>);
    };
    int64_t r = 0;
    for (; r + kTopkRows <= count; r += kTopkRows) tile.template operator()<kTopkRows>(r);
    for (; r < count; ++r) tile.template operator()<1>(r);
  }

  static void multiply(const int8_t* rows, int64_t count, int64_t width, const int8_t* numbers, int64_t lanes,
                       Int8Bounds bounds, Affine<float, true> affine, float* out) {
    const int64_t vectors = lanes / kLanes<float>;
    if (vectors == 1) multiply_panel<1>(rows, count, width, numbers, bounds, affine, out);
    if (vectors == 2) multiply_panel<2>(rows, count, width, numbers, bounds, affine, out);
    if (vectors == 3) multiply_panel<3>(rows, count, width, numbers, bounds, affine, out);
  }
};

// One or two samples are multiplied in float: reading the rows is what takes the time.
using VnniTopk = Int8Topk<VnniProduct, FewTopk<int8_t, 2>>;

}  // namespace torch_lsh::TORCH_LSH_LEVEL
