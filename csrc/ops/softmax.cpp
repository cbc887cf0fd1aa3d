// sampled_softmax_loss: cross entropy over an active set, and its gradient. positive_sums: column sums of a
// gradient's positive part, by which a step lowers each active row's logits.
//
// Logits [B, A] come in two layouts. By rows (contiguous), each sample belongs to one thread. By columns
// (transposed, as left by a product with the active rows on the left), threads own blocks of active rows of a
// fixed size, and the blocks' sums are added in order. Results do not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kBlockRows = 256;  // active rows per partial sum
constexpr int64_t kGrainRows = 16;

void check_matrix(const Tensor& matrix, const char* name) {
  check_cpu(matrix, name);
  TORCH_LSH_CHECK(matrix.scalar_type() == ScalarType::Float || matrix.scalar_type() == ScalarType::Double,
                  name, " has dtype ", torch::headeronly::toString(matrix.scalar_type()),
                  "; wanted Float or Double");
  check_dim(matrix, name, 2);
}

// Whether the transpose is contiguous, not the matrix; fails if neither is.
bool is_by_columns(const Tensor& matrix, const char* name) {
  if (matrix.is_contiguous()) return false;
  TORCH_LSH_CHECK(matrix.stride(0) == 1 && matrix.stride(1) == matrix.size(0), name,
                  " is not contiguous, nor is its transpose; call .contiguous() first");
  return true;
}

void check(const Tensor& logits, const std::optional<Tensor>& log_weights, const Tensor& positions,
           const Tensor& shares) {
  check_matrix(logits, "logits");
  const bool by_columns = is_by_columns(logits, "logits");
  const int64_t batch = logits.size(0), count = logits.size(1);
  if (log_weights.has_value()) {
    check_cpu(*log_weights, "log_weights");
    check_dtype(*log_weights, "log_weights", logits.scalar_type());
    check_contiguous(*log_weights, "log_weights");
    TORCH_LSH_CHECK(log_weights->dim() == 1 || log_weights->dim() == 2, "log_weights has shape ",
                    shape_of(*log_weights), "; wanted [A] or [B, A]");
    check_size(*log_weights, "log_weights", log_weights->dim() - 1, count);
    if (log_weights->dim() == 2) check_size(*log_weights, "log_weights", 0, batch);
    TORCH_LSH_CHECK(!by_columns || log_weights->dim() == 1, "log_weights has shape ", shape_of(*log_weights),
                    "; wanted [A] with transposed logits, or contiguous logits");
  }
  check_operand(positions, "positions", 2, ScalarType::Long);
  check_size(positions, "positions", 0, batch);
  check_operand(shares, "shares", 2, logits.scalar_type());
  check_size(shares, "shares", 0, batch);
  check_size(shares, "shares", 1, positions.size(1));
  const auto* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0, size = positions.numel(); i < size; ++i)
    TORCH_LSH_CHECK(position[i] < count, "positions holds ", position[i], "; wanted at most ", count - 1);
}

template <typename T>
struct View {
  const T *logits, *log_weights, *shares;
  const int64_t* positions;
  int64_t batch, count, labels, weight_stride, sample_stride, row_stride;

  View(const Tensor& logits_, const std::optional<Tensor>& log_weights_, const Tensor& positions_,
       const Tensor& shares_)
      : logits(data<T>(logits_)),
        log_weights(data<T>(log_weights_)),
        shares(data<T>(shares_)),
        positions(positions_.const_data_ptr<int64_t>()),
        batch(logits_.size(0)),
        count(logits_.size(1)),
        labels(positions_.size(1)),
        weight_stride(log_weights_.has_value() && log_weights_->dim() == 2 ? count : 0),
        sample_stride(is_by_columns(logits_, "logits") ? 1 : count),
        row_stride(is_by_columns(logits_, "logits") ? batch : 1) {}

  bool by_columns() const { return row_stride != 1; }
  const T* weights_of(int64_t b) const {
    return log_weights == nullptr ? nullptr : log_weights + b * weight_stride;
  }
  T mass_of(int64_t b) const {
    T mass = 0;
    for (int64_t i = b * labels; i < (b + 1) * labels; ++i)
      if (positions[i] >= 0) mass += shares[i];
    return mass;
  }
};

template <typename T>
void log_partition_by_columns(const View<T>& in, T* log_z) {
  const auto kernel = kernels<SoftmaxKernels<T>>().column_sums;
  const int64_t blocks = (in.count + kBlockRows - 1) / kBlockRows;
  std::vector<T> largest(blocks * in.batch), sums(blocks * in.batch);
  parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlockRows;
      kernel(in.logits + first * in.batch, in.log_weights == nullptr ? nullptr : in.log_weights + first,
             std::min(kBlockRows, in.count - first), in.batch, largest.data() + block * in.batch,
             sums.data() + block * in.batch);
    }
  });
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  for (int64_t b = 0; b < in.batch; ++b) {
    T highest = -kInfinity, sum = 0;
    for (int64_t block = 0; block < blocks; ++block)
      highest = std::max(highest, largest[block * in.batch + b]);
    const T reference = highest == -kInfinity ? 0 : highest;
    for (int64_t block = 0; block < blocks; ++block) {
      const T of_block = largest[block * in.batch + b];
      sum += sums[block * in.batch + b] * (of_block == -kInfinity ? T(1) : std::exp(of_block - reference));
    }
    log_z[b] = highest == kInfinity ? kInfinity : reference + std::log(sum);
  }
}

template <typename T>
void forward(const View<T>& in, T* loss, T* log_z) {
  if (in.by_columns()) {
    log_partition_by_columns(in, log_z);
  } else {
    const auto kernel = kernels<SoftmaxKernels<T>>().log_sum_exp;
    parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        log_z[b] = kernel(in.logits + b * in.count, in.weights_of(b), in.count);
    });
  }
  for (int64_t b = 0; b < in.batch; ++b) {
    // As in PyTorch: an infinite logit makes the loss NaN, even if the label's logit is finite.
    const T subtracted =
        log_z[b] == std::numeric_limits<T>::infinity() ? std::numeric_limits<T>::quiet_NaN() : log_z[b];
    T sum = 0;
    for (int64_t i = b * in.labels; i < (b + 1) * in.labels; ++i)
      if (in.positions[i] >= 0)
        sum +=
            in.shares[i] * (subtracted - in.logits[b * in.sample_stride + in.positions[i] * in.row_stride]);
    loss[b] = sum;
  }
}

// out: in the layout of the logits.
template <typename T>
void backward(const View<T>& in, const T* grad, const T* log_z, T* out) {
  const auto& k = kernels<SoftmaxKernels<T>>();
  if (in.by_columns()) {
    std::vector<T> factor(in.batch);
    for (int64_t b = 0; b < in.batch; ++b) factor[b] = grad[b] * in.mass_of(b);
    parallel_for(0, in.count, kGrainRows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        k.column_softmax(in.logits + row * in.batch, in.log_weights == nullptr ? T(0) : in.log_weights[row],
                         in.batch, log_z, factor.data(), out + row * in.batch);
    });
  } else {
    parallel_for(0, in.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        k.scaled_softmax(in.logits + b * in.count, in.weights_of(b), in.count, log_z[b],
                         grad[b] * in.mass_of(b), out + b * in.count);
    });
  }
  for (int64_t b = 0; b < in.batch; ++b)
    for (int64_t i = b * in.labels; i < (b + 1) * in.labels; ++i)
      if (in.positions[i] >= 0)
        out[b * in.sample_stride + in.positions[i] * in.row_stride] -= grad[b] * in.shares[i];
}

std::tuple<Tensor, Tensor> sampled_softmax_loss(const Tensor& logits, std::optional<Tensor> log_weights,
                                                const Tensor& positions, const Tensor& shares) {
  check(logits, log_weights, positions, shares);
  Tensor loss = new_tensor({logits.size(0)}, logits.scalar_type());
  Tensor log_z = new_tensor({logits.size(0)}, logits.scalar_type());
  by_dtype(SumTypes{}, logits.scalar_type(), "logits", [&]<typename T>() {
    forward(View<T>(logits, log_weights, positions, shares), mutable_data<T>(loss), mutable_data<T>(log_z));
  });
  return {loss, log_z};
}

Tensor sampled_softmax_loss_backward(const Tensor& grad, const Tensor& log_z, const Tensor& logits,
                                     std::optional<Tensor> log_weights, const Tensor& positions,
                                     const Tensor& shares) {
  check(logits, log_weights, positions, shares);
  check_operand(grad, "grad", 1, logits.scalar_type());
  check_operand(log_z, "log_z", 1, logits.scalar_type());
  check_size(grad, "grad", 0, logits.size(0));
  check_size(log_z, "log_z", 0, logits.size(0));
  const int64_t batch = logits.size(0), count = logits.size(1);
  Tensor out = is_by_columns(logits, "logits")
                   ? torch::stable::transpose(new_tensor({count, batch}, logits.scalar_type()), 0, 1)
                   : new_tensor({batch, count}, logits.scalar_type());
  by_dtype(SumTypes{}, logits.scalar_type(), "logits", [&]<typename T>() {
    backward(View<T>(logits, log_weights, positions, shares), data<T>(grad), data<T>(log_z),
             mutable_data<T>(out));
  });
  return out;
}

template <typename T>
void sum_positive(const Tensor& gradient, T* sums) {
  const auto& k = kernels<SoftmaxKernels<T>>();
  const int64_t rows = gradient.size(0), columns = gradient.size(1);
  const T* values = data<T>(gradient);
  if (is_by_columns(gradient, "gradient")) {
    parallel_for(0, columns, kGrainRows, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) sums[c] = k.positive_sum(values + c * rows, rows);
    });
    return;
  }
  constexpr int64_t kBlock = 1024;  // sums that fit in L1
  parallel_for(0, (columns + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, columns - first);
      std::fill(sums + first, sums + first + count, T(0));
      for (int64_t row = 0; row < rows; ++row)
        k.add_positive(values + row * columns + first, count, sums + first);
    }
  });
}

Tensor positive_sums(const Tensor& gradient) {
  check_matrix(gradient, "gradient");
  Tensor sums = new_tensor({gradient.size(1)}, gradient.scalar_type());
  by_dtype(SumTypes{}, gradient.scalar_type(), "gradient",
           [&]<typename T>() { sum_positive<T>(gradient, mutable_data<T>(sums)); });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "sampled_softmax_loss", &sampled_softmax_loss);
  TORCH_LSH_IMPL(m, "sampled_softmax_loss_backward", &sampled_softmax_loss_backward);
  TORCH_LSH_IMPL(m, "positive_sums", &positive_sums);
}

}  // namespace torch_lsh
