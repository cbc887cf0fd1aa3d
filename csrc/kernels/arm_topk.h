// The exact top-k's logits by Arm's instructions: tiles, and for a few samples products of the vectors of a
// row (FEAT_BF16, FEAT_DotProd). Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/arm_tiles.h"
#include "kernels/tile_topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// sums[i] += the products of four bytes.
inline Vector<int32_t> add_products(Vector<int32_t> sums, Vector<int8_t> a, Vector<int8_t> b) {
#if TORCH_LSH_VECTOR_BYTES == 32
  typedef svint32_t Sums __attribute__((arm_sve_vector_bits(256)));
  typedef svint8_t Bytes __attribute__((arm_sve_vector_bits(256)));
  return svdot_s32((Sums)sums, (Bytes)a, (Bytes)b);
#else
  return (Vector<int32_t>)vdotq_s32((int32x4_t)sums, (int8x16_t)a, (int8x16_t)b);
#endif
}

inline int32_t add_lanes(Vector<int32_t> sums) {
#if TORCH_LSH_VECTOR_BYTES == 32
  typedef svint32_t Sums __attribute__((arm_sve_vector_bits(256)));
  return static_cast<int32_t>(svaddv_s32(svptrue_b32(), (Sums)sums));
#else
  return vaddvq_s32((int32x4_t)sums);
#endif
}

// One sample of 24 bits, exactly: it is step * (65536 * a + 256 * b + c) with digits a, b, c of 8 bits, whose
// products with a row are summed as integers and then joined in float. A sample that no such digits describe
// (infinities, NaN, numbers near the smallest ones) is multiplied in float, as are rows so long that the
// integers could overflow.
struct OneInt8Topk {
  using Bytes = Vector<int8_t>;
  static constexpr int64_t kSamples = 1, kDigits = 3, kRows = 4;
  static constexpr int64_t kLargestWidth = 1 << 16;  // 2^16 products of 2^14
  static constexpr float kLargest = 127 * 65536;     // in steps: leaves room to round

  // The packed sample: its step, its digits [kDigits, stride], and the sample itself.
  static constexpr int64_t kDigitsAt = 16;
  static int64_t stride(int64_t width) { return round_up(width, 64); }
  static int64_t floats_at(int64_t width) {
    return kDigitsAt + kDigits * stride(width) / static_cast<int64_t>(sizeof(float));
  }
  static int64_t packed_size(int64_t samples, int64_t width) { return floats_at(width) + stride(width); }

  // A number as digits of signed bytes, the highest first.
  static void split(float value, float step, int8_t (&digits)[kDigits]) {
    int32_t rest = step == 0 ? 0 : static_cast<int32_t>(__builtin_rintf(value / step));
    for (int64_t d = kDigits - 1; d >= 0; --d) {
      digits[d] = static_cast<int8_t>(rest & 255);
      rest = (rest - digits[d]) / 256;
    }
  }

  // 0 for zeros only; NaN where no step will do.
  static float step_of(const float* x, int64_t width) {
    float largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < width; ++i) {
      const float size = __builtin_fabsf(x[i]);
      largest = size > largest ? size : largest;
      finite &= size < __builtin_inff();
    }
    const float step = largest / kLargest;
    return finite && (largest == 0 || step >= 0x1p-126f) ? step : __builtin_nanf("");
  }

  static void pack(const float* x, int64_t samples, int64_t width, float* packed) {
    __builtin_memset(packed, 0, static_cast<size_t>(packed_size(samples, width)) * sizeof(float));
    convert(x, width, packed + floats_at(width));
    packed[0] = width <= kLargestWidth ? step_of(x, width) : __builtin_nanf("");
    if (packed[0] != packed[0]) return;
    auto* const digits = reinterpret_cast<int8_t*>(packed + kDigitsAt);
    for (int64_t i = 0; i < width; ++i) {
      int8_t of_number[kDigits];
      split(x[i], packed[0], of_number);
      for (int64_t d = 0; d < kDigits; ++d) digits[d * stride(width) + i] = of_number[d];
    }
  }

  template <int64_t Rows>
  static void multiply_rows(const int8_t* rows, int64_t width, const int8_t* digits, float step,
                            Affine<float, true> affine, int64_t first, float* logits) {
    Vector<int32_t> sums[Rows][kDigits] = {};
    const auto add = [&](int64_t i, const auto& load) {
      Bytes digit[kDigits];
#pragma GCC unroll 3
      for (int64_t d = 0; d < kDigits; ++d) digit[d] = load_vector<Bytes>(digits + d * stride(width) + i);
#pragma GCC unroll 4
      for (int64_t r = 0; r < Rows; ++r) {
        const Bytes row = load(rows + r * width + i);
#pragma GCC unroll 3
        for (int64_t d = 0; d < kDigits; ++d) sums[r][d] = add_products(sums[r][d], row, digit[d]);
      }
    };
    int64_t i = 0;
    for (; i + kVectorBytes <= width; i += kVectorBytes) add(i, load_vector<Bytes, int8_t>);
    if (i < width) add(i, [&](const int8_t* from) { return load_first<Bytes>(from, width - i); });
#pragma GCC unroll 4
    for (int64_t r = 0; r < Rows; ++r) {
      const float joined = static_cast<float>(add_lanes(sums[r][0])) * 65536.0f +
                           static_cast<float>(add_lanes(sums[r][1])) * 256.0f +
                           static_cast<float>(add_lanes(sums[r][2]));
      logits[r] = affine(joined * step, first + r);
    }
  }

  static void multiply(const int8_t* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                       const float* scale, const float* bias, float* logits) {
    const float step = packed[0];
    if (step != step)
      return topk_multiply_few(rows, count, width, packed + floats_at(width), samples, scale, bias, logits);
    const auto* const digits = reinterpret_cast<const int8_t*>(packed + kDigitsAt);
    const Affine<float, true> affine{scale, bias};
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows)
      multiply_rows<kRows>(rows + r * width, width, digits, step, affine, r, logits + r);
    for (; r < count; ++r) multiply_rows<1>(rows + r * width, width, digits, step, affine, r, logits + r);
  }
};

using ArmBFloat16Topk = BFloat16TileTopk<ArmTiles<BFloat16>>;
using ArmInt8Topk = Int8TileTopk<ArmTiles<int8_t>, OneInt8Topk>;

}  // namespace torch_lsh::TORCH_LSH_LEVEL
