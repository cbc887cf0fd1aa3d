// Vectors the size of one register: types, converting loads, horizontal sums. Compiled once per instruction
// set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#if TORCH_LSH_VECTOR_BYTES == 32
#include <arm_sve.h>
#endif
#endif

namespace torch_lsh::TORCH_LSH_LEVEL {

// Without vector registers, compilers lower vectors to scalar code.
constexpr int64_t kVectorBytes = TORCH_LSH_VECTOR_BYTES < 16 ? 16 : TORCH_LSH_VECTOR_BYTES;

template <typename T, int64_t Lanes>
struct VectorType {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <typename Sum>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(Sum));
template <typename Sum>
using Vector = typename VectorType<Sum, kLanes<Sum>>::type;

template <typename V, typename T>
inline V load_vector(const T* from) {
  V vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

#ifdef TORCH_LSH_ARM_BF16
// A vector of the first `count` numbers, fewer than it has, and zeros.
template <typename V, typename T>
inline V load_first(const T* from, int64_t count) {
#if TORCH_LSH_VECTOR_BYTES == 32
  typedef svuint8_t Bytes __attribute__((arm_sve_vector_bits(256)));
  const auto wanted = svwhilelt_b8_s64(0, count * static_cast<int64_t>(sizeof(T)));
  return (V)(Bytes)svld1_u8(wanted, reinterpret_cast<const uint8_t*>(from));
#else
  // In pieces of constant sizes, which are a load and a store each.
  uint8_t bytes[16] = {}, *to = bytes;
  const auto copy = [&](int64_t size) {
    if ((count * static_cast<int64_t>(sizeof(T)) & size) == 0) return;
    __builtin_memcpy(to, from, static_cast<size_t>(size));
    to += size, from += size / static_cast<int64_t>(sizeof(T));
  };
  copy(8);
  copy(4);
  copy(2);
  if constexpr (sizeof(T) == 1) copy(1);
  return load_vector<V>(bytes);
#endif
}
#endif

// The type that stored numbers of type T are packed and multiplied as.
template <typename T, typename Sum>
struct Operand {
  using type = Sum;
};
#ifdef TORCH_LSH_BF16_DOT
template <>
struct Operand<BFloat16, float> {
  using type = BFloat16;
};
#endif

inline float to_float(int8_t value) {
  return value;
}

#ifdef TORCH_LSH_BF16_DOT
// Pairs of bfloat16 numbers. The products of both are added to a sum.
using Pairs = Vector<int32_t>;

inline Vector<float> add_pairs(Vector<float> sum, Pairs a, Pairs b) {
#if TORCH_LSH_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif TORCH_LSH_VECTOR_BYTES == 32
  typedef svbfloat16_t Numbers __attribute__((arm_sve_vector_bits(256)));
  return svbfdot_f32(sum, (Numbers)a, (Numbers)b);
#else
  return (Vector<float>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
}

inline Pairs load_first_pairs(const BFloat16* from, int64_t count) {
#if TORCH_LSH_VECTOR_BYTES == 64
  return (Pairs)_mm512_maskz_loadu_epi16((uint32_t{1} << count) - 1, from);
#else
  return load_first<Pairs>(from, count);
#endif
}

inline Pairs same_pairs(const BFloat16* from) {
  int32_t pair;
  __builtin_memcpy(&pair, from, sizeof(pair));
  return pair - Pairs{};
}
#endif

// Pairwise sum of all lanes.
template <typename V>
inline auto sum_lanes(V vector) {
  constexpr int64_t lanes = sizeof(V) / sizeof(vector[0]);
  if constexpr (lanes == 2) {
    return vector[0] + vector[1];
  } else {
    typename VectorType<__typeof__(vector[0] + vector[0]), lanes / 2>::type halves[2];
    __builtin_memcpy(halves, &vector, sizeof(vector));
    return sum_lanes(halves[0] + halves[1]);
  }
}

// Widens the first half of a vector. Compilers only widen whole registers; they drop the unused half.
template <typename Wide, typename V>
inline auto widen_first(V vector) {
  constexpr int64_t lanes = sizeof(vector) / sizeof(Wide);
  const auto wide = __builtin_convertvector(vector, typename VectorType<Wide, 2 * lanes>::type);
  return load_vector<typename VectorType<Wide, lanes>::type>(reinterpret_cast<const Wide*>(&wide));
}

// Loads and converts kLanes<Sum> numbers. Intrinsics where compilers make poor code of
// __builtin_convertvector.
template <typename Sum>
inline Vector<Sum> load_as(const Sum* from) {
  return load_vector<Vector<Sum>>(from);
}
#if TORCH_LSH_VECTOR_BYTES == 16 && !defined(__clang__)
template <typename Sum>
inline Vector<float> load_as(const BFloat16* from) {
  return (Vector<float>)vshll_n_u16(load_vector<uint16x4_t>(from), 16);
}
#else
template <typename Sum>
inline Vector<float> load_as(const BFloat16* from) {
#if TORCH_LSH_VECTOR_BYTES == 64
  const auto bits = (Vector<uint32_t>)_mm512_cvtepu16_epi32(load_vector<__m256i>(from));
#elif TORCH_LSH_VECTOR_BYTES == 32 && defined(__x86_64__)
  const auto bits = (Vector<uint32_t>)_mm256_cvtepu16_epi32(load_vector<__m128i>(from));
#elif TORCH_LSH_VECTOR_BYTES == 32
  const Vector<uint32_t> bits = svld1uh_u32(svptrue_b32(), &from->bits);
#else
  uint64_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  const auto bits = widen_first<uint32_t>((Vector<uint16_t>)Vector<uint64_t>{word});
#endif
  return (Vector<float>)(bits << 16);
}
#endif
template <typename Sum>
inline Vector<float> load_as(const int8_t* from) {
#if TORCH_LSH_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_vector<__m128i>(from)));
#elif TORCH_LSH_VECTOR_BYTES == 32 && defined(__x86_64__)
  return (Vector<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#elif TORCH_LSH_VECTOR_BYTES == 32
  const Vector<int32_t> wide = svld1sb_s32(svptrue_b32(), from);
  return __builtin_convertvector(wide, Vector<float>);
#else
  uint32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  const auto bytes = (Vector<int8_t>)Vector<uint32_t>{word};
  return __builtin_convertvector(widen_first<int32_t>(widen_first<int16_t>(bytes)), Vector<float>);
#endif
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
