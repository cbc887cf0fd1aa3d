// Uninitialised tensors. A size that overflows, or is more than the system gives, is std::bad_alloc, which
// operator.h turns into a readable error.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstddef>
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
  constexpr size_t kMostDims = 4;
  TORCH_LSH_CHECK(sizes.size() <= kMostDims, "a tensor has ", sizes.size(), " dimensions; wanted at most ",
                  kMostDims);
  int64_t strides[kMostDims];
  uint64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(std::max<int64_t>(sizes.begin()[d], 1));
  }
  // torch::stable::empty() looks an operator up by name and boxes its arguments, which takes microseconds. Of
  // what is used here, PyTorch keeps aoti_torch_ in its stable ABI; torch::stable::detail is looked for when
  // this is compiled.
  AtenTensorHandle handle;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle);
  if (error != AOTI_TORCH_SUCCESS) throw std::bad_alloc();
  return Tensor(handle);
}

}  // namespace torch_lsh
