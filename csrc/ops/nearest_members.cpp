// nearest_members: the best of many centers for each row, looked for in some groups of centers.
//
// Rows are sorted by group: its centers are packed once and compared with all rows that visit it. Threads
// share the groups; the result does not depend on the split.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/product.h"
#include "ops/rank.h"
#include "ops/tasks.h"

namespace torch_lsh {
namespace {

// The slots of all rows, group by group: slot i belongs to row i / groups per row.
struct Visits {
  std::vector<int64_t> start;  // of each group; the last is their number
  std::vector<int64_t> slots;

  Visits(const int64_t* groups, int64_t count, int64_t num_groups) : start(num_groups + 1, 0), slots(count) {
    for (int64_t i = 0; i < count; ++i) ++start[groups[i] + 1];
    for (int64_t g = 0; g < num_groups; ++g) start[g + 1] += start[g];
    std::vector<int64_t> position(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < count; ++i) slots[position[groups[i]]++] = i;
  }
};

// The best key of each row so far. Thread-safe.
class BestKeys {
 public:
  explicit BestKeys(int64_t rows) : keys_(rows) {}

  float score(int64_t row) const { return value_of<float>(key(row)); }
  uint64_t key(int64_t row) const { return keys_[row].load(std::memory_order_relaxed); }
  void offer(int64_t row, uint64_t key) {
    uint64_t best = keys_[row].load(std::memory_order_relaxed);
    while (best < key && !keys_[row].compare_exchange_weak(best, key, std::memory_order_relaxed));
  }

 private:
  std::vector<std::atomic<uint64_t>> keys_;  // 0: a NaN, less than any other key
};

// Compares the rows that visit a group with its centers. One per thread.
class Comparison {
 public:
  Comparison(const float* x, const float* centers, const float* offsets, int64_t width, BestKeys& best)
      : x_(x),
        centers_(centers),
        offsets_(offsets),
        width_(width),
        best_(best),
        rows_(kTaskRows),
        gathered_(kTaskRows * width) {}

  // For `count` slots of rows slot / of_row, and centers `first` to `last` - 1.
  void run(const int64_t* slots, int64_t count, int64_t of_row, int64_t first, int64_t last) {
    if (count == 0 || first == last) return;
    pack(first, last - first);
    for (int64_t i = 0; i < count; i += kTaskRows)
      compare(slots + i, std::min(kTaskRows, count - i), of_row, first, last - first);
  }

 private:
  void pack(int64_t first, int64_t count) {
    const int64_t panels = count_panels<float>(count);
    packed_.resize(packed_size<float>(width_, count));
    scores_.resize(kTaskRows * count);
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t begin = 0; begin < width_; begin += kPackRows)
        kernel_.pack_panel(centers_ + first * width_, 1, width_, width_, count, panel, begin,
                           std::min(begin + kPackRows, width_), packed_.data());
  }

  void compare(const int64_t* slots, int64_t count, int64_t of_row, int64_t first, int64_t centers) {
    for (int64_t i = 0; i < count; ++i) rows_[i] = slots[i] / of_row;
    gather_(x_, rows_.data(), count, width_, gathered_.data());
    kernel_.product(gathered_.data(), width_, 1, count, width_, packed_.data(), centers, nullptr, false,
                    scores_.data(), centers, {});
    for (int64_t i = 0; i < count; ++i) offer_best(rows_[i], scores_.data() + i * centers, first, centers);
  }

  // Looks for the center only where its score may be the best of the row.
  void offer_best(int64_t row, float* __restrict scores, int64_t first, int64_t centers) {
    const float* __restrict offsets = offsets_ + first;
    float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
    for (int64_t c = 0; c < centers; ++c) {
      scores[c] += offsets[c];
      largest = scores[c] > largest ? scores[c] : largest;
    }
    if (largest < best_.score(row)) return;
    const float* const found = std::find(scores, scores + centers, largest);
    // none is larger than -inf: the first
    best_.offer(row, key_of(largest, first + (found == scores + centers ? 0 : found - scores)));
  }

  const ProductKernels<float>& kernel_ = kernels<ProductKernels<float>>();
  decltype(GatherKernels<float, float>::gather) gather_ = kernels<GatherKernels<float, float>>().gather;
  const float *x_, *centers_, *offsets_;
  int64_t width_;
  BestKeys& best_;
  std::vector<int64_t> rows_;
  std::vector<float> gathered_, packed_, scores_;
};

Tensor nearest_members(const Tensor& x, const Tensor& groups, const Tensor& first, const Tensor& centers,
                       const Tensor& offsets) {
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(groups, "groups", 2, ScalarType::Long);
  check_operand(first, "first", 1, ScalarType::Long);
  check_operand(centers, "centers", 2, ScalarType::Float);
  check_operand(offsets, "offsets", 1, ScalarType::Float);
  const int64_t count = x.size(0), width = x.size(1), of_row = groups.size(1);
  const int64_t num_groups = first.numel() - 1, num_centers = centers.size(0);
  check_size(groups, "groups", 0, count);
  check_size(centers, "centers", 1, width);
  check_size(offsets, "offsets", 0, num_centers);
  TORCH_LSH_CHECK(of_row >= 1, "groups has shape ", shape_of(groups), "; wanted at least one column");
  TORCH_LSH_CHECK(num_groups >= 1 && num_centers <= INT32_MAX, "first has shape ", shape_of(first),
                  " and centers ", shape_of(centers), "; wanted at least one group and at most ", INT32_MAX,
                  " centers");
  const auto* begin = first.const_data_ptr<int64_t>();
  TORCH_LSH_CHECK(begin[0] == 0 && begin[num_groups] == num_centers, "first runs from ", begin[0], " to ",
                  begin[num_groups], "; wanted 0 to ", num_centers);
  for (int64_t g = 0; g < num_groups; ++g)
    TORCH_LSH_CHECK(begin[g] <= begin[g + 1], "first falls from ", begin[g], " to ", begin[g + 1],
                    "; wanted increasing offsets");
  const auto* group = groups.const_data_ptr<int64_t>();
  check_rows_in_range(group, groups.numel(), num_groups, "groups");

  const Visits visits(group, groups.numel(), num_groups);
  BestKeys best(count);
  share_tasks(num_groups, [&](const auto& next) {
    Comparison comparison(x.const_data_ptr<float>(), centers.const_data_ptr<float>(),
                          offsets.const_data_ptr<float>(), width, best);
    for (int64_t g; (g = next()) >= 0;)
      comparison.run(visits.slots.data() + visits.start[g], visits.start[g + 1] - visits.start[g], of_row,
                     begin[g], begin[g + 1]);
  });
  Tensor members = new_tensor({count}, ScalarType::Int);
  auto* out = members.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i) out[i] = std::max(0, static_cast<int32_t>(index_of(best.key(i))));
  return members;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "nearest_members", &nearest_members);
}

}  // namespace torch_lsh
