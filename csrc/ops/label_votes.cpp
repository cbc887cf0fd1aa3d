// label_votes: the labels of a query's nearest rows, with the sums of the rows' weights.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/rank.h"

namespace torch_lsh {
namespace {

struct LabelsOfRows {
  const int64_t* start;
  const int32_t* label;
  int64_t rows, entries, num_labels;

  bool holds(int64_t row) const {
    return start[row] >= 0 && start[row] <= start[row + 1] && start[row + 1] <= entries;
  }
};

// One query's rows with `kinds` weights each, the labels to list in any case, and where the results go.
struct Query {
  const int64_t* rows;
  const float* weights;
  int64_t count, kinds;
  const int64_t* also;
  int64_t also_count;
  int64_t* labels;
  float* votes;
};

// Not thread-safe: one per thread, kept between calls. Between queries all sums are -0, as no other sum is.
class Poll {
 public:
  // Lists the `keep` labels with most votes of the first kind, then those of `also` that are not among them.
  // Returns whether the labels were valid.
  bool run(const LabelsOfRows& known, const Query& query, int64_t keep) {
    const auto labels = static_cast<size_t>(known.num_labels), sums = labels * query.kinds;
    if (sums_.size() < sums) sums_.resize(sums, kNone);
    if (keys_.size() < labels) keys_.resize(labels);
    if (listed_in_.size() < labels) listed_in_.resize(labels);
    const bool sound = count(known, query);
    for (int64_t i = 0; i < found_; ++i) {
      const auto label = static_cast<int64_t>(keys_[i]);
      keys_[i] = key_of(sums_[label * query.kinds], label);
    }
    const int64_t kept = std::min(keep, found_);
    if (kept < found_)
      std::nth_element(keys_.begin(), keys_.begin() + kept, keys_.begin() + found_, std::greater<>());
    std::sort(keys_.begin(), keys_.begin() + kept, std::greater<>());
    list(query, kept, keep + query.also_count);
    for (int64_t i = 0; i < found_; ++i)
      std::fill_n(&sums_[index_of(keys_[i]) * query.kinds], query.kinds, kNone);
    return sound;
  }

 private:
  bool count(const LabelsOfRows& known, const Query& query) {
    found_ = 0;
    for (int64_t i = 0; i < query.count; ++i) {
      const int64_t row = query.rows[i];
      if (row < 0) continue;
      if (!known.holds(row)) return false;
      for (int64_t at = known.start[row]; at < known.start[row + 1]; ++at) {
        const int64_t label = known.label[at];
        if (label < 0 || label >= known.num_labels) return false;
        float* const sums = &sums_[label * query.kinds];
        if (std::bit_cast<uint32_t>(*sums) == std::bit_cast<uint32_t>(kNone))
          keys_[found_++] = static_cast<uint64_t>(label);
        for (int64_t kind = 0; kind < query.kinds; ++kind)
          sums[kind] = sums[kind] + query.weights[i * query.kinds + kind] + 0.0f;  // never -0
      }
    }
    return true;
  }

  void list(const Query& query, int64_t kept, int64_t width) {
    if (++query_ == 0) std::fill(listed_in_.begin(), listed_in_.end(), query_++);  // numbers begin again
    int64_t found = 0;
    const auto put = [&](int64_t label) {
      if (std::exchange(listed_in_[label], query_) == query_) return;
      query.labels[found] = label;
      for (int64_t kind = 0; kind < query.kinds; ++kind)
        query.votes[found * query.kinds + kind] = sums_[label * query.kinds + kind] + 0.0f;  // 0 where none
      ++found;
    };
    for (int64_t i = 0; i < kept; ++i) put(index_of(keys_[i]));
    for (int64_t i = 0; i < query.also_count; ++i)
      if (query.also[i] >= 0) put(query.also[i]);
    std::fill(query.labels + found, query.labels + width, -1);
    std::fill(query.votes + found * query.kinds, query.votes + width * query.kinds, 0.0f);
  }

  static constexpr float kNone = -0.0f;

  std::vector<float> sums_;
  std::vector<uint64_t> keys_;  // the first found_: labels with votes, then their keys
  int64_t found_ = 0;
  std::vector<uint32_t> listed_in_;  // the number of the last query that listed a label
  uint32_t query_ = 0;
};

// Not inlined, so that its address is looked up once, not wherever it is used.
[[gnu::noinline]] Poll& own_poll() {
  thread_local Poll own;
  return own;
}

std::tuple<Tensor, Tensor> label_votes(const Tensor& rows, const Tensor& weights, const Tensor& label_start,
                                       const Tensor& labels, int64_t num_labels, int64_t keep,
                                       const Tensor& also) {
  check_operand(rows, "rows", 2, ScalarType::Long);
  check_operand(weights, "weights", 3, ScalarType::Float);
  check_operand(label_start, "label_start", 1, ScalarType::Long);
  check_operand(labels, "labels", 1, ScalarType::Int);
  check_operand(also, "also", 2, ScalarType::Long);
  const int64_t batch = rows.size(0), count = rows.size(1), kinds = weights.size(2);
  check_size(weights, "weights", 0, batch);
  check_size(weights, "weights", 1, count);
  check_size(also, "also", 0, batch);
  TORCH_LSH_CHECK(kinds >= 1, "weights has shape ", shape_of(weights), "; wanted at least 1 in dimension 2");
  TORCH_LSH_CHECK(label_start.numel() > 0, "label_start is empty; wanted one offset more than rows");
  TORCH_LSH_CHECK(num_labels >= 0 && num_labels <= INT32_MAX, "num_labels is ", num_labels, "; wanted 0 to ",
                  INT32_MAX);
  TORCH_LSH_CHECK(keep >= 0, "keep is ", keep, "; wanted at least 0");
  const LabelsOfRows known{label_start.const_data_ptr<int64_t>(), labels.const_data_ptr<int32_t>(),
                           label_start.numel() - 1, labels.numel(), num_labels};
  const int64_t *row = rows.const_data_ptr<int64_t>(), *other = also.const_data_ptr<int64_t>();
  check_rows_below(row, rows.numel(), known.rows, "rows holds");
  check_rows_below(other, also.numel(), num_labels, "also holds");
  const float* weight = weights.const_data_ptr<float>();
  const int64_t also_count = also.size(1), width = keep + also_count;
  Tensor found = new_tensor({batch, width}, ScalarType::Long);
  Tensor votes = new_tensor({batch, width, kinds}, ScalarType::Float);
  int64_t* label_out = found.mutable_data_ptr<int64_t>();
  float* votes_out = votes.mutable_data_ptr<float>();
  std::atomic<bool> sound = true;
  parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
    Poll& poll = own_poll();
    for (int64_t i = first; i < last; ++i) {
      const Query query{row + i * count,
                        weight + i * count * kinds,
                        count,
                        kinds,
                        other + i * also_count,
                        also_count,
                        label_out + i * width,
                        votes_out + i * width * kinds};
      if (!poll.run(known, query, keep)) sound = false;
    }
  });
  TORCH_LSH_CHECK(sound, "the labels are damaged; wanted increasing offsets in label_start and labels 0 to ",
                  num_labels - 1);
  return {found, votes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "label_votes", &label_votes);
}

}  // namespace torch_lsh
