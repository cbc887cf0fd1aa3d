// Sorts row numbers and finds the runs of equal ones: the transpose of a batch's lists of rows.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

struct RowGroups {
  std::vector<int64_t> rows;   // unique, increasing
  std::vector<int64_t> start;  // entries of group g: order[start[g]] to order[start[g + 1] - 1]
  std::vector<int64_t> order;  // positions in the input, increasing within a group
};

// Stable least-significant-digit radix sort on as many bits as the largest row has.
inline RowGroups group_rows(const int64_t* rows, int64_t count) {
  constexpr int kBits = 11;
  std::vector<std::pair<int64_t, int64_t>> entries(count), sorted(count);
  int64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    entries[i] = {rows[i], i};
    largest = rows[i] > largest ? rows[i] : largest;
  }
  for (int shift = 0; shift < 63 && (largest >> shift) > 0; shift += kBits) {
    int64_t offset[(1 << kBits) + 1] = {};
    const auto digit = [shift](int64_t row) { return row >> shift & ((1 << kBits) - 1); };
    for (const auto& entry : entries) ++offset[digit(entry.first) + 1];
    for (int d = 0; d < (1 << kBits); ++d) offset[d + 1] += offset[d];
    for (const auto& entry : entries) sorted[offset[digit(entry.first)]++] = entry;
    entries.swap(sorted);
  }
  RowGroups groups;
  groups.order.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || entries[i].first != entries[i - 1].first) {
      groups.rows.push_back(entries[i].first);
      groups.start.push_back(i);
    }
    groups.order[i] = entries[i].second;
  }
  groups.start.push_back(count);
  return groups;
}

}  // namespace torch_lsh
