// Transposes squares of 32-bit words in registers. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
#pragma once

#include <cstdint>
#include <utility>  // types only: a function of the STL would be compiled with this level's instructions

namespace torch_lsh::TORCH_LSH_LEVEL {

// 16 x 16 words in place, in four rounds that swap ever larger squares.
typedef uint32_t Words16 __attribute__((vector_size(64)));

template <int64_t Distance>
inline void swap_squares(Words16 (&rows)[16]) {
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    if (i & Distance) continue;
    const Words16 low = rows[i], high = rows[i + Distance];
    const auto lanes = [&]<int... L>(std::integer_sequence<int, L...>) {
      rows[i] = __builtin_shufflevector(low, high, (L & Distance ? 16 + L - Distance : L)...);
      rows[i + Distance] = __builtin_shufflevector(low, high, (L & Distance ? 16 + L : L + Distance)...);
    };
    lanes(std::make_integer_sequence<int, 16>{});
  }
}

inline void transpose_words(Words16 (&rows)[16]) {
  swap_squares<1>(rows);
  swap_squares<2>(rows);
  swap_squares<4>(rows);
  swap_squares<8>(rows);
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
