// Row-sparse optimizer steps: only the rows of the gradient and of the state are read and written.
//
// The rows must be strictly increasing, so each belongs to one thread; everything is checked before anything
// is written.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {
namespace {

// 32 rows of 128 numbers, with two moments: some 50 KB to move.
constexpr int64_t kGrainRows = 32;

int64_t width_of(const Tensor& parameter) {
  return parameter.dim() == 1 ? 1 : parameter.size(1);
}

void check_parameter(const Tensor& parameter) {
  check_cpu(parameter, "parameter");
  check_floating(parameter, "parameter");
  check_contiguous(parameter, "parameter");
  TORCH_LSH_CHECK(parameter.dim() == 1 || parameter.dim() == 2, "parameter has shape ", shape_of(parameter),
                  "; wanted one or two dimensions");
}

ScalarType state_dtype(const Tensor& parameter) {
  return parameter.scalar_type() == ScalarType::BFloat16 ? ScalarType::Float : parameter.scalar_type();
}

void check_state(const Tensor& state, const char* name, const Tensor& parameter) {
  check_operand(state, name, parameter.dim(), state_dtype(parameter));
  for (int64_t d = 0; d < parameter.dim(); ++d) check_size(state, name, d, parameter.size(d));
}

void check_gradient(const Tensor& rows, const Tensor& gradient, const Tensor& parameter) {
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_operand(gradient, "gradient", parameter.dim(), parameter.scalar_type());
  check_size(gradient, "gradient", 0, rows.numel());
  if (parameter.dim() == 2) check_size(gradient, "gradient", 1, parameter.size(1));
  const auto* row = rows.const_data_ptr<int64_t>();
  check_rows_in_range(row, rows.numel(), parameter.size(0), "rows");
  for (int64_t i = 1; i < rows.numel(); ++i)
    TORCH_LSH_CHECK(row[i] > row[i - 1], "rows[", i, "] is ", row[i], " after ", row[i - 1],
                    "; wanted strictly increasing rows (coalesce_rows makes them so)");
}

// Calls run with the kernel for the parameter's dtype, a value of that type, and one of its state's type.
template <typename Run, typename F32, typename F64, typename B16>
void by_dtype(const Tensor& parameter, F32 f32, F64 f64, B16 bf16, const Run& run) {
  if (parameter.scalar_type() == ScalarType::Float) {
    run(f32, float{}, float{});
  } else if (parameter.scalar_type() == ScalarType::Double) {
    run(f64, double{}, double{});
  } else {
    run(bf16, BFloat16{}, float{});
  }
}

template <typename T>
T* mutable_pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void row_sparse_adam_(const Tensor& parameter, const Tensor& first, const Tensor& second, const Tensor& rows,
                      const Tensor& gradient, std::optional<Tensor> decays, double lr, double beta1,
                      double beta2, double eps, double weight_decay, double bias_correction1,
                      double bias_correction2, bool decoupled, bool maximize) {
  check_parameter(parameter);
  check_state(first, "first", parameter);
  check_state(second, "second", parameter);
  check_gradient(rows, gradient, parameter);
  if (decays.has_value()) {
    check_operand(*decays, "decays", 2, ScalarType::Double);
    check_size(*decays, "decays", 0, rows.numel());
    check_size(*decays, "decays", 1, 3);
  }
  const AdamStep step{lr,        beta1,   beta2, eps, weight_decay, bias_correction1, bias_correction2,
                      decoupled, maximize};
  const Kernels& k = kernels();
  by_dtype(parameter, k.adam_rows_f32, k.adam_rows_f64, k.adam_rows_bf16,
           [&](auto kernel, auto zero, auto state_zero) {
             using T = decltype(zero);
             using State = decltype(state_zero);
             T* p = mutable_pointer<T>(parameter);
             State *m = mutable_pointer<State>(first), *v = mutable_pointer<State>(second);
             const auto* row = rows.const_data_ptr<int64_t>();
             const T* g = static_cast<const T*>(gradient.const_data_ptr());
             const double* decay = decays.has_value() ? decays->const_data_ptr<double>() : nullptr;
             const int64_t width = width_of(parameter);
             torch::stable::parallel_for(0, rows.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
               kernel(p, m, v, row + begin, g + begin * width, decay == nullptr ? nullptr : decay + 3 * begin,
                      end - begin, width, step);
             });
           });
}

void row_sparse_sgd_(const Tensor& parameter, std::optional<Tensor> momentum_buffer, const Tensor& rows,
                     const Tensor& gradient, double lr, double momentum, double dampening,
                     double weight_decay, bool nesterov, bool maximize) {
  check_parameter(parameter);
  if (momentum_buffer.has_value()) check_state(*momentum_buffer, "momentum_buffer", parameter);
  check_gradient(rows, gradient, parameter);
  const SgdStep step{lr, momentum, dampening, weight_decay, nesterov, maximize};
  const Kernels& k = kernels();
  by_dtype(parameter, k.sgd_rows_f32, k.sgd_rows_f64, k.sgd_rows_bf16,
           [&](auto kernel, auto zero, auto state_zero) {
             using T = decltype(zero);
             using State = decltype(state_zero);
             T* p = mutable_pointer<T>(parameter);
             State* buffer = momentum_buffer.has_value() ? mutable_pointer<State>(*momentum_buffer) : nullptr;
             const auto* row = rows.const_data_ptr<int64_t>();
             const T* g = static_cast<const T*>(gradient.const_data_ptr());
             const int64_t width = width_of(parameter);
             torch::stable::parallel_for(0, rows.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
               kernel(p, buffer, row + begin, g + begin * width, end - begin, width, step);
             });
           });
}

void row_sparse_adagrad_(const Tensor& parameter, const Tensor& squares, const Tensor& rows,
                         const Tensor& gradient, double lr, double eps, double weight_decay, bool maximize) {
  check_parameter(parameter);
  check_state(squares, "squares", parameter);
  check_gradient(rows, gradient, parameter);
  const AdagradStep step{lr, eps, weight_decay, maximize};
  const Kernels& k = kernels();
  by_dtype(parameter, k.adagrad_rows_f32, k.adagrad_rows_f64, k.adagrad_rows_bf16,
           [&](auto kernel, auto zero, auto state_zero) {
             using T = decltype(zero);
             using State = decltype(state_zero);
             T* p = mutable_pointer<T>(parameter);
             State* s = mutable_pointer<State>(squares);
             const auto* row = rows.const_data_ptr<int64_t>();
             const T* g = static_cast<const T*>(gradient.const_data_ptr());
             const int64_t width = width_of(parameter);
             torch::stable::parallel_for(0, rows.numel(), kGrainRows, [&](int64_t begin, int64_t end) {
               kernel(p, s, row + begin, g + begin * width, end - begin, width, step);
             });
           });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("row_sparse_adam_", TORCH_BOX(&row_sparse_adam_));
  m.impl("row_sparse_sgd_", TORCH_BOX(&row_sparse_sgd_));
  m.impl("row_sparse_adagrad_", TORCH_BOX(&row_sparse_adagrad_));
}

}  // namespace torch_lsh
