// The best rows of a stream of scores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "ops/rank.h"

namespace torch_lsh {

// Keeps the `count` best keys. Selecting each time 2 * count keys are held makes the cost per key constant.
// Not thread-safe.
class Shortlist {
 public:
  explicit Shortlist(int64_t count) : count_(count) {}

  void offer(float score, int64_t row) {
    if (score < threshold_) return;  // equal ones may be of a lower row
    keys_.push_back(key_of(score, row));
    if (static_cast<int64_t>(keys_.size()) == 2 * count_) shrink();
  }

  float threshold() const { return threshold_; }

  // The best and possibly more, unordered.
  const std::vector<uint64_t>& keys() const { return keys_; }

  // The best, unordered.
  const std::vector<uint64_t>& best() {
    if (static_cast<int64_t>(keys_.size()) > count_) shrink();
    return keys_;
  }

 private:
  void shrink() {
    std::nth_element(keys_.begin(), keys_.begin() + count_ - 1, keys_.end(), std::greater<>());
    keys_.resize(count_);
    const float worst = value_of<float>(keys_.back());
    threshold_ = worst != worst ? std::numeric_limits<float>::infinity() : worst;
  }

  int64_t count_;
  float threshold_ = std::numeric_limits<float>::quiet_NaN();  // nothing compares <= NaN
  std::vector<uint64_t> keys_;
};

}  // namespace torch_lsh
