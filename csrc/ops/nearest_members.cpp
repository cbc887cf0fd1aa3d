// nearest_members: the best of many centers for each row, looked for in some groups of centers.
//
// Rows are sorted by group, so that a group's centers are read from cache by all rows that visit it, as many
// at a time as the kernels of the exact top-k multiply together; scores stay in cache, too. Threads share the
// groups; the result does not depend on the split.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/operator.h"
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

// Compares rows with the centers of a group. One per thread.
class Comparison {
 public:
  Comparison(const float* x, const float* centers, const float* offsets, int64_t width)
      : x_(x),
        centers_(centers),
        offsets_(offsets),
        width_(width),
        lanes_(kernel_.lanes(kernel_.largest_group)),
        rows_(kernel_.largest_group),
        gathered_(kernel_.largest_group * width),
        packed_(kernel_.packed_size(kernel_.largest_group, width)),
        scores_(kernel_.block_rows * lanes_),
        best_(lanes_),
        members_(lanes_) {}

  // Writes the key of the best center to keys[slot], for `count` slots of rows slot / of_row.
  void run(const int64_t* slots, int64_t count, int64_t of_row, int64_t first, int64_t last, uint64_t* keys) {
    for (int64_t begin = 0; begin < count; begin += kernel_.largest_group)
      run_panel(slots + begin, std::min(kernel_.largest_group, count - begin), of_row, first, last, keys);
  }

 private:
  // Always as many lanes, so that a row's scores do not depend on the rows beside it.
  void run_panel(const int64_t* slots, int64_t count, int64_t of_row, int64_t first, int64_t last,
                 uint64_t* keys) {
    for (int64_t s = 0; s < kernel_.largest_group; ++s) rows_[s] = slots[std::min(s, count - 1)] / of_row;
    gather_(x_, rows_.data(), kernel_.largest_group, width_, gathered_.data());
    kernel_.pack(gathered_.data(), kernel_.largest_group, width_, packed_.data());
    std::fill(best_.begin(), best_.end(), -std::numeric_limits<float>::infinity());
    std::fill(members_.begin(), members_.end(), static_cast<int32_t>(first));
    for (int64_t center = first; center < last; center += kernel_.block_rows) {
      const int64_t block = std::min(kernel_.block_rows, last - center);
      kernel_.multiply(centers_ + center * width_, block, width_, packed_.data(), kernel_.largest_group,
                       nullptr, offsets_ + center, nullptr, scores_.data());
      for (int64_t i = 0; i < block; ++i)
        take_better(scores_.data() + i * lanes_, static_cast<int32_t>(center + i), lanes_, best_.data(),
                    members_.data());
    }
    for (int64_t s = 0; s < count; ++s) keys[slots[s]] = key_of(best_[s], members_[s]);
  }

  static void take_better(const float* __restrict scores, int32_t center, int64_t lanes,
                          float* __restrict best, int32_t* __restrict members) {
#pragma omp simd
    for (int64_t s = 0; s < lanes; ++s) {
      const bool better = scores[s] > best[s];
      members[s] = better ? center : members[s];
      best[s] = better ? scores[s] : best[s];
    }
  }

  const TopkKernels<float>& kernel_ = kernels<TopkKernels<float>>();
  decltype(GatherKernels<float, float>::gather) gather_ = kernels<GatherKernels<float, float>>().gather;
  const float *x_, *centers_, *offsets_;
  int64_t width_, lanes_;
  std::vector<int64_t> rows_;
  std::vector<float> gathered_, packed_, scores_, best_;
  std::vector<int32_t> members_;
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
  std::vector<uint64_t> keys(groups.numel());
  share_tasks(num_groups, [&](const auto& next) {
    Comparison comparison(x.const_data_ptr<float>(), centers.const_data_ptr<float>(),
                          offsets.const_data_ptr<float>(), width);
    for (int64_t g; (g = next()) >= 0;)
      comparison.run(visits.slots.data() + visits.start[g], visits.start[g + 1] - visits.start[g], of_row,
                     begin[g], begin[g + 1], keys.data());
  });
  Tensor members = new_tensor({count}, ScalarType::Int);
  auto* out = members.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<int32_t>(
        index_of(*std::max_element(keys.begin() + i * of_row, keys.begin() + (i + 1) * of_row)));
  return members;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "nearest_members", &nearest_members);
}

}  // namespace torch_lsh
