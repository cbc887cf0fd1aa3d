// hadamard_products, hadamard_codes, cross_polytope_codes: hash codes from structured random projections.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/hashes.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

struct Projection {
  const float* signs;  // [blocks, 3, size]
  const float* rest;   // [width - size or 0, count]
  int64_t width, size, count;

  int64_t scratch() const { return (width + size + count) * kHadamardRows; }
};

Projection projection_of(const Tensor& x, const Tensor& signs, const Tensor& rest) {
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(signs, "signs", 3, ScalarType::Float);
  check_operand(rest, "rest", 2, ScalarType::Float);
  check_size(signs, "signs", 1, 3);
  const int64_t width = x.size(1), size = signs.size(2), count = rest.size(1);
  TORCH_LSH_CHECK(size >= 1 && (size & (size - 1)) == 0, "signs has shape ", shape_of(signs),
                  "; wanted a power of two in dimension 2");
  TORCH_LSH_CHECK(signs.size(0) * size >= count, "signs has shape ", shape_of(signs), "; wanted at least ",
                  (count + size - 1) / size, " blocks for ", count, " products");
  check_size(rest, "rest", 0, std::max<int64_t>(width - size, 0));
  return {signs.const_data_ptr<float>(), rest.const_data_ptr<float>(), width, size, count};
}

// Calls use(first row, number of rows, products [count][kHadamardRows]) for every tile, in parallel.
template <typename Use>
void for_each_tile(const Tensor& x, const Projection& projection, const Use& use) {
  if (projection.count == 0) return;
  const auto* rows = x.const_data_ptr<float>();
  const auto project = kernels<HadamardKernels>().project;
  const int64_t total = x.size(0), tiles = (total + kHadamardRows - 1) / kHadamardRows;
  parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;
    scratch.resize(projection.scratch());
    float* const products = scratch.data() + (projection.width + projection.size) * kHadamardRows;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kHadamardRows, height = std::min(kHadamardRows, total - first);
      project(rows + first * projection.width, height, projection.width, projection.signs, projection.size,
              projection.rest, projection.count, scratch.data(), products);
      use(first, height, products);
    }
  });
}

Tensor hadamard_products(const Tensor& x, const Tensor& signs, const Tensor& rest) {
  const Projection projection = projection_of(x, signs, rest);
  const int64_t count = projection.count;
  Tensor out = new_tensor({x.size(0), count}, ScalarType::Float);
  auto* product = out.mutable_data_ptr<float>();
  for_each_tile(x, projection, [&](int64_t first, int64_t height, const float* tile) {
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < count; ++c) product[(first + r) * count + c] = tile[c * kHadamardRows + r];
  });
  return out;
}

Tensor hadamard_codes(const Tensor& x, const Tensor& signs, const Tensor& rest, int64_t hashes_per_table) {
  const Projection projection = projection_of(x, signs, rest);
  const int64_t num_tables = count_tables(rest, "rest", 1, hashes_per_table, 1);
  Tensor codes = new_tensor({x.size(0), num_tables}, ScalarType::Int);
  auto* out = codes.mutable_data_ptr<int32_t>();
  const auto pack = kernels<HadamardKernels>().pack_signs;
  for_each_tile(x, projection, [&](int64_t first, int64_t height, const float* tile) {
    pack(tile, num_tables, hashes_per_table, height, out + first * num_tables);
  });
  return codes;
}

Tensor cross_polytope_codes(const Tensor& x, const Tensor& signs, const Tensor& rest, int64_t dimension,
                            int64_t hashes_per_table) {
  const Projection projection = projection_of(x, signs, rest);
  TORCH_LSH_CHECK(dimension >= 1 && dimension <= 1 << 20 && (dimension & (dimension - 1)) == 0,
                  "dimension is ", dimension, "; wanted a power of two up to 2^20");
  const int64_t bits = __builtin_ctzll(static_cast<uint64_t>(2 * dimension));
  count_tables(rest, "rest", 1, hashes_per_table, bits);
  const int64_t per_table = hashes_per_table * dimension, num_tables = projection.count / per_table;
  TORCH_LSH_CHECK(projection.count % per_table == 0, "rest has shape ", shape_of(rest),
                  "; wanted a multiple of hashes_per_table * dimension = ", per_table, " in dimension 1");
  Tensor codes = new_tensor({x.size(0), num_tables}, ScalarType::Int);
  auto* out = codes.mutable_data_ptr<int32_t>();
  const auto pack = kernels<HadamardKernels>().pack_vertices;
  for_each_tile(x, projection, [&](int64_t first, int64_t height, const float* tile) {
    pack(tile, num_tables, hashes_per_table, dimension, bits, height, out + first * num_tables);
  });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "hadamard_products", &hadamard_products);
  TORCH_LSH_IMPL(m, "hadamard_codes", &hadamard_codes);
  TORCH_LSH_IMPL(m, "cross_polytope_codes", &cross_polytope_codes);
}

}  // namespace torch_lsh
