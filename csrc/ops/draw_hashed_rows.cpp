// draw_hashed_rows: the active rows of a step from SimHash tables, in one call. The operators that it
// consists of take longer to call than to run where layer and batch are small.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/hashes.h"
#include "ops/operator.h"
#include "ops/select_rows.h"
#include "ops/tables.h"

namespace torch_lsh {
namespace {

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
  const Tensor found =
      query_tables(ids, counts, row_codes, codes, max_candidates, min_matches, vanilla, std::nullopt);
  check_rows_below(found.const_data_ptr<int64_t>(), found.numel(), num_rows, "ids holds row");
  return select_rows(labels, found, num_rows, active, num_random, seed, per_sample, carried);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "draw_hashed_rows", &draw_hashed_rows);
}

}  // namespace torch_lsh
