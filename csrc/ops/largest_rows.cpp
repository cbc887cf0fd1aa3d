// largest_rows: the rows with the largest values, in that order: a radix sort, in one thread, which is done
// with some thousand numbers before another one is awake.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "checks.h"
#include "ops/rank.h"

namespace torch_lsh {
namespace {

struct Entry {
  uint32_t key;  // smaller for larger values
  uint32_t index;
};

// Three passes of 11 bits over the keys. Each keeps the order of equal digits.
void sort_by_key(std::vector<Entry>& entries, std::vector<Entry>& other) {
  constexpr int kBits = 11;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  for (int shift = 0; shift < 32; shift += kBits) {
    std::array<uint32_t, kMask + 1> start{};
    for (const Entry& entry : entries) ++start[entry.key >> shift & kMask];
    uint32_t position = 0;
    for (uint32_t& count : start) position += std::exchange(count, position);
    for (const Entry& entry : entries) other[start[entry.key >> shift & kMask]++] = entry;
    entries.swap(other);
  }
}

Tensor largest_rows(const Tensor& values, const Tensor& rows, int64_t count) {
  check_operand(values, "values", 1, ScalarType::Float);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_size(rows, "rows", 0, values.numel());
  const int64_t all = values.numel();
  TORCH_LSH_CHECK(count >= 0, "count is ", count, "; wanted 0 or more");
  TORCH_LSH_CHECK(all <= UINT32_MAX, "values has shape ", shape_of(values), "; wanted fewer than 2^32");
  thread_local std::vector<Entry> entries, other;
  entries.resize(all);
  other.resize(all);
  const auto* value = values.const_data_ptr<float>();
  for (int64_t i = 0; i < all; ++i)
    entries[i] = {~static_cast<uint32_t>(key_of(value[i], 0) >> 32), static_cast<uint32_t>(i)};
  sort_by_key(entries, other);
  const int64_t taken = std::min(count, all);
  Tensor out = torch::stable::empty({taken}, ScalarType::Long);
  const auto* row = rows.const_data_ptr<int64_t>();
  auto* result = out.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < taken; ++i) result[i] = row[entries[i].index];
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("largest_rows", TORCH_BOX(&largest_rows));
}

}  // namespace torch_lsh
