// A matrix packed for kernels/product.h, to be multiplied from the left, by any thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/memory_pool.h"

namespace torch_lsh {

constexpr int64_t kTaskRows = 48;  // of the left operand that a task takes: a multiple of every level's tile

template <typename T>
struct ProductKernels {
  void (*product)(const T*, int64_t, int64_t, int64_t, int64_t, const SumOf<T>*, int64_t, const SumOf<T>*,
                  bool, SumOf<T>*, int64_t);
  void (*pack_panel)(const T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, SumOf<T>*);
  int64_t panel_width;

  int64_t panels(int64_t columns) const { return (columns + panel_width - 1) / panel_width; }
  int64_t packed_size(int64_t depth, int64_t columns) const { return panels(columns) * panel_width * depth; }
};

template <typename T>
ProductKernels<T> product_kernels() {
  const Kernels& k = kernels();
  if constexpr (std::is_same_v<T, float>) {
    return {k.product_f32, k.pack_panel_f32, k.panel_width_f32};
  } else if constexpr (std::is_same_v<T, double>) {
    return {k.product_f64, k.pack_panel_f64, k.panel_width_f64};
  } else {
    return {k.product_bf16, k.pack_panel_bf16, k.panel_width_f32};
  }
}

template <typename T>
class PackedMatrix {
 public:
  // b: [depth, columns] of T, of any strides; or [columns, depth] if transposed. Threads share the packing.
  explicit PackedMatrix(const Tensor& b, bool transposed = false)
      : kernels_(product_kernels<T>()),
        depth_(b.size(transposed)),
        columns_(b.size(!transposed)),
        storage_(sizeof(SumOf<T>) * kernels_.packed_size(depth_, columns_)),
        packed_(static_cast<SumOf<T>*>(storage_.data())) {
    const T* from = static_cast<const T*>(b.const_data_ptr());
    const int64_t b_row = b.stride(transposed), b_col = b.stride(!transposed);
    const int64_t blocks = (depth_ + kPackRows - 1) / kPackRows;
    torch::stable::parallel_for(0, blocks * panels(), 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t begin = task / panels() * kPackRows;
        kernels_.pack_panel(from, b_row, b_col, depth_, columns_, task % panels(), begin,
                            std::min(begin + kPackRows, depth_), packed_);
      }
    });
  }

  int64_t columns() const { return columns_; }
  int64_t panels() const { return kernels_.panels(columns_); }

  // out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n] for `rows` rows and the columns of
  // some panels; out points to the first row and column 0 and has `stride` numbers between rows. bias may be
  // null.
  void multiply(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t first_panel,
                int64_t num_panels, const SumOf<T>* bias, SumOf<T>* out, int64_t stride) const {
    const int64_t column = first_panel * kernels_.panel_width;
    kernels_.product(a, a_row, a_col, rows, depth_, packed_ + column * depth_,
                     std::min(num_panels * kernels_.panel_width, columns_ - column), bias, false,
                     out + column, stride);
  }

 private:
  static constexpr int64_t kPackRows = 256;  // even

  const ProductKernels<T> kernels_;
  const int64_t depth_, columns_;
  Workspace storage_;
  SumOf<T>* const packed_;
};

// a @ b + bias, contiguous; a [M, K] and b [K, N] of T and any strides, bias [M] or null.
template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b, const SumOf<T>* bias = nullptr);

}  // namespace torch_lsh
