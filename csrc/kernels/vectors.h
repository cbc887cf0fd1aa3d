// Vectors of one register, and how numbers are loaded into them. Compiled once per instruction set: include
// only from kernels/levels/*.cpp.
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
#endif

namespace torch_lsh::TORCH_LSH_LEVEL {

// Compilers make plain code of vectors where there are none.
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

// What numbers of type T are multiplied as, and packed as before.
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

// kLanes<Sum> numbers, converted. The intrinsics are what compilers do not make of __builtin_convertvector.
template <typename Sum>
inline Vector<Sum> load_as(const Sum* from) {
  return load_vector<Vector<Sum>>(from);
}
template <typename Sum>
inline Vector<float> load_as(const BFloat16* from) {
  using Half = typename VectorType<uint16_t, kLanes<float>>::type;
  const Half half = load_vector<Half>(from);
#if TORCH_LSH_VECTOR_BYTES == 64
  const auto bits = (Vector<uint32_t>)_mm512_cvtepu16_epi32((__m256i)half);
#elif TORCH_LSH_VECTOR_BYTES == 32
  const auto bits = (Vector<uint32_t>)_mm256_cvtepu16_epi32((__m128i)half);
#else
  const auto bits = __builtin_convertvector(half, Vector<uint32_t>);
#endif
  return (Vector<float>)(bits << 16);
}
template <typename Sum>
inline Vector<float> load_as(const int8_t* from) {
#if TORCH_LSH_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_vector<__m128i>(from)));
#elif TORCH_LSH_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#else
  using Byte = typename VectorType<int8_t, kLanes<float>>::type;
  return __builtin_convertvector(__builtin_convertvector(load_vector<Byte>(from), Vector<int32_t>),
                                 Vector<float>);
#endif
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
