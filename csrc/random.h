// Counter-based random numbers: pure functions of (seed, counter), independent of threads and order.
#pragma once

#include <cstdint>

namespace torch_lsh {

// The output function of splitmix64 (Steele, Lea & Flood 2014).
inline uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15ull;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

inline uint64_t random_bits(uint64_t seed, uint64_t counter) {
  return mix(mix(seed) + counter);
}

// Uniform in 0 .. bound - 1; the bias is below bound / 2^64.
inline int64_t random_below(uint64_t seed, uint64_t counter, int64_t bound) {
  return static_cast<int64_t>((static_cast<unsigned __int128>(random_bits(seed, counter)) * bound) >> 64);
}

}  // namespace torch_lsh
