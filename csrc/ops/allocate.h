// Uninitialised tensors. A size that overflows, or is more than the system gives, is std::bad_alloc, which
// operator.h turns into a readable error.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <initializer_list>
#include <new>

#include "checks.h"

namespace torch_lsh {

// The product of sizes, at most 2^47: no address space holds more bytes.
inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  constexpr int64_t kMost = int64_t{1} << 47;
  for (const int64_t size : sizes)
    if (size == 0) return 0;
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size > kMost / product) throw std::bad_alloc();
    product *= size;
  }
  return product;
}

inline Tensor new_tensor(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  checked_product(sizes);
  try {
    return torch::stable::empty(sizes, dtype);
  } catch (const std::exception&) {
    throw std::bad_alloc();
  }
}

}  // namespace torch_lsh
