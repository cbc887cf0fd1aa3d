// A set of row numbers as a bitmap with a summary bitmap above it (one bit per word of 64 rows).
//
// Inserting, looking up and emptying cost the rows in it, not the rows that exist; only the first use
// allocates (num_rows / 8 bytes). Sorted traversal costs the rows in it plus num_rows / 4096 words. Not
// thread-safe: one per thread.
#pragma once

#include <cstdint>
#include <vector>

namespace torch_lsh {

class RowSet {
 public:
  void reserve(int64_t num_rows) {
    const size_t words = static_cast<size_t>((num_rows + 63) / 64);
    if (words_.size() < words) words_.resize(words);
    if (summary_.size() < (words + 63) / 64) summary_.resize((words + 63) / 64);
  }

  bool contains(int64_t row) const { return words_[row >> 6] >> (row & 63) & 1; }

  // Whether the row is new.
  bool insert(int64_t row) {
    uint64_t& word = words_[row >> 6];
    const uint64_t bit = uint64_t{1} << (row & 63);
    if (word & bit) return false;
    word |= bit;
    summary_[row >> 12] |= uint64_t{1} << (row >> 6 & 63);
    return true;
  }

  // Calls visit(row) in increasing order and leaves the set empty.
  template <typename Visit>
  void drain(const Visit& visit) {
    for (size_t s = 0; s < summary_.size(); ++s) {
      for (uint64_t summary = summary_[s]; summary != 0; summary &= summary - 1) {
        const size_t w = s * 64 + static_cast<size_t>(__builtin_ctzll(summary));
        for (uint64_t word = words_[w]; word != 0; word &= word - 1)
          visit(static_cast<int64_t>(w * 64 + static_cast<size_t>(__builtin_ctzll(word))));
        words_[w] = 0;
      }
      summary_[s] = 0;
    }
  }

 private:
  std::vector<uint64_t> words_, summary_;
};

}  // namespace torch_lsh
