// linear_softmax_loss: logits of active rows and their cross entropy in one operator, which leaves the gradient
// of the logits behind: a training step needs each exponential once, and the logits themselves never again.
// weighted_row_sums: what that gradient is for a bias, and what it pushes down.
//
// The logits are [A, B]. Threads own blocks of kTaskRows active rows; what is summed over blocks is joined in
// their order, so the result is that of one thread.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/product.h"

namespace torch_lsh {
namespace {

constexpr int64_t kGrainRows = 64;

template <typename T>
const T* pointer(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? pointer<T>(*tensor) : nullptr;
}

template <typename T>
T* mutable_pointer(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
struct LossKernels {
  void (*maxima)(const T*, const T*, int64_t, int64_t, T*);
  void (*exponentials)(T*, const T*, int64_t, int64_t, const T*, const T*, T*);
  void (*weighted_row_sums)(const T*, const T*, int64_t, T*, T*);
};

template <typename T>
LossKernels<T> loss_kernels() {
  const Kernels& k = kernels();
  if constexpr (std::is_same_v<T, float>) {
    return {k.column_maxima_f32, k.column_exponentials_f32, k.weighted_row_sums_f32};
  } else {
    return {k.column_maxima_f64, k.column_exponentials_f64, k.weighted_row_sums_f64};
  }
}

template <typename T>
class LinearSoftmaxLoss {
 public:
  LinearSoftmaxLoss(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& log_weights, const Tensor& positions, const Tensor& shares)
      : right_(x, true),
        weight_(pointer<T>(weight)),
        bias_(pointer<T>(bias)),
        log_weights_(pointer<T>(log_weights)),
        shares_(pointer<T>(shares)),
        position_(positions.const_data_ptr<int64_t>()),
        batch_(x.size(0)),
        count_(weight.size(0)),
        width_(weight.size(1)),
        labels_(positions.size(1)),
        blocks_((count_ + kTaskRows - 1) / kTaskRows) {}

  void run(T* loss, T* slopes, T* scale) const {
    const LossKernels<T> k = loss_kernels<T>();
    std::vector<T> of_blocks(blocks_ * batch_), largest(batch_, -std::numeric_limits<T>::infinity());
    for_blocks([&](int64_t block, int64_t first, int64_t rows) {
      T* const logits = slopes + first * batch_;
      right_.multiply(weight_ + first * width_, width_, 1, rows, 0, right_.panels(),
                      bias_ == nullptr ? nullptr : bias_ + first, logits, batch_);
      k.maxima(logits, weights_from(first), rows, batch_, of_blocks.data() + block * batch_);
    });
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t b = 0; b < batch_; ++b)
        largest[b] = std::max(largest[b], of_blocks[block * batch_ + b]);
    for (T& value : largest)
      if (value == -std::numeric_limits<T>::infinity()) value = 0;  // the difference would be NaN

    std::vector<T> at_labels(batch_ * labels_), mass(batch_), sums(batch_);
    for_labels([&](int64_t b, int64_t i) {
      at_labels[i] = slopes[position_[i] * batch_ + b];
      mass[b] += shares_[i];
    });
    for_blocks([&](int64_t block, int64_t first, int64_t rows) {
      k.exponentials(slopes + first * batch_, weights_from(first), rows, batch_, largest.data(), mass.data(),
                     of_blocks.data() + block * batch_);
    });
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t b = 0; b < batch_; ++b) sums[b] += of_blocks[block * batch_ + b];
    for (int64_t b = 0; b < batch_; ++b) {
      loss[b] = 0;
      scale[b] = 1 / sums[b];
    }
    for_labels([&](int64_t b, int64_t i) {
      loss[b] += shares_[i] * (largest[b] + std::log(sums[b]) - at_labels[i]);
      slopes[position_[i] * batch_ + b] -= shares_[i] * sums[b];
    });
  }

 private:
  template <typename Run>
  void for_blocks(const Run& run) const {
    torch::stable::parallel_for(0, blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        run(block, block * kTaskRows, std::min(kTaskRows, count_ - block * kTaskRows));
    });
  }

  template <typename Run>
  void for_labels(const Run& run) const {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t i = b * labels_; i < (b + 1) * labels_; ++i)
        if (position_[i] >= 0) run(b, i);
  }

  const T* weights_from(int64_t row) const { return log_weights_ == nullptr ? nullptr : log_weights_ + row; }

  const PackedMatrix<T> right_;
  const T *weight_, *bias_, *log_weights_, *shares_;
  const int64_t* position_;
  int64_t batch_, count_, width_, labels_, blocks_;
};

ScalarType check_float_or_double(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  TORCH_LSH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " has dtype ",
                  torch::headeronly::toString(dtype), "; wanted Float or Double");
  return dtype;
}

std::tuple<Tensor, Tensor, Tensor> linear_softmax_loss(const Tensor& x, const Tensor& weight,
                                                       std::optional<Tensor> bias,
                                                       std::optional<Tensor> log_weights,
                                                       const Tensor& positions, const Tensor& shares) {
  const ScalarType dtype = check_float_or_double(x, "x");
  check_operand(x, "x", 2, dtype);
  check_operand(weight, "weight", 2, dtype);
  check_size(weight, "weight", 1, x.size(1));
  const int64_t batch = x.size(0), count = weight.size(0);
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, dtype);
    check_size(*bias, "bias", 0, count);
  }
  if (log_weights.has_value()) {
    check_operand(*log_weights, "log_weights", 1, dtype);
    check_size(*log_weights, "log_weights", 0, count);
  }
  check_operand(positions, "positions", 2, ScalarType::Long);
  check_size(positions, "positions", 0, batch);
  check_operand(shares, "shares", 2, dtype);
  check_size(shares, "shares", 0, batch);
  check_size(shares, "shares", 1, positions.size(1));
  const auto* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < positions.numel(); ++i)
    TORCH_LSH_CHECK(position[i] < count, "positions holds ", position[i], "; wanted at most ", count - 1);

  Tensor loss = torch::stable::empty({batch}, dtype), slopes = torch::stable::empty({count, batch}, dtype),
         scale = torch::stable::empty({batch}, dtype);
  const auto run = [&]<typename T>(T) {
    LinearSoftmaxLoss<T>(x, weight, bias, log_weights, positions, shares)
        .run(mutable_pointer<T>(loss), mutable_pointer<T>(slopes), mutable_pointer<T>(scale));
  };
  dtype == ScalarType::Float ? run(float{}) : run(double{});
  return {loss, slopes, scale};
}

std::tuple<Tensor, Tensor> weighted_row_sums(const Tensor& values, const Tensor& factors) {
  const ScalarType dtype = check_float_or_double(values, "values");
  check_operand(values, "values", 2, dtype);
  check_operand(factors, "factors", 1, dtype);
  check_size(factors, "factors", 0, values.size(1));
  const int64_t rows = values.size(0), width = values.size(1);
  Tensor sums = torch::stable::empty({rows}, dtype), positive = torch::stable::empty({rows}, dtype);
  const auto run = [&]<typename T>(T) {
    const auto kernel = loss_kernels<T>().weighted_row_sums;
    const T *value = pointer<T>(values), *factor = pointer<T>(factors);
    T *sum = mutable_pointer<T>(sums), *above = mutable_pointer<T>(positive);
    torch::stable::parallel_for(0, rows, kGrainRows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernel(value + row * width, factor, width, sum + row, above + row);
    });
  };
  dtype == ScalarType::Float ? run(float{}) : run(double{});
  return {sums, positive};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("linear_softmax_loss", TORCH_BOX(&linear_softmax_loss));
  m.impl("weighted_row_sums", TORCH_BOX(&weighted_row_sums));
}

}  // namespace torch_lsh
