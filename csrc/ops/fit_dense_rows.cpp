// fit_dense_rows: a linear classifier of dense rows for each label. A label belongs to one thread, so the
// results do not depend on the number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dual_descent.h"
#include "ops/operator.h"
#include "ops/sparse_rows.h"
#include "ops/tasks.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kFloatsPerLine = 16;

// The rows of a label, as DualDescent wants them. Not thread-safe: one per thread.
class Members {
 public:
  Members(const float* rows, int64_t width)
      : kernels_(kernels<DotKernels<float>>()), rows_(rows), width_(width) {}

  void choose(const int32_t* members, int64_t count) {
    members_ = members;
    squares_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      if (i + kRowsAhead < count) prefetch(i + kRowsAhead);
      squares_[i] = 1 + kernels_.dot(row(i), row(i), width_);
    }
  }

  int64_t columns() const { return width_; }
  float squares(int64_t i) const { return squares_[i]; }
  float product(int64_t i, const float* weights) const { return kernels_.dot(row(i), weights, width_); }
  void add(int64_t i, float factor, float* weights) const {
    kernels_.add_row(row(i), factor, width_, weights);
  }
  void prefetch(int64_t i) const {
    for (int64_t at = 0; at < width_; at += kFloatsPerLine) __builtin_prefetch(row(i) + at);
  }

 private:
  const float* row(int64_t i) const { return rows_ + members_[i] * width_; }

  const DotKernels<float>& kernels_;
  const float* rows_;
  int64_t width_;
  const int32_t* members_ = nullptr;
  std::vector<float> squares_;
};

std::tuple<Tensor, Tensor> fit_dense_rows(const Tensor& rows, const Tensor& label_start,
                                          const Tensor& label_rows, const Tensor& positive, double cost,
                                          int64_t passes, int64_t seed) {
  check_operand(rows, "rows", 2, ScalarType::Float);
  const int64_t count = rows.size(0), width = rows.size(1);
  const SparseRows labels =
      check_sparse_rows(label_start, "label_start", label_rows, "label_rows", nullptr, nullptr, count);
  check_operand(positive, "positive", 1, ScalarType::Bool);
  check_size(positive, "positive", 0, label_rows.numel());
  const auto error_cost = static_cast<float>(cost);
  TORCH_LSH_CHECK(error_cost > 0, "cost is ", cost, "; wanted a positive number");
  TORCH_LSH_CHECK(passes >= 1, "passes is ", passes, "; wanted at least 1");
  const auto* is_positive = static_cast<const uint8_t*>(positive.const_data_ptr());
  const auto* values = rows.const_data_ptr<float>();
  Tensor weights = new_tensor({labels.rows, width}, ScalarType::Float);
  Tensor bias = new_tensor({labels.rows}, ScalarType::Float);
  auto* weight = weights.mutable_data_ptr<float>();
  auto* offset = bias.mutable_data_ptr<float>();
  share_tasks(labels.rows, [&](const auto& next) {
    DualDescent descent;
    Members members(values, width);
    for (int64_t label; (label = next()) >= 0;) {
      const int64_t begin = labels.start[label], size = labels.count(label);
      float* const own = weight + label * width;
      std::fill(own, own + width, 0.0f);
      members.choose(labels.index + begin, size);
      descent.start(size);
      offset[label] = descent.run(members, is_positive + begin, error_cost, passes, 0.0f, 0.0f,
                                  random_bits(static_cast<uint64_t>(seed), label), own);
    }
  });
  return {weights, bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "fit_dense_rows", &fit_dense_rows);
}

}  // namespace torch_lsh
