// Sorts row numbers and finds the runs of equal ones: the transpose of a batch's lists of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/radix_sort.h"

namespace torch_lsh {

struct RowGroups {
  std::vector<int64_t> rows;   // unique, increasing
  std::vector<int64_t> start;  // entries of group g: order[start[g]] to order[start[g + 1] - 1]
  std::vector<int64_t> order;  // positions in the input, increasing within a group
};

template <typename Key>
RowGroups group_keys(const int64_t* rows, int64_t count, int64_t largest) {
  thread_local std::vector<KeyAndIndex<Key>> entries, spare;
  entries.resize(count);
  for (int64_t i = 0; i < count; ++i) entries[i] = {static_cast<Key>(rows[i]), static_cast<Key>(i)};
  radix_sort(entries, spare, static_cast<Key>(largest));
  RowGroups groups;
  groups.order.resize(count);
  groups.rows.reserve(count);
  groups.start.reserve(count + 1);
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || entries[i].key != entries[i - 1].key) {
      groups.rows.push_back(static_cast<int64_t>(entries[i].key));
      groups.start.push_back(i);
    }
    groups.order[i] = static_cast<int64_t>(entries[i].index);
  }
  groups.start.push_back(count);
  return groups;
}

// rows [count] are not negative.
inline RowGroups group_rows(const int64_t* rows, int64_t count) {
  int64_t largest = count;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, rows[i]);
  return largest <= UINT32_MAX ? group_keys<uint32_t>(rows, count, largest)
                               : group_keys<uint64_t>(rows, count, largest);
}

}  // namespace torch_lsh
