// Inner product of a sparse row with a dense vector.
#pragma once

#include <algorithm>
#include <cstdint>

namespace torch_lsh {

// Adds up term(0) to term(count - 1), in four sums, since one would wait for each addition. They are
// variables of their own: of an array, GCC moves them out of their registers.
template <typename Term>
[[gnu::always_inline]] inline float sum_in_four(int64_t count, const Term& term) {
  float first = 0, second = 0, third = 0, fourth = 0;
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    first += term(i);
    second += term(i + 1);
    third += term(i + 2);
    fourth += term(i + 3);
  }
  if (i < count) first += term(i);
  if (i + 1 < count) second += term(i + 1);
  if (i + 2 < count) third += term(i + 2);
  return (first + second) + (third + fourth);
}

template <typename Index>
float gathered_product(const Index* index, const float* value, int64_t count, const float* dense) {
  return sum_in_four(count, [=](int64_t i) { return value[i] * dense[index[i]]; });
}

// Whether all indices are from 0 to below the limit. The sign bit of the union is set where one is not.
inline bool all_below(const int32_t* index, int64_t count, int64_t limit) {
  const auto largest = static_cast<int32_t>(std::min<int64_t>(limit, INT32_MAX)) - 1;
  uint32_t outside = 0;
  for (int64_t i = 0; i < count; ++i)
    outside |=
        static_cast<uint32_t>(index[i]) | (static_cast<uint32_t>(largest) - static_cast<uint32_t>(index[i]));
  return count == 0 || outside >> 31 == 0;
}

}  // namespace torch_lsh
