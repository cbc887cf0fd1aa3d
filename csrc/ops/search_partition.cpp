// query_partition, search_partition: the rows of a partition (partition.cpp) that promise the largest inner
// products with a query.
//
// A query visits the buckets in the order of their scores until it has seen enough rows. The caller gives the
// scores (query_partition), or they are estimates from codes, as those of rows are (search_partition): one
// call answers a query then, and all that it reads are codes. One thread answers a query of a batch; of a
// single one, threads share the scores of the buckets, where they are many.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/partition.h"
#include "ops/shortlist.h"
#include "ops/sketch.h"

namespace torch_lsh {
namespace {

constexpr int64_t kLine = 64;              // bytes of a cache line
constexpr int64_t kAhead = 2;              // buckets that are asked for before they are visited
constexpr int64_t kMaxVector = 64;         // floats, for any instruction set
constexpr int64_t kScoredPerThread = 512;  // blocks of bucket codes, at least
constexpr float kRounding = 1e-6f;

// Buckets with rows in the order of their scores, largest first and NaN before all. Few of many are wanted,
// so only those above an estimate of the score of the last one wanted are sorted; the others follow once
// these were taken. Not thread-safe.
class BucketOrder {
 public:
  BucketOrder(const Head* heads, int64_t count) : heads_(heads), count_(count), hits_(count + 1) {}

  void start(const float* scores, int64_t wanted) {
    scores_ = scores;
    border_ = border_of(wanted);
    keys_.clear();
    position_ = 0;
    rest_ = true;
    const int64_t vector = scan_.vector, whole = count_ / vector * vector;
    float thresholds[kMaxVector];
    std::fill_n(thresholds, vector, border_);
    const int64_t found = scan_.scan(scores, whole, thresholds, vector, hits_.data());
    for (int64_t i = 0; i < found; ++i) add(hits_[i]);
    for (int64_t c = whole; c < count_; ++c)
      if (!(scores[c] <= border_)) add(c);
    std::sort(keys_.begin(), keys_.end(), std::greater<>());
  }

  // -1: there are no more.
  int64_t next() {
    if (position_ == keys_.size() && rest_) {
      rest_ = false;
      keys_.clear();
      position_ = 0;
      for (int64_t c = 0; c < count_; ++c)
        if (scores_[c] <= border_) add(c);
      std::sort(keys_.begin(), keys_.end(), std::greater<>());
    }
    return position_ == keys_.size() ? -1 : index_of(keys_[position_++]);
  }

  // The bucket that comes `steps` after the last one, or -1 where that is not known yet.
  int64_t peek(int64_t steps) const {
    const size_t position = position_ + steps - 1;
    return position < keys_.size() ? index_of(keys_[position]) : -1;
  }

 private:
  static constexpr int64_t kSample = 512, kSpare = 8;

  void add(int64_t bucket) {
    if (heads_[bucket].block >= 0) keys_.push_back(key_of(scores_[bucket], bucket));
  }

  float border_of(int64_t wanted) {
    const int64_t size = std::min(count_, kSample), rank = 3 * wanted * size / (2 * count_) + kSpare;
    sample_.clear();
    for (int64_t i = 0; i < size; ++i)
      if (const float score = scores_[i * count_ / size]; score == score) sample_.push_back(score);
    if (rank >= static_cast<int64_t>(sample_.size())) return -std::numeric_limits<float>::infinity();
    std::nth_element(sample_.begin(), sample_.begin() + rank, sample_.end(), std::greater<>());
    return sample_[rank];
  }

  const TopkKernels<float>& scan_ = kernels<TopkKernels<float>>();
  const Head* heads_;
  int64_t count_;
  const float* scores_ = nullptr;
  float border_ = 0;
  bool rest_ = false;
  size_t position_ = 0;
  std::vector<int32_t> hits_;
  std::vector<float> sample_;
  std::vector<uint64_t> keys_;
};

// A partition that is not changed while it is searched.
struct Store {
  int64_t width, bytes, blocks, num_buckets, bits;
  const float* centers;
  const uint8_t* codes;
  const BFloat16* factors;
  const int32_t *ids, *next;
  const Head* heads;

  // The tensor whose dimension `dim` is the width of the codes is named in errors.
  Store(const Tensor& wide, const char* name, int64_t dim, const Tensor& centers, const Tensor& codes,
        const Tensor& factors, const Tensor& ids, const Tensor& next, const Tensor& heads)
      : width(wide.size(dim)),
        bytes(codes.size(1)),
        blocks(codes.size(0)),
        num_buckets(heads.size(0) - 1),
        centers(centers.const_data_ptr<float>()),
        codes(codes.const_data_ptr<uint8_t>()),
        factors(static_cast<const BFloat16*>(factors.const_data_ptr())),
        ids(ids.const_data_ptr<int32_t>()),
        next(next.const_data_ptr<int32_t>()),
        heads(reinterpret_cast<const Head*>(heads.const_data_ptr<int32_t>())) {
    TORCH_LSH_CHECK(
        width > 0 && width % 8 == 0 && bytes > 0 && bytes % (width / 8) == 0 && bytes / (width / 8) <= 4,
        name, " has shape ", shape_of(wide), "; wanted 1 to 4 bits per column in the ", bytes,
        " bytes of a code");
    bits = bytes / (width / 8);
    const int64_t widest = UINT16_MAX / ((1 << bits) - 1) * 4;
    TORCH_LSH_CHECK(width <= widest, name, " has ", width, dim == 0 ? " rows" : " columns",
                    "; wanted at most ", widest, " with ", bits, " bits");
    check_size(centers, "centers", 0, num_buckets);
    check_size(centers, "centers", 1, width);
  }

  // How many of `count` buckets hold so many rows, on average: there are N / kSketchRows + C blocks for N
  // rows.
  int64_t buckets_of(int64_t rows, int64_t count) const {
    const int64_t all = std::max<int64_t>(1, (blocks - num_buckets) * kSketchRows);
    return std::min(count, rows / std::max<int64_t>(1, all / count) + 1);
  }

  // Inlined always: GCC drops calls of functions that do nothing but prefetch.
  [[gnu::always_inline]] inline void prefetch(int64_t block) const {
    for (int64_t j = 0; j < bytes; ++j) __builtin_prefetch(codes + (block * bytes + j) * kLine);
    for (int64_t j = 0; j < 4; ++j) __builtin_prefetch(factors + block * 2 * kSketchRows + j * kLine / 2);
  }

  [[gnu::always_inline]] inline void prefetch_bucket(int64_t bucket) const {
    for (int64_t j = 0; j < width; j += kLine / 4) __builtin_prefetch(centers + bucket * width + j);
    prefetch(heads[bucket].block);
  }
};

// Answers queries one by one. One per thread.
class Search {
 public:
  // The first `num_scores` buckets are scored; the others are not visited.
  Search(const Store& store, int64_t num_scores, int64_t max_candidates, int64_t examined)
      : store_(store),
        max_candidates_(max_candidates),
        examined_(examined),
        wanted_(store.buckets_of(examined, num_scores)),
        order_(store.heads, num_scores) {}

  // Writes the best rows, padded with -1; false where the partition is damaged.
  bool run(const float* query, const SignTables& tables, const float* scores, int64_t* out) {
    Shortlist shortlist(max_candidates_);
    order_.start(scores, wanted_);
    for (int64_t i = 1; i < kAhead; ++i)
      if (order_.peek(i) >= 0) store_.prefetch_bucket(order_.peek(i));
    visited_ = 0;
    for (int64_t seen = 0; seen < examined_;) {
      const int64_t bucket = order_.next();
      if (bucket < 0) break;
      if (order_.peek(kAhead) >= 0) store_.prefetch_bucket(order_.peek(kAhead));
      const int64_t rows = visit(bucket, query, tables, shortlist);
      if (rows < 0) return false;
      seen += rows;
    }
    std::vector<uint64_t> best = shortlist.best();
    std::sort(best.begin(), best.end(), std::greater<>());
    for (size_t i = 0; i < best.size(); ++i) out[i] = index_of(best[i]);
    std::fill(out + best.size(), out + max_candidates_, -1);
    return true;
  }

 private:
  // Offers the rows of a bucket to the shortlist; returns their number, or -1 where the chain is damaged.
  int64_t visit(int64_t bucket, const float* query, const SignTables& tables, Shortlist& shortlist) {
    const Head head = store_.heads[bucket];
    if (head.rows < 0 || head.rows > kSketchRows) return -1;
    float base;
    dot_(query, store_.centers, &bucket, 1, store_.width, &base);
    int64_t seen = 0, rows = head.rows;
    for (int64_t block = head.block; block >= 0; block = store_.next[block], rows = kSketchRows) {
      // as many blocks as there are: a chain that somebody closed to a ring
      if (block >= store_.blocks || ++visited_ > store_.blocks) return -1;
      const int64_t after = store_.next[block];
      if (after >= 0 && after < store_.blocks) store_.prefetch(after);
      compare(block, rows, base, tables, shortlist);
      seen += rows;
    }
    return seen;
  }

  void compare(int64_t block, int64_t rows, float base, const SignTables& tables, Shortlist& shortlist) {
    float estimates[kSketchRows], thresholds[kMaxVector];
    int32_t hits[kSketchRows + 1];
    sketch_(store_.codes + block * store_.bytes * kSketchRows, store_.factors + block * 2 * kSketchRows, 1,
            store_.bits, store_.width / 8, tables.entries.data(), tables.step, tables.base, estimates);
    // A little less, so that rounding rules nothing out that belongs into the shortlist.
    const float threshold = shortlist.threshold();
    std::fill_n(thresholds, scan_.vector,
                threshold - base - kRounding * (std::abs(threshold) + std::abs(base)));
    const int64_t found = scan_.scan(estimates, rows, thresholds, scan_.vector, hits);
    for (int64_t i = 0; i < found; ++i) {
      const int32_t row = store_.ids[block * kSketchRows + hits[i]];
      if (row >= 0) shortlist.offer(base + estimates[hits[i]], row);
    }
  }

  decltype(SketchKernels::scores) sketch_ = kernels<SketchKernels>().scores;
  decltype(DotKernels<float>::dot_rows) dot_ = kernels<DotKernels<float>>().dot_rows;
  const TopkKernels<float>& scan_ = kernels<TopkKernels<float>>();
  const Store& store_;
  int64_t max_candidates_, examined_, wanted_, visited_ = 0;
  BucketOrder order_;
};

// Runs answer(search, b) for every query b of a batch, split over threads.
template <typename Answer>
void for_each_query(const Store& store, int64_t num_scores, int64_t batch, int64_t max_candidates,
                    int64_t examined, const Answer& answer) {
  std::atomic<bool> damaged = false;
  parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    Search search(store, num_scores, max_candidates, examined);
    for (int64_t b = begin; b < end; ++b)
      if (!answer(search, b)) damaged = true;
  });
  TORCH_LSH_CHECK(!damaged,
                  "heads or next holds a block that is out of range or in two chains; wanted -1 to ",
                  store.blocks - 1);
}

Tensor query_partition(const Tensor& x, const Tensor& scores, const Tensor& centers, const Tensor& codes,
                       const Tensor& factors, const Tensor& ids, const Tensor& next, const Tensor& heads,
                       int64_t max_candidates, int64_t examined) {
  check_partition_shapes(codes, factors, ids, next, heads);
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(scores, "scores", 2, ScalarType::Float);
  check_operand(centers, "centers", 2, ScalarType::Float);
  const int64_t batch = x.size(0), width = x.size(1);
  const Store store(x, "x", 1, centers, codes, factors, ids, next, heads);
  check_size(scores, "scores", 0, batch);
  check_size(scores, "scores", 1, store.num_buckets);
  check_count(max_candidates, "max_candidates");
  check_count(examined, "examined");
  Tensor candidates = new_tensor({batch, max_candidates}, ScalarType::Long);
  auto* out = candidates.mutable_data_ptr<int64_t>();
  const auto* query = x.const_data_ptr<float>();
  const auto* score = scores.const_data_ptr<float>();
  for_each_query(store, store.num_buckets, batch, max_candidates, examined, [&](Search& search, int64_t b) {
    const SignTables tables(query + b * width, width, store.bits);
    return search.run(query + b * width, tables, score + b * store.num_buckets, out + b * max_candidates);
  });
  return candidates;
}

Tensor search_partition(const Tensor& x, const Tensor& query_map, const Tensor& bucket_codes,
                        const Tensor& bucket_factors, const Tensor& centers, const Tensor& codes,
                        const Tensor& factors, const Tensor& ids, const Tensor& next, const Tensor& heads,
                        int64_t max_candidates, int64_t examined) {
  check_partition_shapes(codes, factors, ids, next, heads);
  check_operand(x, "x", 2, ScalarType::Float);
  check_operand(query_map, "query_map", 2, ScalarType::Float);
  check_operand(bucket_codes, "bucket_codes", 3, ScalarType::Byte);
  check_operand(bucket_factors, "bucket_factors", 3, ScalarType::BFloat16);
  check_operand(centers, "centers", 2, ScalarType::Float);
  const int64_t batch = x.size(0), in = x.size(1), width = query_map.size(0);
  check_size(query_map, "query_map", 1, in);
  const Store store(query_map, "query_map", 0, centers, codes, factors, ids, next, heads);
  const int64_t bucket_blocks = bucket_codes.size(0),
                most = (store.num_buckets + kSketchRows - 1) / kSketchRows;
  TORCH_LSH_CHECK(bucket_blocks >= 1 && bucket_blocks <= most, "bucket_codes has shape ",
                  shape_of(bucket_codes), "; wanted 1 to ", most, " blocks for ", store.num_buckets,
                  " buckets");
  const int64_t bucket_bytes = bucket_codes.size(1), bucket_bits = bucket_bytes / (width / 8);
  TORCH_LSH_CHECK(bucket_bytes % (width / 8) == 0 && bucket_bits >= 1 && bucket_bits <= store.bits,
                  "bucket_codes has shape ", shape_of(bucket_codes), "; wanted 1 to ", store.bits, " times ",
                  width / 8, " bytes per code");
  check_size(bucket_codes, "bucket_codes", 2, kSketchRows);
  check_size(bucket_factors, "bucket_factors", 0, bucket_blocks);
  check_size(bucket_factors, "bucket_factors", 1, 2);
  check_size(bucket_factors, "bucket_factors", 2, kSketchRows);
  check_count(max_candidates, "max_candidates");
  check_count(examined, "examined");
  Tensor candidates = new_tensor({batch, max_candidates}, ScalarType::Long);
  auto* out = candidates.mutable_data_ptr<int64_t>();
  const auto* sample = x.const_data_ptr<float>();
  const auto* map = query_map.const_data_ptr<float>();
  const auto* code = bucket_codes.const_data_ptr<uint8_t>();
  const auto* factor = static_cast<const BFloat16*>(bucket_factors.const_data_ptr());
  const auto dot = kernels<DotKernels<float>>().dot_rows;
  const auto sketch = kernels<SketchKernels>().scores;
  std::vector<int64_t> columns(width);
  std::iota(columns.begin(), columns.end(), 0);
  const int64_t num_scores = std::min(store.num_buckets, bucket_blocks * kSketchRows);
  for_each_query(store, num_scores, batch, max_candidates, examined, [&](Search& search, int64_t b) {
    thread_local std::vector<float> query, scores;
    query.resize(width);
    scores.resize(bucket_blocks * kSketchRows);
    dot(sample + b * in, map, columns.data(), width, in, query.data());
    const SignTables tables(query.data(), width, store.bits);
    // Serial within the loop over the queries of a batch. Other threads have `scores` of their own.
    parallel_for(0, bucket_blocks, kScoredPerThread, [&, score = scores.data()](int64_t begin, int64_t end) {
      sketch(code + begin * bucket_bytes * kSketchRows, factor + begin * 2 * kSketchRows, end - begin,
             bucket_bits, width / 8, tables.entries.data(), tables.step, tables.base_of(bucket_bits),
             score + begin * kSketchRows);
    });
    return search.run(query.data(), tables, scores.data(), out + b * max_candidates);
  });
  return candidates;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "query_partition", &query_partition);
  TORCH_LSH_IMPL(m, "search_partition", &search_partition);
}

}  // namespace torch_lsh
