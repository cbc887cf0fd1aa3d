// Stable radix sort of numbers with their positions. In the calling thread: some ten thousand numbers are
// sorted before others are awake.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

template <typename Key>
struct KeyAndIndex {
  Key key, index;
};

// Sorts by key, ascending; equal keys stay in order. `spare` is scratch, `largest` the largest key.
template <typename Key>
void radix_sort(std::vector<KeyAndIndex<Key>>& entries, std::vector<KeyAndIndex<Key>>& spare, Key largest) {
  constexpr int kBits = 11;
  constexpr Key kMask = (Key{1} << kBits) - 1;
  spare.resize(entries.size());
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)) && largest >> shift > 0; shift += kBits) {
    std::array<size_t, (1 << kBits)> start{};
    for (const auto& entry : entries) ++start[entry.key >> shift & kMask];
    size_t position = 0;
    for (size_t& count : start) position += std::exchange(count, position);
    for (const auto& entry : entries) spare[start[entry.key >> shift & kMask]++] = entry;
    entries.swap(spare);
  }
}

}  // namespace torch_lsh
