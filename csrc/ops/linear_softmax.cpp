// linear_softmax_loss: logits of the active rows and their cross entropy, fused. It overwrites the logits
// with their gradient, so a training step computes each exponential once. linear_softmax_loss_backward: all
// other gradients, in one pass over that of the logits. linear_softmax_sums: the part of the active rows
// where the loss joins several such parts; it leaves the exponentials.
//
// Layout: logits are [A, B], for A active rows and B samples. Threads share blocks of active rows. Block
// sizes do not depend on the number of threads, and sums over blocks are added in order, so neither do
// results.
//
// Forward and backward gather the active rows from the table block by block; keeping the copy in between
// would cost as much.
//
// bfloat16: the operands of products are bfloat16 (x, the active rows, the slopes), or float where the CPU
// multiplies those as fast. Logits, softmax and all other results are float. Slopes are the largest matrix,
// which no cache of a core holds: half of its bytes is written and read in half of the time.
#include "ops/linear_softmax.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/gather.h"
#include "ops/largest_rows.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/product.h"
#include "ops/tasks.h"

namespace torch_lsh {
namespace {

constexpr int64_t kReferenceRows = 8;                     // rows whose logits say how large exponents get
constexpr double kLeastSum = 1e-10, kGreatestSum = 1e20;  // of exponentials in range
// Larger log weights, taken from a label's logit and added again, would cost digits.
constexpr double kGreatestLogWeight = 60;
constexpr int64_t kBlockRows = 256;       // rows per block of the backward: their slopes stay in cache
constexpr int64_t kBlocksPerSum = 2;      // most blocks per partial gradient of x
constexpr int64_t kSums = 8;              // fewest partial gradients of x, given enough rows, for threads
constexpr int64_t kPartSamples = 16;      // samples, or rows, of which a part of a block is made
constexpr int64_t kGrainSamples = 4;      // samples whose partial gradients a task joins
constexpr int64_t kLargestSum = 1 << 16;  // largest partial gradient of x that stays in cache, in numbers

// A gather of one row.
template <typename T>
void round(const SumOf<T>* values, int64_t count, T* out) {
  const int64_t row = 0;
  kernels<GatherKernels<SumOf<T>, T>>().gather(values, &row, 1, count, out);
}

// The forward. x is stored as T, weight and bias as Stored.
template <typename T, typename Stored>
class LinearSoftmax {
 public:
  using Sum = SumOf<T>;

  LinearSoftmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& rows,
                const std::optional<Tensor>& log_weights, const Tensor& positions)
      : x_(x),
        right_(x, true),
        positions_(positions),
        weight_(data<Stored>(weight)),
        bias_(data<Stored>(bias)),
        log_weights_(data<Sum>(log_weights)),
        row_(rows.const_data_ptr<int64_t>()),
        position_(positions.const_data_ptr<int64_t>()),
        batch_(x.size(0)),
        count_(rows.numel()),
        width_(weight.size(1)),
        labels_(positions.size(1)) {}

  void loss(const Sum* shares, Sum* loss, T* slopes, Sum* scale) const {
    std::vector<Sum> at_labels(batch_ * labels_), mass(batch_);
    for_labels([&](int64_t b, int64_t i) { mass[b] += shares[i]; });
    const auto [reference, sums] = exponentials(mass, at_labels.data(), slopes);
    for_labels([&](int64_t b, int64_t i) { __builtin_prefetch(slopes + position_[i] * batch_ + b, 1); });
    std::vector<Sum> log_z(batch_);
    for (int64_t b = 0; b < batch_; ++b) {
      loss[b] = 0;
      scale[b] = 1 / sums[b];
      log_z[b] = reference[b] + std::log(sums[b]);
    }
    for_labels([&](int64_t b, int64_t i) {
      loss[b] += shares[i] * (log_z[b] - at_labels[i]);
      if constexpr (!kRounds) slopes[position_[i] * batch_ + b] -= shares[i] * sums[b];
    });
    if constexpr (kRounds)  // the difference, not its terms
      for_different_labels(shares, [&](int64_t b, int64_t i, Sum share) {
        const Sum slope = mass[b] * std::exp(at_labels[i] - reference[b]) - share * sums[b];
        round(&slope, 1, slopes + position_[i] * batch_ + b);
      });
  }

  void sums(Sum* log_z, Sum* at_labels, T* slopes, Sum* scale) const {
    std::fill_n(at_labels, batch_ * labels_, Sum(0));
    const auto [reference, sums] = exponentials(std::vector<Sum>(batch_, 1), at_labels, slopes);
    for (int64_t b = 0; b < batch_; ++b) {
      scale[b] = sums[b] == 0 ? 0 : 1 / sums[b];  // 0: no row counts
      log_z[b] = reference[b] + std::log(sums[b]);
    }
  }

 private:
  static constexpr Sum kInfinity = std::numeric_limits<Sum>::infinity();
  static constexpr bool kRounds = !std::is_same_v<T, Sum>;

  struct Exponentials {
    std::vector<Sum> reference, sums;  // of each sample
  };

  // Entries of positions by block of rows: those of block i are order[start[i]] to order[start[i + 1] - 1].
  struct LabelsOfBlocks {
    std::vector<int64_t> start, order;
  };

  // The same rows for other samples.
  LinearSoftmax(const LinearSoftmax& other, const Tensor& x, const Tensor& positions)
      : x_(x),
        right_(x, true),
        positions_(positions),
        weight_(other.weight_),
        bias_(other.bias_),
        log_weights_(other.log_weights_),
        row_(other.row_),
        position_(positions.const_data_ptr<int64_t>()),
        batch_(x.size(0)),
        count_(other.count_),
        width_(other.width_),
        labels_(other.labels_) {}

  // Writes exp(logits + log_weights - reference) times mass to slopes, and the logits of labels to at_labels.
  // The sums are without mass.
  //
  // The reference only keeps exponentials in range. The maximum over a few rows does so in one pass, which
  // computes each exponential while its logit is in cache, unless logits of a sample differ by more than a
  // model's do: for such samples it is the maximum over all rows, in further passes.
  Exponentials exponentials(const std::vector<Sum>& mass, Sum* at_labels, T* slopes) const {
    Exponentials out = exponentials_by(maxima_of_some(), mass, labels_of_blocks(), at_labels, slopes);
    std::vector<int64_t> others;
    for (int64_t b = 0; b < batch_; ++b)
      if (!(out.sums[b] > kLeastSum && out.sums[b] < kGreatestSum)) others.push_back(b);
    if (!others.empty()) exponentials_of(others, mass, slopes, out);
    return out;
  }

  Exponentials exponentials_by(std::vector<Sum> reference, const std::vector<Sum>& mass,
                               const LabelsOfBlocks& labels, Sum* at_labels, T* slopes) const {
    for (Sum& value : reference)
      if (value == -kInfinity) value = 0;  // -inf - -inf would be NaN
    const bool is_one = std::all_of(mass.begin(), mass.end(), [](Sum m) { return m == 1; });
    std::vector<Sum> sums =
        write_exponentials(reference, is_one ? nullptr : mass.data(), labels, at_labels, slopes);
    return {std::move(reference), std::move(sums)};
  }

  // Replaces the exponentials of some samples by those relative to the maximum over all rows.
  void exponentials_of(const std::vector<int64_t>& samples, const std::vector<Sum>& mass, T* slopes,
                       Exponentials& out) const {
    const auto size = static_cast<int64_t>(samples.size());
    Tensor ids = new_tensor({size}, ScalarType::Long),
           positions = new_tensor({size, labels_}, ScalarType::Long);
    std::vector<Sum> mass_of_these(size), at_labels(size * labels_);
    for (int64_t i = 0; i < size; ++i) {
      ids.mutable_data_ptr<int64_t>()[i] = samples[i];
      std::copy_n(position_ + samples[i] * labels_, labels_,
                  positions.mutable_data_ptr<int64_t>() + i * labels_);
      mass_of_these[i] = mass[samples[i]];
    }
    const LinearSoftmax these(*this, gather_rows(x_, ids, dtype_of<T>), positions);
    const LabelsOfBlocks labels = these.labels_of_blocks();
    const Workspace workspace(sizeof(T) * count_ * size);
    T* const of_these = static_cast<T*>(workspace.data());
    const Exponentials found =
        these.exponentials_by(these.maxima_of_all(labels), mass_of_these, labels, at_labels.data(), of_these);
    for (int64_t i = 0; i < size; ++i) {
      out.reference[samples[i]] = found.reference[i];
      out.sums[samples[i]] = found.sums[i];
    }
    parallel_for(0, count_, kBlockRows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < size; ++i) slopes[row * batch_ + samples[i]] = of_these[row * size + i];
    });
  }

  std::vector<Sum> write_exponentials(const std::vector<Sum>& reference, const Sum* mass,
                                      const LabelsOfBlocks& labels, Sum* at_labels, T* slopes) const {
    const auto& k = kernels<SlopeKernels<T>>();
    const Workspace workspace(sizeof(Sum) * blocks() * batch_);
    Sum* const of_blocks = static_cast<Sum*>(workspace.data());
    for_blocks(slopes, [&](int64_t block, int64_t first, int64_t rows, const Sum* offsets, Sum* products) {
      const auto each_label = [&](const auto& run) { for_labels_of(block, labels, products, run); };
      each_label([&](int64_t i, const Sum* product) { at_labels[i] = *product; });
      // Importance weights are for negatives: a sample's own labels weigh 1.
      if (log_weights_ != nullptr)
        each_label([&](int64_t i, Sum* product) {
          *product = is_extreme(i) ? -kInfinity : at_labels[i] - log_weights_[position_[i]];
        });
      if (bias_ != nullptr)
        each_label([&](int64_t i, const Sum*) { at_labels[i] += number(bias_[row_[position_[i]]]); });
      Sum* const of_block = of_blocks + block * batch_;
      T* const powers = slopes + first * batch_;
      k.column_exponentials(products, offsets, rows, batch_, reference.data(), mass, powers, of_block);
      if (log_weights_ != nullptr)
        for_labels_of(block, labels, powers, [&](int64_t i, T* power) {
          if (!is_extreme(i) || number(*power) != 0) return;  // not 0: a label given twice
          const int64_t b = i / labels_;
          const Sum own = std::exp(at_labels[i] - reference[b]),
                    scaled = mass == nullptr ? own : mass[b] * own;
          round(&scaled, 1, power);
          of_block[b] += own;
        });
    });
    std::vector<Sum> sums(batch_);
    for (int64_t block = 0; block < blocks(); ++block)
      for (int64_t b = 0; b < batch_; ++b) sums[b] += of_blocks[block * batch_ + b];
    return sums;
  }

  // The maximum of logits + log_weights per sample, over all rows; of labels with extreme weights, that of
  // their logits.
  std::vector<Sum> maxima_of_all(const LabelsOfBlocks& labels) const {
    std::vector<Sum> largest(batch_, -kInfinity);
    std::mutex joining;
    for_blocks(nullptr, [&](int64_t block, int64_t, int64_t rows, const Sum* offsets, Sum* products) {
      std::vector<Sum> of_block(batch_), of_labels(batch_, -kInfinity);
      if (log_weights_ != nullptr)
        for_labels_of(block, labels, products, [&](int64_t i, Sum* product) {
          if (!is_extreme(i)) return;
          const Sum bias = bias_ == nullptr ? Sum(0) : number(bias_[row_[position_[i]]]);
          of_labels[i / labels_] = std::max(of_labels[i / labels_], *product + bias);
          *product = -kInfinity;
        });
      kernels<SoftmaxKernels<Sum>>().column_maxima(products, offsets, rows, batch_, of_block.data());
      const std::lock_guard lock(joining);
      for (int64_t b = 0; b < batch_; ++b) largest[b] = std::max({largest[b], of_block[b], of_labels[b]});
    });
    return largest;
  }

  // The same over up to kReferenceRows rows, evenly spaced.
  std::vector<Sum> maxima_of_some() const {
    const int64_t rows = std::min(count_, kReferenceRows);
    std::vector<int64_t> ids(rows);
    std::vector<Sum> products(rows * batch_), largest(batch_), offsets(rows), weights(rows);
    for (int64_t i = 0; i < rows; ++i) {
      ids[i] = row_[i * count_ / rows];
      if (log_weights_ != nullptr) weights[i] = log_weights_[i * count_ / rows];
    }
    const Workspace gathered(sizeof(T) * rows * width_);
    products_of(ids.data(), rows, weights.data(), 0, static_cast<T*>(gathered.data()), offsets.data(),
                products.data());
    kernels<SoftmaxKernels<Sum>>().column_maxima(products.data(), offsets.data(), rows, batch_,
                                                 largest.data());
    return largest;
  }

  int64_t block_rows() const { return kernels<ProductKernels<T>>().task_rows; }
  int64_t blocks() const { return (count_ + block_rows() - 1) / block_rows(); }

  // Calls run(block, first row, rows, offsets, products) for blocks of rows, in parallel, with the products
  // of the block's rows [rows, B] and what they lack to logits + log_weights. Products lie in `slopes` if
  // these have their type; null: elsewhere.
  template <typename Run>
  void for_blocks([[maybe_unused]] T* slopes, const Run& run) const {
    const int64_t of_block = block_rows();
    share_tasks(blocks(), [&](const auto& next) {
      const Workspace gathered(sizeof(T) * of_block * width_);
      std::vector<Sum> offsets(of_block);
      const bool in_place = !kRounds && slopes != nullptr;
      const Workspace elsewhere(in_place ? 0 : sizeof(Sum) * of_block * batch_);
      for (int64_t block; (block = next()) >= 0;) {
        const int64_t first = block * of_block, rows = std::min(of_block, count_ - first);
        Sum* products = static_cast<Sum*>(elsewhere.data());
        if constexpr (!kRounds)
          if (in_place) products = slopes + first * batch_;
        products_of(row_ + first, rows, log_weights_ == nullptr ? nullptr : log_weights_ + first,
                    std::min(rows, count_ - first - rows), static_cast<T*>(gathered.data()), offsets.data(),
                    products);
        run(block, first, rows, offsets.data(), products);
      }
    });
  }

  // The products of `rows` rows to out [rows, B], and bias + log_weights to offsets: exponentials add it with
  // less work than products do. The `next` rows after them are wanted next.
  void products_of(const int64_t* ids, int64_t rows, const Sum* log_weights, int64_t next, T* active,
                   Sum* offsets, Sum* out) const {
    if (bias_ != nullptr)  // scattered, so prefetched while the rows are gathered
      for (int64_t i = 0; i < rows; ++i) __builtin_prefetch(bias_ + ids[i]);
    kernels<GatherKernels<Stored, T>>().gather(weight_, ids, rows, width_, active);
    if (bias_ != nullptr) {
      kernels<GatherKernels<Stored, Sum>>().gather(bias_, ids, rows, 1, offsets);
    } else {
      std::fill_n(offsets, rows, Sum(0));
    }
    if (log_weights != nullptr)
      for (int64_t i = 0; i < rows; ++i) offsets[i] += log_weights[i];
    right_.multiply(active, width_, 1, rows, 0, right_.panels(), nullptr, out, batch_,
                    {weight_, ids + rows, next, width_ * static_cast<int64_t>(sizeof(Stored))});
  }

  LabelsOfBlocks labels_of_blocks() const {
    const int64_t of_block = block_rows();
    LabelsOfBlocks labels{std::vector<int64_t>(blocks() + 2), std::vector<int64_t>(batch_ * labels_)};
    for_labels([&](int64_t, int64_t i) { ++labels.start[position_[i] / of_block + 2]; });
    for (int64_t block = 0; block < blocks(); ++block) labels.start[block + 2] += labels.start[block + 1];
    for_labels([&](int64_t, int64_t i) { labels.order[labels.start[position_[i] / of_block + 1]++] = i; });
    return labels;
  }

  template <typename Run>
  void for_labels(const Run& run) const {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t i = b * labels_; i < (b + 1) * labels_; ++i)
        if (position_[i] >= 0) run(b, i);
  }

  // Calls run(place in positions, number at it) for the labels of a block, whose numbers are [rows, B].
  template <typename Number, typename Run>
  void for_labels_of(int64_t block, const LabelsOfBlocks& labels, Number* numbers, const Run& run) const {
    const int64_t first = block * block_rows();
    for (int64_t n = labels.start[block]; n < labels.start[block + 1]; ++n) {
      const int64_t i = labels.order[n];
      run(i, numbers + (position_[i] - first) * batch_ + i / labels_);
    }
  }

  // Calls run(sample, place in positions, sum of its shares) for each different label of each sample.
  template <typename Run>
  void for_different_labels(const Sum* shares, const Run& run) const {
    std::vector<int64_t> places;
    for (int64_t b = 0; b < batch_; ++b) {
      places.clear();
      for (int64_t i = b * labels_; i < (b + 1) * labels_; ++i)
        if (position_[i] >= 0) places.push_back(i);
      std::sort(places.begin(), places.end(), [&](int64_t i, int64_t j) {
        return std::pair(position_[i], i) < std::pair(position_[j], j);
      });
      for (size_t n = 0; n < places.size();) {
        const int64_t i = places[n];
        Sum share = 0;
        for (; n < places.size() && position_[places[n]] == position_[i]; ++n) share += shares[places[n]];
        run(b, i, share);
      }
    }
  }

  // Whether the weight of the row at a place of positions is too large to be taken from its logit and added
  // again.
  bool is_extreme(int64_t i) const { return !(std::abs(log_weights_[position_[i]]) <= kGreatestLogWeight); }

  const Tensor x_;
  const PackedMatrix<T> right_;
  const Tensor positions_;
  const Stored *weight_, *bias_;
  const Sum* log_weights_;
  const int64_t *row_, *position_;
  int64_t batch_, count_, width_, labels_;
};

// (operands of products, weight)
using OperandTypes = Types<Pair<float, float>, Pair<double, double>, Pair<BFloat16, BFloat16>,
                           Pair<BFloat16, float>, Pair<float, BFloat16>>;

ScalarType operand_dtype(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 && !kernels().multiplies_bfloat16 ? ScalarType::Float : dtype;
}

Tensor as_operand(const Tensor& x) {
  if (operand_dtype(x.scalar_type()) == x.scalar_type()) return x;
  Tensor wide = pooled_tensor({x.size(0), x.size(1)}, ScalarType::Float);
  const int64_t row = 0;  // all of x at once
  kernels<GatherKernels<BFloat16, float>>().gather(data<BFloat16>(x), &row, 1, x.numel(),
                                                   mutable_data<float>(wide));
  return wide;
}

ScalarType stored_dtype(const Tensor& weight, ScalarType dtype) {
  return weight.scalar_type() == sum_dtype(dtype) ? sum_dtype(dtype) : dtype;
}

// Returns sum(loss) / divisor; divides `scale`, which scales the gradient, likewise.
template <typename Sum>
Tensor reduced(const Tensor& loss, Sum* scale, Sum divisor) {
  const Sum* const value = data<Sum>(loss);
  Tensor out = new_tensor({}, loss.scalar_type());
  Sum sum = 0;
  for (int64_t b = 0; b < loss.numel(); ++b) {
    sum += value[b];
    scale[b] /= divisor;
  }
  *mutable_data<Sum>(out) = sum / divisor;
  return out;
}

// What the forward takes but shares.
void check_arguments(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& rows, const std::optional<Tensor>& log_weights, const Tensor& positions) {
  check_floating(x, "x");
  const ScalarType dtype = x.scalar_type();
  check_operand(x, "x", 2, dtype);
  const ScalarType stored = stored_dtype(weight, dtype);
  check_operand(weight, "weight", 2, stored);
  check_size(weight, "weight", 1, x.size(1));
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, stored);
    check_size(*bias, "bias", 0, weight.size(0));
  }
  check_operand(rows, "rows", 1, ScalarType::Long);
  const int64_t count = rows.numel();
  check_rows_in_range(rows.const_data_ptr<int64_t>(), count, weight.size(0), "rows");
  if (log_weights.has_value()) {
    check_operand(*log_weights, "log_weights", 1, sum_dtype(dtype));
    check_size(*log_weights, "log_weights", 0, count);
  }
  check_operand(positions, "positions", 2, ScalarType::Long);
  check_size(positions, "positions", 0, x.size(0));
  const auto* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0, size = positions.numel(); i < size; ++i)
    TORCH_LSH_CHECK(position[i] < count, "positions holds ", position[i], "; wanted at most ", count - 1);
}

std::tuple<Tensor, Tensor, Tensor> linear_softmax_loss(const Tensor& x, const Tensor& weight,
                                                       std::optional<Tensor> bias, const Tensor& rows,
                                                       std::optional<Tensor> log_weights,
                                                       const Tensor& positions, const Tensor& shares,
                                                       std::optional<double> divisor) {
  check_arguments(x, weight, bias, rows, log_weights, positions);
  const ScalarType dtype = x.scalar_type(), sums = sum_dtype(dtype);
  const int64_t batch = x.size(0), count = rows.numel();
  check_operand(shares, "shares", 2, sums);
  check_size(shares, "shares", 0, batch);
  check_size(shares, "shares", 1, positions.size(1));

  Tensor loss = new_tensor({batch}, sums), slopes = pooled_tensor({count, batch}, operand_dtype(dtype)),
         scale = new_tensor({batch}, sums);
  by_dtypes(OperandTypes{}, operand_dtype(dtype), stored_dtype(weight, dtype),
            [&]<typename T, typename Stored>() {
              using Sum = SumOf<T>;
              LinearSoftmax<T, Stored>(as_operand(x), weight, bias, rows, log_weights, positions)
                  .loss(data<Sum>(shares), mutable_data<Sum>(loss), mutable_data<T>(slopes),
                        mutable_data<Sum>(scale));
              if (divisor.has_value())
                loss = reduced<Sum>(loss, mutable_data<Sum>(scale), static_cast<Sum>(*divisor));
            });
  return {loss, slopes, scale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_softmax_sums(const Tensor& x, const Tensor& weight,
                                                               std::optional<Tensor> bias, const Tensor& rows,
                                                               std::optional<Tensor> log_weights,
                                                               const Tensor& positions) {
  check_arguments(x, weight, bias, rows, log_weights, positions);
  const ScalarType dtype = x.scalar_type(), sums = sum_dtype(dtype);
  const int64_t batch = x.size(0);
  Tensor log_z = new_tensor({batch}, sums), at_labels = new_tensor({batch, positions.size(1)}, sums),
         slopes = pooled_tensor({rows.numel(), batch}, operand_dtype(dtype)),
         scale = new_tensor({batch}, sums);
  by_dtypes(OperandTypes{}, operand_dtype(dtype), stored_dtype(weight, dtype),
            [&]<typename T, typename Stored>() {
              using Sum = SumOf<T>;
              LinearSoftmax<T, Stored>(as_operand(x), weight, bias, rows, log_weights, positions)
                  .sums(mutable_data<Sum>(log_z), mutable_data<Sum>(at_labels), mutable_data<T>(slopes),
                        mutable_data<Sum>(scale));
            });
  return {log_z, at_labels, slopes, scale};
}

// The backward. x and slopes are stored as T, the weight as Stored. The gradient of the logits is slopes *
// factors. Products use slopes and x * factors, which is smaller.
template <typename T, typename Stored>
class LinearSoftmaxBackward {
 public:
  using Sum = SumOf<T>;

  // Null grad_weight: not needed. Null update: none.
  LinearSoftmaxBackward(const Tensor& slopes, const Tensor& factors, const Tensor& weight, const Tensor& rows,
                        Sum* grad_weight, const RowUpdate* update, Sum* grad_bias, Sum* positive)
      : slopes_(data<T>(slopes)),
        factors_(data<Sum>(factors)),
        weight_(data<Stored>(weight)),
        row_(rows.const_data_ptr<int64_t>()),
        grad_weight_(grad_weight),
        update_(update),
        grad_bias_(grad_bias),
        positive_(positive),
        count_(slopes.size(0)),
        batch_(slopes.size(1)),
        width_(weight.size(1)) {}

  // All gradients in one pass over the slopes, for a small gradient of x. scaled: x * factors.
  // Rows are updated in the same pass, unless several threads read them.
  //
  // A partial gradient of x is summed over `step` rows. Where that leaves threads without work, several share
  // one: each takes a part of the samples, and for the weight's gradient a part of the rows. How many does
  // not change results.
  void in_one_pass(const Tensor& scaled, Sum* grad_x) const {
    const PackedMatrix<T> right(scaled);
    const int64_t tasks = std::max<int64_t>(1, (count_ + kSums * kTaskRows - 1) / (kSums * kTaskRows)),
                  step = std::min(kBlocksPerSum * kBlockRows, tasks * kTaskRows),
                  sums = (count_ + step - 1) / step, size = batch_ * width_;
    const int64_t parts =
        std::clamp<int64_t>((torch::stable::get_num_threads() + sums - 1) / std::max<int64_t>(sums, 1), 1,
                            std::max<int64_t>(1, batch_ / kPartSamples));
    Workspace workspace(sizeof(Sum) * sums * size);
    Sum* const partial = static_cast<Sum*>(workspace.data());
    share_tasks(sums * parts, [&](const auto& next) {
      const Scratch scratch(std::min(kBlockRows, step), width_);
      for (int64_t task; (task = next()) >= 0;) {
        const int64_t sum = task / parts, end = std::min((sum + 1) * step, count_);
        for (int64_t first = sum * step; first < end; first += kBlockRows)
          gradients_of_block(right, first, std::min(kBlockRows, end - first), task % parts, parts,
                             first > sum * step, scratch, partial + sum * size);
      }
    });
    if (parts > 1) update_all(right);
    const auto add_row = kernels<DotKernels<Sum>>().add_row;
    parallel_for(0, batch_, kGrainSamples, [&](int64_t begin, int64_t end) {
      std::fill(grad_x + begin * width_, grad_x + end * width_, Sum(0));
      for (int64_t b = begin; b < end; ++b)
        for (int64_t sum = 0; sum < sums; ++sum)
          add_row(partial + sum * size + b * width_, factors_[b], width_, grad_x + b * width_);
    });
  }

  // Updates all rows.
  void update_all(const PackedMatrix<T>& right) const {
    if (update_ == nullptr) return;
    share_tasks((count_ + kTaskRows - 1) / kTaskRows, [&](const auto& next) {
      const Workspace gradient(sizeof(Sum) * kTaskRows * width_);
      for (int64_t task; (task = next()) >= 0;)
        update(right, task * kTaskRows, std::min((task + 1) * kTaskRows, count_), gradient);
    });
  }

  // The gradients other than by products: bias and positive.
  void sum_rows() const {
    parallel_for(0, count_, 64, [&](int64_t begin, int64_t end) { sum_rows(begin, end); });
  }

 private:
  // Of a thread, for a block of rows.
  struct Scratch {
    Scratch(int64_t rows, int64_t width)
        : panels(sizeof(Sum) * packed_size<T>(rows, width)),
          active(sizeof(T) * rows * width),
          gradient(sizeof(Sum) * kTaskRows * width) {}

    Workspace panels, active, gradient;
  };

  // Part `part` of `parts` of the gradients of a block of rows. Writes those of the weight, and writes or
  // adds that of x.
  void gradients_of_block(const PackedMatrix<T>& right, int64_t first, int64_t rows, int64_t part,
                          int64_t parts, bool add, const Scratch& scratch, Sum* grad_x) const {
    const auto& k = kernels<ProductKernels<T>>();
    const int64_t row = first + begin_of_part(rows, part, parts),
                  end = first + begin_of_part(rows, part + 1, parts);
    sum_rows(row, end);
    if (grad_weight_ != nullptr)
      right.multiply(slopes_ + row * batch_, batch_, 1, end - row, 0, right.panels(), nullptr,
                     grad_weight_ + row * width_, width_);

    const int64_t sample = begin_of_part(batch_, part, parts),
                  samples = begin_of_part(batch_, part + 1, parts) - sample;
    T* const active = static_cast<T*>(scratch.active.data());
    Sum* const packed = static_cast<Sum*>(scratch.panels.data());
    kernels<GatherKernels<Stored, T>>().gather(weight_, row_ + first, rows, width_, active);
    for (int64_t panel = 0; panel < count_panels<T>(width_); ++panel)
      k.pack_panel(active, width_, 1, rows, width_, panel, 0, rows, packed);
    k.product(slopes_ + first * batch_ + sample, 1, batch_, samples, rows, packed, width_, nullptr, add,
              grad_x + sample * width_, width_, {});
    if (update_ != nullptr && parts == 1) update(right, first, first + rows, scratch.gradient);
  }

  // Updates the rows `begin` to `end` - 1, up to kTaskRows at a time. gradient: [kTaskRows, width]
  void update(const PackedMatrix<T>& right, int64_t begin, int64_t end, const Workspace& gradient) const {
    Sum* const block = static_cast<Sum*>(gradient.data());
    for (int64_t stop; begin < end; begin = stop) {
      stop = std::min(begin + kTaskRows, end);
      right.multiply(slopes_ + begin * batch_, batch_, 1, stop - begin, 0, right.panels(), nullptr, block,
                     width_);
      (*update_)(begin, stop, block);
    }
  }

  // Where part `part` of `parts` of some rows or samples begins: whole tiles, as far as there are.
  static int64_t begin_of_part(int64_t count, int64_t part, int64_t parts) {
    return part == parts ? count : count * part / parts / kPartSamples * kPartSamples;
  }

  // Sums of the gradients of the rows `begin` to `end` - 1.
  void sum_rows(int64_t begin, int64_t end) const {
    const auto row_sums = kernels<SlopeKernels<T>>().row_sums;
    for (int64_t row = begin; row < end; ++row)
      row_sums(slopes_ + row * batch_, factors_, batch_, grad_bias_ + row, positive_ + row);
  }

  const T* slopes_;
  const Sum* factors_;
  const Stored* weight_;
  const int64_t* row_;
  Sum* grad_weight_;
  const RowUpdate* update_;
  Sum *grad_bias_, *positive_;
  int64_t count_, batch_, width_;
};

// to[b, :] = factors[b] * from[b, :]
template <typename T>
void scale_rows(const T* from, const SumOf<T>* factors, int64_t rows, int64_t width, T* to) {
  std::vector<SumOf<T>> scaled(width);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < width; ++i) scaled[i] = factors[row] * number(from[row * width + i]);
    round(scaled.data(), width, to + row * width);
  }
}

// grad * factors; factors if there is no gradient. One number of `grad` is for all samples.
template <typename Sum>
Tensor product_of(const std::optional<Tensor>& grad, const Tensor& factors) {
  if (!grad.has_value()) return factors;
  Tensor out = new_tensor({factors.numel()}, factors.scalar_type());
  const Sum *const of_loss = data<Sum>(*grad), *const factor = data<Sum>(factors);
  Sum* const product = mutable_data<Sum>(out);
  const int64_t step = grad->dim();
  for (int64_t b = 0, batch = factors.numel(); b < batch; ++b) product[b] = of_loss[b * step] * factor[b];
  return out;
}

Tensor largest_rows(const std::vector<double>& values, const Tensor& rows, int64_t count,
                    const std::optional<Tensor>& log_weights) {
  const std::vector<float> narrow(values.begin(), values.end());
  return torch_lsh::largest_rows(narrow.data(), rows, count, log_weights);
}

Tensor largest_rows(const std::vector<float>& values, const Tensor& rows, int64_t count,
                    const std::optional<Tensor>& log_weights) {
  return torch_lsh::largest_rows(values.data(), rows, count, log_weights);
}

// Null update: none.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& slopes, const Tensor& scale, const Tensor& x, const Tensor& weight, const Tensor& rows,
    bool needs_weight, const std::optional<Tensor>& grad, int64_t hardest,
    const std::optional<Tensor>& log_weights, const RowUpdate* update) {
  check_floating(x, "x");
  const ScalarType dtype = x.scalar_type(), sums = sum_dtype(dtype);
  check_operand(slopes, "slopes", 2, operand_dtype(dtype));
  check_operand(x, "x", 2, dtype);
  const int64_t count = slopes.size(0), batch = slopes.size(1), width = x.size(1);
  check_operand(scale, "factors", 1, sums);
  check_size(scale, "factors", 0, batch);
  if (grad.has_value()) {
    check_operand(*grad, "grad", std::min<int64_t>(grad->dim(), 1), sums);
    if (grad->dim() == 1) check_size(*grad, "grad", 0, batch);
  }
  check_size(x, "x", 0, batch);
  const ScalarType stored = stored_dtype(weight, dtype);
  check_operand(weight, "weight", 2, stored);
  check_size(weight, "weight", 1, width);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_size(rows, "rows", 0, count);
  check_rows_in_range(rows.const_data_ptr<int64_t>(), count, weight.size(0), "rows");
  TORCH_LSH_CHECK(hardest >= 0, "hardest is ", hardest, "; wanted at least 0");
  check_log_weights(log_weights, count);
  Tensor grad_x = new_tensor({batch, width}, sums),
         grad_weight = pooled_tensor({needs_weight ? count : 0, width}, sums),
         grad_bias = new_tensor({count}, sums);
  Tensor hardest_rows, returned;
  by_dtypes(OperandTypes{}, operand_dtype(dtype), stored, [&]<typename T, typename Stored>() {
    using Sum = SumOf<T>;
    const Tensor factors = product_of<Sum>(grad, scale);
    const Sum* const factor = data<Sum>(factors);
    Tensor scaled = new_tensor({batch, width}, dtype_of<T>);
    scale_rows(data<T>(as_operand(x)), factor, batch, width, mutable_data<T>(scaled));
    returned = dtype == sums ? scaled : new_tensor({0, width}, sums);
    std::vector<Sum> positive(count);
    const LinearSoftmaxBackward<T, Stored> gradients(slopes, factors, weight, rows,
                                                     needs_weight ? mutable_data<Sum>(grad_weight) : nullptr,
                                                     update, mutable_data<Sum>(grad_bias), positive.data());
    if (batch * width <= kLargestSum) {
      gradients.in_one_pass(scaled, mutable_data<Sum>(grad_x));
    } else {
      gradients.sum_rows();
      if (needs_weight) grad_weight = multiply<T>(slopes, scaled);
      grad_x = multiply<T>(torch::stable::transpose(slopes, 0, 1), gather_rows(weight, rows, dtype_of<T>));
      scale_rows(data<Sum>(grad_x), factor, batch, width, mutable_data<Sum>(grad_x));
      if (update != nullptr) gradients.update_all(PackedMatrix<T>(scaled));
    }
    hardest_rows = largest_rows(positive, rows, hardest, log_weights);
  });
  return {grad_x, grad_weight, grad_bias, hardest_rows, returned};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_backward(const Tensor& slopes, const Tensor& scale,
                                                                 const Tensor& x, const Tensor& weight,
                                                                 const Tensor& rows, bool needs_weight,
                                                                 std::optional<Tensor> grad, int64_t hardest,
                                                                 std::optional<Tensor> log_weights) {
  return backward(slopes, scale, x, weight, rows, needs_weight, grad, hardest, log_weights, nullptr);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_softmax_loss_backward(
    const Tensor& slopes, const Tensor& scale, const Tensor& x, const Tensor& weight, const Tensor& rows,
    std::optional<Tensor> grad, int64_t hardest, std::optional<Tensor> log_weights, const RowUpdate& update) {
  const auto [grad_x, none, grad_bias, hardest_rows, scaled] =
      backward(slopes, scale, x, weight, rows, false, grad, hardest, log_weights, &update);
  return {grad_x, grad_bias, hardest_rows};
}

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "linear_softmax_loss", &linear_softmax_loss);
  TORCH_LSH_IMPL(m, "linear_softmax_sums", &linear_softmax_sums);
  TORCH_LSH_IMPL(m, "linear_softmax_loss_backward", &loss_backward);
}

}  // namespace torch_lsh
