// Maps the dtypes of tensors to the element types of kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "checks.h"
#include "kernels/types.h"

namespace torch_lsh {

template <typename T>
constexpr ScalarType dtype_of = ScalarType::Undefined;
template <>
inline constexpr ScalarType dtype_of<float> = ScalarType::Float;
template <>
inline constexpr ScalarType dtype_of<double> = ScalarType::Double;
template <>
inline constexpr ScalarType dtype_of<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType dtype_of<int8_t> = ScalarType::Char;

// The accumulator dtype for numbers of `dtype`: that of SumOf.
inline ScalarType sum_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls run.operator()<T>() for the type T of a list, such as FloatingTypes, that has dtype `dtype`.
template <typename... T, typename Run>
void by_dtype(Types<T...>, ScalarType dtype, const char* name, const Run& run) {
  const bool found = ((dtype == dtype_of<T> && (run.template operator()<T>(), true)) || ...);
  TORCH_LSH_CHECK(found, name, " has dtype ", torch::headeronly::toString(dtype),
                  "; wanted one that has a kernel");
}

// Calls run.operator()<First, Second>() for the pair of a list, such as GatherTypes, that has these dtypes.
// Returns false if the list has no such pair.
template <typename... First, typename... Second, typename Run>
bool by_dtypes(Types<Pair<First, Second>...>, ScalarType first, ScalarType second, const Run& run) {
  return ((first == dtype_of<First> && second == dtype_of<Second> &&
           (run.template operator()<First, Second>(), true)) ||
          ...);
}

// The value of a single stored number; kernels convert whole rows.
template <typename T>
SumOf<T> number(T stored) {
  return stored;
}
inline float number(BFloat16 stored) {
  const uint32_t bits = static_cast<uint32_t>(stored.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Null if there is no tensor.
template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace torch_lsh
