// Sparse rows per label: sums of training rows (centroids), and linear classifiers of training rows.
//
// Both go through the labels one by one with a dense vector of all columns, which stays in the cache, and
// keep what is not zero. A label belongs to one thread, so the results do not depend on the number of
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/gathered_product.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/row_set.h"
#include "ops/sparse_rows.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kLabelsPerPart = 256;
constexpr int64_t kAhead = 8;        // prefetch distance of rows
constexpr float kConverged = 0.01f;  // largest change of a dual variable in a pass

// Sparse rows that were made together: several kinds of values for the same columns.
struct Part {
  std::vector<int64_t> counts;
  std::vector<int32_t> columns;
  std::vector<std::vector<float>> values, bias;
};

// Dense vectors, one of each kind, that know which of their entries were used.
class Scratch {
 public:
  Scratch(int64_t columns, int64_t kinds)
      : columns_(columns), kinds_(kinds), values_(static_cast<size_t>(columns * kinds)) {
    used_.reserve(columns);
  }

  float* values(int64_t kind) { return &values_[kind * columns_]; }

  void use(int32_t column) { used_.insert(column); }

  void copy(int64_t from, int64_t to) {
    used_.visit([&](int64_t column) { values(to)[column] = values(from)[column]; });
  }

  // Divides all entries by the length of the vector, of one kind.
  void normalize() {
    double squares = 0;
    used_.visit([&](int64_t column) { squares += double{values_[column]} * values_[column]; });
    const auto scale = static_cast<float>(1 / std::max(std::sqrt(squares), 1e-30));
    used_.visit([&](int64_t column) { values_[column] *= scale; });
  }

  // Appends the columns with an entry above the threshold in magnitude, increasing, and clears the vectors.
  void move_to(Part& part, float threshold) {
    const size_t before = part.columns.size();
    used_.drain([&](int64_t column) {
      float largest = 0;
      for (int64_t kind = 0; kind < kinds_; ++kind)
        largest = std::max(largest, std::fabs(values(kind)[column]));
      if (largest > threshold) part.columns.push_back(static_cast<int32_t>(column));
      for (int64_t kind = 0; kind < kinds_; ++kind) {
        if (largest > threshold) part.values[kind].push_back(values(kind)[column]);
        values(kind)[column] = 0;
      }
    });
    part.counts.push_back(static_cast<int64_t>(part.columns.size() - before));
  }

 private:
  int64_t columns_, kinds_;
  std::vector<float> values_;  // of each kind
  RowSet used_;
};

template <typename Label>
std::vector<Part> for_each_label(int64_t labels, int64_t columns, int64_t kinds, const Label& label) {
  const int64_t count = (labels + kLabelsPerPart - 1) / kLabelsPerPart;
  std::vector<Part> parts(static_cast<size_t>(count));
  parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    Scratch scratch(columns, kinds);
    for (int64_t part = first; part < last; ++part) {
      parts[part].values.resize(kinds);
      parts[part].bias.resize(kinds);
      for (int64_t i = part * kLabelsPerPart; i < std::min(labels, (part + 1) * kLabelsPerPart); ++i)
        label(i, scratch, parts[part]);
    }
  });
  return parts;
}

// Offsets [labels + 1], columns [entries] and values [kinds, entries].
std::tuple<Tensor, Tensor, Tensor> joined(std::vector<Part>& parts, int64_t labels, int64_t kinds) {
  int64_t total = 0;
  for (const Part& part : parts) total += static_cast<int64_t>(part.columns.size());
  Tensor start = new_tensor({labels + 1}, ScalarType::Long);
  Tensor columns = new_tensor({total}, ScalarType::Int);
  Tensor values = new_tensor({kinds, total}, ScalarType::Float);
  int64_t* offset = start.mutable_data_ptr<int64_t>();
  int32_t* column = columns.mutable_data_ptr<int32_t>();
  float* value = values.mutable_data_ptr<float>();
  *offset = 0;
  for (Part& part : parts) {
    for (const int64_t count : part.counts) offset[1] = offset[0] + count, ++offset;
    column = std::copy(part.columns.begin(), part.columns.end(), column);
    for (int64_t kind = 0; kind < kinds; ++kind)
      std::copy(part.values[kind].begin(), part.values[kind].end(), value + kind * total);
    value += part.columns.size();
    part.columns = {};
    part.values = {};
  }
  return {start, columns, values};
}

std::tuple<Tensor, Tensor, Tensor> sum_rows(const Tensor& row_start, const Tensor& row_columns,
                                            const Tensor& row_values, int64_t num_columns,
                                            const Tensor& label_start, const Tensor& label_rows,
                                            double threshold, bool unit) {
  TORCH_LSH_CHECK(num_columns >= 0, "num_columns is ", num_columns, "; wanted at least 0");
  TORCH_LSH_CHECK(threshold >= 0, "threshold is ", threshold, "; wanted at least 0");
  const SparseRows rows = check_sparse_rows(row_start, "row_start", row_columns, "row_columns", &row_values,
                                            "row_values", num_columns);
  const SparseRows labels =
      check_sparse_rows(label_start, "label_start", label_rows, "label_rows", nullptr, nullptr, rows.rows);
  auto parts = for_each_label(labels.rows, num_columns, 1, [&](int64_t label, Scratch& scratch, Part& part) {
    float* sums = scratch.values(0);
    for (int64_t i = labels.start[label]; i < labels.start[label + 1]; ++i) {
      const int64_t row = labels.index[i];
      for (int64_t at = rows.start[row]; at < rows.start[row + 1]; ++at) {
        scratch.use(rows.index[at]);
        sums[rows.index[at]] += rows.value[at];
      }
    }
    if (unit) scratch.normalize();
    scratch.move_to(part, static_cast<float>(threshold));
  });
  auto [start, columns, values] = joined(parts, labels.rows, 1);
  return {start, columns, torch::stable::view(values, {columns.numel()})};
}

// Dual coordinate descent for the squared hinge loss (Hsieh et al., ICML 2008), with a bias that is a feature
// of value 1. Not thread-safe: one per thread.
class LinearClassifier {
 public:
  LinearClassifier(const SparseRows& rows, int64_t passes) : rows_(rows), passes_(passes) {}

  // Trains on `count` rows with each of the costs, which increase, so that the solution for one begins with
  // that for the one before. Weights are in the scratch, of a kind for each cost; the bias is appended.
  void train(const int32_t* members, const uint8_t* positive, int64_t count, const float* costs,
             int64_t num_costs, uint64_t seed, Scratch& scratch, std::vector<std::vector<float>>& biases) {
    prepare(members, count, scratch);
    float bias = 0;
    for (int64_t kind = 0; kind < num_costs; ++kind) {
      if (kind > 0) scratch.copy(kind - 1, kind);
      bias =
          descend(members, positive, 0.5f / costs[kind], bias, random_bits(seed, kind), scratch.values(kind));
      biases[kind].push_back(bias);
    }
  }

 private:
  // Changes the weights and returns the new bias. Rows whose dual variable is 0 and will stay 0, as far as
  // the slopes of the pass before tell, are looked at no more ("shrinking").
  float descend(const int32_t* members, const uint8_t* positive, float diagonal, float bias, uint64_t seed,
                float* weights) {
    uint64_t draws = 0;
    auto active = static_cast<int64_t>(order_.size());
    float most = std::numeric_limits<float>::infinity();  // slope downhill in the pass before
    for (int64_t pass = 0; pass < passes_; ++pass) {
      for (int64_t i = active - 1; i > 0; --i)
        std::swap(order_[i], order_[random_below(seed, draws++, i + 1)]);
      float largest = 0, downhill = 0;
      for (int64_t at_row = 0; at_row < active; ++at_row) {
        const int32_t i = order_[at_row];
        const float sign = positive[i] ? 1.0f : -1.0f;
        const int64_t begin = rows_.start[members[i]], end = rows_.start[members[i] + 1];
        const float product =
            bias + gathered_product(rows_.index + begin, rows_.value + begin, end - begin, weights);
        const float slope = sign * product - 1 + diagonal * dual_[i];
        if (dual_[i] == 0 && slope > most) {
          std::swap(order_[at_row--], order_[--active]);
          continue;
        }
        downhill = std::max(downhill, -slope);
        const float dual = std::max(dual_[i] - slope / (squares_[i] + diagonal), 0.0f);
        const float change = dual - dual_[i];
        if (change == 0) continue;
        dual_[i] = dual;
        bias += sign * change;
        for (int64_t at = begin; at < end; ++at) weights[rows_.index[at]] += sign * change * rows_.value[at];
        largest = std::max(largest, std::fabs(change));
      }
      most = downhill;
      if (largest < kConverged) break;
    }
    return bias;
  }

  void prepare(const int32_t* members, int64_t count, Scratch& scratch) {
    dual_.assign(count, 0.0f);
    squares_.resize(count);
    order_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) {  // rows are scattered
        const int64_t later = rows_.start[members[i + kAhead]];
        __builtin_prefetch(rows_.index + later);
        __builtin_prefetch(rows_.value + later);
      }
      order_[i] = static_cast<int32_t>(i);
      squares_[i] = 1;
      for (int64_t at = rows_.start[members[i]]; at < rows_.start[members[i] + 1]; ++at) {
        scratch.use(rows_.index[at]);
        squares_[i] += rows_.value[at] * rows_.value[at];
      }
    }
  }

  const SparseRows& rows_;
  const int64_t passes_;
  std::vector<float> dual_, squares_;
  std::vector<int32_t> order_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> fit_linear_rows(const Tensor& row_start, const Tensor& row_columns,
                                                           const Tensor& row_values, int64_t num_columns,
                                                           const Tensor& label_start,
                                                           const Tensor& label_rows, const Tensor& positive,
                                                           const Tensor& costs, int64_t passes,
                                                           double threshold, int64_t seed) {
  TORCH_LSH_CHECK(num_columns >= 0, "num_columns is ", num_columns, "; wanted at least 0");
  check_operand(costs, "costs", 1, ScalarType::Float);
  const auto* const cost = costs.const_data_ptr<float>();
  const int64_t kinds = costs.numel();
  TORCH_LSH_CHECK(kinds >= 1, "costs is empty; wanted at least one");
  for (int64_t i = 0; i < kinds; ++i)
    TORCH_LSH_CHECK(cost[i] > (i == 0 ? 0 : cost[i - 1]), "costs[", i, "] is ", cost[i],
                    "; wanted positive numbers that increase");
  TORCH_LSH_CHECK(passes >= 1, "passes is ", passes, "; wanted at least 1");
  TORCH_LSH_CHECK(threshold >= 0, "threshold is ", threshold, "; wanted at least 0");
  const SparseRows rows = check_sparse_rows(row_start, "row_start", row_columns, "row_columns", &row_values,
                                            "row_values", num_columns);
  const SparseRows labels =
      check_sparse_rows(label_start, "label_start", label_rows, "label_rows", nullptr, nullptr, rows.rows);
  check_operand(positive, "positive", 1, ScalarType::Bool);
  check_size(positive, "positive", 0, label_rows.numel());
  const uint8_t* is_positive = static_cast<const uint8_t*>(positive.const_data_ptr());
  auto parts =
      for_each_label(labels.rows, num_columns, kinds, [&](int64_t label, Scratch& scratch, Part& part) {
        LinearClassifier classifier(rows, passes);
        const int64_t begin = labels.start[label];
        classifier.train(labels.index + begin, is_positive + begin, labels.count(label), cost, kinds,
                         random_bits(static_cast<uint64_t>(seed), label), scratch, part.bias);
        scratch.move_to(part, static_cast<float>(threshold));
      });
  Tensor bias = new_tensor({kinds, labels.rows}, ScalarType::Float);
  float* to = bias.mutable_data_ptr<float>();
  for (int64_t kind = 0; kind < kinds; ++kind)
    for (const Part& part : parts) to = std::copy(part.bias[kind].begin(), part.bias[kind].end(), to);
  auto [start, columns, weights] = joined(parts, labels.rows, kinds);
  return {start, columns, weights, bias};
}

// Products of a query with a few rows each. The query is spread out in a dense vector, since rows are longer.
Tensor sparse_dot(const Tensor& crow, const Tensor& col, const Tensor& values, const Tensor& row_start,
                  const Tensor& row_columns, const Tensor& row_values, int64_t num_columns,
                  const Tensor& rows) {
  check_operand(crow, "crow", 1, ScalarType::Long);
  check_operand(col, "col", 1, ScalarType::Long);
  check_operand(values, "values", 1, ScalarType::Float);
  check_size(values, "values", 0, col.numel());
  check_operand(row_start, "row_start", 1, ScalarType::Long);
  check_operand(row_columns, "row_columns", 1, ScalarType::Int);
  check_operand(row_values, "row_values", 1, ScalarType::Float);
  check_size(row_values, "row_values", 0, row_columns.numel());
  check_operand(rows, "rows", 2, ScalarType::Long);
  TORCH_LSH_CHECK(crow.numel() > 0, "crow is empty; wanted one offset more than queries");
  TORCH_LSH_CHECK(row_start.numel() > 0, "row_start is empty; wanted one offset more than rows");
  TORCH_LSH_CHECK(num_columns >= 0, "num_columns is ", num_columns, "; wanted at least 0");
  const int64_t batch = crow.numel() - 1, width = rows.size(1), entries = row_columns.numel();
  check_size(rows, "rows", 0, batch);
  const int64_t *query_start = crow.const_data_ptr<int64_t>(), *column = col.const_data_ptr<int64_t>();
  check_offsets(query_start, batch, col.numel(), "crow");
  check_rows_in_range(column, col.numel(), num_columns, "col");
  const int64_t* wanted = rows.const_data_ptr<int64_t>();
  check_rows_below(wanted, rows.numel(), row_start.numel() - 1, "rows holds");
  const int64_t* start = row_start.const_data_ptr<int64_t>();
  const int32_t* index = row_columns.const_data_ptr<int32_t>();
  const float *weight = row_values.const_data_ptr<float>(), *value = values.const_data_ptr<float>();
  // Only what is read is checked: the matrix is much larger than the rows wanted.
  for (int64_t i = 0; i < rows.numel(); ++i) {
    if (wanted[i] < 0) continue;
    const int64_t begin = start[wanted[i]], end = start[wanted[i] + 1];
    TORCH_LSH_CHECK(begin >= 0 && begin <= end && end <= entries, "row_start[", wanted[i],
                    "] is no offset; wanted increasing offsets of row_columns");
    __builtin_prefetch(index + begin);
    __builtin_prefetch(weight + begin);
  }
  Tensor products = new_tensor({batch, width}, ScalarType::Float);
  float* out = products.mutable_data_ptr<float>();
  std::atomic<bool> sound = true;
  parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
    thread_local std::vector<float> query;  // zero between calls
    if (static_cast<int64_t>(query.size()) < num_columns) query.resize(num_columns);
    for (int64_t i = first; i < last; ++i) {
      for (int64_t at = query_start[i]; at < query_start[i + 1]; ++at) query[column[at]] += value[at];
      for (int64_t j = i * width; j < (i + 1) * width; ++j) {
        out[j] = 0;
        if (wanted[j] < 0) continue;
        const int64_t begin = start[wanted[j]], count = start[wanted[j] + 1] - begin;
        if (count > 0 && int64_t{largest_index(index + begin, count)} >= num_columns)
          sound = false;
        else
          out[j] = gathered_product(index + begin, weight + begin, count, query.data());
      }
      for (int64_t at = query_start[i]; at < query_start[i + 1]; ++at) query[column[at]] = 0;
    }
  });
  TORCH_LSH_CHECK(sound, "row_columns is damaged; wanted 0 to ", num_columns - 1);
  return products;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "fit_linear_rows", &fit_linear_rows);
  TORCH_LSH_IMPL(m, "sparse_dot", &sparse_dot);
  TORCH_LSH_IMPL(m, "sum_rows", &sum_rows);
}

}  // namespace torch_lsh
