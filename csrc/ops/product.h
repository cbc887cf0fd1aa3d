// A right operand packed for kernels/product.h, shared by threads.
#pragma once

#include <algorithm>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/memory_pool.h"
#include "ops/parallel.h"

namespace torch_lsh {

// Panels of a right operand; sums of the packed operand.
template <typename T>
int64_t count_panels(int64_t columns) {
  const int64_t width = kernels<ProductKernels<T>>().panel_width;
  return columns / width + (columns % width != 0);
}
template <typename T>
int64_t packed_size(int64_t depth, int64_t columns) {
  if (checked_product({depth, columns}) == 0) return 0;
  return count_panels<T>(columns) * kernels<ProductKernels<T>>().panel_size(depth);
}

template <typename T>
class PackedMatrix {
 public:
  // b: [depth, columns], or [columns, depth] if transposed; any strides. Packs in parallel.
  explicit PackedMatrix(const Tensor& b, bool transposed = false)
      : kernels_(kernels<ProductKernels<T>>()),
        depth_(b.size(transposed)),
        columns_(b.size(!transposed)),
        storage_(sizeof(SumOf<T>) * packed_size<T>(depth_, columns_)),
        packed_(static_cast<SumOf<T>*>(storage_.data())) {
    const T* from = data<T>(b);
    const int64_t b_row = b.stride(transposed), b_col = b.stride(!transposed);
    const int64_t blocks = (depth_ + kPackRows - 1) / kPackRows;
    parallel_for(0, blocks * panels(), 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t begin = task / panels() * kPackRows;
        kernels_.pack_panel(from, b_row, b_col, depth_, columns_, task % panels(), begin,
                            std::min(begin + kPackRows, depth_), packed_);
      }
    });
  }

  int64_t columns() const { return columns_; }
  int64_t panels() const { return count_panels<T>(columns_); }

  // Thread-safe. out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n], for `rows` rows and
  // the columns of the given panels. out: first row, column 0; `stride` numbers between rows. Null bias:
  // zeros.
  void multiply(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t first_panel,
                int64_t num_panels, const SumOf<T>* bias, SumOf<T>* out, int64_t stride,
                const RowsAhead& ahead = {}) const {
    const int64_t column = first_panel * kernels_.panel_width;
    kernels_.product(a, a_row, a_col, rows, depth_, packed_ + first_panel * kernels_.panel_size(depth_),
                     std::min(num_panels * kernels_.panel_width, columns_ - column), bias, false,
                     out + column, stride, ahead);
  }

 private:
  const ProductKernels<T>& kernels_;
  const int64_t depth_, columns_;
  Workspace storage_;
  SumOf<T>* const packed_;
};

// a @ b + bias, contiguous, in SumOf<T>. a [M, K] and b [K, N]: T, any strides. bias: [M] or null.
template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b, const SumOf<T>* bias = nullptr);

}  // namespace torch_lsh
