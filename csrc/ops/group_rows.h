// Groups a batch's entries by row: sorts row ids and finds runs of equal ones.
//
// Threads own ranges of rows. Each collects the entries of its range from the whole list and sorts them.
// Reading the list, which no core has written, is cheaper than fetching sorted entries out of another core's
// cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/radix_sort.h"
#include "random.h"

namespace torch_lsh {

// The entries of one range of rows, by row, in their original order within a row. Vectors keep their memory
// between uses.
template <typename T>
struct RowGroups {
  int64_t count = 0;           // groups, one per unique row
  std::vector<int64_t> row;    // row of each group, increasing
  std::vector<int64_t> start;  // group g has entries start[g] to start[g + 1] - 1
  std::vector<int64_t> source;
  std::vector<T> factor;
};

// Splits the rows 0 .. largest into `parts` ranges, [border[p], border[p + 1]), with about as many entries
// each, estimated from a random sample.
inline std::vector<uint64_t> split_rows(const int64_t* rows, int64_t count, uint64_t largest, int64_t parts) {
  constexpr int64_t kSamples = 64;  // per range
  std::vector<uint64_t> sample(parts > 1 ? parts * kSamples : 0), border(parts + 1, 0);
  for (size_t s = 0; s < sample.size(); ++s) sample[s] = rows[random_below(0, s, count)];
  std::sort(sample.begin(), sample.end());
  for (int64_t p = 1; p < parts; ++p) border[p] = sample[p * kSamples];
  border[parts] = largest + 1;
  return border;
}

// Groups the entries of rows first .. first + span - 1. all: every entry is in that range.
template <typename Key, typename T, typename Sources>
void group_range(const int64_t* rows, int64_t count, uint64_t first, uint64_t span, bool all,
                 const T* factors, const Sources& sources, RowGroups<T>& groups) {
  constexpr int64_t kBlock = 1024;
  thread_local std::vector<KeyAndIndex<Key>> own, entries, spare;
  thread_local std::vector<Key> source;
  thread_local std::vector<T> factor;
  const auto entry_of = [=](int64_t i) {
    return KeyAndIndex<Key>{static_cast<Key>(rows[i] - first), static_cast<Key>(i)};
  };
  int64_t size = all ? count : 0;
  for (int64_t begin = 0; begin < count && !all; begin += kBlock) {
    if (static_cast<int64_t>(own.size()) < size + kBlock) own.resize(2 * (size + kBlock));
    auto* const to = own.data();
    for (int64_t i = begin; i < std::min(count, begin + kBlock); ++i) {
      to[size] = entry_of(i);  // overwritten by the next entry if out of range
      size += rows[i] - first < span;
    }
  }

  source.resize(size);
  factor.resize(factors == nullptr ? 0 : size);
  const auto sort = [&](const auto& own_entry) {
    const auto key_of = [&, source_of = sources()](int64_t i) mutable {
      const auto [key, index] = own_entry(i);
      source[i] = static_cast<Key>(source_of(index));
      if (factors != nullptr) factor[i] = factors[index];
      return key;
    };
    radix_sort(size, key_of, static_cast<Key>(span - 1), entries, spare);
  };
  if (all) {
    sort(entry_of);
  } else {
    sort([](int64_t i) { return own[i]; });
  }

  groups.row.resize(size);
  groups.start.resize(size + 1);
  groups.source.resize(size);
  groups.factor.resize(factor.size());
  int64_t group = 0;
  for (int64_t i = 0; i < size; ++i) {
    const auto [key, index] = entries[i];
    groups.row[group] = static_cast<int64_t>(first + key);
    groups.start[group] = i;
    group += i == 0 || key != entries[i - 1].key;
    groups.source[i] = source[index];
    if (factors != nullptr) groups.factor[i] = factor[index];
  }
  groups.start[group] = size;
  groups.count = group;
}

// Groups the entries of range `part` of split_rows. sources() returns a function from entry to source, called
// once per entry of the range, in order. Null factors: all ones.
template <typename T, typename Sources>
void group_rows(const int64_t* rows, int64_t count, const std::vector<uint64_t>& border, int64_t part,
                const T* factors, const Sources& sources, RowGroups<T>& groups) {
  const uint64_t first = border[part], span = border[part + 1] - first;
  const bool all = border.size() == 2;
  if (std::max<uint64_t>(span, count) <= UINT32_MAX) {
    group_range<uint32_t>(rows, count, first, span, all, factors, sources, groups);
  } else {
    group_range<uint64_t>(rows, count, first, span, all, factors, sources, groups);
  }
}

}  // namespace torch_lsh
