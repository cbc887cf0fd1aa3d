// nearest_rows: the rows of a sparse matrix with the largest inner products with sparse queries.
//
// The matrix is stored twice: by rows, and by columns as an inverted index. A query accumulates products
// column by column, rarest column first, until `max_postings` entries are read: frequent columns weigh least
// and would take most of the time. The rows with the largest sums are candidates; their products are then
// computed exactly, unless no candidates are asked for. Where all entries are read, the sums are the
// products.
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
#include "ops/best_keys.h"
#include "ops/gathered_product.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kRoom = 3;    // times the rows wanted: sums to gather before most are left out
constexpr int64_t kChunk = 64;  // rows whose sums are gathered at once
constexpr int64_t kRowsAhead = 6, kLinesAhead = 8;
constexpr int64_t kOffsetsAhead = 16;
constexpr size_t kColumnsAhead = 24;     // their lists are short, and memory takes long
constexpr int64_t kEntriesPerLine = 16;  // of indices or values, in a cache line

// A compressed sparse matrix: by rows, or by columns.
struct Compressed {
  const int64_t* start;
  const int32_t* index;
  const float* value;
  int64_t outer, inner, entries;
  bool known_sound = false;

  int64_t count(int64_t i) const { return start[i + 1] - start[i]; }
  bool holds(int64_t i) const { return start[i] >= 0 && start[i] <= start[i + 1] && start[i + 1] <= entries; }
  bool is_sound(int64_t i) const {
    return known_sound || (holds(i) && all_below(index + start[i], count(i), inner));
  }

  // Checks everything at once, where so many entries are going to be read: in short runs it takes longer.
  void check(double reads) {
    if (reads < static_cast<double>(entries) || !all_below(index, entries, inner)) return;
    known_sound = true;
    for (int64_t i = 0; i < outer; ++i) known_sound &= holds(i);
  }

  // Of a run that may not be sound, but without a branch that would wait for where it begins.
  template <int64_t lines>
  void prefetch(int64_t i) const {
    for (int64_t line = 0; line < lines; ++line) {
      const auto offset = static_cast<uintptr_t>(start[i] + line * kEntriesPerLine) * sizeof(float);
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(index) + offset));
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(value) + offset));
    }
  }
};

Compressed checked(const Tensor& start, const char* start_name, const Tensor& index, const char* index_name,
                   const Tensor& value, const char* value_name) {
  check_operand(start, start_name, 1, ScalarType::Long);
  check_operand(index, index_name, 1, ScalarType::Int);
  check_operand(value, value_name, 1, ScalarType::Float);
  TORCH_LSH_CHECK(start.numel() > 0, start_name, " is empty; wanted one offset more than runs");
  check_size(value, value_name, 0, index.numel());
  return {start.const_data_ptr<int64_t>(),
          index.const_data_ptr<int32_t>(),
          value.const_data_ptr<float>(),
          start.numel() - 1,
          0,
          index.numel()};
}

struct Query {
  const int64_t* column;  // increasing
  const float* value;
  int64_t count;
};

// Answers queries one by one. Not thread-safe: one per thread, kept between calls, since allocating the sums
// would cost more than a search. Between searches every sum is -0, as no other sum is.
class Search {
 public:
  // Returns whether the index was valid where it was read.
  bool run(const Compressed& rows, const Compressed& columns, const Query& query, int64_t k,
           int64_t candidates, int64_t max_postings, float* values, int64_t* indices) {
    if (static_cast<int64_t>(query_.size()) < columns.outer) query_.resize(columns.outer);
    if (static_cast<int64_t>(sums_.size()) < rows.outer) sums_.resize(rows.outer, kUntouched);
    room_ = std::min(kRoom * std::max(candidates, k), rows.outer);
    if (static_cast<int64_t>(best_.size()) < room_ + kChunk + 1) best_.resize(room_ + kChunk + 1);
    const int64_t all = list(columns, query);
    // Reading them all is exact, and no more work than comparing the candidates.
    const bool exact = all <= max_postings + candidates * (rows.entries / std::max<int64_t>(1, rows.outer));
    const bool compares = !exact && candidates > 0;
    const int64_t postings = exact ? all : keep_rarest(max_postings);
    // Nothing allocates from here on until the sums are clear.
    bool sound = accumulate(columns);
    take_best(columns, postings, compares ? candidates : k);
    if (compares) sound = compare(rows, query) && sound;
    const int64_t found = std::min(k, found_);
    uint64_t* const best = best_.data();
    if (found < found_) std::nth_element(best, best + found, best + found_, std::greater<>());
    std::sort(best, best + found, std::greater<>());
    for (int64_t i = 0; i < found; ++i) {
      values[i] = value_of<float>(best[i]);
      indices[i] = index_of(best[i]);
    }
    std::fill(values + found, values + k, -std::numeric_limits<float>::infinity());
    std::fill(indices + found, indices + k, -1);
    return sound;
  }

 private:
  // A column of a query, how many entries it has, and its value in the query.
  struct Column {
    int64_t column, count;
    float weight;
  };

  // Lists the columns of a query that have entries; returns how many entries.
  int64_t list(const Compressed& columns, const Query& query) {
    columns_.clear();
    int64_t all = 0;
    for (int64_t i = 0; i < query.count; ++i) {
      if (i + kOffsetsAhead < query.count)
        __builtin_prefetch(columns.start + query.column[i + kOffsetsAhead]);
      const int64_t count = columns.count(query.column[i]);
      if (count > 0) columns_.push_back({query.column[i], count, query.value[i]});
      all += count;
    }
    return all;
  }

  // Keeps the rarest columns, with `limit` entries together at most, but one at least; returns how many
  // entries. Numbers of entries are added up by their numbers of bits first, so that few columns are sorted
  // in vain.
  int64_t keep_rarest(int64_t limit) {
    int64_t entries[65] = {};
    for (const Column& some : columns_)
      entries[std::bit_width(static_cast<uint64_t>(some.count))] += some.count;
    int bits = 0;
    for (int64_t sum = 0; sum <= limit && bits < 63;) sum += entries[++bits];
    std::erase_if(columns_, [&](const Column& some) { return some.count >> bits != 0; });
    std::sort(columns_.begin(), columns_.end(), [](const Column& one, const Column& other) {
      return std::tie(one.count, one.column) < std::tie(other.count, other.column);
    });
    int64_t postings = 0;
    size_t kept = 0;
    while (kept < columns_.size() && (kept == 0 || postings + columns_[kept].count <= limit))
      postings += columns_[kept++].count;
    columns_.resize(kept);
    return postings;
  }

  // Returns whether all rows were valid; a column with one that is not is the end.
  bool accumulate(const Compressed& columns) {
    for (size_t i = 0; i < std::min(columns_.size(), kColumnsAhead); ++i)
      columns.prefetch<3>(columns_[i].column);
    for (size_t i = 0; i < columns_.size(); ++i) {
      if (i + kColumnsAhead < columns_.size()) columns.prefetch<3>(columns_[i + kColumnsAhead].column);
      const auto [column, count, weight] = columns_[i];
      if (!columns.is_sound(column)) {
        columns_.resize(i);
        return false;
      }
      add(columns.index + columns.start[column], columns.value + columns.start[column], count, weight);
    }
    return true;
  }

  // Adds a column's entries to the sums. A function of its own, with local pointers, so that the loop keeps
  // all that it needs in registers.
  [[gnu::noinline]] void add(const int32_t* index, const float* value, int64_t count, float weight) {
    float* const sums = sums_.data();
    for (int64_t i = 0; i < count; ++i) {
      float& sum = sums[index[i]];
      sum = sum + weight * value[i] + 0.0f;  // never -0
    }
  }

  // Clears the sums, and moves the keys of the `count` best to best_.
  void take_best(const Compressed& columns, int64_t postings, int64_t count) {
    known_ = found_ = 0;
    least_ = std::numeric_limits<float>::quiet_NaN();
    if (columns.inner <= postings) {
      take(columns.inner, count, [](int64_t i) { return i; });
    } else {
      for (const Column& some : columns_) {
        const int32_t* const row = columns.index + columns.start[some.column];
        take(some.count, count, [=](int64_t i) { return row[i]; });
      }
    }
    leave_out_most(count);
    leave_out_rest(count);
  }

  // Takes the sums of some rows.
  template <typename RowOf>
  void take(int64_t size, int64_t count, const RowOf& row_of) {
    for (int64_t i = 0; i < size; i += kChunk) {
      if (found_ > room_) leave_out_most(count);
      if (found_ > room_) leave_out_rest(count);  // many are about equal
      gather(i, std::min(i + kChunk, size), row_of);
    }
  }

  // Clears the sums of some rows, and appends those that are not below least_, with their rows, to the best.
  template <typename RowOf>
  [[gnu::noinline]] void gather(int64_t begin, int64_t end, const RowOf& row_of) {
    float* const sums = sums_.data();
    const float least = least_;
    uint64_t *const best = best_.data(), *to = best + found_;
    for (int64_t i = begin; i < end; ++i) {
      const auto row = static_cast<uint32_t>(row_of(i));
      const auto sum = std::exchange(sums[row], kUntouched);
      const auto bits = std::bit_cast<uint32_t>(sum);
      *to = uint64_t{bits} << 32 | row;  // no branch, since whether it counts is hard to predict
      to += (bits != std::bit_cast<uint32_t>(kUntouched)) & !(sum < least);
    }
    found_ = to - best;
  }

  // Leaves out those that are far from the best.
  void leave_out_most(int64_t count) {
    for (; known_ < found_; ++known_) {
      uint64_t& key = best_[known_];
      key = key_of(std::bit_cast<float>(static_cast<uint32_t>(key >> 32)), static_cast<uint32_t>(key));
    }
    const uint64_t least = about_the_best(best_.data(), found_, count);
    known_ = found_ = keep_from(least, best_.data(), found_);
    least_ = value_of<float>(least);
  }

  // Leaves out all but the best.
  void leave_out_rest(int64_t count) {
    if (found_ <= count) return;
    uint64_t* const best = best_.data();
    std::nth_element(best, best + count - 1, best + found_, std::greater<>());
    known_ = found_ = count;
    least_ = value_of<float>(best[count - 1]);
  }

  // Replaces the sums of the best by products. Returns whether the rows were valid.
  bool compare(const Compressed& rows, const Query& query) {
    uint64_t* const best = best_.data();
    // They are scattered: prefetch their offsets, then their entries.
    for (int64_t i = 0; i < found_; ++i) __builtin_prefetch(rows.start + index_of(best[i]));
    for (int64_t i = 0; i < query.count; ++i) query_[query.column[i]] = query.value[i];
    for (int64_t i = 0; i < std::min(found_, kRowsAhead); ++i) rows.prefetch<kLinesAhead>(index_of(best[i]));
    bool sound = true;
    for (int64_t i = 0; i < found_; ++i) {
      if (i + kRowsAhead < found_) rows.prefetch<kLinesAhead>(index_of(best[i + kRowsAhead]));
      const int64_t row = index_of(best[i]), begin = rows.start[row];
      sound = rows.is_sound(row);
      if (!sound) break;
      best[i] = key_of(
          gathered_product(rows.index + begin, rows.value + begin, rows.count(row), query_.data()), row);
    }
    for (int64_t i = 0; i < query.count; ++i) query_[query.column[i]] = 0;
    return sound;
  }

  static constexpr float kUntouched = -0.0f;

  std::vector<float> sums_;
  std::vector<float> query_;  // all columns; zero between searches
  std::vector<Column> columns_;
  // The first found_ count: known_ keys, then sums with their rows.
  std::vector<uint64_t> best_;
  int64_t known_ = 0, found_ = 0, room_ = 0;
  float least_ = 0;  // no sum below counts
};

// Not inlined, so that its address is looked up once, not wherever it is used.
[[gnu::noinline]] Search& own_search() {
  thread_local Search own;
  return own;
}

std::tuple<Tensor, Tensor> nearest_rows(const Tensor& crow, const Tensor& col, const Tensor& values,
                                        const Tensor& row_start, const Tensor& row_columns,
                                        const Tensor& row_values, const Tensor& column_start,
                                        const Tensor& column_rows, const Tensor& column_values, int64_t k,
                                        int64_t candidates, int64_t max_postings) {
  check_operand(crow, "crow", 1, ScalarType::Long);
  check_operand(col, "col", 1, ScalarType::Long);
  check_operand(values, "values", 1, ScalarType::Float);
  check_size(values, "values", 0, col.numel());
  Compressed rows = checked(row_start, "row_start", row_columns, "row_columns", row_values, "row_values");
  Compressed columns =
      checked(column_start, "column_start", column_rows, "column_rows", column_values, "column_values");
  TORCH_LSH_CHECK(rows.entries == columns.entries, "row_columns and column_rows have ", rows.entries, " and ",
                  columns.entries, " entries; wanted equal numbers");
  TORCH_LSH_CHECK(rows.outer <= INT32_MAX, "row_start has ", rows.outer, " rows; wanted at most ", INT32_MAX);
  check_count(k, "k");
  if (candidates != 0) check_count(candidates, "candidates");
  TORCH_LSH_CHECK(candidates == 0 || candidates >= k, "candidates is ", candidates,
                  "; wanted 0, or at least k, ", k);
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
  rows.inner = columns.outer, columns.inner = rows.outer;
  const auto queries = static_cast<double>(batch);
  rows.check(queries * static_cast<double>(candidates) *
             (static_cast<double>(rows.entries) / (1.0 + rows.outer)));
  columns.check(queries * static_cast<double>(max_postings));
  const int64_t parts = std::min<int64_t>(batch, torch::stable::get_num_threads());
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    Search& search = own_search();
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
