// Sparse rows per label: sums of training rows (centroids), and linear classifiers of training rows.
//
// Both go through the labels one by one with a dense vector of columns, which stays in the cache, and keep
// what is not zero. A label belongs to one thread, so the results do not depend on the number of
// threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/dual_descent.h"
#include "ops/gathered_product.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/row_set.h"
#include "ops/sparse_rows.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kLabelsPerPart = 256;
constexpr int64_t kAhead = 3;  // prefetch distance of scattered rows

// Sparse rows that were made together: several kinds of values for the same columns.
struct Part {
  explicit Part(int64_t kinds) : values(kinds), bias(kinds) {}

  std::vector<int64_t> counts;
  std::vector<int32_t> columns;
  std::vector<std::vector<float>> values, bias;
};

// A dense vector that knows which of its entries were used.
class Sums {
 public:
  explicit Sums(int64_t columns)
      : values_(static_cast<size_t>(columns)), columns_(static_cast<size_t>(columns + 1)) {
    used_.reserve(columns);
  }

  void add(int32_t column, float value) {
    used_.mark(column);
    values_[column] += value;
  }

  // Appends the columns with an entry above the threshold in magnitude, increasing, and clears the vector;
  // divides the entries by its length first, if asked to.
  void move_to(Part& part, float threshold, bool unit) {
    const int64_t used = used_.drain(columns_.data());
    float scale = 1;
    if (unit) {
      double squares = 0;
      for (int64_t i = 0; i < used; ++i) squares += double{values_[columns_[i]]} * values_[columns_[i]];
      scale = static_cast<float>(1 / std::max(std::sqrt(squares), 1e-30));
    }
    const size_t before = part.columns.size();
    part.columns.resize(before + used);
    part.values[0].resize(before + used);
    int32_t* const column = part.columns.data() + before;
    float* const value = part.values[0].data() + before;
    int64_t kept = 0;
    for (int64_t i = 0; i < used; ++i) {  // no branch: which are kept is hard to predict
      column[kept] = columns_[i];
      value[kept] = std::exchange(values_[columns_[i]], 0.0f) * scale;
      kept += !(std::fabs(value[kept]) <= threshold);
    }
    part.columns.resize(before + kept);
    part.values[0].resize(before + kept);
    part.counts.push_back(kept);
  }

 private:
  std::vector<float> values_;
  std::vector<int32_t> columns_;  // that were used, and room for one more
  RowSet used_;
};

// Calls label(number, scratch, part) for all labels; make_scratch() is called once by each thread.
template <typename MakeScratch, typename Label>
std::vector<Part> for_each_label(int64_t labels, int64_t kinds, const MakeScratch& make_scratch,
                                 const Label& label) {
  const int64_t count = (labels + kLabelsPerPart - 1) / kLabelsPerPart;
  std::vector<Part> parts(static_cast<size_t>(count), Part(kinds));
  parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    auto scratch = make_scratch();
    for (int64_t part = first; part < last; ++part)
      for (int64_t i = part * kLabelsPerPart; i < std::min(labels, (part + 1) * kLabelsPerPart); ++i)
        label(i, scratch, parts[part]);
  });
  return parts;
}

// Offsets [labels + 1], columns [entries] and values [kinds, entries]. Empties the parts.
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
    part = Part(0);  // its memory is free for the next ones
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
  const int64_t members = labels.start[labels.rows];
  const auto sums_of = [&](int64_t label, Sums& sums, Part& part) {
    for (int64_t i = labels.start[label]; i < labels.start[label + 1]; ++i) {
      const int64_t row = labels.index[i];
      if (i + kAhead < members) rows.prefetch(labels.index[i + kAhead]);  // of this label or the next ones
      for (int64_t at = rows.start[row]; at < rows.start[row + 1]; ++at)
        sums.add(rows.index[at], rows.value[at]);
    }
    sums.move_to(part, static_cast<float>(threshold), unit);
  };
  auto parts = for_each_label(labels.rows, 1, [&] { return Sums(num_columns); }, sums_of);
  auto [start, columns, values] = joined(parts, labels.rows, 1);
  return {start, columns, torch::stable::view(values, {columns.numel()})};
}

// The training rows of one label side by side, as descent reads them a dozen times, and in random order.
// Their columns are numbered as they appear, so that those of many rows come first, and their weights share a
// few cache lines. Entries stand in fours, indices beside values: one instruction loads, multiplies or adds
// four values, and entries of value 0 at the end save branches that depend on a length. Not thread-safe: one
// per thread.
class TrainingRows {
 public:
  explicit TrainingRows(int64_t columns) : number_(static_cast<size_t>(columns), kNone), used_(columns + 1) {}

  // What DualDescent asks of rows.
  int64_t columns() const { return columns_; }
  float squares(int64_t i) const { return squares_[i]; }

  void prefetch(int64_t i) const {
    for (int64_t line = 0; line < kLinesAhead; ++line)
      __builtin_prefetch(entries_.data() + start_[i] + line * kPerLine);
  }

  float product(int64_t i, const float* weights) const {
    FourFloats sums = {};
    for (int64_t at = start_[i]; at < start_[i + 1]; ++at) {
      const Four& some = entries_[at];
      const FourFloats of_columns = {weights[some.index[0]], weights[some.index[1]], weights[some.index[2]],
                                     weights[some.index[3]]};
      sums += some.value * of_columns;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  void add(int64_t i, float factor, float* weights) const {
    for (int64_t at = start_[i]; at < start_[i + 1]; ++at) {
      const Four& some = entries_[at];
      const FourFloats changes = factor * some.value;
      for (int64_t lane = 0; lane < kLanes; ++lane) weights[some.index[lane]] += changes[lane];
    }
  }

  // `squares` are those of all rows, see squares().
  [[gnu::noinline]] void copy(const SparseRows& rows, const float* squares, const int32_t* members,
                              int64_t count) {
    start_.assign(1, 0);
    for (int64_t i = 0; i < count; ++i)
      start_.push_back(start_.back() + (rows.count(members[i]) + kLanes - 1) / kLanes);
    if (static_cast<int64_t>(entries_.size()) < start_.back()) entries_.resize(start_.back());
    squares_.resize(count);
    int32_t known = 0;  // numbers; local, so that the loop does not store it each time
    int32_t* const number = number_.data();
    int32_t* const used = used_.data();
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) rows.prefetch(members[i + kAhead]);
      squares_[i] = squares[members[i]];
      Four* to = entries_.data() + start_[i];
      int64_t lane = 0;
      for (int64_t at = rows.start[members[i]]; at < rows.start[members[i] + 1]; ++at) {
        const int32_t column = rows.index[at];
        // No branch: many columns are new.
        used[known] = column;
        const bool is_new = number[column] == kNone;
        number[column] = is_new ? known : number[column];
        known += is_new;
        to->index[lane] = number[column];
        to->value[lane] = rows.value[at];
        to += lane == kLanes - 1;
        lane = (lane + 1) % kLanes;
      }
      for (; lane % kLanes != 0; ++lane) to->index[lane] = 0, to->value[lane] = 0;
    }
    columns_ = known;
  }

  // Lists the columns whose numbers have a value above the threshold, and their numbers, and forgets all.
  void drain(const float* values, float threshold, std::vector<std::pair<int32_t, int32_t>>& found) {
    found.resize(columns_ + 1);
    auto* to = found.data();
    for (int32_t number = 0; number < columns_; ++number) {
      number_[used_[number]] = kNone;
      *to = {used_[number], number};  // no branch
      to += values[number] > threshold;
    }
    found.resize(to - found.data());
    columns_ = 0;
  }

 private:
  static constexpr int32_t kNone = -1;
  static constexpr int64_t kLanes = 4;
  typedef float FourFloats __attribute__((vector_size(sizeof(float) * kLanes)));
  struct Four {
    int32_t index[kLanes];
    FourFloats value;
  };
  static constexpr int64_t kPerLine = 64 / sizeof(Four), kLinesAhead = 4;

  std::vector<Four> entries_;
  std::vector<int64_t> start_;
  std::vector<float> squares_;
  std::vector<int32_t> number_;  // of each column
  std::vector<int32_t> used_;    // the column of each number, and room for one more
  int32_t columns_ = 0;
};

// The classifiers of a label, one for each cost. Not thread-safe: one per thread.
class LinearClassifier {
 public:
  LinearClassifier(const SparseRows& rows, const float* squares, int64_t columns, int64_t passes,
                   float tolerance)
      : known_(rows), squares_(squares), passes_(passes), tolerance_(tolerance), rows_(columns) {}

  // Trains on `count` rows with each of the costs, which increase, so that the solution for one begins with
  // that for the one before, and appends the weights above the threshold, and the biases.
  void train(const int32_t* members, const uint8_t* positive, int64_t count, const float* costs,
             float threshold, uint64_t seed, Part& part) {
    rows_.copy(known_, squares_, members, count);
    descent_.start(count);
    weights_.resize(part.bias.size());
    float bias = 0;
    for (size_t kind = 0; kind < weights_.size(); ++kind) {
      if (kind == 0)
        weights_[kind].assign(rows_.columns(), 0.0f);
      else
        weights_[kind] = weights_[kind - 1];
      bias = descent_.run(rows_, positive, costs[kind], passes_, tolerance_, bias, random_bits(seed, kind),
                          weights_[kind].data());
      part.bias[kind].push_back(bias);
    }
    move_to(part, threshold);
  }

 private:
  void move_to(Part& part, float threshold) {
    largest_.assign(rows_.columns(), 0.0f);
    for (const auto& weights : weights_)
      for (size_t i = 0; i < largest_.size(); ++i) largest_[i] = std::max(largest_[i], std::fabs(weights[i]));
    rows_.drain(largest_.data(), threshold, kept_);
    std::sort(kept_.begin(), kept_.end());
    for (const auto& [column, number] : kept_) {
      part.columns.push_back(column);
      for (size_t kind = 0; kind < weights_.size(); ++kind)
        part.values[kind].push_back(weights_[kind][number]);
    }
    part.counts.push_back(static_cast<int64_t>(kept_.size()));
  }

  const SparseRows& known_;
  const float* const squares_;
  const int64_t passes_;
  const float tolerance_;
  TrainingRows rows_;
  DualDescent descent_;
  std::vector<std::vector<float>> weights_;        // of each kind and numbered column
  std::vector<float> largest_;                     // of each numbered column, of all kinds
  std::vector<std::pair<int32_t, int32_t>> kept_;  // columns, and their numbers
};

std::tuple<Tensor, Tensor, Tensor, Tensor> fit_linear_rows(const Tensor& row_start, const Tensor& row_columns,
                                                           const Tensor& row_values, int64_t num_columns,
                                                           const Tensor& label_start,
                                                           const Tensor& label_rows, const Tensor& positive,
                                                           const Tensor& costs, int64_t passes,
                                                           double threshold, int64_t seed, double tolerance) {
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
  TORCH_LSH_CHECK(tolerance >= 0, "tolerance is ", tolerance, "; wanted at least 0");
  const SparseRows rows = check_sparse_rows(row_start, "row_start", row_columns, "row_columns", &row_values,
                                            "row_values", num_columns);
  const SparseRows labels =
      check_sparse_rows(label_start, "label_start", label_rows, "label_rows", nullptr, nullptr, rows.rows);
  check_operand(positive, "positive", 1, ScalarType::Bool);
  check_size(positive, "positive", 0, label_rows.numel());
  const uint8_t* is_positive = static_cast<const uint8_t*>(positive.const_data_ptr());
  const auto classifier_of = [&](int64_t label, LinearClassifier& classifier, Part& part) {
    const int64_t begin = labels.start[label];
    classifier.train(labels.index + begin, is_positive + begin, labels.count(label), cost,
                     static_cast<float>(threshold), random_bits(static_cast<uint64_t>(seed), label), part);
  };
  std::vector<float> squares(rows.rows, 1.0f);  // the 1 is that of the bias
  for (int64_t row = 0; row < rows.rows; ++row)
    for (int64_t at = rows.start[row]; at < rows.start[row + 1]; ++at)
      squares[row] += rows.value[at] * rows.value[at];
  const auto make = [&] {
    return LinearClassifier(rows, squares.data(), num_columns, passes, static_cast<float>(tolerance));
  };
  auto parts = for_each_label(labels.rows, kinds, make, classifier_of);
  Tensor bias = new_tensor({kinds, labels.rows}, ScalarType::Float);
  float* to = bias.mutable_data_ptr<float>();
  for (int64_t kind = 0; kind < kinds; ++kind)
    for (const Part& part : parts) to = std::copy(part.bias[kind].begin(), part.bias[kind].end(), to);
  auto [start, columns, weights] = joined(parts, labels.rows, kinds);
  return {start, columns, weights, bias};
}

// Which rows of a sparse matrix each of some sparse queries wants; negative: none.
struct Wanted {
  SparseRows matrix;
  const int64_t *query_start, *query_column;
  const float* query_value;
  int64_t batch, width, num_columns;
  const int64_t* rows;  // [batch, width]

  int64_t count(int64_t query) const { return query_start[query + 1] - query_start[query]; }
};

// The pairs of a query and a row it wants, by row.
struct PairsByRow {
  std::vector<int64_t> start, place;

  explicit PairsByRow(const Wanted& wanted) : start(wanted.matrix.rows + 1) {
    const int64_t pairs = wanted.batch * wanted.width;
    for (int64_t i = 0; i < pairs; ++i)
      if (wanted.rows[i] >= 0) ++start[wanted.rows[i] + 1];
    for (int64_t row = 0; row < wanted.matrix.rows; ++row) start[row + 1] += start[row];
    place.resize(start.back());
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < pairs; ++i)
      if (wanted.rows[i] >= 0) place[next[wanted.rows[i]]++] = i;
  }
};

// Spreads each query out in a dense vector, to look up the columns of its rows. Returns whether all columns
// were valid.
bool products_by_query(const Wanted& wanted, float* out) {
  const SparseRows& matrix = wanted.matrix;
  std::atomic<bool> sound = true;
  parallel_for(0, wanted.batch, 1, [&](int64_t first, int64_t last) {
    thread_local std::vector<float> query;  // zero between calls
    if (static_cast<int64_t>(query.size()) < wanted.num_columns) query.resize(wanted.num_columns);
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = wanted.query_start[i], end = wanted.query_start[i + 1];
      for (int64_t at = begin; at < end; ++at) query[wanted.query_column[at]] += wanted.query_value[at];
      for (int64_t j = i * wanted.width; j < (i + 1) * wanted.width; ++j) {
        out[j] = 0;
        if (wanted.rows[j] < 0) continue;
        const int64_t row = matrix.start[wanted.rows[j]], count = matrix.count(wanted.rows[j]);
        if (all_below(matrix.index + row, count, wanted.num_columns))
          out[j] = gathered_product(matrix.index + row, matrix.value + row, count, query.data());
        else
          sound = false;
      }
      for (int64_t at = begin; at < end; ++at) query[wanted.query_column[at]] = 0;
    }
  });
  return sound;
}

// The same with the rows spread out, for rows that many queries want: queries are shorter.
bool products_by_row(const Wanted& wanted, const PairsByRow& pairs, float* out) {
  const SparseRows& matrix = wanted.matrix;
  std::fill(out, out + wanted.batch * wanted.width, 0.0f);
  std::atomic<bool> sound = true;
  parallel_for(0, matrix.rows, kLabelsPerPart, [&](int64_t first, int64_t last) {
    std::vector<float> spread(wanted.num_columns);
    for (int64_t row = first; row < last; ++row) {
      if (pairs.start[row] == pairs.start[row + 1]) continue;
      const int64_t begin = matrix.start[row], end = matrix.start[row + 1];
      if (!all_below(matrix.index + begin, end - begin, wanted.num_columns)) {
        sound = false;
        continue;
      }
      for (int64_t at = begin; at < end; ++at) spread[matrix.index[at]] += matrix.value[at];
      for (int64_t i = pairs.start[row]; i < pairs.start[row + 1]; ++i) {
        const int64_t place = pairs.place[i], query = place / wanted.width, from = wanted.query_start[query];
        out[place] = gathered_product(wanted.query_column + from, wanted.query_value + from,
                                      wanted.count(query), spread.data());
      }
      for (int64_t at = begin; at < end; ++at) spread[matrix.index[at]] = 0;
    }
  });
  return sound;
}

// Whether spreading rows takes fewer steps than spreading queries.
bool rows_are_shared(const Wanted& wanted, const PairsByRow& pairs) {
  int64_t by_query = 0, by_row = wanted.num_columns;
  for (int64_t row = 0; row < wanted.matrix.rows; ++row) {
    const int64_t queries = pairs.start[row + 1] - pairs.start[row];
    if (queries == 0) continue;
    by_query += queries * wanted.matrix.count(row);
    by_row += 2 * wanted.matrix.count(row);
  }
  for (const int64_t place : pairs.place) by_row += wanted.count(place / wanted.width);
  return by_row < by_query;
}

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
  const SparseRows matrix{start, index, weight, row_start.numel() - 1};
  const Wanted wanted_rows{matrix, query_start, column, value, batch, width, num_columns, wanted};
  bool sound = true;
  if (batch * width < matrix.rows) {  // few queries; grouping them by rows would take longer
    sound = products_by_query(wanted_rows, out);
  } else {
    const PairsByRow pairs(wanted_rows);
    sound = rows_are_shared(wanted_rows, pairs) ? products_by_row(wanted_rows, pairs, out)
                                                : products_by_query(wanted_rows, out);
  }
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
