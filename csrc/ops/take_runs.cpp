// take_runs: chosen runs of a tensor's numbers, one after the other, as a batch of sparse rows is made of a
// data set. Single-threaded: a batch is copied before other threads wake up.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "checks.h"
#include "ops/allocate.h"
#include "ops/operator.h"

namespace torch_lsh {
namespace {

constexpr int64_t kItemBytes = 4;  // of either dtype

std::tuple<Tensor, Tensor> take_runs(const Tensor& start, const Tensor& values, const Tensor& runs) {
  check_operand(start, "start", 1, ScalarType::Long);
  const ScalarType dtype = values.scalar_type();
  TORCH_LSH_CHECK(dtype == ScalarType::Int || dtype == ScalarType::Float, "values has dtype ",
                  torch::headeronly::toString(dtype), "; wanted Int or Float");
  check_operand(values, "values", 1, dtype);
  check_operand(runs, "runs", 1, ScalarType::Long);
  const int64_t count = runs.numel(), present = std::max<int64_t>(0, start.numel() - 1),
                size = values.numel();
  const int64_t *const from = start.const_data_ptr<int64_t>(), *const run = runs.const_data_ptr<int64_t>();
  Tensor taken_start = new_tensor({count + 1}, ScalarType::Long);
  int64_t* const to = taken_start.mutable_data_ptr<int64_t>();
  to[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    TORCH_LSH_CHECK(run[i] >= 0 && run[i] < present, "runs has ", run[i], " at position ", i,
                    "; wanted numbers from 0 to ", present - 1);
    const int64_t begin = from[run[i]], end = from[run[i] + 1];
    TORCH_LSH_CHECK(begin >= 0 && begin <= end && end <= size, "start has a run from ", begin, " to ", end,
                    "; wanted it within the ", size, " values");
    to[i + 1] = to[i] + (end - begin);
  }
  Tensor taken = new_tensor({to[count]}, dtype);
  const char* const source = static_cast<const char*>(values.const_data_ptr());
  char* const target = static_cast<char*>(taken.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i)
    if (to[i + 1] > to[i])
      std::memcpy(target + kItemBytes * to[i], source + kItemBytes * from[run[i]],
                  static_cast<size_t>(kItemBytes * (to[i + 1] - to[i])));
  return {taken_start, taken};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "take_runs", &take_runs);
}

}  // namespace torch_lsh
