// gather_rows, for use by other operators, and prefetches of rows.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>

namespace torch_lsh {

torch::stable::Tensor gather_rows(const torch::stable::Tensor& table, const torch::stable::Tensor& rows,
                                  std::optional<torch::headeronly::ScalarType> dtype);

// Fetches rows of a table into the second-level cache while the caller computes something else. A core waits
// for the pages of as many rows as its window of instructions holds, so a row takes few of them. Inlined: GCC
// drops calls of a function that does nothing but prefetch.
template <typename T>
__attribute__((always_inline)) inline void prefetch_rows(const T* table, const int64_t* rows, int64_t count,
                                                         int64_t width) {
  const int64_t size = width * static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; ++i) {
    const char* const row = reinterpret_cast<const char*>(table + rows[i] * width);
    int64_t byte = 0;
    for (; byte + 256 <= size; byte += 256)
#pragma GCC unroll 4
      for (int64_t line = 0; line < 256; line += 64) __builtin_prefetch(row + byte + line, 0, 2);
    for (; byte < size; byte += 64) __builtin_prefetch(row + byte, 0, 2);
  }
}

}  // namespace torch_lsh
