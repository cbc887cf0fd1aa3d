// Conversions between storage types. Compiled once per instruction set: include only from
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

// Rounds to nearest even, as PyTorch does; NaN stays NaN.
inline BFloat16 to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
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
    __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(To));
  } else {
    for (int64_t i = 0; i < count; ++i) store(to_float(from[i]), to + i);
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
