// linear_softmax_loss: logits of active rows and their cross entropy in one operator, which leaves the
// gradient of the logits behind: a training step needs each exponential once, and the logits themselves never
// again. Its backward: all gradients in one pass over that of the logits.
//
// The logits are [A, B]. Threads own blocks of active rows; what is summed over blocks is joined in their
// order, and blocks do not depend on the number of threads, so the result is that of one thread.
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

constexpr int64_t kBlockRows = 256;       // of a pass of the backward: their slopes stay in the cache
constexpr int64_t kBlocksPerSum = 2;      // that are summed up before they are joined, at most
constexpr int64_t kSums = 8;              // at least, where there are rows enough, for threads to share
constexpr int64_t kLargestSum = 1 << 16;  // numbers of a gradient of x that stays in the cache, too

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
  void (*gather)(const T*, const int64_t*, int64_t, int64_t, T*);
  void (*maxima)(const T*, const T*, int64_t, int64_t, T*);
  void (*exponentials)(T*, const T*, int64_t, int64_t, const T*, const T*, T*);
  void (*weighted_row_sums)(const T*, const T*, int64_t, T*, T*);
};

template <typename T>
LossKernels<T> loss_kernels() {
  const Kernels& k = kernels();
  if constexpr (std::is_same_v<T, float>) {
    return {k.gather_f32_f32, k.column_maxima_f32, k.column_exponentials_f32, k.weighted_row_sums_f32};
  } else {
    return {k.gather_f64_f64, k.column_maxima_f64, k.column_exponentials_f64, k.weighted_row_sums_f64};
  }
}

template <typename T>
class LinearSoftmaxLoss {
 public:
  LinearSoftmaxLoss(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const Tensor& rows, const std::optional<Tensor>& log_weights, const Tensor& positions,
                    const Tensor& shares)
      : right_(x, true),
        weight_(pointer<T>(weight)),
        bias_(pointer<T>(bias)),
        log_weights_(pointer<T>(log_weights)),
        shares_(pointer<T>(shares)),
        row_(rows.const_data_ptr<int64_t>()),
        position_(positions.const_data_ptr<int64_t>()),
        batch_(x.size(0)),
        count_(rows.numel()),
        width_(weight.size(1)),
        labels_(positions.size(1)),
        blocks_((count_ + kTaskRows - 1) / kTaskRows) {}

  void run(T* loss, T* slopes, T* scale, T* active) const {
    const LossKernels<T> k = loss_kernels<T>();
    std::vector<T> of_blocks(blocks_ * batch_), largest(batch_, -std::numeric_limits<T>::infinity());
    for_blocks([&](int64_t block, int64_t first, int64_t rows) {
      T* const logits = slopes + first * batch_;
      T offset[kTaskRows];
      k.gather(weight_, row_ + first, rows, width_, active + first * width_);
      if (bias_ != nullptr) k.gather(bias_, row_ + first, rows, 1, offset);
      right_.multiply(active + first * width_, width_, 1, rows, 0, right_.panels(),
                      bias_ == nullptr ? nullptr : offset, logits, batch_);
      k.maxima(logits, weights_from(first), rows, batch_, of_blocks.data() + block * batch_);
    });
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t b = 0; b < batch_; ++b) largest[b] = std::max(largest[b], of_blocks[block * batch_ + b]);
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
      largest[b] += std::log(sums[b]);
    }
    for_labels([&](int64_t b, int64_t i) {
      loss[b] += shares_[i] * (largest[b] - at_labels[i]);
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
  const int64_t *row_, *position_;
  int64_t batch_, count_, width_, labels_, blocks_;
};

ScalarType check_float_or_double(const Tensor& tensor, const char* name) {
  const ScalarType dtype = tensor.scalar_type();
  TORCH_LSH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name, " has dtype ",
                  torch::headeronly::toString(dtype), "; wanted Float or Double");
  return dtype;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_softmax_loss(const Tensor& x, const Tensor& weight,
                                                               std::optional<Tensor> bias, const Tensor& rows,
                                                               std::optional<Tensor> log_weights,
                                                               const Tensor& positions,
                                                               const Tensor& shares) {
  const ScalarType dtype = check_float_or_double(x, "x");
  check_operand(x, "x", 2, dtype);
  check_operand(weight, "weight", 2, dtype);
  check_size(weight, "weight", 1, x.size(1));
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, dtype);
    check_size(*bias, "bias", 0, weight.size(0));
  }
  check_operand(rows, "rows", 1, ScalarType::Long);
  const int64_t batch = x.size(0), count = rows.numel();
  check_rows_in_range(rows.const_data_ptr<int64_t>(), count, weight.size(0), "rows");
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
  for (int64_t i = 0, size = positions.numel(); i < size; ++i)
    TORCH_LSH_CHECK(position[i] < count, "positions holds ", position[i], "; wanted at most ", count - 1);

  Tensor loss = torch::stable::empty({batch}, dtype), slopes = pooled_tensor({count, batch}, dtype),
         scale = torch::stable::empty({batch}, dtype), active = pooled_tensor({count, weight.size(1)}, dtype);
  const auto run = [&]<typename T>(T) {
    LinearSoftmaxLoss<T>(x, weight, bias, rows, log_weights, positions, shares)
        .run(mutable_pointer<T>(loss), mutable_pointer<T>(slopes), mutable_pointer<T>(scale),
             mutable_pointer<T>(active));
  };
  dtype == ScalarType::Float ? run(float{}) : run(double{});
  return {loss, slopes, scale, active};
}

template <typename T>
class LinearSoftmaxBackward {
 public:
  // grad_weight may be null.
  LinearSoftmaxBackward(const Tensor& slopes, const Tensor& factors, const Tensor& weight, T* grad_weight,
                        T* grad_bias, T* positive)
      : slopes_(pointer<T>(slopes)),
        factors_(pointer<T>(factors)),
        weight_(pointer<T>(weight)),
        grad_weight_(grad_weight),
        grad_bias_(grad_bias),
        positive_(positive),
        count_(slopes.size(0)),
        batch_(slopes.size(1)),
        width_(weight.size(1)) {}

  // All in one pass over the slopes, for a gradient of x that is small. scaled: factors * x.
  void in_one_pass(const Tensor& scaled, T* grad_x) const {
    const ProductKernels<T> k = product_kernels<T>();
    const PackedMatrix<T> right(scaled);
    const int64_t tasks = std::max<int64_t>(1, (count_ + kSums * kTaskRows - 1) / (kSums * kTaskRows)),
                  step = std::min(kBlocksPerSum * kBlockRows, tasks * kTaskRows),
                  sums = (count_ + step - 1) / step, size = batch_ * width_;
    Workspace workspace(sizeof(T) * sums * size);
    T* const partial = static_cast<T*>(workspace.data());
    torch::stable::parallel_for(0, sums, 1, [&](int64_t begin, int64_t end) {
      Workspace panels(sizeof(T) * k.packed_size(kBlockRows, width_));
      T* const packed = static_cast<T*>(panels.data());
      for (int64_t sum = begin; sum < end; ++sum)
        for (int64_t first = sum * step; first < std::min((sum + 1) * step, count_); first += kBlockRows) {
          const int64_t rows = std::min(kBlockRows, std::min((sum + 1) * step, count_) - first);
          const T* const block = slopes_ + first * batch_;
          sum_rows(first, rows);
          if (grad_weight_ != nullptr)
            right.multiply(block, batch_, 1, rows, 0, right.panels(), nullptr, grad_weight_ + first * width_,
                           width_);
          for (int64_t panel = 0; panel < k.panels(width_); ++panel)
            k.pack_panel(weight_ + first * width_, width_, 1, rows, width_, panel, 0, rows, packed);
          k.product(block, 1, batch_, batch_, rows, packed, width_, nullptr, first > sum * step,
                    partial + sum * size, width_);
        }
    });
    torch::stable::parallel_for(0, batch_, 16, [&](int64_t begin, int64_t end) {
      std::fill(grad_x + begin * width_, grad_x + end * width_, T(0));
      for (int64_t sum = 0; sum < sums; ++sum)
        for (int64_t i = begin * width_; i < end * width_; ++i) grad_x[i] += partial[sum * size + i];
      for (int64_t i = begin * width_; i < end * width_; ++i) grad_x[i] *= factors_[i / width_];
    });
  }

  void sum_all_rows() const {
    torch::stable::parallel_for(0, count_, 64,
                                [&](int64_t begin, int64_t end) { sum_rows(begin, end - begin); });
  }

 private:
  void sum_rows(int64_t first, int64_t rows) const {
    const auto kernel = loss_kernels<T>().weighted_row_sums;
    for (int64_t row = first; row < first + rows; ++row)
      kernel(slopes_ + row * batch_, factors_, batch_, grad_bias_ + row, positive_ + row);
  }

  const T *slopes_, *factors_, *weight_;
  T *grad_weight_, *grad_bias_, *positive_;
  int64_t count_, batch_, width_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_softmax_loss_backward(const Tensor& slopes,
                                                                        const Tensor& factors,
                                                                        const Tensor& x, const Tensor& weight,
                                                                        bool needs_weight) {
  const ScalarType dtype = check_float_or_double(slopes, "slopes");
  check_operand(slopes, "slopes", 2, dtype);
  const int64_t count = slopes.size(0), batch = slopes.size(1);
  check_operand(factors, "factors", 1, dtype);
  check_size(factors, "factors", 0, batch);
  check_operand(x, "x", 2, dtype);
  check_size(x, "x", 0, batch);
  check_operand(weight, "weight", 2, dtype);
  check_size(weight, "weight", 0, count);
  check_size(weight, "weight", 1, x.size(1));
  const int64_t width = x.size(1);
  Tensor grad_x = torch::stable::empty({batch, width}, dtype),
         scaled = torch::stable::empty({batch, width}, dtype),
         grad_weight = pooled_tensor({needs_weight ? count : 0, width}, dtype),
         grad_bias = torch::stable::empty({count}, dtype), positive = torch::stable::empty({count}, dtype);
  const auto run = [&]<typename T>(T) {
    const auto scale_rows = [&](const T* from, T* to) {
      const T* factor = pointer<T>(factors);
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = b * width; i < (b + 1) * width; ++i) to[i] = factor[b] * from[i];
    };
    scale_rows(pointer<T>(x), mutable_pointer<T>(scaled));
    const LinearSoftmaxBackward<T> gradients(slopes, factors, weight,
                                             needs_weight ? mutable_pointer<T>(grad_weight) : nullptr,
                                             mutable_pointer<T>(grad_bias), mutable_pointer<T>(positive));
    if (batch * width <= kLargestSum) {
      gradients.in_one_pass(scaled, mutable_pointer<T>(grad_x));
    } else {
      gradients.sum_all_rows();
      if (needs_weight) grad_weight = multiply<T>(slopes, scaled);
      grad_x = multiply<T>(torch::stable::transpose(slopes, 0, 1), weight);
      scale_rows(pointer<T>(grad_x), mutable_pointer<T>(grad_x));
    }
  };
  dtype == ScalarType::Float ? run(float{}) : run(double{});
  return {grad_x, grad_weight, grad_bias, positive};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("linear_softmax_loss", TORCH_BOX(&linear_softmax_loss));
  m.impl("linear_softmax_loss_backward", TORCH_BOX(&linear_softmax_loss_backward));
}

}  // namespace torch_lsh
