// probe_codes: the codes closest to a query's, by the cost of changing some of its hashes.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kMaxChanges = 64;  // per table: bits of a mask
constexpr int64_t kGrainRows = 4;

struct Change {
  float cost;
  int32_t flip;  // bits of the code to flip
  int64_t hash;
};

// A set of changes, as positions in the list sorted by cost.
struct ChangeSet {
  double before, cost;  // without and with the last change
  uint64_t members;
  int64_t last;

  // Heap order: the cheapest on top.
  bool operator<(const ChangeSet& other) const {
    return cost != other.cost ? cost > other.cost : members > other.members;
  }
};

// Enumerates sets of changes by cost. Replacing a set's last change by the next dearer one, and adding that
// one, reach every set exactly once (Lv et al. 2007).
class Enumeration {
 public:
  void start(std::vector<Change>& changes) {
    std::stable_sort(changes.begin(), changes.end(),
                     [](const Change& a, const Change& b) { return a.cost < b.cost; });
    changes_ = &changes;
    heap_.clear();
    push(0, 0, 0);
  }

  // Sets the bits flipped by the next set with at most one change per hash; false after the last.
  bool next(int32_t& flip) {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      const ChangeSet set = heap_.back();
      heap_.pop_back();
      push(set.before, set.members & ~(uint64_t{1} << set.last), set.last + 1);
      uint64_t hashes = 0;
      flip = 0;
      bool valid = true;
      for (uint64_t rest = set.members; rest != 0; rest &= rest - 1) {
        const Change& change = (*changes_)[__builtin_ctzll(rest)];
        valid = valid && !(hashes >> change.hash & 1);
        hashes |= uint64_t{1} << change.hash;
        flip ^= change.flip;
      }
      if (!valid) continue;  // nor are its supersets
      push(set.cost, set.members, set.last + 1);
      return true;
    }
    return false;
  }

 private:
  void push(double before, uint64_t members, int64_t position) {
    if (position >= static_cast<int64_t>(changes_->size())) return;
    const double cost = before + static_cast<double>((*changes_)[position].cost);
    heap_.push_back({before, cost, members | uint64_t{1} << position, position});
    std::push_heap(heap_.begin(), heap_.end());
  }

  const std::vector<Change>* changes_ = nullptr;
  std::vector<ChangeSet> heap_;
};

Tensor probe_codes(const Tensor& codes, const Tensor& flips, const Tensor& costs, int64_t probes) {
  check_operand(codes, "codes", 2, ScalarType::Int);
  check_operand(flips, "flips", 4, ScalarType::Int);
  check_operand(costs, "costs", 4, ScalarType::Float);
  const int64_t rows = codes.size(0), num_tables = codes.size(1);
  const int64_t hashes = flips.size(2), alternatives = flips.size(3),
                changes_per_table = checked_product({hashes, alternatives});
  check_size(flips, "flips", 0, rows);
  check_size(flips, "flips", 1, num_tables);
  for (int64_t dim = 0; dim < 4; ++dim) check_size(costs, "costs", dim, flips.size(dim));
  TORCH_LSH_CHECK(changes_per_table <= kMaxChanges, "flips has shape ", shape_of(flips), "; wanted at most ",
                  kMaxChanges, " changes per table");
  check_count(probes, "probes");
  const auto* code = codes.const_data_ptr<int32_t>();
  const auto* flip = flips.const_data_ptr<int32_t>();
  const auto* cost = costs.const_data_ptr<float>();
  Tensor result = new_tensor({rows, num_tables, probes}, ScalarType::Int);
  auto* out = result.mutable_data_ptr<int32_t>();
  parallel_for(0, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    thread_local std::vector<Change> changes;
    thread_local Enumeration sets;
    for (int64_t i = begin * num_tables; i < end * num_tables; ++i) {
      changes.clear();
      for (int64_t e = i * changes_per_table; e < (i + 1) * changes_per_table; ++e) {
        TORCH_LSH_CHECK(!(cost[e] < 0), "costs holds ", cost[e], "; wanted at least 0");
        if (std::isfinite(cost[e]) && flip[e] != 0)
          changes.push_back({cost[e], flip[e], e % changes_per_table / alternatives});
      }
      sets.start(changes);
      out[i * probes] = code[i];
      for (int64_t p = 1; p < probes; ++p) {
        int32_t bits;
        out[i * probes + p] = sets.next(bits) ? code[i] ^ bits : -1;
      }
    }
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "probe_codes", &probe_codes);
}

}  // namespace torch_lsh
