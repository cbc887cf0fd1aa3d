// residual_codes, update_partition: an inverted file of row codes.
//
// Layout: each of N rows belongs to one of C buckets. A bucket is a chain of blocks of kSketchRows rows
// (kernels/sketch.h), all full but the first.
//   ids [blocks, kSketchRows]: rows of each block; -1: none.
//   heads [C + 1, 2]: first block of each bucket (-1: none) and its number of rows; last, the free blocks.
//   next [blocks]: following block; -1: none.
//   places [N]: block * kSketchRows + position of each row (-1: not inserted); row_buckets [N]: its bucket.
// N / kSketchRows + C blocks suffice for any assignment.
//
// Threads: one thread updates a partition.
#include "ops/partition.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kHalf = kSketchRows / 2;
constexpr int64_t kGrainRows = 256;
constexpr BFloat16 kZero{0}, kMinusInfinity{0xff80};

// Step, in standard deviations, of the uniform quantizer with least squared error for normally distributed
// numbers, for 1 to 4 bits (Max, "Quantizing for Minimum Distortion", 1960).
constexpr float kLevelSteps[] = {1.5958f, 0.9957f, 0.5860f, 0.3352f};

// Packs the lowest bits of eight bytes into one byte.
uint8_t gather_bits(uint64_t bytes) {
  return ((bytes & 0x0101010101010101) * 0x0102040810204080) >> 56;
}

float sum_of(const float (&parts)[8]) {
  float sum = 0;
  for (const float part : parts) sum += part;
  return sum;
}

// Encodes row - center at `bits` bits per dimension.
class Encoder {
 public:
  Encoder(int64_t width, int64_t bits)
      : width_(width), bits_(bits), top_((1 << bits) - 1), difference_(width), level_(width) {}

  // Writes code [bits, width / 8]; returns the factor that scales its products.
  float encode(const float* row, const float* center, uint8_t* code) {
    const float highest = static_cast<float>(top_), half = (highest + 1) / 2;
    float squares[8] = {}, products[8] = {};
    for (int64_t j = 0; j < width_; j += 8)
      for (int64_t k = 0; k < 8; ++k) {
        difference_[j + k] = row[j + k] - center[j + k];
        squares[k] += difference_[j + k] * difference_[j + k];
      }
    const float square = sum_of(squares);
    const float scale = 1 / (kLevelSteps[bits_ - 1] * std::sqrt(square / static_cast<float>(width_)));
    for (int64_t j = 0; j < width_; j += 8)
      for (int64_t k = 0; k < 8; ++k) {
        // NaN, such as 0 * inf of a zero difference, gives the highest level.
        const float place = std::max(0.0f, std::min(highest, difference_[j + k] * scale + half));
        level_[j + k] = static_cast<uint8_t>(place);
        products[k] += difference_[j + k] * static_cast<float>(2 * level_[j + k] - top_);
      }
    write_planes(code);
    return square / std::max(sum_of(products), 1e-30f);
  }

 private:
  void write_planes(uint8_t* code) const {
    const int64_t bytes = width_ / 8;
    for (int64_t j = 0; j < bytes; ++j) {
      uint64_t eight;
      __builtin_memcpy(&eight, level_.data() + 8 * j, sizeof(eight));
      for (int64_t plane = 0; plane < bits_; ++plane)
        code[plane * bytes + j] = gather_bits(eight >> (bits_ - 1 - plane));
    }
  }

  const int64_t width_, bits_;
  const int32_t top_;
  std::vector<float> difference_;
  std::vector<uint8_t> level_;
};

std::tuple<Tensor, Tensor> residual_codes(const Tensor& x, const Tensor& centers, const Tensor& buckets,
                                          int64_t bits) {
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(centers, "centers", 2, ScalarType::Float);
  check_operand(buckets, "buckets", 1, ScalarType::Int);
  const int64_t rows = x.size(0), width = x.size(1), bytes = width / 8;
  TORCH_LSH_CHECK(bits >= 1 && bits <= 4, "bits is ", bits, "; wanted 1 to 4");
  TORCH_LSH_CHECK(width % 8 == 0, "x has shape ", shape_of(x), "; wanted a multiple of 8 columns");
  check_size(centers, "centers", 1, width);
  check_size(buckets, "buckets", 0, rows);
  const auto* bucket = buckets.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows; ++i)
    TORCH_LSH_CHECK(bucket[i] >= 0 && bucket[i] < centers.size(0), "buckets holds ", bucket[i],
                    "; wanted 0 to ", centers.size(0) - 1);
  Tensor codes = new_tensor({rows, bits * bytes}, ScalarType::Byte);
  Tensor factors = new_tensor({rows}, ScalarType::Float);
  const auto* from = x.const_data_ptr<float>();
  const auto* center = centers.const_data_ptr<float>();
  auto* code = codes.mutable_data_ptr<uint8_t>();
  auto* factor = factors.mutable_data_ptr<float>();
  parallel_for(0, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    Encoder encoder(width, bits);
    for (int64_t i = begin; i < end; ++i)
      factor[i] = encoder.encode(from + i * width, center + bucket[i] * width, code + i * bits * bytes);
  });
  return {codes, factors};
}

void check_partition(const Tensor& codes, const Tensor& factors, const Tensor& ids, const Tensor& next,
                     const Tensor& heads) {
  check_partition_shapes(codes, factors, ids, next, heads);
  const int64_t blocks = codes.size(0);
  const auto* follower = next.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < blocks; ++b)
    TORCH_LSH_CHECK(follower[b] >= -1 && follower[b] < blocks, "next holds ", follower[b], "; wanted -1 to ",
                    blocks - 1);
  const auto* head = heads.const_data_ptr<int32_t>();
  for (int64_t c = 0; c < heads.size(0); ++c)
    TORCH_LSH_CHECK(
        head[2 * c] >= -1 && head[2 * c] < blocks && head[2 * c + 1] >= 0 && head[2 * c + 1] <= kSketchRows,
        "heads holds block ", head[2 * c], " with ", head[2 * c + 1], " rows; wanted -1 to ", blocks - 1,
        " with 0 to ", kSketchRows);
}

// A partition under change. Not thread-safe.
class Partition {
 public:
  Partition(Tensor& codes, Tensor& factors, Tensor& ids, Tensor& next, Tensor& heads, Tensor& places,
            Tensor& row_buckets)
      : bytes_(codes.size(1)),
        codes_(codes.mutable_data_ptr<uint8_t>()),
        factors_(static_cast<BFloat16*>(factors.mutable_data_ptr())),
        ids_(ids.mutable_data_ptr<int32_t>()),
        next_(next.mutable_data_ptr<int32_t>()),
        heads_(reinterpret_cast<Head*>(heads.mutable_data_ptr<int32_t>())),
        free_(heads_[heads.size(0) - 1].block),
        places_(places.mutable_data_ptr<int32_t>()),
        row_buckets_(row_buckets.mutable_data_ptr<int32_t>()),
        num_rows_(places.size(0)) {}

  // Writes a row's code, moving the row to `bucket`; returns whether it moved.
  bool put(int64_t row, int32_t bucket, const uint8_t* code, const BFloat16* factors) {
    const bool moves = places_[row] < 0 || row_buckets_[row] != bucket;
    if (moves) {
      if (places_[row] >= 0) remove(row);
      insert(row, bucket);
    }
    const int64_t block = places_[row] / kSketchRows, position = places_[row] % kSketchRows;
    for (int64_t j = 0; j < bytes_; ++j) *byte(block, position, j) = code[j];
    for (int64_t i = 0; i < 2; ++i) *factor(block, position, i) = factors[i];
    return moves;
  }

 private:
  uint8_t* byte(int64_t block, int64_t position, int64_t j) const {
    return codes_ + (block * bytes_ + j) * kSketchRows + position % kHalf * 2 + position / kHalf;
  }

  BFloat16* factor(int64_t block, int64_t position, int64_t i) const {
    return factors_ + (2 * block + i) * kSketchRows + position;
  }

  void insert(int64_t row, int32_t bucket) {
    Head& head = heads_[bucket];
    if (head.block < 0 || head.rows == kSketchRows) {
      TORCH_LSH_CHECK(free_ >= 0, "heads has no free block; wanted num_rows / ", kSketchRows,
                      " + buckets blocks in all");
      const int32_t block = free_;
      free_ = next_[block];
      next_[block] = head.block;
      head = {block, 0};
    }
    const int64_t place = head.block * kSketchRows + head.rows++;
    ids_[place] = static_cast<int32_t>(row);
    places_[row] = static_cast<int32_t>(place);
    row_buckets_[row] = bucket;
  }

  // The last row of the first block fills the gap.
  void remove(int64_t row) {
    Head& head = heads_[row_buckets_[row]];
    TORCH_LSH_CHECK(head.block >= 0 && head.rows > 0 && ids_[places_[row]] == row, "places[", row, "] is ",
                    places_[row], "; wanted the place of row ", row, " in ids");
    const int64_t place = places_[row], block = place / kSketchRows, position = place % kSketchRows;
    const int64_t last = --head.rows, from = head.block;
    if (from * kSketchRows + last != place) {
      for (int64_t j = 0; j < bytes_; ++j) *byte(block, position, j) = *byte(from, last, j);
      for (int64_t i = 0; i < 2; ++i) *factor(block, position, i) = *factor(from, last, i);
      const int32_t moved = ids_[from * kSketchRows + last];
      TORCH_LSH_CHECK(moved >= 0 && moved < num_rows_, "ids[", from, ", ", last, "] is ", moved,
                      "; wanted 0 to ", num_rows_ - 1);
      ids_[place] = moved;
      places_[moved] = static_cast<int32_t>(place);
    }
    ids_[from * kSketchRows + last] = -1;
    *factor(from, last, 0) = kZero;
    *factor(from, last, 1) = kMinusInfinity;
    if (last > 0) return;
    const int32_t freed = head.block;
    head = {next_[freed], next_[freed] < 0 ? 0 : static_cast<int32_t>(kSketchRows)};
    next_[freed] = free_;
    free_ = freed;
  }

  int64_t bytes_;
  uint8_t* codes_;
  BFloat16* factors_;
  int32_t *ids_, *next_;
  Head* heads_;
  int32_t& free_;
  int32_t *places_, *row_buckets_;
  int64_t num_rows_;
};

Tensor update_partition(Tensor codes, Tensor factors, Tensor ids, Tensor next, Tensor heads, Tensor places,
                        Tensor row_buckets, const Tensor& rows, const Tensor& buckets,
                        const Tensor& row_codes, const Tensor& row_factors) {
  check_partition(codes, factors, ids, next, heads);
  check_operand(places, "places", 1, ScalarType::Int);
  check_operand(row_buckets, "row_buckets", 1, ScalarType::Int);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_operand(buckets, "buckets", 1, ScalarType::Int);
  check_operand(row_codes, "row_codes", 2, ScalarType::Byte);
  check_operand(row_factors, "row_factors", 2, ScalarType::BFloat16);
  const int64_t num_rows = places.size(0), blocks = codes.size(0), bytes = codes.size(1),
                count = rows.size(0);
  const int64_t num_buckets = heads.size(0) - 1;
  check_size(row_buckets, "row_buckets", 0, num_rows);
  check_size(buckets, "buckets", 0, count);
  check_size(row_codes, "row_codes", 0, count);
  check_size(row_codes, "row_codes", 1, bytes);
  check_size(row_factors, "row_factors", 0, count);
  check_size(row_factors, "row_factors", 1, 2);
  const auto* row = rows.const_data_ptr<int64_t>();
  const auto* bucket = buckets.const_data_ptr<int32_t>();
  const auto* place = places.const_data_ptr<int32_t>();
  const auto* current = row_buckets.const_data_ptr<int32_t>();
  check_rows_in_range(row, count, num_rows, "rows");
  for (int64_t i = 0; i < count; ++i) {
    TORCH_LSH_CHECK(bucket[i] >= 0 && bucket[i] < num_buckets, "buckets holds ", bucket[i], "; wanted 0 to ",
                    num_buckets - 1);
    TORCH_LSH_CHECK(place[row[i]] < blocks * kSketchRows &&
                        (place[row[i]] < 0 || (current[row[i]] >= 0 && current[row[i]] < num_buckets)),
                    "row ", row[i], " is at place ", place[row[i]], " of bucket ", current[row[i]],
                    "; wanted places in ", blocks, " blocks and buckets 0 to ", num_buckets - 1);
  }
  const auto* code = row_codes.const_data_ptr<uint8_t>();
  const auto* factor = static_cast<const BFloat16*>(row_factors.const_data_ptr());
  Partition partition(codes, factors, ids, next, heads, places, row_buckets);
  int64_t moved = 0;
  for (int64_t i = 0; i < count; ++i)
    moved += partition.put(row[i], bucket[i], code + i * bytes, factor + 2 * i);
  Tensor total = new_tensor({}, ScalarType::Long);
  *total.mutable_data_ptr<int64_t>() = moved;
  return total;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "residual_codes", &residual_codes);
  TORCH_LSH_IMPL(m, "update_partition", &update_partition);
}

}  // namespace torch_lsh
