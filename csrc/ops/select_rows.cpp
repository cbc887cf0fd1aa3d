// select_rows: the active rows of a step, labels ∪ candidates found by hashing ∪ uniform random rows, without
// repetition.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "ops/row_set.h"
#include "random.h"

namespace torch_lsh {
namespace {

struct Budget {
  int64_t num_rows;    // rows of the layer
  int64_t active;      // rows wanted in all
  int64_t num_random;  // at least this many of them uniformly random; 0: none at all
};

struct Selection {
  std::vector<int64_t> rows;       // increasing
  std::vector<uint8_t> is_random;  // of the same length
};

// `labels` and `candidates` may hold negative numbers, which stand for nothing. Candidates are a [lists,
// ranks] matrix: the best of every list is taken before the second best of any.
void select(const int64_t* labels, int64_t num_labels, const int64_t* candidates, int64_t lists,
            int64_t ranks, const Budget& budget, uint64_t seed, Selection& out) {
  // Kept between calls so that a step allocates nothing of the layer's width.
  thread_local RowSet all, random;
  all.reserve(budget.num_rows);
  random.reserve(budget.num_rows);

  int64_t fixed = 0;
  for (int64_t i = 0; i < num_labels; ++i)
    if (labels[i] >= 0) fixed += all.insert(labels[i]);
  const int64_t room = budget.active - budget.num_random;
  for (int64_t rank = 0; rank < ranks && fixed < room; ++rank)
    for (int64_t list = 0; list < lists && fixed < room; ++list) {
      const int64_t row = candidates[list * ranks + rank];
      if (row >= 0) fixed += all.insert(row);
    }

  int64_t wanted = 0;
  if (budget.num_random > 0)
    wanted = std::min(std::max(budget.num_random, budget.active - fixed), budget.num_rows - fixed);
  if (2 * (fixed + wanted) <= budget.num_rows) {
    // At least half of all rows stay free, so a draw succeeds with probability >= 1/2.
    for (uint64_t counter = 0; wanted > 0; ++counter) {
      const int64_t row = random_below(seed, counter, budget.num_rows);
      if (!all.insert(row)) continue;
      random.insert(row);
      --wanted;
    }
  } else if (wanted > 0) {
    // Most rows are wanted: shuffle the rest of them partially (Fisher-Yates).
    std::vector<int64_t> rest;
    rest.reserve(budget.num_rows - fixed);
    for (int64_t row = 0; row < budget.num_rows; ++row)
      if (!all.contains(row)) rest.push_back(row);
    const int64_t size = static_cast<int64_t>(rest.size());
    for (int64_t i = 0; i < wanted; ++i) {
      std::swap(rest[i], rest[i + random_below(seed, static_cast<uint64_t>(i), size - i)]);
      all.insert(rest[i]);
      random.insert(rest[i]);
    }
  }

  out.rows.clear();
  out.is_random.clear();
  all.drain([&](int64_t row) {
    out.rows.push_back(row);
    out.is_random.push_back(random.contains(row));
  });
  random.drain([](int64_t) {});
}

int64_t position(const Selection& selection, int64_t row) {
  return row < 0
             ? -1
             : std::lower_bound(selection.rows.begin(), selection.rows.end(), row) - selection.rows.begin();
}

std::tuple<Tensor, Tensor, Tensor> select_rows(const Tensor& labels, const Tensor& candidates,
                                               int64_t num_rows, int64_t active, int64_t num_random,
                                               int64_t seed, bool per_sample) {
  check_operand(labels, "labels", 2, ScalarType::Long);
  check_operand(candidates, "candidates", 2, ScalarType::Long);
  if (per_sample) check_size(candidates, "candidates", 0, labels.size(0));
  TORCH_LSH_CHECK(num_rows > 0, "num_rows is ", num_rows, "; wanted at least 1");
  TORCH_LSH_CHECK(active > 0 && active <= num_rows, "active is ", active, "; wanted 1 to ", num_rows);
  TORCH_LSH_CHECK(num_random >= 0 && num_random <= active, "num_random is ", num_random, "; wanted 0 to ",
                  active);
  const auto* label = labels.const_data_ptr<int64_t>();
  const auto* candidate = candidates.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i)
    TORCH_LSH_CHECK(label[i] < num_rows, "target holds class ", label[i], "; wanted 0 to ", num_rows - 1);
  for (int64_t i = 0; i < candidates.numel(); ++i)
    TORCH_LSH_CHECK(candidate[i] < num_rows, "candidates holds row ", candidate[i], "; wanted 0 to ",
                    num_rows - 1);

  const int64_t batch = labels.size(0), width = labels.size(1), ranks = candidates.size(1);
  const Budget budget{num_rows, active, num_random};
  Tensor positions = torch::stable::empty({batch, width}, ScalarType::Long);
  auto* position_of = positions.mutable_data_ptr<int64_t>();

  if (!per_sample) {
    Selection selection;
    select(label, batch * width, candidate, candidates.size(0), ranks, budget, static_cast<uint64_t>(seed),
           selection);
    const int64_t count = static_cast<int64_t>(selection.rows.size());
    Tensor rows = torch::stable::empty({count}, ScalarType::Long);
    Tensor is_random = torch::stable::empty({count}, ScalarType::Bool);
    std::copy(selection.rows.begin(), selection.rows.end(), rows.mutable_data_ptr<int64_t>());
    std::copy(selection.is_random.begin(), selection.is_random.end(), is_random.mutable_data_ptr<bool>());
    for (int64_t i = 0; i < batch * width; ++i) position_of[i] = position(selection, label[i]);
    return {rows, is_random, positions};
  }

  std::vector<Selection> selections(batch);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Selection& selection = selections[b];
      select(label + b * width, width, candidate + b * ranks, 1, ranks, budget,
             random_bits(static_cast<uint64_t>(seed), static_cast<uint64_t>(b)), selection);
      for (int64_t i = 0; i < width; ++i)
        position_of[b * width + i] = position(selection, label[b * width + i]);
    }
  });
  size_t longest = 0;
  for (const Selection& selection : selections) longest = std::max(longest, selection.rows.size());
  const int64_t count = static_cast<int64_t>(longest);
  Tensor rows = torch::stable::empty({batch, count}, ScalarType::Long);
  Tensor is_random = torch::stable::empty({batch, count}, ScalarType::Bool);
  auto* row = rows.mutable_data_ptr<int64_t>();
  auto* random = is_random.mutable_data_ptr<bool>();
  std::fill(row, row + batch * count, -1);
  std::fill(random, random + batch * count, false);
  for (int64_t b = 0; b < batch; ++b) {
    std::copy(selections[b].rows.begin(), selections[b].rows.end(), row + b * count);
    std::copy(selections[b].is_random.begin(), selections[b].is_random.end(), random + b * count);
  }
  return {rows, is_random, positions};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("select_rows", TORCH_BOX(&select_rows));
}

}  // namespace torch_lsh
