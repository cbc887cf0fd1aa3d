// Sorts row numbers and finds the runs of equal ones: the transpose of a batch's lists of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/radix_sort.h"

namespace torch_lsh {

// Scratch memory of the thread that made it, for one use at a time.
template <typename Key>
struct RowGroups {
  int64_t count;                    // of unique rows
  const int64_t* start;             // group g is entries[start[g]] to entries[start[g + 1] - 1]
  const KeyAndIndex<Key>* entries;  // rows, increasing, and their positions, increasing within a group

  int64_t row(int64_t group) const { return static_cast<int64_t>(entries[start[group]].key); }
};

template <typename Key>
RowGroups<Key> group_keys(const int64_t* rows, int64_t count, Key largest) {
  thread_local std::vector<KeyAndIndex<Key>> entries, spare;
  thread_local std::vector<int64_t> starts;
  radix_sort(count, [&](int64_t i) { return static_cast<Key>(rows[i]); }, largest, entries, spare);
  starts.resize(count + 1);
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    starts[groups] = i;
    groups += i == 0 || entries[i].key != entries[i - 1].key;
  }
  starts[groups] = count;
  return {groups, starts.data(), entries.data()};
}

// use(the groups of rows [count], which are not negative), with keys of 32 bits where they suffice.
template <typename Use>
auto with_row_groups(const int64_t* rows, int64_t count, const Use& use) {
  uint64_t largest = 0;  // or more, of as many bits
  for (int64_t i = 0; i < count; ++i) largest |= static_cast<uint64_t>(rows[i]);
  return std::max<uint64_t>(largest, count) <= UINT32_MAX
             ? use(group_keys<uint32_t>(rows, count, static_cast<uint32_t>(largest)))
             : use(group_keys<uint64_t>(rows, count, largest));
}

}  // namespace torch_lsh
