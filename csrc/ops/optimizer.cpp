// row_sparse_*_: optimizer steps that read and write only the rows that have a gradient. The gradient may be
// given as two factors, multiplied block by block so that it never leaves the cache.
//
// Rows are strictly increasing, so each belongs to one thread.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/dtypes.h"
#include "ops/operator.h"
#include "ops/product.h"
#include "ops/row_sparse_adam.h"
#include "ops/tasks.h"

namespace torch_lsh {
namespace {

// Rows per task: at width 128 with two moments, about 200 KB of traffic.
int64_t grain_rows(int64_t width) {
  return std::clamp<int64_t>((1 << 14) / std::max<int64_t>(width, 1), 16, 128);
}

void check_parameter(const Tensor& parameter) {
  check_cpu(parameter, "parameter");
  check_floating(parameter, "parameter");
  check_contiguous(parameter, "parameter");
  TORCH_LSH_CHECK(parameter.dim() == 1 || parameter.dim() == 2, "parameter has shape ", shape_of(parameter),
                  "; wanted one or two dimensions");
}

// State is double for a double parameter, otherwise float or bfloat16.
void check_state(const Tensor& state, const char* name, const Tensor& parameter) {
  const ScalarType dtype = state.scalar_type();
  const bool fits = parameter.scalar_type() == ScalarType::Double
                        ? dtype == ScalarType::Double
                        : dtype == ScalarType::Float || dtype == ScalarType::BFloat16;
  TORCH_LSH_CHECK(fits, name, " has dtype ", torch::headeronly::toString(dtype), "; wanted ",
                  parameter.scalar_type() == ScalarType::Double ? "Double" : "Float or BFloat16");
  check_operand(state, name, parameter.dim(), dtype);
  for (int64_t d = 0; d < parameter.dim(); ++d) check_size(state, name, d, parameter.size(d));
}

void check_rows(const Tensor& rows, const Tensor& parameter) {
  check_operand(rows, "rows", 1, ScalarType::Long);
  const auto* row = rows.const_data_ptr<int64_t>();
  check_rows_in_range(row, rows.numel(), parameter.size(0), "rows");
  for (int64_t i = 1, size = rows.numel(); i < size; ++i)
    TORCH_LSH_CHECK(row[i] > row[i - 1], "rows[", i, "] is ", row[i], " after ", row[i - 1],
                    "; wanted strictly increasing rows, as from coalesce_rows");
}

// gradient: [A, width], or [A, K] with factor [K, width].
void check_gradient(const Tensor& rows, const Tensor& gradient, const std::optional<Tensor>& factor,
                    const Tensor& parameter) {
  if (factor.has_value()) {
    TORCH_LSH_CHECK(parameter.scalar_type() != ScalarType::BFloat16,
                    "factor is given for a parameter of dtype BFloat16; wanted Float or Double");
    check_dim(parameter, "parameter", 2);
    check_cpu(gradient, "gradient");
    check_dim(gradient, "gradient", 2);
    check_dtype(gradient, "gradient", parameter.scalar_type());
    check_cpu(*factor, "factor");
    check_dim(*factor, "factor", 2);
    check_dtype(*factor, "factor", parameter.scalar_type());
    check_size(*factor, "factor", 0, gradient.size(1));
    check_size(*factor, "factor", 1, parameter.size(1));
  } else {
    check_operand(gradient, "gradient", parameter.dim(), parameter.scalar_type());
    if (parameter.dim() == 2) check_size(gradient, "gradient", 1, parameter.size(1));
  }
  check_size(gradient, "gradient", 0, rows.numel());
}

// Calls update(begin, end, gradient from row `begin` on) for blocks of rows, in parallel.
template <typename T, typename Update>
void for_gradient_rows(const Tensor& gradient, const std::optional<Tensor>& factor, int64_t width,
                       const Update& update) {
  const int64_t count = gradient.size(0);
  const T* left = data<T>(gradient);
  if constexpr (!std::is_same_v<T, BFloat16>) {
    if (factor.has_value()) {
      const PackedMatrix<T> right(*factor);
      const int64_t row = gradient.stride(0), col = gradient.stride(1);
      share_tasks((count + kTaskRows - 1) / kTaskRows, [&](const auto& next) {
        thread_local std::vector<T> block;
        block.resize(kTaskRows * width);
        for (int64_t task; (task = next()) >= 0;) {
          const int64_t begin = task * kTaskRows, end = std::min(begin + kTaskRows, count);
          right.multiply(left + begin * row, row, col, end - begin, 0, right.panels(), nullptr, block.data(),
                         width);
          update(begin, end, block.data());
        }
      });
      return;
    }
  }
  const int64_t grain = grain_rows(width);
  share_tasks((count + grain - 1) / grain, [&](const auto& next) {
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t begin = task * grain;
      update(begin, std::min(begin + grain, count), left + begin * width);
    }
  });
}

struct NamedTensor {
  const char* name;
  const Tensor& tensor;
};

// Checks all arguments that the optimizers share but the gradient.
template <typename Step>
RowUpdate row_update(const Tensor& parameter, std::initializer_list<NamedTensor> states, const Tensor& rows,
                     const Step& step) {
  check_parameter(parameter);
  ScalarType state_dtype = sum_dtype(parameter.scalar_type());
  for (const NamedTensor& state : states) {
    check_state(state.tensor, state.name, parameter);
    if (&state != states.begin()) check_dtype(state.tensor, state.name, state_dtype);
    state_dtype = state.tensor.scalar_type();
  }
  check_rows(rows, parameter);
  const auto* row = rows.const_data_ptr<int64_t>();
  const int64_t count = rows.numel(), width = parameter.dim() == 1 ? 1 : parameter.size(1);
  RowUpdate update;
  by_dtypes(StepTypes<Step>{}, parameter.scalar_type(), state_dtype, [&]<typename T, typename State>() {
    const auto kernel = kernels<OptimizerKernels<Step, T, State>>().step_rows;
    T* const weights = mutable_data<T>(parameter);
    std::array<State*, Step::kStates + 1> numbers{};
    std::transform(states.begin(), states.end(), numbers.begin(),
                   [](const NamedTensor& state) { return mutable_data<State>(state.tensor); });
    update = [=](int64_t begin, int64_t end, const void* gradient) {
      kernel(weights, numbers.data(), row, static_cast<const T*>(gradient), begin, end, count, width, step);
    };
  });
  return update;
}

template <typename Step>
void step_rows(const Tensor& parameter, std::initializer_list<NamedTensor> states, const Tensor& rows,
               const Tensor& gradient, const std::optional<Tensor>& factor, const Step& step) {
  const RowUpdate update = row_update(parameter, states, rows, step);
  check_gradient(rows, gradient, factor, parameter);
  const int64_t width = parameter.dim() == 1 ? 1 : parameter.size(1);
  by_dtype(FloatingTypes{}, parameter.scalar_type(), "parameter",
           [&]<typename T>() { for_gradient_rows<T>(gradient, factor, width, update); });
}

}  // namespace

void row_sparse_adam_(const Tensor& parameter, const Tensor& first, const Tensor& second, const Tensor& rows,
                      const Tensor& gradient, std::optional<Tensor> decays, double lr, double beta1,
                      double beta2, double eps, double weight_decay, double bias_correction1,
                      double bias_correction2, bool decoupled, bool maximize, std::optional<Tensor> factor,
                      int64_t seed) {
  if (decays.has_value()) {
    check_operand(*decays, "decays", 2, ScalarType::Double);
    check_size(*decays, "decays", 0, rows.numel());
    check_size(*decays, "decays", 1, 3);
  }
  step_rows(parameter, {{"first", first}, {"second", second}}, rows, gradient, factor,
            AdamStep{lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, decoupled,
                     maximize, seed, data<double>(decays)});
}

RowUpdate row_sparse_adam_update(const Tensor& parameter, const Tensor& first, const Tensor& second,
                                 const Tensor& rows, const AdamStep& step) {
  return row_update(parameter, {{"first", first}, {"second", second}}, rows, step);
}

namespace {

void row_sparse_sgd_(const Tensor& parameter, std::optional<Tensor> momentum_buffer, const Tensor& rows,
                     const Tensor& gradient, double lr, double momentum, double dampening,
                     double weight_decay, bool nesterov, bool maximize, std::optional<Tensor> factor,
                     int64_t seed) {
  if (momentum_buffer.has_value()) {
    step_rows(parameter, {{"momentum_buffer", *momentum_buffer}}, rows, gradient, factor,
              MomentumStep{lr, momentum, dampening, weight_decay, nesterov, maximize, seed});
  } else {
    step_rows(parameter, {}, rows, gradient, factor, SgdStep{lr, weight_decay, maximize, seed});
  }
}

void row_sparse_adagrad_(const Tensor& parameter, const Tensor& squares, const Tensor& rows,
                         const Tensor& gradient, double lr, double eps, double weight_decay, bool maximize,
                         std::optional<Tensor> factor, int64_t seed) {
  step_rows(parameter, {{"squares", squares}}, rows, gradient, factor,
            AdagradStep{lr, eps, weight_decay, maximize, seed});
}

void row_sparse_lion_(const Tensor& parameter, const Tensor& average, const Tensor& rows,
                      const Tensor& gradient, double lr, double beta1, double beta2, double weight_decay,
                      bool maximize, std::optional<Tensor> factor, int64_t seed) {
  step_rows(parameter, {{"average", average}}, rows, gradient, factor,
            LionStep{lr, beta1, beta2, weight_decay, maximize, seed});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "row_sparse_adam_", &row_sparse_adam_);
  TORCH_LSH_IMPL(m, "row_sparse_sgd_", &row_sparse_sgd_);
  TORCH_LSH_IMPL(m, "row_sparse_adagrad_", &row_sparse_adagrad_);
  TORCH_LSH_IMPL(m, "row_sparse_lion_", &row_sparse_lion_);
}

}  // namespace torch_lsh
