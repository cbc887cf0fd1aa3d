// The best keys of many at once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/rank.h"

namespace torch_lsh {

// A key that at least `count` of `size` keys are not below, and few more are.
//
// Counts keys by how far their values are below the best, in steps of a 32nd of an octave: without a branch
// that depends on a key, which selection by comparisons has many of.
inline uint64_t about_the_best(const uint64_t* keys, int64_t size, int64_t count) {
  constexpr uint32_t kSteps = 512;
  constexpr int kShift = 32 + 18;
  if (size <= count) return 0;
  uint32_t counts[kSteps] = {};
  uint64_t best = 0;
  for (int64_t i = 0; i < size; ++i) best = std::max(best, keys[i]);
  best >>= kShift;
  for (int64_t i = 0; i < size; ++i)
    ++counts[std::min<uint32_t>(static_cast<uint32_t>(best - (keys[i] >> kShift)), kSteps - 1)];
  uint32_t step = 0;
  for (int64_t sum = counts[0]; sum < count;) sum += counts[++step];
  return step == kSteps - 1 ? 0 : (best - step) << kShift;
}

// Moves the keys that are not below `least` to the front; returns how many there are.
inline int64_t keep_from(uint64_t least, uint64_t* keys, int64_t size) {
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t key = keys[i];
    keys[kept] = key;
    kept += key >= least;
  }
  return kept;
}

}  // namespace torch_lsh
