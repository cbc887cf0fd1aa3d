// Element types, and the lists of types that kernels are instantiated for.
#pragma once

#include <cstdint>

namespace torch_lsh {

// A stored bfloat16 number; arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};

// The accumulator type for numbers of type T.
template <typename T>
struct SumType {
  using type = T;
};
template <>
struct SumType<BFloat16> {
  using type = float;
};
template <>
struct SumType<int8_t> {
  using type = float;
};
template <typename T>
using SumOf = typename SumType<T>::type;

template <typename... T>
struct Types {};
template <typename First, typename Second>
struct Pair {};

using FloatingTypes = Types<float, double, BFloat16>;
using SumTypes = Types<float, double>;
// Weights at inference.
using WeightTypes = Types<float, double, BFloat16, int8_t>;
// (table, copied rows)
using GatherTypes = Types<Pair<float, float>, Pair<double, double>, Pair<BFloat16, BFloat16>,
                          Pair<float, BFloat16>, Pair<BFloat16, float>>;
// (parameter, optimizer state)
using StateTypes = Types<Pair<float, float>, Pair<double, double>, Pair<float, BFloat16>,
                         Pair<BFloat16, float>, Pair<BFloat16, BFloat16>>;
// (parameter, accumulator) of optimizers without state
using StatelessTypes = Types<Pair<float, float>, Pair<double, double>, Pair<BFloat16, float>>;

}  // namespace torch_lsh
