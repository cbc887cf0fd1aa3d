// linear_adam_: Adam's step on some rows of weight and bias of a layer, and the count of touched rows, in one
// call. linear_softmax_adam_: the same, with the backward pass of a loss over active rows before. The
// operators that they consist of take longer to call than to run where layer and batch are small.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "checks.h"
#include "ops/count_touches.h"
#include "ops/dtypes.h"
#include "ops/linear_softmax.h"
#include "ops/operator.h"
#include "ops/row_sparse_adam.h"

namespace torch_lsh {
namespace {

// A parameter, its moments, and the number of its steps so far, a float.
struct Adam {
  const Tensor &parameter, &first, &second, &step;

  void check_step(const char* name) const { check_operand(step, name, 0, ScalarType::Float); }
};

// Of both parameters.
struct Options {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled, maximize, stochastic_rounding;
};

void check_bias(const Adam& bias, const Adam& weight) {
  check_operand(bias.parameter, "bias", 1, weight.parameter.scalar_type());
  check_operand(bias.first, "bias_first", 1, weight.first.scalar_type());
  check_operand(bias.second, "bias_second", 1, weight.second.scalar_type());
  check_size(bias.parameter, "bias", 0, weight.parameter.size(0));
  check_size(bias.first, "bias_first", 0, weight.parameter.size(0));
  check_size(bias.second, "bias_second", 0, weight.parameter.size(0));
  bias.check_step("bias_step");
}

void check_touches(const std::optional<Tensor>& touches, const Tensor& weight) {
  if (!touches.has_value()) return;
  check_operand(*touches, "touches", 1, ScalarType::Byte);
  check_size(*touches, "touches", 0, weight.size(0));
}

AdamStep next_step(const Adam& of, const Options& options) {
  const double step = *data<float>(of.step) + 1.0;
  return {options.lr,
          options.beta1,
          options.beta2,
          options.eps,
          options.weight_decay,
          1 - std::pow(options.beta1, step),
          1 - std::pow(options.beta2, step),
          options.decoupled,
          options.maximize,
          options.stochastic_rounding ? static_cast<int64_t>(step) : -1,
          nullptr};
}

void update(const Adam& of, const Tensor& rows, const Tensor& gradient, const std::optional<Tensor>& factor,
            const Options& options) {
  const AdamStep step = next_step(of, options);
  row_sparse_adam_(of.parameter, of.first, of.second, rows, gradient, std::nullopt, step.lr, step.beta1,
                   step.beta2, step.eps, step.weight_decay, step.bias_correction1, step.bias_correction2,
                   step.decoupled, step.maximize, factor, step.seed);
  *mutable_data<float>(of.step) += 1;
}

void linear_adam_(const Tensor& rows, const Tensor& gradient, const Tensor& bias_gradient,
                  const Tensor& weight, const Tensor& first, const Tensor& second, const Tensor& step,
                  const Tensor& bias, const Tensor& bias_first, const Tensor& bias_second,
                  const Tensor& bias_step, std::optional<Tensor> touches, double lr, double beta1,
                  double beta2, double eps, double weight_decay, bool decoupled, bool maximize,
                  bool stochastic_rounding) {
  const Adam of_weight{weight, first, second, step}, of_bias{bias, bias_first, bias_second, bias_step};
  check_operand(weight, "weight", 2, weight.scalar_type());
  of_weight.check_step("step");
  check_bias(of_bias, of_weight);
  check_touches(touches, weight);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_operand(bias_gradient, "bias_gradient", 1, weight.scalar_type());
  check_size(bias_gradient, "bias_gradient", 0, rows.numel());
  const Options options{lr, beta1, beta2, eps, weight_decay, decoupled, maximize, stochastic_rounding};
  update(of_weight, rows, gradient, std::nullopt, options);
  update(of_bias, rows, bias_gradient, std::nullopt, options);
  if (touches.has_value()) count_touches(mutable_data<uint8_t>(*touches), rows);
}

std::tuple<Tensor, Tensor> linear_softmax_adam_(
    const Tensor& slopes, const Tensor& factors, const Tensor& x, const Tensor& rows,
    std::optional<Tensor> grad, int64_t hardest, std::optional<Tensor> log_weights, const Tensor& weight,
    const Tensor& first, const Tensor& second, const Tensor& step, std::optional<Tensor> bias,
    std::optional<Tensor> bias_first, std::optional<Tensor> bias_second, std::optional<Tensor> bias_step,
    std::optional<Tensor> touches, double lr, double beta1, double beta2, double eps, double weight_decay,
    bool decoupled, bool maximize, bool stochastic_rounding) {
  const Adam of_weight{weight, first, second, step};
  check_operand(weight, "weight", 2, weight.scalar_type());
  TORCH_LSH_CHECK(weight.scalar_type() == sum_dtype(x.scalar_type()), "weight has dtype ",
                  torch::headeronly::toString(weight.scalar_type()), " and x ",
                  torch::headeronly::toString(x.scalar_type()),
                  "; wanted Float or Double for both, or weight of dtype Float and x of BFloat16");
  of_weight.check_step("step");
  if (bias.has_value()) {
    TORCH_LSH_CHECK(bias_first.has_value() && bias_second.has_value() && bias_step.has_value(),
                    "bias is given without state; wanted bias_first, bias_second and bias_step, too");
    check_bias({*bias, *bias_first, *bias_second, *bias_step}, of_weight);
  }
  check_touches(touches, weight);
  const Options options{lr, beta1, beta2, eps, weight_decay, decoupled, maximize, stochastic_rounding};
  const RowUpdate update_rows =
      row_sparse_adam_update(weight, first, second, rows, next_step(of_weight, options));
  const auto [grad_x, grad_bias, hardest_rows] =
      linear_softmax_loss_backward(slopes, factors, x, weight, rows, grad, hardest, log_weights, update_rows);
  *mutable_data<float>(step) += 1;
  if (bias.has_value())
    update({*bias, *bias_first, *bias_second, *bias_step}, rows, grad_bias, std::nullopt, options);
  if (touches.has_value()) count_touches(mutable_data<uint8_t>(*touches), rows);
  return {grad_x, hardest_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "linear_adam_", &linear_adam_);
  TORCH_LSH_IMPL(m, "linear_softmax_adam_", &linear_softmax_adam_);
}

}  // namespace torch_lsh
