// draw_hashed_rows: the active rows of a step from SimHash tables, in one call. The operators that it
// consists of take longer to call than to run where layer and batch are small.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/hashes.h"
#include "ops/operator.h"
#include "ops/select_rows.h"
#include "ops/tables.h"

namespace torch_lsh {
namespace {

// Codes [B, L] of at most 8 bits as bytes, padded with 0: [B, ceil(L / 4)] int32. A look-up reads the codes
// of hundreds of rows, each a cache miss: packed ones take fewer lines.
Tensor packed(const Tensor& codes) {
  const int64_t batch = codes.size(0), tables = codes.size(1), words = (tables + 3) / 4;
  Tensor out = new_tensor({batch, words}, ScalarType::Int);
  const auto* code = codes.const_data_ptr<int32_t>();
  auto* const bytes = reinterpret_cast<uint8_t*>(out.mutable_data_ptr<int32_t>());
  std::fill_n(bytes, batch * words * 4, 0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < tables; ++t) bytes[b * words * 4 + t] = static_cast<uint8_t>(*code++);
  return out;
}

ActiveSet draw_hashed_rows(const Tensor& x, const Tensor& labels, const std::optional<Tensor>& carried,
                           const Tensor& ids, const Tensor& counts, const std::optional<Tensor>& row_codes,
                           const Tensor& projections, int64_t hashes_per_table, int64_t zeros,
                           int64_t min_matches, bool vanilla, int64_t first, int64_t every,
                           int64_t max_candidates, int64_t num_rows, int64_t active, int64_t num_random,
                           int64_t seed, bool per_sample) {
  check_dim(ids, "ids", 3);
  check_dim(labels, "labels", 2);
  const Tensor codes = simhash_codes(query_vectors(x, zeros, first, every), projections, hashes_per_table);
  TORCH_LSH_CHECK(codes.size(1) == ids.size(0), "projections has shape ", shape_of(projections),
                  "; wanted hashes_per_table columns for each of ", ids.size(0), " tables");
  check_size(ids, "ids", 1, int64_t{1} << hashes_per_table);
  TORCH_LSH_CHECK(!per_sample || codes.size(0) == labels.size(0), "first and every choose ", codes.size(0),
                  " samples of x; wanted one for each of ", labels.size(0), " rows of labels");
  std::optional<Tensor> query_codes;
  const int64_t tables = codes.size(1);
  if (row_codes.has_value() && row_codes->dim() == 2 && row_codes->size(1) < tables &&
      row_codes->size(1) == (tables + 3) / 4 && hashes_per_table <= 8)
    query_codes = packed(codes);
  const Tensor found =
      query_tables(ids, counts, row_codes, codes, max_candidates, min_matches, vanilla, query_codes);
  check_rows_below(found.const_data_ptr<int64_t>(), found.numel(), num_rows, "ids holds row");
  return select_rows(labels, found, num_rows, active, num_random, seed, per_sample, carried);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "draw_hashed_rows", &draw_hashed_rows);
}

}  // namespace torch_lsh
