// Estimates of inner products from codes of one to four bits per dimension. Compiled once per instruction
// set: include only from kernels/levels/*.cpp.
//
// Layout of a block of kSketchRows rows:
//   codes [bits, bytes, kSketchRows]: one bit plane after the other, most significant first. Bit i of byte j
//     is the sign of dimension 8 * j + i; a coordinate is sum over planes of 2^(bits - 1 - plane) * sign.
//   factors [2, kSketchRows]: multiplier and addend of each row's sum.
// Byte p of a vector belongs to row (p % 2) * kSketchRows / 2 + p / 2. Even and odd bytes widen to 16 bits
// separately, so the sums of neighbouring rows come out side by side.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"
#include "kernels/row_prefetch.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// sketch_sums, one version per vector width: sums[r] = sum over the nibbles of row r's code of
// table[nibble, value], with tables [2 * bytes, 16]. The sum doubles before each further plane.
#if TORCH_LSH_VECTOR_BYTES == 64

inline void sketch_sums(const uint8_t* codes, int64_t bits, int64_t bytes, const uint8_t* tables,
                        uint16_t* sums) {
  const __m512i low = _mm512_set1_epi8(15), narrow = _mm512_set1_epi16(255);
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (int64_t plane = 0; plane < bits; ++plane, codes += bytes * kSketchRows) {
    even = _mm512_add_epi16(even, even);
    odd = _mm512_add_epi16(odd, odd);
    for (int64_t j = 0; j < bytes; ++j) {
      const __m512i code = _mm512_loadu_si512(codes + j * kSketchRows);
      const auto table = [&](int64_t i) {
        return _mm512_broadcast_i32x4(load_vector<__m128i>(tables + (2 * j + i) * 16));
      };
      const __m512i sum =
          _mm512_add_epi8(_mm512_shuffle_epi8(table(0), _mm512_and_si512(code, low)),
                          _mm512_shuffle_epi8(table(1), _mm512_and_si512(_mm512_srli_epi16(code, 4), low)));
      even = _mm512_add_epi16(even, _mm512_and_si512(sum, narrow));
      odd = _mm512_add_epi16(odd, _mm512_srli_epi16(sum, 8));
    }
  }
  _mm512_storeu_si512(sums, even);
  _mm512_storeu_si512(sums + kSketchRows / 2, odd);
}

#elif TORCH_LSH_VECTOR_BYTES == 32 && defined(__x86_64__)

inline void sketch_sums(const uint8_t* codes, int64_t bits, int64_t bytes, const uint8_t* tables,
                        uint16_t* sums) {
  const __m256i low = _mm256_set1_epi8(15), narrow = _mm256_set1_epi16(255);
  for (int64_t half = 0; half < 2; ++half) {
    __m256i even = _mm256_setzero_si256(), odd = even;
    const uint8_t* codes_of_plane = codes + half * 32;
    for (int64_t plane = 0; plane < bits; ++plane, codes_of_plane += bytes * kSketchRows) {
      even = _mm256_add_epi16(even, even);
      odd = _mm256_add_epi16(odd, odd);
      for (int64_t j = 0; j < bytes; ++j) {
        const __m256i code = load_vector<__m256i>(codes_of_plane + j * kSketchRows);
        const auto table = [&](int64_t i) {
          return _mm256_broadcastsi128_si256(load_vector<__m128i>(tables + (2 * j + i) * 16));
        };
        const __m256i sum =
            _mm256_add_epi8(_mm256_shuffle_epi8(table(0), _mm256_and_si256(code, low)),
                            _mm256_shuffle_epi8(table(1), _mm256_and_si256(_mm256_srli_epi16(code, 4), low)));
        even = _mm256_add_epi16(even, _mm256_and_si256(sum, narrow));
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(sum, 8));
      }
    }
    __builtin_memcpy(sums + half * 16, &even, sizeof(even));
    __builtin_memcpy(sums + kSketchRows / 2 + half * 16, &odd, sizeof(odd));
  }
}

#elif TORCH_LSH_VECTOR_BYTES >= 16 && !defined(__clang__)

inline void sketch_sums(const uint8_t* codes, int64_t bits, int64_t bytes, const uint8_t* tables,
                        uint16_t* sums) {
  using Bytes = Vector<uint8_t>;
  using Words = Vector<uint16_t>;
  constexpr int64_t kVectors = kSketchRows / kVectorBytes;
  Words even[kVectors] = {}, odd[kVectors] = {};
  for (int64_t plane = 0; plane < bits; ++plane) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      even[v] += even[v];
      odd[v] += odd[v];
    }
    for (int64_t j = 0; j < bytes; ++j, codes += kSketchRows) {
      const auto look_up = [&](int64_t i, Bytes code) {
        const uint8_t* const table = tables + (2 * j + i) * 16;
#if TORCH_LSH_VECTOR_BYTES == 32
        return (Bytes)svtbl_u8(svld1rq_u8(svptrue_b8(), table), code & 15);
#else
        // A 16-byte shuffle ignores all but the low 4 bits of each index.
        return __builtin_shuffle(load_vector<Bytes>(table), code);
#endif
      };
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) {
        const auto code = load_vector<Bytes>(codes + v * kVectorBytes);
        const auto sum = (Words)(look_up(0, code) + look_up(1, code >> 4));
        even[v] += sum & 255;
        odd[v] += sum >> 8;
      }
    }
  }
  __builtin_memcpy(sums, even, sizeof(even));
  __builtin_memcpy(sums + kSketchRows / 2, odd, sizeof(odd));
}

#else

inline void sketch_sums(const uint8_t* codes, int64_t bits, int64_t bytes, const uint8_t* tables,
                        uint16_t* sums) {
  for (int64_t p = 0; p < kSketchRows; ++p) {
    unsigned sum = 0;
    for (int64_t plane = 0; plane < bits; ++plane) {
      sum *= 2;
      for (int64_t j = 0; j < bytes; ++j) {
        const uint8_t code = codes[(plane * bytes + j) * kSketchRows + p];
        sum += tables[2 * j * 16 + (code & 15)] + tables[(2 * j + 1) * 16 + (code >> 4)];
      }
    }
    sums[p % 2 * (kSketchRows / 2) + p / 2] = static_cast<uint16_t>(sum);
  }
}

#endif

inline void sketch_scores(const uint8_t* codes, const BFloat16* factors, int64_t blocks, int64_t bits,
                          int64_t bytes, const uint8_t* tables, float step, float base,
                          float* __restrict scores) {
  uint16_t sums[kSketchRows];
  const int64_t vectors = bits * bytes;  // of codes, kSketchRows bytes each
  for (int64_t block = 0; block < blocks; ++block) {
    if (blocks > 1) {
      for (int64_t v = 0; v < vectors; ++v) prefetch_scan(codes + v * kSketchRows);
      for (int64_t r = 0; r < 2 * kSketchRows; r += 32) prefetch_scan(factors + r);
    }
    if (bits == 1)  // the constant is compiled in: every row of a layer takes this path
      sketch_sums(codes, 1, bytes, tables, sums);
    else
      sketch_sums(codes, bits, bytes, tables, sums);
#pragma omp simd
    for (int64_t r = 0; r < kSketchRows; ++r)
      scores[r] = to_float(factors[r]) * (step * static_cast<float>(sums[r]) + base) +
                  to_float(factors[kSketchRows + r]);
    codes += vectors * kSketchRows;
    factors += 2 * kSketchRows;
    scores += kSketchRows;
  }
}

constexpr void fill(SketchKernels& table) {
  table = {.scores = sketch_scores};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
