// Element types, and lists of them.
#pragma once

#include <cstdint>

namespace torch_lsh {

// Storage of a bfloat16 number. Kernels compute in float.
struct BFloat16 {
  uint16_t bits;
};

// The type in which kernels sum numbers of type T.
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
// Weights of an inference pass.
using WeightTypes = Types<float, double, BFloat16, int8_t>;
// A table and the copies of its rows.
using GatherTypes = Types<Pair<float, float>, Pair<double, double>, Pair<BFloat16, BFloat16>,
                          Pair<float, BFloat16>, Pair<BFloat16, float>>;
// A parameter and the optimizer's state.
using StateTypes = Types<Pair<float, float>, Pair<double, double>, Pair<float, BFloat16>,
                         Pair<BFloat16, float>, Pair<BFloat16, BFloat16>>;

}  // namespace torch_lsh
