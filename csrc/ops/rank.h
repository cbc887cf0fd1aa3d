// A value and its class as one sortable key. Result order is descending: larger values first, NaN first of
// all, lower classes first among equals.
#pragma once

#include <cstdint>

namespace torch_lsh {

template <typename Value>
struct Rank;
template <>
struct Rank<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};
template <>
struct Rank<double> {
  using Bits = uint64_t;
  using Key = unsigned __int128;
};

template <typename Value>
typename Rank<Value>::Key key_of(Value value, int64_t index) {
  using Bits = typename Rank<Value>::Bits;
  constexpr Bits sign = Bits{1} << (8 * sizeof(Bits) - 1);
  value += Value{0};  // -0 becomes 0
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  bits = value != value ? ~Bits{0} : bits & sign ? ~bits : bits | sign;
  return static_cast<typename Rank<Value>::Key>(bits) << 32 | (UINT32_MAX - static_cast<uint32_t>(index));
}

template <typename Value>
Value value_of(typename Rank<Value>::Key key) {
  using Bits = typename Rank<Value>::Bits;
  constexpr Bits sign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits bits = static_cast<Bits>(key >> 32);
  bits = bits & sign ? bits & ~sign : ~bits;
  Value value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename Key>
int64_t index_of(Key key) {
  return UINT32_MAX - static_cast<uint32_t>(key);
}

}  // namespace torch_lsh
