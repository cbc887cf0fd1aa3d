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
template <typename Sum>
inline Vector<float> load_as(const BFloat16* from) {
#if TORCH_LSH_VECTOR_BYTES == 64
  const auto bits = (Vector<uint32_t>)_mm512_cvtepu16_epi32(load_vector<__m256i>(from));
#elif TORCH_LSH_VECTOR_BYTES == 32
  const auto bits = (Vector<uint32_t>)_mm256_cvtepu16_epi32(load_vector<__m128i>(from));
#else
  uint64_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  const auto bits = widen_first<uint32_t>((Vector<uint16_t>)Vector<uint64_t>{word});
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
  uint32_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  const auto bytes = (Vector<int8_t>)Vector<uint32_t>{word};
  return __builtin_convertvector(widen_first<int32_t>(widen_first<int16_t>(bytes)), Vector<float>);
#endif
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
