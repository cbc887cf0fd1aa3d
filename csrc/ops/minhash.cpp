// minhash_codes_csr: densified one-permutation hashing of sets, the columns of a row's nonzeros.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/hashes.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kGrainRows = 16;
constexpr uint64_t kEmpty = ~uint64_t{0};

Tensor minhash_codes_csr(const Tensor& crow, const Tensor& col, const Tensor& values, int64_t in_features,
                         int64_t num_tables, int64_t hashes_per_table, int64_t bits, int64_t seed) {
  TORCH_LSH_CHECK(num_tables >= 1, "num_tables is ", num_tables, "; wanted at least 1");
  TORCH_LSH_CHECK(bits >= 1 && bits <= kMaxCodeBits, "bits is ", bits, "; wanted 1 to ", kMaxCodeBits);
  TORCH_LSH_CHECK(hashes_per_table >= 1 && hashes_per_table * bits <= kMaxCodeBits, "hashes_per_table is ",
                  hashes_per_table, "; wanted 1 to ", kMaxCodeBits / bits);
  check_csr(crow, col, values, in_features);
  const int64_t rows = crow.size(0) - 1, num_hashes = num_tables * hashes_per_table;
  const auto* offset = crow.const_data_ptr<int64_t>();
  const auto* column = col.const_data_ptr<int64_t>();
  const auto* value = values.const_data_ptr<float>();
  const auto key = static_cast<uint64_t>(seed);
  Tensor codes = torch::stable::empty({rows, num_tables}, ScalarType::Int);
  auto* out = codes.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    thread_local std::vector<uint64_t> smallest;
    for (int64_t i = begin; i < end; ++i) {
      smallest.assign(num_hashes, kEmpty);
      bool any = false;
      for (int64_t j = offset[i]; j < offset[i + 1]; ++j) {
        if (value[j] == 0 || value[j] != value[j]) continue;
        // The upper half says which bin the column falls in, the lower half its place in the bin.
        const uint64_t place = random_bits(key, static_cast<uint64_t>(column[j]));
        const uint64_t bin = ((place >> 32) * static_cast<uint64_t>(num_hashes)) >> 32;
        smallest[bin] = std::min(smallest[bin], place & 0xffffffffu);
        any = true;
      }
      for (int64_t t = 0; t < num_tables; ++t) {
        int32_t code = 0;
        for (int64_t k = 0; k < hashes_per_table; ++k) {
          const int64_t h = t * hashes_per_table + k;
          int64_t bin = h;
          for (int64_t attempt = 0; smallest[bin] == kEmpty && any; ++attempt)
            bin = attempt < kBorrowAttempts
                      ? random_below(key, static_cast<uint64_t>(~(h * kBorrowAttempts + attempt)), num_hashes)
                      : (bin + 1) % num_hashes;
          const uint64_t least = smallest[bin];
          if (least != kEmpty)
            code |= static_cast<int32_t>(least & ((uint64_t{1} << bits) - 1)) << (k * bits);
        }
        out[i * num_tables + t] = code;
      }
    }
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("minhash_codes_csr", TORCH_BOX(&minhash_codes_csr));
}

}  // namespace torch_lsh
