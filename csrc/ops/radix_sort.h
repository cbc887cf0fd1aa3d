// Stable radix sort of numbers with their positions. In the calling thread: some ten thousand numbers are
// sorted before others are awake.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

constexpr int kMostDigitBits = 11;

template <typename Key>
struct KeyAndIndex {
  Key key, index;
};

// entries = (key_of(i), i) for i < count, by key, ascending; equal keys stay in order. key_of is called once
// for every i, in order. `spare` is scratch, `largest` has as many bits as the largest key.
template <typename Key, typename KeyOf>
void radix_sort(int64_t count, KeyOf key_of, Key largest, std::vector<KeyAndIndex<Key>>& entries,
                std::vector<KeyAndIndex<Key>>& spare) {
  const int width = std::max(1, static_cast<int>(std::bit_width(largest)));
  constexpr int kMostPasses = (8 * sizeof(Key) + kMostDigitBits - 1) / kMostDigitBits;
  const int passes = (width + kMostDigitBits - 1) / kMostDigitBits, bits = (width + passes - 1) / passes;
  const Key mask = (Key{1} << bits) - 1;
  // How often each digit occurs does not depend on the order: all are counted in one pass.
  Key start[kMostPasses][1 << kMostDigitBits];
  for (int pass = 0; pass < passes; ++pass) std::fill_n(start[pass], mask + 1, Key{0});
  entries.resize(count);
  spare.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const Key key = key_of(i);
    entries[i] = {key, static_cast<Key>(i)};
    for (int pass = 0; pass < passes; ++pass) ++start[pass][key >> pass * bits & mask];
  }
  for (int pass = 0; pass < passes; ++pass) {
    Key position = 0;
    for (Key digit = 0; digit <= mask; ++digit) position += std::exchange(start[pass][digit], position);
    for (int64_t i = 0; i < count; ++i)
      spare[start[pass][entries[i].key >> pass * bits & mask]++] = entries[i];
    entries.swap(spare);
  }
}

}  // namespace torch_lsh
