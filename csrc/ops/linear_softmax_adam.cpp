// linear_softmax_adam_: the backward pass of a loss over active rows, Adam's step on weight and bias, and the
// count of touched rows, in one call. The operators that it consists of take longer to call than to run where
// layer and batch are small.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "checks.h"
#include "ops/count_touches.h"
#include "ops/linear_softmax.h"
#include "ops/operator.h"
#include "ops/row_sparse_adam.h"

namespace torch_lsh {
namespace {

// A parameter, its moments, and the number of its steps so far, a float.
struct Adam {
  const Tensor &parameter, &first, &second, &step;

  void check_step(const char* name) const { check_operand(step, name, 0, ScalarType::Float); }

  void count() const { *static_cast<float*>(step.mutable_data_ptr()) += 1; }
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

std::tuple<Tensor, Tensor> linear_softmax_adam_(
    const Tensor& slopes, const Tensor& factors, const Tensor& x, const Tensor& rows,
    std::optional<Tensor> grad, int64_t hardest, std::optional<Tensor> log_weights, const Tensor& weight,
    const Tensor& first, const Tensor& second, const Tensor& step, std::optional<Tensor> bias,
    std::optional<Tensor> bias_first, std::optional<Tensor> bias_second, std::optional<Tensor> bias_step,
    std::optional<Tensor> touches, double lr, double beta1, double beta2, double eps, double weight_decay,
    bool decoupled, bool maximize, bool stochastic_rounding) {
  const Adam of_weight{weight, first, second, step};
  check_operand(weight, "weight", 2, weight.scalar_type());
  TORCH_LSH_CHECK(weight.scalar_type() == x.scalar_type() && x.scalar_type() != ScalarType::BFloat16,
                  "weight has dtype ", torch::headeronly::toString(weight.scalar_type()), " and x ",
                  torch::headeronly::toString(x.scalar_type()), "; wanted Float or Double for both");
  of_weight.check_step("step");
  if (bias.has_value()) {
    TORCH_LSH_CHECK(bias_first.has_value() && bias_second.has_value() && bias_step.has_value(),
                    "bias is given without state; wanted bias_first, bias_second and bias_step, too");
    check_bias({*bias, *bias_first, *bias_second, *bias_step}, of_weight);
  }
  if (touches.has_value()) {
    check_operand(*touches, "touches", 1, ScalarType::Byte);
    check_size(*touches, "touches", 0, weight.size(0));
  }
  const auto [grad_x, none, grad_bias, hardest_rows, scaled] =
      linear_softmax_loss_backward(slopes, factors, x, weight, rows, false, grad, hardest, log_weights);
  const auto update = [&](const Adam& of, const Tensor& gradient, const std::optional<Tensor>& factor) {
    const double count = *static_cast<const float*>(of.step.const_data_ptr()) + 1.0;
    row_sparse_adam_(of.parameter, of.first, of.second, rows, gradient, std::nullopt, lr, beta1, beta2, eps,
                     weight_decay, 1 - std::pow(beta1, count), 1 - std::pow(beta2, count), decoupled,
                     maximize, factor, stochastic_rounding ? static_cast<int64_t>(count) : -1);
    of.count();
  };
  update(of_weight, slopes, scaled);
  if (bias.has_value()) update({*bias, *bias_first, *bias_second, *bias_step}, grad_bias, std::nullopt);
  if (touches.has_value()) count_touches(touches->mutable_data_ptr<uint8_t>(), rows);
  return {grad_x, hardest_rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "linear_softmax_adam_", &linear_softmax_adam_);
}

}  // namespace torch_lsh
