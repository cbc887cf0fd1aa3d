// nearest_rows: the rows of a sparse matrix with the largest inner products with sparse queries.
//
// The matrix is stored twice: by rows, and by columns as an inverted index. A query accumulates products
// column by column, rarest column first, until `max_postings` entries are read: frequent columns weigh least
// and would take most of the time. The rows with the largest sums are candidates; their products are then
// computed exactly. Where all entries are read, the sums are the products.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/gathered_product.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/shortlist.h"

namespace torch_lsh {
namespace {

constexpr int64_t kAhead = 16;  // prefetch distance of sums, in entries
constexpr size_t kColumnsAhead = 8;
constexpr int64_t kEntriesPerLine = 16;  // of indices or values, in a cache line

// A compressed sparse matrix: by rows, or by columns.
struct Compressed {
  const int64_t* start;
  const int32_t* index;
  const float* value;
  int64_t outer, entries;

  int64_t count(int64_t i) const { return start[i + 1] - start[i]; }
  bool holds(int64_t i) const { return start[i] >= 0 && start[i] <= start[i + 1] && start[i + 1] <= entries; }
};

Compressed checked(const Tensor& start, const char* start_name, const Tensor& index, const char* index_name,
                   const Tensor& value, const char* value_name) {
  check_operand(start, start_name, 1, ScalarType::Long);
  check_operand(index, index_name, 1, ScalarType::Int);
  check_operand(value, value_name, 1, ScalarType::Float);
  TORCH_LSH_CHECK(start.numel() > 0, start_name, " is empty; wanted one offset more than runs");
  check_size(value, value_name, 0, index.numel());
  return {start.const_data_ptr<int64_t>(), index.const_data_ptr<int32_t>(), value.const_data_ptr<float>(),
          start.numel() - 1, index.numel()};
}

struct Query {
  const int64_t* column;  // increasing
  const float* value;
  int64_t count;
};

// Answers queries one by one. Not thread-safe: one per thread, kept between calls, since allocating the sums
// would cost more than a search. Between searches no row is touched and every sum is -0.
class Search {
 public:
  // Returns whether the index was valid where it was read.
  bool run(const Compressed& rows, const Compressed& columns, const Query& query, int64_t k,
           int64_t candidates, int64_t max_postings, float* values, int64_t* indices) {
    if (static_cast<int64_t>(query_.size()) < columns.outer) query_.resize(columns.outer);
    if (static_cast<int64_t>(sums_.size()) < rows.outer) sums_.resize(rows.outer, kUntouched);
    const Zeroed zeroed{*this};
    const int64_t all = order(columns, query);
    // Reading them all is exact, and no more work than comparing the candidates.
    const bool exact = all <= max_postings + candidates * (rows.entries / std::max<int64_t>(1, rows.outer));
    bool sound = accumulate(columns, query, rows.outer, exact ? all : max_postings);
    Shortlist shortlist(exact ? k : candidates);
    const float* const sums = sums_.data();
    for (const int32_t *row = rows_.data(), *const end = row + touched_; row < end; ++row)
      shortlist.offer(sums[*row], *row);
    best_.assign(shortlist.best().begin(), shortlist.best().end());
    if (!exact) sound = compare(rows, columns.outer, query) && sound;
    const int64_t found = std::min<int64_t>(k, static_cast<int64_t>(best_.size()));
    std::partial_sort(best_.begin(), best_.begin() + found, best_.end(), std::greater<>());
    for (int64_t i = 0; i < found; ++i) {
      values[i] = value_of<float>(best_[i]);
      indices[i] = index_of(best_[i]);
    }
    std::fill(values + found, values + k, -std::numeric_limits<float>::infinity());
    std::fill(indices + found, indices + k, -1);
    return sound;
  }

 private:
  // Ends every search, one that runs out of memory, too.
  struct Zeroed {
    Search& search;
    ~Zeroed() {
      for (int64_t i = 0; i < search.touched_; ++i) search.sums_[search.rows_[i]] = kUntouched;
      search.touched_ = 0;
    }
  };

  // Puts the columns of a query in order, rarest first; returns how many entries they have.
  int64_t order(const Compressed& columns, const Query& query) {
    order_.clear();
    int64_t all = 0;
    for (int64_t i = 0; i < query.count; ++i) {
      const int64_t count = columns.count(query.column[i]);
      if (count > 0) order_.emplace_back(count, i);
      all += count;
    }
    std::sort(order_.begin(), order_.end());
    return all;
  }

  bool accumulate(const Compressed& columns, const Query& query, int64_t num_rows, int64_t max_postings) {
    int64_t postings = 0;
    for (size_t place = 0; place < order_.size(); ++place) {
      if (place + kColumnsAhead < order_.size()) {
        const int64_t later = columns.start[query.column[order_[place + kColumnsAhead].second]];
        __builtin_prefetch(columns.index + later);
        __builtin_prefetch(columns.value + later);
      }
      const auto [count, i] = order_[place];
      if (postings > 0 && postings + count > max_postings) break;
      postings += count;
      if (static_cast<int64_t>(rows_.size()) < touched_ + count) rows_.resize(touched_ + count);
      const int64_t begin = columns.start[query.column[i]];
      if (!add(columns, begin, begin + count, query.value[i], num_rows)) return false;
    }
    return true;
  }

  // Adds a column's entries to the sums. A function of its own, with local pointers, so that the loop keeps
  // all that it needs in registers.
  [[gnu::noinline]] bool add(const Compressed& columns, int64_t begin, int64_t end, float weight,
                             int64_t num_rows) {
    if (!all_below(columns.index + begin, end - begin, num_rows)) return false;
    const int32_t* const index = columns.index;
    const float* const value = columns.value;
    float* const sums = sums_.data();
    int32_t* touched = rows_.data() + touched_;
    const auto add_entry = [&](int64_t at) {
      const int32_t row = index[at];
      const float before = sums[row];
      *touched = row;
      touched += std::bit_cast<uint32_t>(before) == std::bit_cast<uint32_t>(kUntouched);
      sums[row] = before + weight * value[at] + 0.0f;  // never -0
    };
    int64_t at = begin;
    for (; at + kAhead < end; ++at) {
      __builtin_prefetch(sums + index[at + kAhead], 1);
      add_entry(at);
    }
    for (; at < end; ++at) add_entry(at);
    touched_ = touched - rows_.data();
    return true;
  }

  // Replaces the sums of the best by products. Returns whether the rows were valid.
  bool compare(const Compressed& rows, int64_t num_columns, const Query& query) {
    // They are scattered: prefetch their offsets, then their entries.
    for (const uint64_t key : best_) __builtin_prefetch(rows.start + index_of(key));
    for (const uint64_t key : best_) {
      const int64_t row = index_of(key);
      if (!rows.holds(row)) return false;
      for (int64_t at = rows.start[row]; at < rows.start[row + 1]; at += kEntriesPerLine) {
        __builtin_prefetch(rows.index + at);
        __builtin_prefetch(rows.value + at);
      }
    }
    bool sound = true;
    for (int64_t i = 0; i < query.count; ++i) query_[query.column[i]] = query.value[i];
    for (uint64_t& key : best_) {
      const int64_t row = index_of(key), begin = rows.start[row];
      sound = sound && all_below(rows.index + begin, rows.count(row), num_columns);
      if (!sound) break;
      key = key_of(gathered_product(rows.index + begin, rows.value + begin, rows.count(row), query_.data()),
                   row);
    }
    for (int64_t i = 0; i < query.count; ++i) query_[query.column[i]] = 0;
    return sound;
  }

  static constexpr float kUntouched = -0.0f;

  std::vector<int32_t> rows_;  // the first `touched_` are the rows whose sums are in use
  int64_t touched_ = 0;
  std::vector<float> sums_;
  std::vector<float> query_;                        // all columns; zero between searches
  std::vector<std::pair<int64_t, int64_t>> order_;  // entries of a column, and which of the query it is
  std::vector<uint64_t> best_;
};

std::tuple<Tensor, Tensor> nearest_rows(const Tensor& crow, const Tensor& col, const Tensor& values,
                                        const Tensor& row_start, const Tensor& row_columns,
                                        const Tensor& row_values, const Tensor& column_start,
                                        const Tensor& column_rows, const Tensor& column_values, int64_t k,
                                        int64_t candidates, int64_t max_postings) {
  check_operand(crow, "crow", 1, ScalarType::Long);
  check_operand(col, "col", 1, ScalarType::Long);
  check_operand(values, "values", 1, ScalarType::Float);
  check_size(values, "values", 0, col.numel());
  const Compressed rows =
      checked(row_start, "row_start", row_columns, "row_columns", row_values, "row_values");
  const Compressed columns =
      checked(column_start, "column_start", column_rows, "column_rows", column_values, "column_values");
  TORCH_LSH_CHECK(rows.entries == columns.entries, "row_columns and column_rows have ", rows.entries, " and ",
                  columns.entries, " entries; wanted equal numbers");
  TORCH_LSH_CHECK(rows.outer <= INT32_MAX, "row_start has ", rows.outer, " rows; wanted at most ", INT32_MAX);
  check_count(k, "k");
  check_count(candidates, "candidates");
  TORCH_LSH_CHECK(candidates >= k, "candidates is ", candidates, "; wanted at least k, ", k);
  TORCH_LSH_CHECK(max_postings >= 0, "max_postings is ", max_postings, "; wanted at least 0");
  TORCH_LSH_CHECK(crow.numel() > 0, "crow is empty; wanted one offset more than queries");
  const int64_t batch = crow.numel() - 1;
  const int64_t* start = crow.const_data_ptr<int64_t>();
  const int64_t* column = col.const_data_ptr<int64_t>();
  TORCH_LSH_CHECK(start[0] == 0 && start[batch] == col.numel(), "crow runs from ", start[0], " to ",
                  start[batch], "; wanted 0 to ", col.numel());
  for (int64_t i = 0; i < batch; ++i)
    TORCH_LSH_CHECK(start[i] <= start[i + 1], "crow decreases at ", i + 1, "; wanted increasing offsets");
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t at = start[i]; at < start[i + 1]; ++at) {
      TORCH_LSH_CHECK(column[at] >= 0 && column[at] < columns.outer, "col[", at, "] is ", column[at],
                      "; wanted 0 to ", columns.outer - 1);
      TORCH_LSH_CHECK(at == start[i] || column[at - 1] < column[at], "col[", at, "] is ", column[at],
                      " after ", column[at - 1], "; wanted increasing columns in a row");
      TORCH_LSH_CHECK(columns.holds(column[at]), "column_start[", column[at],
                      "] is no offset; wanted increasing offsets of column_rows");
    }

  Tensor best = new_tensor({batch, k}, ScalarType::Float);
  Tensor indices = new_tensor({batch, k}, ScalarType::Long);
  float* best_out = best.mutable_data_ptr<float>();
  int64_t* indices_out = indices.mutable_data_ptr<int64_t>();
  const float* value = values.const_data_ptr<float>();
  std::atomic<bool> sound = true;
  const int64_t parts = std::min<int64_t>(batch, torch::stable::get_num_threads());
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    thread_local Search own;
    Search& search = own;  // looked up once
    for (int64_t part = first; part < last; ++part)
      for (int64_t i = batch * part / parts; i < batch * (part + 1) / parts; ++i) {
        const Query query{column + start[i], value + start[i], start[i + 1] - start[i]};
        if (!search.run(rows, columns, query, k, candidates, max_postings, best_out + i * k,
                        indices_out + i * k))
          sound = false;
      }
  });
  TORCH_LSH_CHECK(sound, "the index is damaged; wanted increasing offsets in row_start and rows 0 to ",
                  rows.outer - 1, " in column_rows");
  return {best, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "nearest_rows", &nearest_rows);
}

}  // namespace torch_lsh
