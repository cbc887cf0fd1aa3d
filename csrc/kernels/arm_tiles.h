// Tiles of Arm's matrix instructions (FEAT_BF16, FEAT_I8MM). BFMMLA multiplies 2 x 4 numbers by 4 x 2, SMMLA
// 2 x 8 by 8 x 2, in vectors of 16 bytes. SVE does so in each 16 bytes of its longer vectors: a left tile is
// in all of them, and a right tile has two columns for each. Compiled once per instruction set: include only
// from kernels/levels/*.cpp.
#pragma once

#include <arm_neon.h>
#if TORCH_LSH_VECTOR_BYTES == 32
#include <arm_sve.h>
#endif

#include <utility>  // types only: a function of the STL would be compiled with this level's instructions

#include "kernels/arm_shape.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Vectors of sums and of numbers, and the instructions. load_left reads 16 bytes, once for each 16 of a
// vector.
template <typename T>
struct ArmVectors;

#if TORCH_LSH_VECTOR_BYTES == 16
template <>
struct ArmVectors<BFloat16> {
  using Sums = float32x4_t;
  using Numbers = bfloat16x8_t;

  static Numbers load_left(const BFloat16* from) { return load_vector<Numbers>(from); }
  static Sums add_product(Sums sums, Numbers left, Numbers right) { return vbfmmlaq_f32(sums, left, right); }
};

template <>
struct ArmVectors<int8_t> {
  using Sums = int32x4_t;
  using Numbers = int8x16_t;

  static Numbers load_left(const int8_t* from) { return load_vector<Numbers>(from); }
  static Sums add_product(Sums sums, Numbers left, Numbers right) { return vmmlaq_s32(sums, left, right); }
};
#elif TORCH_LSH_VECTOR_BYTES == 32
template <>
struct ArmVectors<BFloat16> {
  typedef svfloat32_t Sums __attribute__((arm_sve_vector_bits(256)));
  typedef svbfloat16_t Numbers __attribute__((arm_sve_vector_bits(256)));

  static Numbers load_left(const BFloat16* from) {
    return svld1rq_bf16(svptrue_b16(), reinterpret_cast<const bfloat16_t*>(from));
  }
  static Sums add_product(Sums sums, Numbers left, Numbers right) { return svbfmmla_f32(sums, left, right); }
};

template <>
struct ArmVectors<int8_t> {
  typedef svint32_t Sums __attribute__((arm_sve_vector_bits(256)));
  typedef svint8_t Numbers __attribute__((arm_sve_vector_bits(256)));

  static Numbers load_left(const int8_t* from) { return svld1rq_s8(svptrue_b8(), from); }
  static Sums add_product(Sums sums, Numbers left, Numbers right) { return svmmla_s32(sums, left, right); }
};
#endif

// The first, or last, halves of two vectors, their elements in turns.
template <bool Last, typename V>
inline V zip(V a, V b) {
  constexpr int kElements = sizeof(V) / sizeof(a[0]);
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((Last * kElements + I) / 2 + I % 2 * kElements)...);
  }(std::make_integer_sequence<int, kElements>{});
}

// The instructions keep a tile's two rows side by side, two columns at a time: {row 0, row 1, row 0, row 1,
// ...}. Makes two rows of two such tiles.
template <typename Sums>
inline void tiles_to_rows(Sums (&vectors)[2]) {
  using ColumnPairs = Vector<double>;
  const auto first = (ColumnPairs)vectors[0], second = (ColumnPairs)vectors[1];
  [&]<int... I>(std::integer_sequence<int, I...>) {
    vectors[0] = (Sums)__builtin_shufflevector(first, second, (2 * I)...);
    vectors[1] = (Sums)__builtin_shufflevector(first, second, (2 * I + 1)...);
  }(std::make_integer_sequence<int, kLanes<double>>{});
}

template <typename T>
struct ArmTiles : ArmShape<T> {
  using Type = T;
  using Sum = typename TileSum<T>::type;
  using Sums = typename ArmVectors<T>::Sums;
  using Numbers = typename ArmVectors<T>::Numbers;

  class Session {
   public:
    Session() {}
    ~Session() {}
  };

  // to[Width, 4] of from[i + k * along].
  template <int64_t Width>
  static void transpose(const T* from, int64_t along, T* to)
    requires(sizeof(T) == 2)
  {
    using Halves = Vector<uint16_t>;
    using Words = Vector<uint32_t>;
    constexpr int64_t kLanes = sizeof(Halves) / sizeof(T);
#pragma GCC unroll 2
    for (int64_t i = 0; i < Width; i += kLanes) {
      const int64_t count = Width - i < kLanes ? Width - i : kLanes;
      Halves rows[4];
#pragma GCC unroll 4
      for (int64_t k = 0; k < 4; ++k)
        rows[k] = count < kLanes ? load_first<Halves>(from + i + k * along, count)
                                 : load_vector<Halves>(from + i + k * along);
      const auto first = (Words)zip<false>(rows[0], rows[1]), third = (Words)zip<false>(rows[2], rows[3]);
      const auto second = (Words)zip<true>(rows[0], rows[1]), fourth = (Words)zip<true>(rows[2], rows[3]);
      const Words columns[4] = {zip<false>(first, third), zip<true>(first, third), zip<false>(second, fourth),
                                zip<true>(second, fourth)};
      __builtin_memcpy(to + 4 * i, columns, static_cast<size_t>(4 * count) * sizeof(T));
    }
  }

  // sums[i][j / 2][j % 2] += left tile i · right tile j
  template <int64_t Down, int64_t Across>
  static void add_step(const T* left, const T* right, Sums (&sums)[Down][Across / 2][2]) {
    Numbers numbers[Across];
#pragma GCC unroll 6
    for (int64_t j = 0; j < Across; ++j)
      numbers[j] = load_vector<Numbers>(right + j * kVectorBytes / sizeof(T));
    const auto add_tile = [&](int64_t i, Numbers tile) {
#pragma GCC unroll 6
      for (int64_t j = 0; j < Across; ++j)
        sums[i][j / 2][j % 2] = ArmVectors<T>::add_product(sums[i][j / 2][j % 2], tile, numbers[j]);
    };
#pragma GCC unroll 3
    for (int64_t i = 0; i + 1 < Down; i += 2) {  // one instruction loads two
      const Numbers first = ArmVectors<T>::load_left(left + i * 16 / sizeof(T));
      const Numbers second = ArmVectors<T>::load_left(left + (i + 1) * 16 / sizeof(T));
      add_tile(i, first);
      add_tile(i + 1, second);
    }
    if constexpr (Down % 2 != 0)
      add_tile(Down - 1, ArmVectors<T>::load_left(left + (Down - 1) * 16 / sizeof(T)));
  }

  template <bool Add, int64_t Down, int64_t Across>
  static void store(Sums (&sums)[Down][Across / 2][2], Sum* out, int64_t stride) {
#pragma GCC unroll 6
    for (int64_t i = 0; i < Down; ++i, out += 2 * stride)
#pragma GCC unroll 3
      for (int64_t j = 0; j < Across / 2; ++j) {
        tiles_to_rows(sums[i][j]);
#pragma GCC unroll 2
        for (int64_t r = 0; r < 2; ++r) {
          Sum* const to = out + r * stride + j * kLanes<Sum>;
          const Sums sum = Add ? load_vector<Sums>(to) + sums[i][j][r] : sums[i][j][r];
          __builtin_memcpy(to, &sum, sizeof(sum));
        }
      }
  }

  // Left tiles follow one another.
  template <int64_t Down, int64_t Across>
  static void multiply(const LeftTiles<T>& left, const T* right, int64_t steps, bool add, Sum* out,
                       int64_t stride) {
    Sums sums[Down][Across / 2][2] = {};
    const T* from = left.from;
#pragma GCC unroll 2
    for (int64_t step = 0; step < steps; ++step) {
      add_step<Down, Across>(from, right, sums);
      from += Down * 16 / sizeof(T);
      right += Across * kVectorBytes / sizeof(T);
    }
    if (add) {
      store<true, Down, Across>(sums, out, stride);
    } else {
      store<false, Down, Across>(sums, out, stride);
    }
  }
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
