// residual_codes, update_partition, query_partition: an inverted file of row codes.
//
// Layout: each of N rows belongs to one of C buckets. A bucket is a chain of blocks of kSketchRows rows
// (kernels/sketch.h), all full but the first.
//   ids [blocks, kSketchRows]: rows of each block; -1: none.
//   heads [C + 1, 2]: first block of each bucket (-1: none) and its number of rows; last, the free blocks.
//   next [blocks]: following block; -1: none.
//   places [N]: block * kSketchRows + position of each row (-1: not inserted); row_buckets [N]: its bucket.
// N / kSketchRows + C blocks suffice for any assignment.
//
// Threads: one thread updates a partition; a query belongs to one thread.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/shortlist.h"
#include "ops/sketch.h"

namespace torch_lsh {
namespace {

constexpr int64_t kHalf = kSketchRows / 2;
constexpr int64_t kLine = 64;  // bytes of a cache line
constexpr int64_t kGrainRows = 256;
constexpr float kRounding = 1e-6f;
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
  Tensor codes = torch::stable::empty({rows, bits * bytes}, ScalarType::Byte);
  Tensor factors = torch::stable::empty({rows}, ScalarType::Float);
  const auto* from = x.const_data_ptr<float>();
  const auto* center = centers.const_data_ptr<float>();
  auto* code = codes.mutable_data_ptr<uint8_t>();
  auto* factor = factors.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    Encoder encoder(width, bits);
    for (int64_t i = begin; i < end; ++i)
      factor[i] = encoder.encode(from + i * width, center + bucket[i] * width, code + i * bits * bytes);
  });
  return {codes, factors};
}

void check_partition(const Tensor& codes, const Tensor& factors, const Tensor& ids, const Tensor& next,
                     const Tensor& heads) {
  check_operand(codes, "codes", 3, ScalarType::Byte);
  check_operand(factors, "factors", 3, ScalarType::BFloat16);
  check_operand(ids, "ids", 2, ScalarType::Int);
  check_operand(next, "next", 1, ScalarType::Int);
  check_operand(heads, "heads", 2, ScalarType::Int);
  const int64_t blocks = codes.size(0);
  check_size(codes, "codes", 2, kSketchRows);
  check_size(factors, "factors", 0, blocks);
  check_size(factors, "factors", 1, 2);
  check_size(factors, "factors", 2, kSketchRows);
  check_size(ids, "ids", 0, blocks);
  check_size(ids, "ids", 1, kSketchRows);
  check_size(next, "next", 0, blocks);
  check_size(heads, "heads", 1, 2);
  TORCH_LSH_CHECK(heads.size(0) >= 2, "heads has shape ", shape_of(heads), "; wanted at least one bucket");
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

struct Head {
  int32_t block, rows;
};

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
        row_buckets_(row_buckets.mutable_data_ptr<int32_t>()) {}

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
  Tensor total = torch::stable::empty({}, ScalarType::Long);
  *total.mutable_data_ptr<int64_t>() = moved;
  return total;
}

// Iterates over non-empty buckets by score, largest first, NaN before all. Few of many are visited, so the
// heap starts with an estimate of the top quarter; the rest enter when that is exhausted.
class BucketOrder {
 public:
  void start(const float* scores, const Head* heads, int64_t count) {
    scores_ = scores;
    heads_ = heads;
    count_ = count;
    sample_.clear();
    for (int64_t i = 0; i < std::min(count, kSample); ++i)
      if (const float score = scores[i * count / std::min(count, kSample)]; score == score)
        sample_.push_back(score);
    border_ = -std::numeric_limits<float>::infinity();
    if (!sample_.empty()) {
      const auto border = sample_.begin() + static_cast<int64_t>(sample_.size()) / 4;
      std::nth_element(sample_.begin(), border, sample_.end(), std::greater<>());
      border_ = *border;
    }
    heap_.clear();
    waiting_ = true;
    fill([this](float score) { return !(score <= border_); });
  }

  // The next bucket; -1 after the last.
  int64_t next() {
    if (heap_.empty() && waiting_) {
      waiting_ = false;
      fill([this](float score) { return score <= border_; });
    }
    if (heap_.empty()) return -1;
    std::pop_heap(heap_.begin(), heap_.end());
    const int64_t bucket = index_of(heap_.back());
    heap_.pop_back();
    return bucket;
  }

  // The likely next bucket; -1 if unknown.
  int64_t peek() const { return heap_.empty() ? -1 : index_of(heap_.front()); }

 private:
  static constexpr int64_t kSample = 128;

  template <typename Wanted>
  void fill(const Wanted& wanted) {
    heap_.resize(count_);
    int64_t filled = 0;
    for (int64_t c = 0; c < count_; ++c) {  // branch-free: the outcome is unpredictable
      heap_[filled] = key_of(scores_[c], c);
      filled += wanted(scores_[c]) & (heads_[c].block >= 0);
    }
    heap_.resize(filled);
    std::make_heap(heap_.begin(), heap_.end());
  }

  const float* scores_ = nullptr;
  const Head* heads_ = nullptr;
  int64_t count_ = 0;
  float border_ = 0;
  bool waiting_ = false;
  std::vector<float> sample_;
  std::vector<uint64_t> heap_;
};

// The checked arguments of query_partition.
struct Lookup {
  const float *x, *scores, *centers;  // [batch, width], [batch, num_buckets], [num_buckets, width]
  const uint8_t* codes;
  const BFloat16* factors;
  const int32_t *ids, *next;
  const Head* heads;
  int64_t width, bits, bytes, blocks, num_buckets;
  int64_t max_candidates, examined;
};

// Answers queries one by one. Not thread-safe: one per thread.
class Search {
 public:
  explicit Search(const Lookup& in)
      : in_(in),
        sketch_scores_(kernels<SketchKernels>().scores),
        dot_(kernels<DotKernels<float>>().dot_rows),
        scan_(kernels<TopkKernels<float>>().scan),
        vector_(kernels<TopkKernels<float>>().vector) {}

  // Writes the max_candidates best rows of a query, padded with -1. Visits buckets in the order of their
  // scores until `examined` rows have been scored.
  void run(int64_t query, int64_t* out) {
    const float* const x = in_.x + query * in_.width;
    const SignTables tables(x, in_.width, in_.bits);
    Shortlist shortlist(in_.max_candidates);
    order_.start(in_.scores + query * in_.num_buckets, in_.heads, in_.num_buckets);
    visited_ = 0;
    for (int64_t seen = 0; seen < in_.examined;) {
      const int64_t bucket = order_.next();
      if (bucket < 0) break;
      if (order_.peek() >= 0) prefetch(in_.heads[order_.peek()].block);
      float base;
      dot_(x, in_.centers, &bucket, 1, in_.width, &base);
      seen += score_bucket(in_.heads[bucket], tables, base, shortlist);
    }
    write(shortlist, out);
  }

 private:
  // Offers the rows of a bucket to the shortlist; returns their number. base: x · center.
  int64_t score_bucket(const Head& head, const SignTables& tables, float base, Shortlist& shortlist) {
    int64_t seen = 0;
    for (int64_t block = head.block; block >= 0; block = in_.next[block]) {
      if (++visited_ > in_.blocks) break;  // invalid input: the chain is a ring
      if (in_.next[block] >= 0) prefetch(in_.next[block]);
      const int64_t rows = block == head.block ? head.rows : kSketchRows;
      sketch_scores_(in_.codes + block * in_.bytes * kSketchRows, in_.factors + block * 2 * kSketchRows, 1,
                     in_.bits, in_.width / 8, tables.entries.data(), tables.step, tables.base, estimates_);
      // Lowered by the rounding error, so that the scan drops no row of the shortlist.
      const float threshold = shortlist.threshold();
      std::fill_n(thresholds_, vector_,
                  threshold - base - kRounding * (std::abs(threshold) + std::abs(base)));
      const int64_t found = scan_(estimates_, rows, thresholds_, vector_, hits_);
      for (int64_t i = 0; i < found; ++i) {
        const int32_t row = in_.ids[block * kSketchRows + hits_[i]];
        if (row >= 0) shortlist.offer(base + estimates_[hits_[i]], row);
      }
      seen += rows;
    }
    return seen;
  }

  void prefetch(int64_t block) const {
    for (int64_t j = 0; j < in_.bytes; ++j) __builtin_prefetch(in_.codes + (block * in_.bytes + j) * kLine);
    for (int64_t j = 0; j < 4; ++j) __builtin_prefetch(in_.factors + block * 2 * kSketchRows + j * kLine / 2);
  }

  void write(const Shortlist& shortlist, int64_t* out) const {
    std::vector<uint64_t> best = shortlist.keys();
    const auto count = std::min<int64_t>(in_.max_candidates, static_cast<int64_t>(best.size()));
    if (count < static_cast<int64_t>(best.size()))
      std::nth_element(best.begin(), best.begin() + count, best.end(), std::greater<>());
    std::sort(best.begin(), best.begin() + count, std::greater<>());
    for (int64_t i = 0; i < count; ++i) out[i] = index_of(best[i]);
    std::fill_n(out + count, in_.max_candidates - count, -1);
  }

  const Lookup& in_;
  decltype(SketchKernels::scores) const sketch_scores_;
  decltype(DotKernels<float>::dot_rows) const dot_;
  decltype(TopkKernels<float>::scan) const scan_;
  const int64_t vector_;
  BucketOrder order_;
  int64_t visited_ = 0;  // blocks of the query
  float estimates_[kSketchRows], thresholds_[64];
  int32_t hits_[kSketchRows + 1];
};

Lookup checked_lookup(const Tensor& x, const Tensor& scores, const Tensor& centers, const Tensor& codes,
                      const Tensor& factors, const Tensor& ids, const Tensor& next, const Tensor& heads,
                      int64_t max_candidates, int64_t examined) {
  check_partition(codes, factors, ids, next, heads);
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(scores, "scores", 2, ScalarType::Float);
  check_operand(centers, "centers", 2, ScalarType::Float);
  const int64_t batch = x.size(0), width = x.size(1), bytes = codes.size(1), blocks = codes.size(0);
  const int64_t num_buckets = heads.size(0) - 1;
  TORCH_LSH_CHECK(width > 0 && width % 8 == 0 && bytes > 0 && 8 * bytes % width == 0 && 2 * bytes <= width,
                  "x has shape ", shape_of(x), "; wanted 1 to 4 bits per column in the ", bytes,
                  " bytes of a code");
  const int64_t bits = 8 * bytes / width, widest = UINT16_MAX / ((1 << bits) - 1) * 4;
  TORCH_LSH_CHECK(width <= widest, "x has ", width, " columns; wanted at most ", widest, " with ", bits,
                  " bits");
  check_size(scores, "scores", 0, batch);
  check_size(scores, "scores", 1, num_buckets);
  check_size(centers, "centers", 0, num_buckets);
  check_size(centers, "centers", 1, width);
  TORCH_LSH_CHECK(max_candidates >= 1, "max_candidates is ", max_candidates, "; wanted at least 1");
  TORCH_LSH_CHECK(examined >= 1, "examined is ", examined, "; wanted at least 1");
  return {x.const_data_ptr<float>(),
          scores.const_data_ptr<float>(),
          centers.const_data_ptr<float>(),
          codes.const_data_ptr<uint8_t>(),
          static_cast<const BFloat16*>(factors.const_data_ptr()),
          ids.const_data_ptr<int32_t>(),
          next.const_data_ptr<int32_t>(),
          reinterpret_cast<const Head*>(heads.const_data_ptr<int32_t>()),
          width,
          bits,
          bytes,
          blocks,
          num_buckets,
          max_candidates,
          examined};
}

Tensor query_partition(const Tensor& x, const Tensor& scores, const Tensor& centers, const Tensor& codes,
                       const Tensor& factors, const Tensor& ids, const Tensor& next, const Tensor& heads,
                       int64_t max_candidates, int64_t examined) {
  const Lookup lookup =
      checked_lookup(x, scores, centers, codes, factors, ids, next, heads, max_candidates, examined);
  Tensor candidates = torch::stable::empty({x.size(0), max_candidates}, ScalarType::Long);
  auto* out = candidates.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    Search search(lookup);
    for (int64_t b = begin; b < end; ++b) search.run(b, out + b * max_candidates);
  });
  return candidates;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("residual_codes", TORCH_BOX(&residual_codes));
  m.impl("update_partition", TORCH_BOX(&update_partition));
  m.impl("query_partition", TORCH_BOX(&query_partition));
}

}  // namespace torch_lsh
