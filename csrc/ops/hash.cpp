// simhash_codes, simhash_products, dwta_codes: hash codes by dense projections and by winner-take-all bins.
//
// A code packs a table's K hashes into an int32, the first in the lowest bits.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/hashes.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kGrainRows = 16;  // rows per task, at least a microsecond each

constexpr int64_t kBinWidth = 8;  // coordinates per winner-take-all hash
constexpr int64_t kBinBits = 3;

// Random bins that an empty bin tries to borrow from; if half are empty, all fail with probability 2^-100.
constexpr int64_t kBorrowAttempts = 100;

}  // namespace

// Rows of x may have any distance from each other: one copy instead of PyTorch's slice, conversion and cat.
Tensor query_vectors(const Tensor& x, int64_t zeros, int64_t first, int64_t every) {
  check_cpu(x, "x");
  check_dim(x, "x", 2);
  check_floating(x, "x");
  TORCH_LSH_CHECK(zeros >= 0, "zeros is ", zeros, "; wanted at least 0");
  TORCH_LSH_CHECK(first >= 0, "first is ", first, "; wanted at least 0");
  check_count(every, "every");
  const int64_t all = x.size(0), width = x.size(1), row = x.stride(0), column = x.stride(1),
                count = first < all ? (all - first - 1) / every + 1 : 0;
  Tensor out = new_tensor({count, width + 1 + zeros}, ScalarType::Float);
  auto* to = out.mutable_data_ptr<float>();
  by_dtype(FloatingTypes{}, x.scalar_type(), "x", [&]<typename T>() {
    for (int64_t i = 0; i < count; ++i) {
      const T* const from = data<T>(x) + (first + i * every) * row;
      for (int64_t j = 0; j < width; ++j) *to++ = static_cast<float>(number(from[j * column]));
      *to++ = 1;
      to = std::fill_n(to, zeros, 0.0f);
    }
  });
  return out;
}

Tensor simhash_codes(const Tensor& x, const Tensor& projections, int64_t hashes_per_table) {
  check_floating(x, "x");
  check_operand(x, "x", 2, x.scalar_type());
  check_operand(projections, "projections", 2, ScalarType::Float);
  check_size(x, "x", 1, projections.size(0));
  const int64_t num_tables = count_tables(projections, "projections", 1, hashes_per_table, 1);
  Tensor codes = new_tensor({x.size(0), num_tables}, ScalarType::Int);
  if (codes.numel() == 0) return codes;
  const auto* projection = projections.const_data_ptr<float>();
  auto* out = codes.mutable_data_ptr<int32_t>();
  const int64_t width = x.size(1);
  by_dtype(FloatingTypes{}, x.scalar_type(), "x", [&]<typename T>() {
    const auto simhash = kernels<SimHashKernels<T>>().simhash;
    const T* const rows = data<T>(x);
    parallel_for(0, x.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
      thread_local std::vector<float> scratch;
      scratch.resize(kHashRows * (width + num_tables * hashes_per_table) + kCodeBits);
      simhash(rows + begin * width, end - begin, width, projection, num_tables, hashes_per_table,
              scratch.data(), out + begin * num_tables);
    });
  });
  return codes;
}

namespace {

Tensor query_all_vectors(const Tensor& x, int64_t zeros) {
  return query_vectors(x, zeros, 0, 1);
}

Tensor simhash_products(const Tensor& x, const Tensor& projections) {
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(projections, "projections", 2, ScalarType::Float);
  check_size(x, "x", 1, projections.size(0));
  const int64_t width = x.size(1), count = projections.size(1);
  Tensor products = new_tensor({x.size(0), count}, ScalarType::Float);
  if (products.numel() == 0) return products;
  const auto* rows = x.const_data_ptr<float>();
  const auto* projection = projections.const_data_ptr<float>();
  auto* out = products.mutable_data_ptr<float>();
  const auto project = kernels<HashKernels>().project;
  parallel_for(0, x.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
    project(rows + begin * width, end - begin, width, projection, count, out + begin * count);
  });
  return products;
}

struct WinnerTakeAll {
  const int64_t* bins;  // [num_hashes, kBinWidth]: coordinates of x
  int64_t num_hashes;
  int64_t hashes_per_table;
  uint64_t seed;
};

// Codes of one dense row. winners: scratch, [num_hashes].
void winner_codes(const float* x, const WinnerTakeAll& family, int32_t* winners, int32_t* codes) {
  bool any = false;
  for (int64_t h = 0; h < family.num_hashes; ++h) {
    const int64_t* bin = family.bins + h * kBinWidth;
    int32_t winner = -1;
    float best = 0;
    for (int32_t i = 0; i < kBinWidth; ++i) {
      const float value = x[bin[i]];
      const bool present = value != 0 && value == value;  // skips zero and NaN
      if (present && (winner < 0 || value > best)) {
        winner = i;
        best = value;
      }
    }
    winners[h] = winner;
    any |= winner >= 0;
  }
  for (int64_t t = 0; t < family.num_hashes / family.hashes_per_table; ++t) {
    int32_t code = 0;
    for (int64_t k = 0; k < family.hashes_per_table; ++k) {
      const int64_t h = t * family.hashes_per_table + k;
      int32_t winner = winners[h];
      for (int64_t attempt = 0; winner < 0 && any && attempt < kBorrowAttempts; ++attempt)
        winner = winners[random_below(family.seed, static_cast<uint64_t>(h * kBorrowAttempts + attempt),
                                      family.num_hashes)];
      code |= (winner < 0 ? 0 : winner) << (k * kBinBits);
    }
    codes[t] = code;
  }
}

WinnerTakeAll winner_take_all(const Tensor& bins, int64_t in_features, int64_t hashes_per_table,
                              int64_t seed) {
  check_operand(bins, "bins", 2, ScalarType::Long);
  check_size(bins, "bins", 1, kBinWidth);
  count_tables(bins, "bins", 0, hashes_per_table, kBinBits);
  check_rows_in_range(bins.const_data_ptr<int64_t>(), bins.numel(), in_features, "bins");
  return {bins.const_data_ptr<int64_t>(), bins.size(0), hashes_per_table, static_cast<uint64_t>(seed)};
}

Tensor dwta_codes(const Tensor& x, const Tensor& bins, int64_t hashes_per_table, int64_t seed) {
  check_floating(x, "x");
  check_operand(x, "x", 2, x.scalar_type());
  const int64_t width = x.size(1);
  const WinnerTakeAll family = winner_take_all(bins, width, hashes_per_table, seed);
  const int64_t num_tables = family.num_hashes / hashes_per_table;
  Tensor codes = new_tensor({x.size(0), num_tables}, ScalarType::Int);
  if (codes.numel() == 0) return codes;
  auto* out = codes.mutable_data_ptr<int32_t>();
  by_dtype(FloatingTypes{}, x.scalar_type(), "x", [&]<typename T>() {
    const T* const from = data<T>(x);
    parallel_for(0, x.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
      thread_local std::vector<float> row;
      thread_local std::vector<int32_t> winners;
      row.resize(width);
      winners.resize(family.num_hashes);
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < width; ++j) row[j] = static_cast<float>(number(from[i * width + j]));
        winner_codes(row.data(), family, winners.data(), out + i * num_tables);
      }
    });
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "query_vectors", &query_all_vectors);
  TORCH_LSH_IMPL(m, "simhash_codes", &simhash_codes);
  TORCH_LSH_IMPL(m, "simhash_products", &simhash_products);
  TORCH_LSH_IMPL(m, "dwta_codes", &dwta_codes);
}

}  // namespace torch_lsh
