// A set of rows: a bitmap, and a summary bitmap with one bit per word of 64 rows.
//
// Insertion and look-up take constant time; sorted traversal, which empties the set, takes its size plus
// num_rows / 4096 words. Only the first use allocates (num_rows / 8 bytes). Not thread-safe: one per thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_lsh {

class RowSet {
 public:
  void reserve(int64_t num_rows) {
    const size_t words = static_cast<size_t>((num_rows + 63) / 64);
    if (words_.size() < words) words_.resize(words);
    if (summary_.size() < (words + 63) / 64) summary_.resize((words + 63) / 64);
  }

  // Prefetches the whole bitmap if it has at most `count` cache lines.
  void prefetch(int64_t count) const {
    if (static_cast<int64_t>(words_.size()) > kLineWords * count) return;
    for (size_t w = 0; w < words_.size(); w += kLineWords) __builtin_prefetch(&words_[w], 1);
  }

  bool contains(int64_t row) const { return words_[row >> 6] >> (row & 63) & 1; }

  // Returns whether the row is new.
  bool insert(int64_t row) {
    uint64_t& word = words_[row >> 6];
    const uint64_t bit = uint64_t{1} << (row & 63);
    if (word & bit) return false;
    word |= bit;
    summary_[row >> 12] |= uint64_t{1} << (row >> 6 & 63);
    return true;
  }

  // Inserts a row without a branch, for rows of which it is hard to predict whether they are new.
  void mark(int64_t row) {
    words_[row >> 6] |= uint64_t{1} << (row & 63);
    summary_[row >> 12] |= uint64_t{1} << (row >> 6 & 63);
  }

  // Writes the rows in increasing order and empties the set; returns how many there are. Needs room for one
  // more row: see below.
  int64_t drain(int32_t* rows) {
    int32_t* to = rows;
    drain_words([&](size_t w) {
      uint64_t word = words_[w];
      const auto put = [&] {
        *to = static_cast<int32_t>(w * 64) + __builtin_ctzll(word | uint64_t{1} << 63);
        to += word != 0;
        word &= word - 1;
      };
      do {
        put();
        put();
      } while (word != 0);
    });
    return to - rows;
  }

  // Writes the rows in increasing order, and whether each is in the subset `some`; empties both. Needs room
  // for one more row: most words hold one or two, so the second is written unconditionally, where a branch
  // would be unpredictable.
  void drain(RowSet& some, int64_t* rows, uint8_t* in_some) {
    drain_words([&](size_t w) {
      uint64_t word = words_[w];
      const uint64_t chosen = std::exchange(some.words_[w], 0);
      const auto put = [&](uint64_t rest) {
        const int bit = __builtin_ctzll(rest | uint64_t{1} << 63);
        *rows = static_cast<int64_t>(w * 64) + bit;
        *in_some = chosen >> bit & 1;
        rows += rest != 0;
        in_some += rest != 0;
      };
      do {
        put(word);
        word &= word - 1;
        put(word);
        word &= word - 1;
      } while (word != 0);
    });
    std::fill(some.summary_.begin(), some.summary_.end(), 0);
  }

  void clear() {
    drain_words([](size_t) {});
  }

 private:
  static constexpr int64_t kLineWords = 8;

  // Calls visit(w) for each non-zero word, then clears it.
  template <typename Visit>
  void drain_words(const Visit& visit) {
    for (size_t s = 0; s < summary_.size(); ++s) {
      for (uint64_t summary = summary_[s]; summary != 0; summary &= summary - 1) {
        const size_t w = s * 64 + static_cast<size_t>(__builtin_ctzll(summary));
        visit(w);
        words_[w] = 0;
      }
      summary_[s] = 0;
    }
  }

  std::vector<uint64_t> words_, summary_;
};

// Empties a set at the end of a scope, also where that runs out of memory: sets of threads serve later calls.
class EmptiedAtEnd {
 public:
  explicit EmptiedAtEnd(RowSet& set) : set_(set) {}
  ~EmptiedAtEnd() { set_.clear(); }
  EmptiedAtEnd(const EmptiedAtEnd&) = delete;
  EmptiedAtEnd& operator=(const EmptiedAtEnd&) = delete;

 private:
  RowSet& set_;
};

}  // namespace torch_lsh
