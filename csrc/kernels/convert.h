// Conversions between storage and accumulator types. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"

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

template <typename From, typename To>
inline void convert(const From* from, int64_t count, To* to) {
  if constexpr (__is_same(From, To)) {
    if (count > 0)  // pointers of empty arrays may be null
      __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(To));
  } else {
    for (int64_t i = 0; i < count; ++i) store(to_float(from[i]), to + i);
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
