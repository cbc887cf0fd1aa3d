// The active rows of a step, without duplicates. select_rows: labels ∪ candidates ∪ uniformly random rows.
// draw_rows: labels ∪ random rows drawn by weight.
#include "ops/select_rows.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/row_set.h"
#include "random.h"

namespace torch_lsh {
namespace {

struct Budget {
  int64_t num_rows;    // rows of the layer
  int64_t active;      // rows to select
  int64_t num_random;  // of them, uniformly random rows at least; 0: none at all
};

struct Selection {
  std::vector<int64_t> rows;       // increasing
  std::vector<uint8_t> is_random;  // same length
  std::vector<float> inclusion;    // same length; draw_rows only: inclusion probabilities
  bool valid = true;               // every row drawn exists
};

// Candidate rows: `carried`, best first, interleaved with `found` [lists, ranks], taken rank by rank: the
// best of every list before the second best of any.
struct Candidates {
  const int64_t *carried, *found;
  int64_t num_carried, lists, ranks;
};

// Negative labels and candidates are padding.
void select(const int64_t* labels, int64_t num_labels, const Candidates& candidates, const Budget& budget,
            uint64_t seed, Selection& out) {
  // Kept between calls: a step allocates nothing the size of the layer.
  thread_local RowSet kept[2];
  RowSet &all = kept[0], &random = kept[1];
  const EmptiedAtEnd all_emptied(all), random_emptied(random);
  for (RowSet& set : kept) {
    set.reserve(budget.num_rows);
    set.prefetch(budget.active);
  }

  int64_t fixed = 0;
  for (int64_t i = 0; i < num_labels; ++i)
    if (labels[i] >= 0) fixed += all.insert(labels[i]);
  const int64_t room = budget.active - budget.num_random;
  const auto add = [&](int64_t row) {
    if (row >= 0 && fixed < room) fixed += all.insert(row);
  };
  const int64_t *carried = candidates.carried, *const carried_end = carried + candidates.num_carried;
  const int64_t ranks = candidates.lists == 0 ? 0 : candidates.ranks;
  for (int64_t rank = 0; rank < ranks && fixed < room; ++rank)
    for (int64_t list = 0; list < candidates.lists; ++list) {
      if (carried != carried_end) add(*carried++);
      add(candidates.found[list * candidates.ranks + rank]);
    }
  while (carried != carried_end) add(*carried++);

  int64_t wanted = 0;
  if (budget.num_random > 0)
    wanted = std::min(std::max(budget.num_random, budget.active - fixed), budget.num_rows - fixed);
  const int64_t size = fixed + wanted;
  if (2 * size <= budget.num_rows) {
    // At least half of the rows stay free: each draw succeeds with probability >= 1/2.
    for (uint64_t counter = 0; wanted > 0; ++counter) {
      const int64_t row = random_below(seed, counter, budget.num_rows);
      if (!all.insert(row)) continue;
      random.insert(row);
      --wanted;
    }
  } else if (wanted > 0) {
    // Most rows are selected: partial Fisher-Yates shuffle of the free ones.
    std::vector<int64_t> rest;
    rest.reserve(budget.num_rows - fixed);
    for (int64_t row = 0; row < budget.num_rows; ++row)
      if (!all.contains(row)) rest.push_back(row);
    const int64_t others = static_cast<int64_t>(rest.size());
    for (int64_t i = 0; i < wanted; ++i) {
      std::swap(rest[i], rest[i + random_below(seed, static_cast<uint64_t>(i), others - i)]);
      all.insert(rest[i]);
      random.insert(rest[i]);
    }
  }

  out.rows.resize(size + 1);
  out.is_random.resize(size + 1);
  all.drain(random, out.rows.data(), out.is_random.data());
  out.rows.pop_back();
  out.is_random.pop_back();
}

// Position of a row in the selection; -1 for padding. Branch-free binary search: branches would be
// unpredictable.
int64_t position(const Selection& selection, int64_t row) {
  if (row < 0) return -1;
  const int64_t* at = selection.rows.data();
  for (auto size = static_cast<int64_t>(selection.rows.size()); size > 1; size -= size / 2)
    at += at[size / 2 - 1] < row ? size / 2 : 0;
  return at - selection.rows.data();
}

// Sampling weights, by rank: in decreasing order of weight.
struct Weights {
  const int64_t* order;      // [num_rows]: row of each rank; null: the rank itself
  const double* cumulative;  // [num_rows + 1]: sum of the weights before each rank
  int64_t num_rows;

  double of(int64_t rank) const { return cumulative[rank + 1] - cumulative[rank]; }
  double from(int64_t rank) const { return cumulative[num_rows] - cumulative[rank]; }
};

// Fills the labels up to `active` rows by stratified sampling; draws that repeat a row are dropped. Rows
// heavy enough for a whole draw or more are taken for certain. The remaining weight is cut into strata of
// equal length with one draw each; a row's inclusion probability accounts for the two strata it may span.
void draw(const int64_t* labels, int64_t num_labels, const Weights& weights, int64_t active, uint64_t seed,
          Selection& out) {
  struct Drawn {
    int64_t row;
    bool random;
    float inclusion;
    bool operator<(const Drawn& other) const { return row < other.row; }
  };
  thread_local std::vector<Drawn> drawn;
  thread_local RowSet all;
  const EmptiedAtEnd emptied(all);
  all.reserve(weights.num_rows);
  drawn.clear();
  out.valid = true;
  const auto add = [&](int64_t row, bool random, double inclusion) {
    if (row < 0 || row >= weights.num_rows) {
      out.valid = false;
    } else if (all.insert(row)) {
      drawn.push_back({row, random, static_cast<float>(inclusion)});
    }
  };
  const auto row_of = [&](int64_t rank) { return weights.order == nullptr ? rank : weights.order[rank]; };

  for (int64_t i = 0; i < num_labels; ++i)
    if (labels[i] >= 0) add(labels[i], false, 1.0);
  const int64_t wanted = active - static_cast<int64_t>(drawn.size());
  int64_t certain = 0;
  while (certain < wanted &&
         static_cast<double>(wanted - certain) * weights.of(certain) >= weights.from(certain))
    add(row_of(certain++), true, 1.0);
  const int64_t strata = wanted - certain;
  const double begin = weights.cumulative[certain];
  const double length = weights.from(certain) / static_cast<double>(strata);
  for (int64_t stratum = 0; stratum < strata; ++stratum) {
    const double uniform =
        static_cast<double>(random_bits(seed, static_cast<uint64_t>(stratum)) >> 11) * 0x1p-53;
    const double point = begin + (static_cast<double>(stratum) + uniform) * length;
    const double* const end = weights.cumulative + weights.num_rows;
    const double* const above = std::upper_bound(weights.cumulative + certain + 1, end, point);
    const int64_t rank = std::min(above - weights.cumulative, weights.num_rows) - 1;
    const double first = (weights.cumulative[rank] - begin) / length;
    const double last = (weights.cumulative[rank + 1] - begin) / length;
    const double border = std::floor(first) + 1;
    const double inclusion =
        last <= border ? last - first : 1 - (first + 1 - border) * std::max(0.0, 1 - (last - border));
    add(row_of(rank), true, std::clamp(inclusion, 1e-30, 1.0));
  }

  std::sort(drawn.begin(), drawn.end());
  out.rows.clear();
  out.is_random.clear();
  out.inclusion.clear();
  for (const Drawn& one : drawn) {
    out.rows.push_back(one.row);
    out.is_random.push_back(one.random);
    out.inclusion.push_back(one.inclusion);
  }
}

struct Result {
  std::vector<Selection> selections;
  Tensor rows, is_random, positions;
};

template <typename T, typename From>
Tensor padded(const std::vector<Selection>& selections, bool per_sample, ScalarType dtype, T padding,
              const From& from) {
  size_t longest = 0;
  for (const Selection& selection : selections) longest = std::max(longest, selection.rows.size());
  const auto count = static_cast<int64_t>(longest), sets = static_cast<int64_t>(selections.size());
  Tensor out = per_sample ? new_tensor({sets, count}, dtype) : new_tensor({count}, dtype);
  auto* value = static_cast<T*>(out.mutable_data_ptr());
  std::fill(value, value + sets * count, padding);
  for (int64_t i = 0; i < sets; ++i) {
    const auto& values = from(selections[i]);
    std::copy(values.begin(), values.end(), value + i * count);
  }
  return out;
}

// Makes one selection for all labels [batch, width], or one per sample, by make(labels, count, sample,
// selection), with sample -1 for all.
template <typename Make>
Result make_selections(const Tensor& labels, bool per_sample, const Make& make) {
  const auto* label = labels.const_data_ptr<int64_t>();
  const int64_t batch = labels.size(0), width = labels.size(1);
  Tensor positions = new_tensor({batch, width}, ScalarType::Long);
  auto* position_of = positions.mutable_data_ptr<int64_t>();
  std::vector<Selection> selections(per_sample ? batch : 1);
  if (per_sample) {
    parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        make(label + b * width, width, b, selections[b]);
        for (int64_t i = b * width; i < (b + 1) * width; ++i)
          position_of[i] = position(selections[b], label[i]);
      }
    });
  } else {
    make(label, batch * width, -1, selections[0]);
    for (int64_t i = 0; i < batch * width; ++i) position_of[i] = position(selections[0], label[i]);
  }
  for (const Selection& selection : selections)
    TORCH_LSH_CHECK(selection.valid, "order holds a row out of range; wanted rows 0 to num_rows - 1");
  Tensor rows = padded<int64_t>(selections, per_sample, ScalarType::Long, -1,
                                [](const Selection& s) -> const auto& { return s.rows; });
  Tensor is_random = padded<bool>(selections, per_sample, ScalarType::Bool, false,
                                  [](const Selection& s) -> const auto& { return s.is_random; });
  return {std::move(selections), rows, is_random, positions};
}

void check_labels(const Tensor& labels, int64_t num_rows) {
  check_operand(labels, "labels", 2, ScalarType::Long);
  check_rows_below(labels.const_data_ptr<int64_t>(), labels.numel(), num_rows, "target holds class");
}

// Log importance weights, which make sums over the selection estimate sums over all rows: random rows stand
// for all rows that are not fixed.
std::vector<float> log_weights(const Selection& selection, int64_t num_rows) {
  const auto size = static_cast<int64_t>(selection.rows.size());
  const int64_t random = std::count(selection.is_random.begin(), selection.is_random.end(), 1);
  const double others = static_cast<double>(num_rows - (size - random));
  const auto of_random = static_cast<float>(std::log(others / static_cast<double>(random)));
  std::vector<float> out(size);
  for (int64_t i = 0; i < size; ++i) out[i] = selection.is_random[i] ? of_random : 0.0f;
  return out;
}

uint64_t seed_of_sample(int64_t seed, int64_t sample) {
  return sample < 0 ? static_cast<uint64_t>(seed)
                    : random_bits(static_cast<uint64_t>(seed), static_cast<uint64_t>(sample));
}

}  // namespace

ActiveSet select_rows(const Tensor& labels, const Tensor& candidates, int64_t num_rows, int64_t active,
                      int64_t num_random, int64_t seed, bool per_sample,
                      const std::optional<Tensor>& carried) {
  check_operand(labels, "labels", 2, ScalarType::Long);
  check_operand(candidates, "candidates", 2, ScalarType::Long);
  if (per_sample) check_size(candidates, "candidates", 0, labels.size(0));
  if (carried.has_value()) {
    check_operand(*carried, "carried", 1, ScalarType::Long);
    TORCH_LSH_CHECK(!per_sample, "carried is given with per_sample; wanted None");
  }
  check_count(num_rows, "num_rows");
  TORCH_LSH_CHECK(active > 0 && active <= num_rows, "active is ", active, "; wanted 1 to ", num_rows);
  TORCH_LSH_CHECK(num_random >= 0 && num_random <= active, "num_random is ", num_random, "; wanted 0 to ",
                  active);
  check_labels(labels, num_rows);
  Candidates all{nullptr, candidates.const_data_ptr<int64_t>(), 0, candidates.size(0), candidates.size(1)};
  check_rows_below(all.found, candidates.numel(), num_rows, "candidates holds row");
  if (carried.has_value()) {
    all.carried = carried->const_data_ptr<int64_t>();
    all.num_carried = carried->numel();
    check_rows_below(all.carried, all.num_carried, num_rows, "carried holds row");
  }
  const Budget budget{num_rows, active, num_random};
  const auto make = [&](const int64_t* label, int64_t count, int64_t sample, Selection& selection) {
    const Candidates own =
        sample < 0 ? all : Candidates{nullptr, all.found + sample * all.ranks, 0, 1, all.ranks};
    select(label, count, own, budget, seed_of_sample(seed, sample), selection);
  };
  const Result result = make_selections(labels, per_sample, make);
  return {
      result.rows, result.is_random, result.positions,
      padded<float>(result.selections, per_sample, ScalarType::Float, -std::numeric_limits<float>::infinity(),
                    [&](const Selection& s) { return log_weights(s, num_rows); })};
}

namespace {

ActiveSet draw_rows(const Tensor& labels, const std::optional<Tensor>& order, const Tensor& cumulative,
                    int64_t active, int64_t seed, bool per_sample) {
  check_operand(cumulative, "cumulative", 1, ScalarType::Double);
  const int64_t num_rows = cumulative.size(0) - 1;
  TORCH_LSH_CHECK(num_rows > 0, "cumulative has shape ", shape_of(cumulative), "; wanted at least 2 entries");
  TORCH_LSH_CHECK(active > 0 && active <= num_rows, "active is ", active, "; wanted 1 to ", num_rows);
  check_labels(labels, num_rows);
  const auto* sum = cumulative.const_data_ptr<double>();
  TORCH_LSH_CHECK(sum[0] == 0 && sum[num_rows] > 0 && std::isfinite(sum[num_rows]), "cumulative runs from ",
                  sum[0], " to ", sum[num_rows], "; wanted 0 to a positive number");
  const int64_t* row = nullptr;
  if (order.has_value()) {
    check_operand(*order, "order", 1, ScalarType::Long);
    check_size(*order, "order", 0, num_rows);
    row = order->const_data_ptr<int64_t>();
  }
  const Weights weights{row, sum, num_rows};
  const auto make = [&](const int64_t* label, int64_t count, int64_t sample, Selection& selection) {
    draw(label, count, weights, active, seed_of_sample(seed, sample), selection);
  };
  const Result result = make_selections(labels, per_sample, make);
  return {result.rows, result.is_random, result.positions,
          padded<float>(result.selections, per_sample, ScalarType::Float, 1.0f,
                        [](const Selection& s) -> const auto& { return s.inclusion; })};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "select_rows", &select_rows);
  TORCH_LSH_IMPL(m, "draw_rows", &draw_rows);
}

}  // namespace torch_lsh
