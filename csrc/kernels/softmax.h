// Softmax over logits in two layouts: contiguous per sample, or contiguous per active row (column_*, with
// samples as columns). Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// exp(r) for |r| <= ln(2) / 2: the polynomial of degree 5 of least relative error with a constant term of 1.
template <typename V>
inline V polynomial(V r) {
  V p = 0.00829022937f * r + 0.0418983884f;
  p = p * r + 0.166676402f;
  p = p * r + 0.499991447f;
  p = p * r + 0.999999702f;
  p = p * r + 1.0f;
  return p;
}

// exp(x) within 2.5 ulp; 0 below -88 (underflow), not finite above 89, NaN stays NaN. Cody & Waite reduction
// to |r| <= ln(2) / 2. Branch-free, so loops vectorise.
inline float exponential(float x) {
  const float bounded = x < -88.1f ? -88.1f : x;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // low bits: n = round(x / ln 2)
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof(bits));
  const int32_t most = 0x4b400080;  // of n = 128: 2^n is infinity
  const uint32_t exponent = (static_cast<uint32_t>(bits < most ? bits : most) << 23) + 0x3f800000u;
  float power;
  __builtin_memcpy(&power, &exponent, sizeof(power));
  return polynomial(r) * power;
}

#if TORCH_LSH_VECTOR_BYTES == 64
constexpr int64_t kRoots = 32;

struct Roots {
  float root[kRoots];  // 2^(i / kRoots)
};

constexpr Roots make_roots() {
  Roots roots{};
  double power = 1;
  for (float& root : roots.root) {
    root = static_cast<float>(power);
    power *= 1.0218971486541166;
  }
  return roots;
}

// exp(x (1 - 3e-9)) of a vector within 1.5 ulp, which is a 20th of the last digit of x; 0 below -87.33, where
// numbers are less than the least normal one; not finite above 89; NaN stays NaN. By one instruction each,
// AVX-512 looks up one of 32 numbers, scales by a power of two, and zeroes; with the table, degree 2 is
// enough.
inline Vector<float> exponential(Vector<float> x) {
  constexpr Roots kTable = make_roots();
  const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);  // NaN does
  const Vector<float> shifted = x * 1.44269504f + 393216.0f;  // rounds to a multiple of 1 / 32
  const Vector<float> n = shifted - 393216.0f;
  // Fused whatever the compiler: the product alone would round away all that is left.
  const auto r = (Vector<float>)_mm512_fnmadd_ps((__m512)n, _mm512_set1_ps(0.693147182f), (__m512)x);
  const auto root = (Vector<float>)_mm512_permutex2var_ps(  // by the low bits, those of a fraction
      _mm512_loadu_ps(kTable.root), (__m512i)shifted, _mm512_loadu_ps(kTable.root + 16));
  const Vector<float> p = (r * 0.5f + 1.00001464f) * r;
  return (Vector<float>)_mm512_maskz_scalef_ps(counts, (__m512)(root * p + root), (__m512)n);
}
#endif

inline double exponential(double x) {
  return __builtin_exp(x);
}
inline float logarithm(float x) {
  return __builtin_logf(x);
}
inline double logarithm(double x) {
  return __builtin_log(x);
}

// log sum exp(logits + log_weights). Weighted is a template argument: a branch inside the loops would keep
// them from vectorising.
template <bool Weighted, typename T>
T log_sum_exp_of(const T* __restrict logits, const T* __restrict log_weights, int64_t count) {
  T largest = -__builtin_inff();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    T z = logits[i];
    if constexpr (Weighted) z += log_weights[i];
    largest = z > largest ? z : largest;
  }
  // inf - inf would be NaN.
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

template <typename T>
T log_sum_exp(const T* logits, const T* log_weights, int64_t count) {
  return log_weights == nullptr ? log_sum_exp_of<false>(logits, log_weights, count)
                                : log_sum_exp_of<true>(logits, log_weights, count);
}

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

// -inf if count is 0; ignores NaN.
template <typename T>
void column_maxima(const T* __restrict logits, const T* __restrict log_weights, int64_t count, int64_t batch,
                   T* __restrict largest) {
  for (int64_t b = 0; b < batch; ++b) largest[b] = -__builtin_inff();
  for (int64_t i = 0; i < count; ++i) {
    const T* __restrict row = logits + i * batch;
    const T weight = log_weights == nullptr ? T(0) : log_weights[i];
#pragma omp simd
    for (int64_t b = 0; b < batch; ++b) {
      const T z = row[b] + weight;
      largest[b] = z > largest[b] ? z : largest[b];
    }
  }
}

// A maximum of -inf counts as 0 in the differences.
template <typename T>
void column_sums(const T* __restrict logits, const T* __restrict log_weights, int64_t count, int64_t batch,
                 T* __restrict largest, T* __restrict sum) {
  column_maxima(logits, log_weights, count, batch, largest);
  for (int64_t b = 0; b < batch; ++b) sum[b] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T* __restrict row = logits + i * batch;
    const T weight = log_weights == nullptr ? T(0) : log_weights[i];
#pragma omp simd
    for (int64_t b = 0; b < batch; ++b) {
      const T reference = largest[b] == -__builtin_inff() ? T(0) : largest[b];
      sum[b] += exponential(row[b] + weight - reference);
    }
  }
}

// One row of column_exponentials, from sample `begin` on.
template <bool WithMass, typename T>
void row_exponentials(T* __restrict row, T weight, int64_t begin, int64_t batch,
                      const T* __restrict reference, const T* __restrict mass, T* __restrict sum) {
#pragma omp simd
  for (int64_t b = begin; b < batch; ++b) {
    const T power = exponential(row[b] + weight - reference[b]);
    sum[b] += power;
    if constexpr (WithMass) {
      row[b] = mass[b] * power;
    } else {
      row[b] = power;
    }
  }
}

#if TORCH_LSH_VECTOR_BYTES == 64
#ifdef TORCH_LSH_BF16_DOT
template <typename T>
constexpr bool kStoresVectors = !__is_same(T, double);
#else
template <typename T>
constexpr bool kStoresVectors = __is_same(T, float);
#endif

template <int64_t Count, typename T>
inline void store_vectors(const Vector<float> (&values)[Count], T* out) {
  if constexpr (__is_same(T, float)) {
    __builtin_memcpy(out, values, sizeof(values));
  } else {
#ifdef TORCH_LSH_BF16_DOT
    if constexpr (Count == 1) {
      const auto rounded = _mm512_cvtneps_pbh((__m512)values[0]);
      __builtin_memcpy(out, &rounded, sizeof(rounded));
    } else {
      static_assert(Count == 2);
      const auto rounded = _mm512_cvtne2ps_pbh((__m512)values[1], (__m512)values[0]);
      __builtin_memcpy(out, &rounded, sizeof(rounded));
    }
#endif
  }
}

// The same for all rows and a few vectors of samples, whose sums stay in registers.
template <bool WithMass, int64_t Vectors, typename T>
void vector_exponentials(const float* logits, const float* log_weights, int64_t count, int64_t batch,
                         const float* reference, const float* mass, T* out, float* sum) {
  using V = Vector<float>;
  V total[Vectors]{};
  for (int64_t i = 0; i < count; ++i) {
    V scaled[Vectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < Vectors; ++v) {
      V logit = load_vector<V>(logits + i * batch + v * kLanes<float>);
      if (log_weights != nullptr) logit += log_weights[i];
      const V power = exponential(logit - load_vector<V>(reference + v * kLanes<float>));
      total[v] += power;
      scaled[v] = WithMass ? load_vector<V>(mass + v * kLanes<float>) * power : power;
    }
    store_vectors(scaled, out + i * batch);
  }
  __builtin_memcpy(sum, total, sizeof(total));
}
#endif

// WithMass is a template argument: as in log_sum_exp_of.
template <bool WithMass, typename T>
void column_exponentials_of(SumOf<T>* logits, const SumOf<T>* log_weights, int64_t count, int64_t batch,
                            const SumOf<T>* reference, const SumOf<T>* mass, T* out, SumOf<T>* sum) {
  using Sum = SumOf<T>;
  int64_t done = 0;
#if TORCH_LSH_VECTOR_BYTES == 64
  if constexpr (kStoresVectors<T>) {
    const auto run = [&]<int64_t Vectors>() {
      for (; done + Vectors * kLanes<Sum> <= batch; done += Vectors * kLanes<Sum>)
        vector_exponentials<WithMass, Vectors>(logits + done, log_weights, count, batch, reference + done,
                                               WithMass ? mass + done : nullptr, out + done, sum + done);
    };
    run.template operator()<2>();
    run.template operator()<1>();
  }
#endif
  if (done == batch) return;
  for (int64_t b = done; b < batch; ++b) sum[b] = 0;
  for (int64_t i = 0; i < count; ++i) {
    Sum* const row = logits + i * batch;
    row_exponentials<WithMass>(row, log_weights == nullptr ? Sum(0) : log_weights[i], done, batch, reference,
                               mass, sum);
    if constexpr (!__is_same(T, Sum)) convert(row + done, batch - done, out + i * batch + done);
  }
}

template <typename T>
void column_exponentials(SumOf<T>* logits, const SumOf<T>* log_weights, int64_t count, int64_t batch,
                         const SumOf<T>* reference, const SumOf<T>* mass, T* out, SumOf<T>* sum) {
  const auto run = mass == nullptr ? column_exponentials_of<false, T> : column_exponentials_of<true, T>;
  run(logits, log_weights, count, batch, reference, mass, out, sum);
}

template <typename T>
void row_sums(const T* __restrict slopes, const SumOf<T>* __restrict factors, int64_t count,
              SumOf<T>* __restrict sum, SumOf<T>* __restrict positive) {
  using Sum = SumOf<T>;
  using V = Vector<Sum>;
  V of_all{}, of_above{};
  int64_t i = 0;
  for (; i + kLanes<Sum> <= count; i += kLanes<Sum>) {
    const V term = load_as<Sum>(slopes + i) * load_vector<V>(factors + i);
    of_all += term;
    of_above += term > 0 ? term : V{};
  }
  Sum all = sum_lanes(of_all), above = sum_lanes(of_above);
  for (; i < count; ++i) {
    const Sum term = to_float(slopes[i]) * factors[i];
    all += term;
    above += term > 0 ? term : Sum(0);
  }
  *sum = all;
  *positive = above;
}

template <typename T>
void column_softmax(const T* __restrict logits, T log_weight, int64_t batch, const T* __restrict log_z,
                    const T* __restrict factor, T* __restrict out) {
#pragma omp simd
  for (int64_t b = 0; b < batch; ++b) out[b] = factor[b] * exponential(logits[b] + log_weight - log_z[b]);
}

template <typename T>
T positive_sum(const T* values, int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += values[i] > 0 ? values[i] : T(0);
  return sum;
}

template <typename T>
void add_positive(const T* __restrict row, int64_t count, T* __restrict sums) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sums[i] += row[i] > 0 ? row[i] : T(0);
}

template <typename T>
constexpr void fill(SoftmaxKernels<T>& table) {
  table = {
      .log_sum_exp = log_sum_exp<T>,
      .scaled_softmax = scaled_softmax<T>,
      .column_maxima = column_maxima<T>,
      .column_sums = column_sums<T>,
      .column_softmax = column_softmax<T>,
      .positive_sum = positive_sum<T>,
      .add_positive = add_positive<T>,
  };
}

template <typename T>
constexpr void fill(SlopeKernels<T>& table) {
  table = {.column_exponentials = column_exponentials<T>, .row_sums = row_sums<T>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
