// product: a dense matrix product in float32 or float64, of the shapes that an active set has.
//
// The right operand is packed into panels first. Then tasks of some rows and some panels of the result are
// split over threads; how they are split does not change any element.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {
namespace {

constexpr int64_t kTaskRows = 48;   // a multiple of every level's tile
constexpr int64_t kTaskPanels = 8;  // with the depth of a block, 256 KB
constexpr int64_t kPackRows = 256;

template <typename T>
struct ProductKernels {
  void (*product)(const T*, int64_t, int64_t, int64_t, int64_t, const T*, int64_t, const T*, T*, int64_t);
  void (*pack_panel)(const T*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, T*);
  int64_t panel_width;
};

template <typename T>
Tensor compute(const ProductKernels<T>& k, const Tensor& a, const Tensor& b,
               const std::optional<Tensor>& bias) {
  const int64_t rows = a.size(0), depth = a.size(1), columns = b.size(1);
  const int64_t panels = (columns + k.panel_width - 1) / k.panel_width;
  Tensor packed = torch::stable::empty({panels, depth, k.panel_width}, b.scalar_type());
  Tensor out = torch::stable::empty({rows, columns}, a.scalar_type());
  const T *left = static_cast<const T*>(a.const_data_ptr()),
          *right = static_cast<const T*>(b.const_data_ptr());
  const T* offset = bias.has_value() ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
  T *panel = static_cast<T*>(packed.mutable_data_ptr()), *result = static_cast<T*>(out.mutable_data_ptr());
  const int64_t blocks = (depth + kPackRows - 1) / kPackRows;
  torch::stable::parallel_for(0, blocks * panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task / panels * kPackRows;
      k.pack_panel(right, b.stride(0), b.stride(1), depth, columns, task % panels, begin,
                   std::min(begin + kPackRows, depth), panel);
    }
  });
  const int64_t row_tasks = (rows + kTaskRows - 1) / kTaskRows;
  const int64_t panel_tasks = (panels + kTaskPanels - 1) / kTaskPanels;
  torch::stable::parallel_for(0, row_tasks * panel_tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / panel_tasks * kTaskRows;
      const int64_t column = task % panel_tasks * kTaskPanels * k.panel_width;
      k.product(left + row * a.stride(0), a.stride(0), a.stride(1), std::min(kTaskRows, rows - row), depth,
                panel + column * depth, std::min(kTaskPanels * k.panel_width, columns - column),
                offset == nullptr ? nullptr : offset + row, result + row * columns + column, columns);
    }
  });
  return out;
}

Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  check_cpu(a, "a");
  check_dim(a, "a", 2);
  TORCH_LSH_CHECK(a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::Double,
                  "a has dtype ", torch::headeronly::toString(a.scalar_type()), "; wanted Float or Double");
  check_cpu(b, "b");
  check_dim(b, "b", 2);
  check_dtype(b, "b", a.scalar_type());
  check_size(b, "b", 0, a.size(1));
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, a.scalar_type());
    check_size(*bias, "bias", 0, a.size(0));
  }
  const Kernels& k = kernels();
  if (a.scalar_type() == ScalarType::Float)
    return compute<float>({k.product_f32, k.pack_panel_f32, k.panel_width_f32}, a, b, bias);
  return compute<double>({k.product_f64, k.pack_panel_f64, k.panel_width_f64}, a, b, bias);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("product", TORCH_BOX(&product));
}

}  // namespace torch_lsh
