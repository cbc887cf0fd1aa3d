// Inner product of a sparse row with a dense vector.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace torch_lsh {

// Four sums, since one would wait for each addition.
template <typename Index>
float gathered_product(const Index* index, const float* value, int64_t count, const float* dense) {
  std::array<float, 4> sums{};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t lane = 0; lane < 4; ++lane) sums[lane] += value[i + lane] * dense[index[i + lane]];
  for (; i < count; ++i) sums[i & 3] += value[i] * dense[index[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// An entry of a sparse row whose indices and values are stored side by side.
struct Entry {
  int32_t index;
  float value;
};

// The same sums in the same order.
inline float gathered_product(const Entry* entries, int64_t count, const float* dense) {
  std::array<float, 4> sums{};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t lane = 0; lane < 4; ++lane)
      sums[lane] += entries[i + lane].value * dense[entries[i + lane].index];
  for (; i < count; ++i) sums[i & 3] += entries[i].value * dense[entries[i].index];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
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
