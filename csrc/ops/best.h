// The k largest values of each sample, among values that arrive one at a time.
//
// Values may be upper bounds, which are refined as late as pays: at once where nothing is known of their
// excess, otherwise at the end, when few are left. Keys above the threshold are collected; when they are half
// as many again as k, the k best are selected and the threshold rises. That costs a few steps per key, where
// a heap costs log k and as many mispredicted branches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "ops/rank.h"

namespace torch_lsh {

// Puts the k-th largest of `keys`, nearly all different, where it would stand if they were sorted, behind all
// that are larger. As std::nth_element, but comparisons that nobody can predict are no branches.
template <typename Key>
void select_largest(std::vector<Key>& keys, int64_t k) {
  constexpr int64_t kFew = 32, kRounds = 64;  // bad luck ends after so many
  Key *first = keys.data(), *last = first + keys.size();
  Key* const wanted = first + k - 1;
  for (int64_t round = 0; last - first > kFew && round < kRounds; ++round) {
    const Key a = first[0], b = first[(last - first) / 2], c = last[-1];
    const Key middle = std::max(std::min(a, b), std::min(std::max(a, b), c));
    Key* to = first;
    for (Key* at = first; at < last; ++at) {
      const Key key = *at;
      *at = *to;
      *to = key;
      to += key > middle;
    }
    (wanted < to ? last : first) = to;
  }
  std::nth_element(first, wanted, last, std::greater<>());
}

// Moves the k best of `keys` to the front and drops those that are not among the k best for certain, given
// that values exceed what is ranked by up to `excess`. Returns a threshold: values with !(value <= threshold)
// may be among the best: all values if NaN, only NaN if infinity.
template <typename Value>
Value keep_best(std::vector<typename Rank<Value>::Key>& keys, int64_t k, Value excess) {
  if (static_cast<int64_t>(keys.size()) < k) return std::numeric_limits<Value>::quiet_NaN();
  select_largest(keys, k);
  const Value worst = value_of<Value>(keys[k - 1]);
  if (worst != worst) {
    keys.resize(k);
    return std::numeric_limits<Value>::infinity();
  }
  if (excess == 0) {
    keys.resize(k);
    return worst;
  }
  constexpr Value rounding = 4 * std::numeric_limits<Value>::epsilon();
  const Value threshold = worst - excess - std::abs(worst) * rounding;
  // One that equals the threshold may be of a lower class than others that do.
  keys.erase(std::remove_if(keys.begin() + k, keys.end(),
                            [&](auto key) { return value_of<Value>(key) < threshold; }),
             keys.end());
  return threshold;
}

template <typename Value, typename Refine>
void refine_all(std::vector<typename Rank<Value>::Key>& keys, const Refine& refine) {
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (i + kAhead < keys.size()) refine.prefetch(index_of(keys[i + kAhead]));
    keys[i] = key_of(refine(value_of<Value>(keys[i]), index_of(keys[i])), index_of(keys[i]));
  }
}

// Not thread-safe: one per thread.
template <typename Value>
class Best {
 public:
  using Key = typename Rank<Value>::Key;

  // excess: by how much each sample's bounds exceed the values at most; empty if they are refined at once.
  // Must outlive this.
  Best(int64_t samples, int64_t k, const std::vector<Value>& excess)
      : k_(k),
        excess_(excess),
        keys_(samples),
        limits_(samples, k + (k + 1) / 2),
        thresholds_(samples, std::numeric_limits<Value>::quiet_NaN()) {}

  // Offers a sample's value, or its bound, in increasing order of indices. refine(bound, index) returns the
  // value, refine.prefetch(index) prepares that. Returns whether the threshold has changed.
  template <typename Refine>
  bool offer(int64_t sample, Value bound, int64_t index, const Refine& refine) {
    if (bound <= thresholds_[sample]) return false;
    // Nothing is known of the excess of a bound that is infinite or NaN.
    const bool later = !excess_.empty() && bound < std::numeric_limits<Value>::infinity();
    std::vector<Key>& keys = keys_[sample];
    if (keys.empty()) keys.reserve(std::min(limits_[sample], kReserved));
    keys.push_back(key_of(later ? bound : refine(bound, index), index));
    if (static_cast<int64_t>(keys.size()) < limits_[sample]) return false;
    select(sample, refine);
    return true;
  }

  // As keep_best returns it.
  Value threshold(int64_t sample) const { return thresholds_[sample]; }

  const std::vector<Key>& keys(int64_t sample) const { return keys_[sample]; }

 private:
  static constexpr int64_t kReserved = 1 << 14;  // keys; there may never be as many as k

  template <typename Refine>
  void select(int64_t sample, const Refine& refine) {
    std::vector<Key>& keys = keys_[sample];
    thresholds_[sample] = keep_best(keys, k_, excess_.empty() ? Value{0} : excess_[sample]);
    if (static_cast<int64_t>(keys.size()) > 3 * k_) {  // more than memory should hold
      refine_all<Value>(keys, refine);
      thresholds_[sample] = keep_best(keys, k_, Value{0});
    }
    const auto count = static_cast<int64_t>(keys.size());
    limits_[sample] = count + (count + 1) / 2;
  }

  int64_t k_;
  const std::vector<Value>& excess_;
  std::vector<std::vector<Key>> keys_;
  std::vector<int64_t> limits_;
  std::vector<Value> thresholds_;
};

// Merges the parts' best of a sample: writes the k best, padded with -1 and -inf.
template <typename Value, typename Refine>
void merge(const std::vector<Best<Value>>& parts, int64_t sample, int64_t k, const std::vector<Value>& excess,
           const Refine& refine, Value* values, int64_t* indices) {
  thread_local std::vector<typename Rank<Value>::Key> all;
  all.clear();
  for (const Best<Value>& part : parts)
    all.insert(all.end(), part.keys(sample).begin(), part.keys(sample).end());
  keep_best(all, k, excess.empty() ? Value{0} : excess[sample]);
  if (!excess.empty()) refine_all<Value>(all, refine);
  std::sort(all.begin(), all.end(), std::greater<>());
  const auto found = std::min<int64_t>(k, static_cast<int64_t>(all.size()));
  for (int64_t i = 0; i < found; ++i) {
    values[i] = value_of<Value>(all[i]);
    indices[i] = index_of(all[i]);
  }
  std::fill(values + found, values + k, -std::numeric_limits<Value>::infinity());
  std::fill(indices + found, indices + k, -1);
}

}  // namespace torch_lsh
