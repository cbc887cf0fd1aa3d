// sketch_candidates: the rows with the largest inner products with a query, as estimated from sign codes.
//
// Scores every row, but a code has only width / 8 bytes: a group of codes stays in cache while all queries
// scan it. Threads share the rows and keep a shortlist per query each; the result depends on the scores only.
#include "ops/sketch.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/shortlist.h"

namespace torch_lsh {
namespace {

constexpr int64_t kGroupsPerThread = 16;  // at least, of one query's or of several queries'
constexpr int64_t kGroup = 16;            // blocks per kernel call: 4 KiB of scores

Tensor sketch_candidates(const Tensor& x, const Tensor& codes, const Tensor& factors, int64_t num_rows,
                         int64_t count) {
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(codes, "codes", 3, ScalarType::Byte);
  check_operand(factors, "factors", 3, ScalarType::BFloat16);
  const int64_t batch = x.size(0), width = x.size(1), blocks = codes.size(0), bytes = codes.size(1);
  TORCH_LSH_CHECK(width > 0 && width % 8 == 0 && width / 8 == bytes && width <= 4 * UINT16_MAX,
                  "x has shape ", shape_of(x), "; wanted ", 8 * bytes, " columns, at most ", 4 * UINT16_MAX);
  check_size(codes, "codes", 2, kSketchRows);
  check_size(factors, "factors", 0, blocks);
  check_size(factors, "factors", 1, 2);
  check_size(factors, "factors", 2, kSketchRows);
  TORCH_LSH_CHECK(blocks <= INT32_MAX / kSketchRows, "codes has shape ", shape_of(codes), "; wanted at most ",
                  INT32_MAX / kSketchRows, " blocks");
  TORCH_LSH_CHECK(num_rows > (blocks - 1) * kSketchRows && num_rows <= blocks * kSketchRows, "num_rows is ",
                  num_rows, "; wanted ", (blocks - 1) * kSketchRows + 1, " to ", blocks * kSketchRows);
  TORCH_LSH_CHECK(count >= 1 && count <= num_rows, "count is ", count, "; wanted 1 to ", num_rows);
  Tensor candidates = new_tensor({batch, count}, ScalarType::Long);
  auto* out = candidates.mutable_data_ptr<int64_t>();
  const auto* code = codes.const_data_ptr<uint8_t>();
  const auto* factor = static_cast<const BFloat16*>(factors.const_data_ptr());
  const auto sketch_scores = kernels<SketchKernels>().scores;
  const auto scan = kernels<TopkKernels<float>>().scan;
  const int64_t vector = kernels<TopkKernels<float>>().vector;

  std::vector<SignTables> tables;
  for (int64_t b = 0; b < batch; ++b) tables.emplace_back(x.const_data_ptr<float>() + b * width, width, 1);
  const int64_t groups = (blocks + kGroup - 1) / kGroup;
  // Starting a thread takes as long as some groups.
  const int64_t worthwhile = std::min(groups, groups * batch / kGroupsPerThread + 1);
  const int64_t num_parts = std::min<int64_t>(worthwhile, torch::stable::get_num_threads());
  std::vector<std::vector<Shortlist>> parts(num_parts, std::vector<Shortlist>(batch, Shortlist(count)));
  parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    float scores[kGroup * kSketchRows], thresholds[64];
    int32_t hits[kGroup * kSketchRows + 1];
    for (int64_t part = begin; part < end; ++part)
      for (int64_t group = groups * part / num_parts; group < groups * (part + 1) / num_parts; ++group) {
        const int64_t first = group * kGroup, row = first * kSketchRows;
        const int64_t rows = std::min(kGroup * kSketchRows, num_rows - row);
        for (int64_t b = 0; b < batch; ++b) {
          Shortlist& shortlist = parts[part][b];
          sketch_scores(code + first * bytes * kSketchRows, factor + first * 2 * kSketchRows,
                        std::min(kGroup, blocks - first), 1, bytes, tables[b].entries.data(), tables[b].step,
                        tables[b].base, scores);
          std::fill_n(thresholds, vector, shortlist.threshold());
          const int64_t found = scan(scores, rows, thresholds, vector, hits);
          for (int64_t i = 0; i < found; ++i) shortlist.offer(scores[hits[i]], row + hits[i]);
        }
      }
  });
  parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> all;
    for (int64_t b = begin; b < end; ++b) {
      all.clear();
      for (const auto& part : parts) all.insert(all.end(), part[b].keys().begin(), part[b].keys().end());
      std::nth_element(all.begin(), all.begin() + count - 1, all.end(), std::greater<>());
      for (int64_t i = 0; i < count; ++i) out[b * count + i] = index_of(all[i]);
      std::sort(out + b * count, out + (b + 1) * count);
    }
  });
  return candidates;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "sketch_candidates", &sketch_candidates);
}

}  // namespace torch_lsh
