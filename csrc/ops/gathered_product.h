// Inner product of a sparse row with a dense vector.
#pragma once

#include <array>
#include <cstdint>

namespace torch_lsh {

// Four sums, since one would wait for each addition.
inline float gathered_product(const int32_t* index, const float* value, int64_t count, const float* dense) {
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

// The largest index as an unsigned number, so that negative ones are large, too; 0 of none.
inline uint32_t largest_index(const int32_t* index, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto one = static_cast<uint32_t>(index[i]);
    largest = one > largest ? one : largest;
  }
  return largest;
}

}  // namespace torch_lsh
