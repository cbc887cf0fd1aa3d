// zero_rows_: zeros, written by the threads that later work on the rows. The system puts a page of memory on
// the node of the thread that writes to it first; operators give each thread a contiguous part of the sorted
// active rows, which is about the same part of all rows.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "checks.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

void zero_rows_(Tensor table) {
  check_cpu(table, "table");
  check_contiguous(table, "table");
  TORCH_LSH_CHECK(table.dim() >= 1, "table has shape ", shape_of(table), "; wanted at least one dimension");
  const int64_t rows = table.size(0);
  if (table.numel() == 0) return;
  const int64_t bytes = table.numel() / rows * table.element_size();
  auto* const memory = static_cast<char*>(table.mutable_data_ptr());
  parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    std::memset(memory + begin * bytes, 0, static_cast<size_t>((end - begin) * bytes));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "zero_rows_", &zero_rows_);
}

}  // namespace torch_lsh
