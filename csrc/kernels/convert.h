// Conversions between storage and accumulator types. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"
#ifdef TORCH_LSH_ARM_BF16
#include "kernels/vectors.h"
#endif

namespace torch_lsh::TORCH_LSH_LEVEL {

inline float to_float(float value) {
  return value;
}
inline double to_float(double value) {
  return value;
}

inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

// Round to nearest even, as in PyTorch; NaN stays NaN.
inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

// Stochastic rounding with 16 random bits: unbiased, so steps smaller than the bfloat16 spacing add up. NaN
// and infinities are kept.
inline BFloat16 to_bfloat16(float value, uint32_t random) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  const uint32_t rounded = (bits + (finite ? random & 0xffffu : 0u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
}

// 32 random bits from key and counter (lowbias32; Wellons 2018). Vectorises.
inline uint32_t random_word(uint32_t key, uint32_t counter) {
  uint32_t x = key ^ (counter * 0x9e3779b1u);
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline float square_root(float value) {
  return __builtin_sqrtf(value);
}
inline double square_root(double value) {
  return __builtin_sqrt(value);
}

inline void store(float value, float* out) {
  *out = value;
}
inline void store(double value, double* out) {
  *out = value;
}
inline void store(float value, BFloat16* out) {
  *out = to_bfloat16(value);
}

#ifdef TORCH_LSH_ARM_BF16
// Rounds whole vectors, by one instruction each; returns how many numbers these are.
inline int64_t round_vectors(const float* from, int64_t count, BFloat16* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
#if TORCH_LSH_VECTOR_BYTES == 32
    const auto rounded = svcvt_bf16_f32_x(svptrue_b32(), svld1_f32(svptrue_b32(), from + i));
    svst1h_u32(svptrue_b32(), &to[i].bits, svreinterpret_u32_bf16(rounded));  // the low half of each word
#else
    const auto rounded =
        vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(vld1q_f32(from + i)), vld1q_f32(from + i + 4));
    __builtin_memcpy(to + i, &rounded, sizeof(rounded));
#endif
  }
  return i;
}
#endif

template <typename From, typename To>
inline void convert(const From* from, int64_t count, To* to) {
  if constexpr (__is_same(From, To)) {
    if (count > 0)  // pointers of empty arrays may be null
      __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(To));
  } else {
    int64_t i = 0;
#ifdef TORCH_LSH_ARM_BF16
    if constexpr (__is_same(From, float) && __is_same(To, BFloat16)) i = round_vectors(from, count, to);
#endif
    for (; i < count; ++i) store(to_float(from[i]), to + i);
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
