// sampled_softmax_loss: cross entropy over an active set in one pass over the logits, and its gradient in
// another. Each sample's row of logits belongs to one thread. positive_sums: what a gradient pushes down;
// each block of columns belongs to one thread.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "checks.h"
#include "kernels/kernels.h"

namespace torch_lsh {
namespace {

void check(const Tensor& logits, const std::optional<Tensor>& log_weights, const Tensor& positions,
           const Tensor& shares) {
  check_cpu(logits, "logits");
  TORCH_LSH_CHECK(logits.scalar_type() == ScalarType::Float || logits.scalar_type() == ScalarType::Double,
                  "logits has dtype ", torch::headeronly::toString(logits.scalar_type()),
                  "; wanted Float or Double");
  check_operand(logits, "logits", 2, logits.scalar_type());
  const int64_t batch = logits.size(0), count = logits.size(1);
  if (log_weights.has_value()) {
    check_cpu(*log_weights, "log_weights");
    check_dtype(*log_weights, "log_weights", logits.scalar_type());
    check_contiguous(*log_weights, "log_weights");
    TORCH_LSH_CHECK(log_weights->dim() == 1 || log_weights->dim() == 2, "log_weights has shape ",
                    shape_of(*log_weights), "; wanted [A] or [B, A]");
    check_size(*log_weights, "log_weights", log_weights->dim() - 1, count);
    if (log_weights->dim() == 2) check_size(*log_weights, "log_weights", 0, batch);
  }
  check_operand(positions, "positions", 2, ScalarType::Long);
  check_size(positions, "positions", 0, batch);
  check_operand(shares, "shares", 2, logits.scalar_type());
  check_size(shares, "shares", 0, batch);
  check_size(shares, "shares", 1, positions.size(1));
  const auto* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < positions.numel(); ++i)
    TORCH_LSH_CHECK(position[i] < count, "positions holds ", position[i], "; wanted at most ", count - 1);
}

template <typename T>
struct View {
  const T *logits, *log_weights, *shares;
  const int64_t* positions;
  int64_t count, labels, weight_stride;

  View(const Tensor& logits_, const std::optional<Tensor>& log_weights_, const Tensor& positions_,
       const Tensor& shares_)
      : logits(static_cast<const T*>(logits_.const_data_ptr())),
        log_weights(log_weights_.has_value() ? static_cast<const T*>(log_weights_->const_data_ptr())
                                             : nullptr),
        shares(static_cast<const T*>(shares_.const_data_ptr())),
        positions(positions_.const_data_ptr<int64_t>()),
        count(logits_.size(1)),
        labels(positions_.size(1)),
        weight_stride(log_weights_.has_value() && log_weights_->dim() == 2 ? count : 0) {}

  const T* weights_of(int64_t b) const {
    return log_weights == nullptr ? nullptr : log_weights + b * weight_stride;
  }
};

template <typename T, typename Kernel>
void forward(Kernel kernel, const View<T>& in, int64_t batch, T* loss, T* log_z) {
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const T* logits = in.logits + b * in.count;
      log_z[b] = kernel(logits, in.weights_of(b), in.count);
      // An infinite logit makes PyTorch's loss NaN, also where the label's logit is finite.
      const T subtracted =
          log_z[b] == std::numeric_limits<T>::infinity() ? std::numeric_limits<T>::quiet_NaN() : log_z[b];
      T sum = 0;
      for (int64_t i = b * in.labels; i < (b + 1) * in.labels; ++i)
        if (in.positions[i] >= 0) sum += in.shares[i] * (subtracted - logits[in.positions[i]]);
      loss[b] = sum;
    }
  });
}

template <typename T, typename Kernel>
void backward(Kernel kernel, const View<T>& in, int64_t batch, const T* grad, const T* log_z, T* out) {
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T* row = out + b * in.count;
      T mass = 0;
      for (int64_t i = b * in.labels; i < (b + 1) * in.labels; ++i)
        if (in.positions[i] >= 0) mass += in.shares[i];
      kernel(in.logits + b * in.count, in.weights_of(b), in.count, log_z[b], grad[b] * mass, row);
      for (int64_t i = b * in.labels; i < (b + 1) * in.labels; ++i)
        if (in.positions[i] >= 0) row[in.positions[i]] -= grad[b] * in.shares[i];
    }
  });
}

template <typename T>
T* pointer(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> sampled_softmax_loss(const Tensor& logits, std::optional<Tensor> log_weights,
                                                const Tensor& positions, const Tensor& shares) {
  check(logits, log_weights, positions, shares);
  const int64_t batch = logits.size(0);
  Tensor loss = torch::stable::empty({batch}, logits.scalar_type());
  Tensor log_z = torch::stable::empty({batch}, logits.scalar_type());
  if (logits.scalar_type() == ScalarType::Float) {
    forward(kernels().log_sum_exp_f32, View<float>(logits, log_weights, positions, shares), batch,
            pointer<float>(loss), pointer<float>(log_z));
  } else {
    forward(kernels().log_sum_exp_f64, View<double>(logits, log_weights, positions, shares), batch,
            pointer<double>(loss), pointer<double>(log_z));
  }
  return {loss, log_z};
}

Tensor sampled_softmax_loss_backward(const Tensor& grad, const Tensor& log_z, const Tensor& logits,
                                     std::optional<Tensor> log_weights, const Tensor& positions,
                                     const Tensor& shares) {
  check(logits, log_weights, positions, shares);
  const int64_t batch = logits.size(0);
  check_operand(grad, "grad", 1, logits.scalar_type());
  check_operand(log_z, "log_z", 1, logits.scalar_type());
  check_size(grad, "grad", 0, batch);
  check_size(log_z, "log_z", 0, batch);
  Tensor out = torch::stable::empty({batch, logits.size(1)}, logits.scalar_type());
  if (logits.scalar_type() == ScalarType::Float) {
    backward(kernels().scaled_softmax_f32, View<float>(logits, log_weights, positions, shares), batch,
             grad.const_data_ptr<float>(), log_z.const_data_ptr<float>(), pointer<float>(out));
  } else {
    backward(kernels().scaled_softmax_f64, View<double>(logits, log_weights, positions, shares), batch,
             grad.const_data_ptr<double>(), log_z.const_data_ptr<double>(), pointer<double>(out));
  }
  return out;
}

template <typename T, typename Kernel>
void sum_columns(Kernel kernel, const T* values, int64_t rows, int64_t columns, T* sums) {
  constexpr int64_t kBlock = 1024;  // of sums: fits in the first-level cache
  torch::stable::parallel_for(0, (columns + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, columns - first);
      std::fill(sums + first, sums + first + count, T(0));
      for (int64_t row = 0; row < rows; ++row) kernel(values + row * columns + first, count, sums + first);
    }
  });
}

Tensor positive_sums(const Tensor& gradient) {
  check_cpu(gradient, "gradient");
  TORCH_LSH_CHECK(gradient.scalar_type() == ScalarType::Float || gradient.scalar_type() == ScalarType::Double,
                  "gradient has dtype ", torch::headeronly::toString(gradient.scalar_type()),
                  "; wanted Float or Double");
  check_operand(gradient, "gradient", 2, gradient.scalar_type());
  const int64_t rows = gradient.size(0), columns = gradient.size(1);
  Tensor sums = torch::stable::empty({columns}, gradient.scalar_type());
  if (gradient.scalar_type() == ScalarType::Float) {
    sum_columns(kernels().add_positive_f32, gradient.const_data_ptr<float>(), rows, columns,
                pointer<float>(sums));
  } else {
    sum_columns(kernels().add_positive_f64, gradient.const_data_ptr<double>(), rows, columns,
                pointer<double>(sums));
  }
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("sampled_softmax_loss", TORCH_BOX(&sampled_softmax_loss));
  m.impl("sampled_softmax_loss_backward", TORCH_BOX(&sampled_softmax_loss_backward));
  m.impl("positive_sums", TORCH_BOX(&positive_sums));
}

}  // namespace torch_lsh
