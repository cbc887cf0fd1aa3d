// A matrix packed for kernels/product.h, to be multiplied from the left, by any thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {

constexpr int64_t kTaskRows = 48;  // of the left operand that a task takes: a multiple of every level's tile

template <typename T>
class PackedMatrix {
 public:
  // b: [depth, columns] of T, of any strides; or [columns, depth] if transposed. Threads share the packing.
  explicit PackedMatrix(const Tensor& b, bool transposed = false)
      : depth_(b.size(transposed)), columns_(b.size(!transposed)) {
    const Kernels& k = kernels();
    if constexpr (std::is_same_v<T, float>) {
      product_ = k.product_f32;
      pack_ = k.pack_panel_f32;
      panel_width_ = k.panel_width_f32;
    } else {
      product_ = k.product_f64;
      pack_ = k.pack_panel_f64;
      panel_width_ = k.panel_width_f64;
    }
    storage_ = torch::stable::empty({panels(), depth_, panel_width_}, b.scalar_type());
    T* packed = static_cast<T*>(storage_.mutable_data_ptr());
    const T* from = static_cast<const T*>(b.const_data_ptr());
    const int64_t b_row = b.stride(transposed), b_col = b.stride(!transposed);
    const int64_t blocks = (depth_ + kPackRows - 1) / kPackRows;
    torch::stable::parallel_for(0, blocks * panels(), 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t begin = task / panels() * kPackRows;
        pack_(from, b_row, b_col, depth_, columns_, task % panels(), begin,
              std::min(begin + kPackRows, depth_), packed);
      }
    });
    packed_ = packed;
  }

  int64_t columns() const { return columns_; }
  int64_t panels() const { return (columns_ + panel_width_ - 1) / panel_width_; }

  // out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n] for `rows` rows and the columns of
  // some panels; out points to the first row and column 0 and has `stride` numbers between rows. bias may be
  // null.
  void multiply(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t first_panel,
                int64_t num_panels, const T* bias, T* out, int64_t stride) const {
    const int64_t column = first_panel * panel_width_;
    product_(a, a_row, a_col, rows, depth_, packed_ + column * depth_,
             std::min(num_panels * panel_width_, columns_ - column), bias, out + column, stride);
  }

 private:
  static constexpr int64_t kPackRows = 256;

  int64_t depth_, columns_, panel_width_ = 1;
  void (*product_)(const T*, int64_t, int64_t, int64_t, int64_t, const T*, int64_t, const T*, T*, int64_t);
  void (*pack_)(const T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, T*);
  Tensor storage_;
  const T* packed_ = nullptr;
};

}  // namespace torch_lsh
