// Stable radix sort of numbers with their positions. In the calling thread: some ten thousand numbers are
// sorted before others are awake.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

constexpr int kMostDigitBits = 11;

template <typename Key>
struct KeyAndIndex {
  Key key, index;
};

// sorted = the entries entry_of(i), i < count, by the digit of `bits` bits that begins at `shift`.
template <typename EntryOf, typename Entry>
void sort_by_digit(int64_t count, const EntryOf& entry_of, int shift, int bits, Entry* sorted) {
  std::array<size_t, size_t{1} << kMostDigitBits> start{};
  const size_t digits = size_t{1} << bits;
  const auto digit_of = [&](const Entry& entry) { return entry.key >> shift & (digits - 1); };
  for (int64_t i = 0; i < count; ++i) ++start[digit_of(entry_of(i))];
  size_t position = 0;
  for (size_t digit = 0; digit < digits; ++digit) position += std::exchange(start[digit], position);
  for (int64_t i = 0; i < count; ++i) {
    const Entry entry = entry_of(i);
    sorted[start[digit_of(entry)]++] = entry;
  }
}

// entries = (key_of(i), i) for i < count, by key, ascending; equal keys stay in order. `spare` is scratch,
// `largest` has as many bits as the largest key.
template <typename Key, typename KeyOf>
void radix_sort(int64_t count, const KeyOf& key_of, Key largest, std::vector<KeyAndIndex<Key>>& entries,
                std::vector<KeyAndIndex<Key>>& spare) {
  using Entry = KeyAndIndex<Key>;
  const int width = std::max(1, static_cast<int>(std::bit_width(largest)));
  const int passes = (width + kMostDigitBits - 1) / kMostDigitBits, bits = (width + passes - 1) / passes;
  entries.resize(count);
  spare.resize(count);
  sort_by_digit(
      count, [&](int64_t i) { return Entry{key_of(i), static_cast<Key>(i)}; }, 0, bits, entries.data());
  for (int shift = bits; shift < width; shift += bits) {
    sort_by_digit(count, [&](int64_t i) { return entries[i]; }, shift, bits, spare.data());
    entries.swap(spare);
  }
}

}  // namespace torch_lsh
