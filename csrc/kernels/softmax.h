// Softmax of one sample's logits. Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// exp(x) for x <= 0 up to rounding, within 2 units in the last place; 0 below -87, where floats end. NaN
// stays NaN. Cody & Waite reduction to |r| <= ln(2) / 2 and a polynomial of degree 6, without branches, so
// that loops vectorise.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted =
      clamped * 1.44269504f + 12582912.0f;  // the integer n = round(x / ln 2) in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  const uint32_t exponent = (static_cast<uint32_t>(bits) << 23) + 0x3f800000u;
  float power;
  __builtin_memcpy(&power, &exponent, sizeof(power));
  return x < -87.0f ? 0.0f : p * power;
}

inline double exponential(double x) {
  return __builtin_exp(x);
}
inline float logarithm(float x) {
  return __builtin_logf(x);
}
inline double logarithm(double x) {
  return __builtin_log(x);
}

// log sum exp(logits + log_weights), the latter only if Weighted: a choice within the loops would keep them
// from vectorising.
template <bool Weighted, typename T>
T log_sum_exp_of(const T* __restrict logits, const T* __restrict log_weights, int64_t count) {
  T largest = -__builtin_inff();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    T z = logits[i];
    if constexpr (Weighted) z += log_weights[i];
    largest = z > largest ? z : largest;
  }
  // The difference of two infinities would be NaN.
  if (largest == __builtin_inff()) return largest;
  if (largest == -__builtin_inff()) largest = 0;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    T z = logits[i];
    if constexpr (Weighted) z += log_weights[i];
    sum += exponential(z - largest);
  }
  return largest + logarithm(sum);
}

// The same; log_weights may be null.
template <typename T>
T log_sum_exp(const T* logits, const T* log_weights, int64_t count) {
  return log_weights == nullptr ? log_sum_exp_of<false>(logits, log_weights, count)
                                : log_sum_exp_of<true>(logits, log_weights, count);
}

// out = factor * exp(logits + log_weights - log_z)
template <typename T>
void scaled_softmax(const T* __restrict logits, const T* __restrict log_weights, int64_t count, T log_z,
                    T factor, T* __restrict out) {
  if (log_weights == nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = factor * exponential(logits[i] - log_z);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = factor * exponential(logits[i] + log_weights[i] - log_z);
  }
}

// sums += max(0, row)
template <typename T>
void add_positive(const T* __restrict row, int64_t count, T* __restrict sums) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sums[i] += row[i] > 0 ? row[i] : T(0);
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
