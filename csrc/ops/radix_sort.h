// Stable radix sort of keys with their positions; few are compared instead. Single-threaded: ten thousand
// keys are sorted before other threads wake up.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

constexpr int kMostDigitBits = 11;
constexpr int64_t kFewKeys = 128;  // clearing and adding up the histograms takes as long as comparing these

template <typename Key>
struct KeyAndIndex {
  Key key, index;
};

// entries = (key_of(i), i) for i < count, stably sorted by key. key_of is called once per i, in order.
// spare: scratch. largest: an upper bound of the keys with as many bits as the largest.
template <typename Key, typename KeyOf>
void radix_sort(int64_t count, KeyOf key_of, Key largest, std::vector<KeyAndIndex<Key>>& entries,
                std::vector<KeyAndIndex<Key>>& spare) {
  entries.resize(count);
  if (count <= kFewKeys) {
    for (int64_t i = 0; i < count; ++i) entries[i] = {key_of(i), static_cast<Key>(i)};
    std::sort(entries.begin(), entries.end(), [](const auto& one, const auto& other) {
      return std::pair(one.key, one.index) < std::pair(other.key, other.index);
    });
    return;
  }
  spare.resize(count);
  const int width = std::max(1, static_cast<int>(std::bit_width(largest)));
  constexpr int kMostPasses = (8 * sizeof(Key) + kMostDigitBits - 1) / kMostDigitBits;
  const int passes = (width + kMostDigitBits - 1) / kMostDigitBits, bits = (width + passes - 1) / passes;
  const Key mask = (Key{1} << bits) - 1;
  // Histograms do not depend on the order of the keys: one pass counts the digits of all.
  Key start[kMostPasses][1 << kMostDigitBits];
  for (int pass = 0; pass < passes; ++pass) std::fill_n(start[pass], mask + 1, Key{0});
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
