// build_tables, update_tables, insert_labels, query_tables: hash tables of row ids.
//
// Layout: L tables of 2^bucket_bits buckets of fixed capacity. ids [L, buckets, bucket_size] int32, the first
// counts [L, buckets] entries of a bucket in use; row_buckets [N, L], the bucket of each row.
//
// A full bucket keeps the rows of lowest priority, a pure function of (seed, table, row): a uniform sample in
// any order of insertion, like a reservoir's. With `fifo` it keeps the rows inserted last, oldest first. A
// row without room returns when its bucket changes, or at the next build.
//
// Threads: build and update give each table to one thread; a query belongs to one thread.
#include "ops/tables.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/huge_pages.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kMaxBucketBits = 30;
constexpr int64_t kPrefetch = 8;  // prefetch distance, in insertions
constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kGrainRows = 256;
constexpr int64_t kExamined = 8;  // codes compared per candidate returned

// One table. Not thread-safe: one thread owns it.
struct Table {
  int32_t* ids;
  int32_t* counts;
  int64_t bucket_size;
  uint64_t seed;
  bool fifo;

  int32_t* bucket(int64_t number) const { return ids + number * bucket_size; }

  int64_t fill(int64_t number) const { return std::clamp<int64_t>(counts[number], 0, bucket_size); }

  uint64_t priority(int32_t row) const { return random_bits(seed, static_cast<uint64_t>(row)); }

  void prefetch(int64_t number) const {
    __builtin_prefetch(counts + number);
    __builtin_prefetch(bucket(number));
  }

  // A full bucket holds the row to evict next in entry 0.
  void move_worst_to_front(int32_t* rows) const {
    int64_t worst = 0;
    uint64_t worst_priority = priority(rows[0]);
    for (int64_t i = 1; i < bucket_size; ++i) {
      const uint64_t p = priority(rows[i]);
      if (p > worst_priority) {
        worst = i;
        worst_priority = p;
      }
    }
    std::swap(rows[0], rows[worst]);
  }

  // forced: insert even the row that would be evicted next.
  void insert(int64_t number, int32_t row, bool forced = false) const {
    int32_t* rows = bucket(number);
    const int64_t used = fill(number);
    if (used < bucket_size) {
      rows[used] = row;
      counts[number] = static_cast<int32_t>(used + 1);
      if (!fifo && used + 1 == bucket_size) move_worst_to_front(rows);
    } else if (fifo) {
      std::copy(rows + 1, rows + used, rows);
      rows[used - 1] = row;
    } else if (forced || priority(row) < priority(rows[0])) {
      rows[0] = row;
      move_worst_to_front(rows);
    }
  }

  bool contains(int64_t number, int32_t row) const {
    const int32_t* rows = bucket(number);
    return std::find(rows, rows + fill(number), row) != rows + fill(number);
  }

  void remove(int64_t number, int32_t row) const {
    int32_t* rows = bucket(number);
    const int64_t used = fill(number);
    int32_t* found = std::find(rows, rows + used, row);
    if (found == rows + used) return;  // had no room
    if (fifo) {
      std::copy(found + 1, rows + used, found);
    } else {
      *found = rows[used - 1];
    }
    counts[number] = static_cast<int32_t>(used - 1);
  }
};

Table table_of(int32_t* ids, int32_t* counts, int64_t num_buckets, int64_t bucket_size, int64_t number,
               int64_t seed, bool fifo) {
  return {ids + number * num_buckets * bucket_size, counts + number * num_buckets, bucket_size,
          random_bits(static_cast<uint64_t>(seed), static_cast<uint64_t>(number)), fifo};
}

void check_buckets(const int32_t* buckets, int64_t count, int64_t num_buckets, const char* name,
                   int32_t allowed = 0) {
  int32_t lowest = 0, highest = 0;
  for (int64_t i = 0; i < count; ++i) {
    lowest = std::min(lowest, buckets[i]);
    highest = std::max(highest, buckets[i]);
  }
  TORCH_LSH_CHECK(lowest >= allowed && highest < num_buckets, name, " holds ",
                  lowest < allowed ? lowest : highest, "; wanted 0 to ", num_buckets - 1);
}

void check_rows_are_int32(const Tensor& row_buckets) {
  TORCH_LSH_CHECK(row_buckets.size(0) <= INT32_MAX, "row_buckets has shape ", shape_of(row_buckets),
                  "; wanted at most ", INT32_MAX, " rows");
}

void check_tables(const Tensor& ids, const Tensor& counts) {
  check_operand(ids, "ids", 3, ScalarType::Int);
  check_operand(counts, "counts", 2, ScalarType::Int);
  check_size(counts, "counts", 0, ids.size(0));
  check_size(counts, "counts", 1, ids.size(1));
  TORCH_LSH_CHECK(ids.size(1) >= 1 && ids.size(2) >= 1, "ids has shape ", shape_of(ids),
                  "; wanted at least one bucket with room for one row");
}

std::tuple<Tensor, Tensor> build_tables(const Tensor& row_buckets, int64_t bucket_bits, int64_t bucket_size,
                                        int64_t seed, bool fifo) {
  check_operand(row_buckets, "row_buckets", 2, ScalarType::Int);
  TORCH_LSH_CHECK(bucket_bits >= 0 && bucket_bits <= kMaxBucketBits, "bucket_bits is ", bucket_bits,
                  "; wanted 0 to ", kMaxBucketBits);
  check_count(bucket_size, "bucket_size");
  check_rows_are_int32(row_buckets);
  const int64_t num_rows = row_buckets.size(0), num_tables = row_buckets.size(1);
  const int64_t num_buckets = int64_t{1} << bucket_bits;
  const auto* bucket = row_buckets.const_data_ptr<int32_t>();
  check_buckets(bucket, row_buckets.numel(), num_buckets, "row_buckets");
  Tensor ids = new_tensor({num_tables, num_buckets, bucket_size}, ScalarType::Int);
  Tensor counts = new_tensor({num_tables, num_buckets}, ScalarType::Int);
  prefer_huge_pages(ids.const_data_ptr(), ids.numel() * 4, false);
  prefer_huge_pages(counts.const_data_ptr(), counts.numel() * 4, false);
  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Table table = table_of(id, count, num_buckets, bucket_size, t, seed, fifo);
      std::fill_n(table.ids, num_buckets * bucket_size, -1);
      std::fill_n(table.counts, num_buckets, 0);
      const auto insert = [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
          if (row + kPrefetch < last) table.prefetch(bucket[(row + kPrefetch) * num_tables + t]);
          table.insert(bucket[row * num_tables + t], static_cast<int32_t>(row));
        }
      };
      // FIFO tables start at different rows; otherwise all would miss the same ones.
      const int64_t start = fifo ? random_below(table.seed, 0, num_rows) : 0;
      insert(start, num_rows);
      insert(0, start);
    }
  });
  return {ids, counts};
}

Tensor update_tables(Tensor ids, Tensor counts, Tensor row_buckets, const Tensor& rows, const Tensor& buckets,
                     int64_t seed, bool fifo) {
  check_tables(ids, counts);
  const int64_t num_tables = ids.size(0), num_buckets = ids.size(1), bucket_size = ids.size(2);
  check_operand(row_buckets, "row_buckets", 2, ScalarType::Int);
  check_size(row_buckets, "row_buckets", 1, num_tables);
  check_rows_are_int32(row_buckets);
  check_operand(rows, "rows", 1, ScalarType::Long);
  check_operand(buckets, "buckets", 2, ScalarType::Int);
  check_size(buckets, "buckets", 0, rows.size(0));
  check_size(buckets, "buckets", 1, num_tables);
  const int64_t num_updates = rows.size(0);
  const auto* row = rows.const_data_ptr<int64_t>();
  const auto* wanted = buckets.const_data_ptr<int32_t>();
  auto* current = row_buckets.mutable_data_ptr<int32_t>();
  check_rows_in_range(row, num_updates, row_buckets.size(0), "rows");
  check_buckets(wanted, buckets.numel(), num_buckets, "buckets");
  for (int64_t i = 0; i < num_updates; ++i) {
    if (i + kPrefetch < num_updates)
      for (int64_t offset = 0; offset < num_tables; offset += kLine / 4)
        __builtin_prefetch(current + row[i + kPrefetch] * num_tables + offset);
    check_buckets(current + row[i] * num_tables, num_tables, num_buckets, "row_buckets");
  }

  // The pass below leaves row_buckets alone until the end, but a repeated row must be found where it went.
  const bool repeats =
      std::adjacent_find(row, row + num_updates, std::greater_equal<>()) != row + num_updates;
  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  std::vector<int64_t> moved(num_tables);
  parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Table table = table_of(id, count, num_buckets, bucket_size, t, seed, fifo);
      int64_t changed = 0;
      for (int64_t i = 0; i < num_updates; ++i) {
        if (i + kPrefetch < num_updates) {
          const int32_t from = current[row[i + kPrefetch] * num_tables + t];
          const int32_t to = wanted[(i + kPrefetch) * num_tables + t];
          if (from != to) {
            table.prefetch(from);
            table.prefetch(to);
          }
        }
        const int32_t from = current[row[i] * num_tables + t], to = wanted[i * num_tables + t];
        if (from == to) continue;
        table.remove(from, static_cast<int32_t>(row[i]));
        if (!table.contains(to, static_cast<int32_t>(row[i]))) table.insert(to, static_cast<int32_t>(row[i]));
        if (repeats) current[row[i] * num_tables + t] = to;
        ++changed;
      }
      moved[t] = changed;
    }
  });
  // A separate pass by rows: the tables' threads would write to shared cache lines. Of a repeated row, all is
  // written.
  parallel_for(0, repeats ? 0 : num_updates, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(wanted + i * num_tables, num_tables, current + row[i] * num_tables);
  });
  Tensor total = new_tensor({}, ScalarType::Long);
  int64_t sum = 0;
  for (const int64_t count_of_table : moved) sum += count_of_table;
  *total.mutable_data_ptr<int64_t>() = sum;
  return total;
}

Tensor insert_labels(Tensor ids, Tensor counts, const Tensor& buckets, const Tensor& labels, int64_t num_rows,
                     int64_t seed, bool fifo) {
  check_tables(ids, counts);
  check_operand(buckets, "buckets", 2, ScalarType::Int);
  check_operand(labels, "labels", 2, ScalarType::Long);
  const int64_t num_tables = ids.size(0), num_buckets = ids.size(1), bucket_size = ids.size(2);
  check_size(buckets, "buckets", 1, num_tables);
  check_size(labels, "labels", 0, buckets.size(0));
  check_count(num_rows, "num_rows", 0);
  const int64_t batch = labels.size(0), width = labels.size(1);
  const auto* bucket = buckets.const_data_ptr<int32_t>();
  const auto* label = labels.const_data_ptr<int64_t>();
  check_buckets(bucket, buckets.numel(), num_buckets, "buckets");
  for (int64_t i = 0, size = labels.numel(); i < size; ++i)
    TORCH_LSH_CHECK(label[i] < num_rows, "labels holds ", label[i], "; wanted at most ", num_rows - 1);

  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  const auto table = [&](int64_t t) { return table_of(id, count, num_buckets, bucket_size, t, seed, fifo); };
  // Decide which labels a look-up misses before inserting any.
  std::vector<uint8_t> missing(batch * width);
  parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width; i < end * width; ++i) {
      bool found = label[i] < 0;
      for (int64_t t = 0; t < num_tables && !found; ++t)
        found = table(t).contains(bucket[i / width * num_tables + t], static_cast<int32_t>(label[i]));
      missing[i] = !found;
    }
  });
  parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < batch * width; ++i) {
        const int32_t number = missing[i] ? bucket[i / width * num_tables + t] : 0;
        const auto row = static_cast<int32_t>(label[i]);
        if (missing[i] && !table(t).contains(number, row)) table(t).insert(number, row, true);
      }
  });
  Tensor total = new_tensor({}, ScalarType::Long);
  *total.mutable_data_ptr<int64_t>() = std::count(missing.begin(), missing.end(), uint8_t{1});
  return total;
}

// Counts how often each id was added, in order of first appearance. An open-addressing hash table, cleared
// entry by entry, so a query costs its candidates only. Not thread-safe: one per thread.
class HashedTally {
 public:
  void reserve(int64_t candidates, int64_t) {
    int64_t bits = 4;
    while ((int64_t{1} << bits) < 2 * candidates) ++bits;
    if (static_cast<size_t>(1) << bits <= slots_.size()) return;
    slots_.assign(static_cast<size_t>(1) << bits, {kEmpty, 0});
    shift_ = 32 - bits;
    mask_ = (uint32_t{1} << bits) - 1;
    ids_.resize(slots_.size() / 2);
    used_.resize(slots_.size() / 2);
    counts_.resize(slots_.size() / 2);
  }

  // Ids are unchecked input: only those below num_rows are rows.
  void add(const int32_t* id, const int32_t* end, int64_t num_rows) {
    for (; id != end; ++id)
      if (static_cast<uint32_t>(*id) < num_rows) add(*id);
  }

  int64_t size() const { return size_; }
  const int32_t* ids() const { return ids_.data(); }  // [size], in order of first appearance

  const int32_t* counts() {  // [size], of ids()
    for (int64_t i = 0; i < size_; ++i) counts_[i] = slots_[used_[i]].count;
    return counts_.data();
  }

  void clear() {
    for (int64_t i = 0; i < size_; ++i) slots_[used_[i]] = {kEmpty, 0};
    size_ = 0;
  }

 private:
  static constexpr int32_t kEmpty = INT32_MIN;
  static constexpr uint32_t kMultiplier = 0x9e3779b1u;  // 2^32 / golden ratio (Knuth)
  struct Slot {
    int32_t id, count;
  };

  void add(int32_t id) {
    uint32_t slot = (static_cast<uint32_t>(id) * kMultiplier) >> shift_;
    while (slots_[slot].id != id) {
      if (slots_[slot].id == kEmpty) {
        slots_[slot].id = id;
        ids_[size_] = id;
        used_[size_++] = slot;
        break;
      }
      slot = (slot + 1) & mask_;
    }
    ++slots_[slot].count;
  }

  std::vector<Slot> slots_;
  std::vector<uint32_t> used_;
  std::vector<int32_t> ids_, counts_;
  int64_t size_ = 0;
  int64_t shift_ = 0;
  uint32_t mask_ = 0;
};

// The same as an array of counts by id, for few rows: without branches, which nobody could predict.
class DirectTally {
 public:
  // Whether the array stays in the second-level cache, and no count overflows.
  static bool fits(int64_t candidates, int64_t num_rows) {
    return num_rows <= kMostRows && candidates <= UINT16_MAX;
  }

  void reserve(int64_t candidates, int64_t num_rows) {
    if (static_cast<int64_t>(times_.size()) < num_rows) times_.resize(num_rows);
    if (static_cast<int64_t>(counts_.size()) < candidates) {
      counts_.resize(candidates);
      ids_.resize(candidates + 1);  // add() writes one past the last
    }
  }

  // As that of HashedTally. Members are read once: this may be memory of a thread, whose address is a call.
  void add(const int32_t* id, const int32_t* end, int64_t num_rows) {
    int32_t* const ids = ids_.data();
    uint16_t* const times = times_.data();
    int64_t size = size_;
    for (; id != end; ++id)
      if (static_cast<uint32_t>(*id) < num_rows) {
        ids[size] = *id;
        size += times[*id]++ == 0;
      }
    size_ = size;
  }

  int64_t size() const { return size_; }
  const int32_t* ids() const { return ids_.data(); }  // [size], in order of first appearance

  // [size], of ids(). Nothing is added from here to clear(), so the entries are cleared now, while they are
  // in the nearest cache.
  const int32_t* counts() {
    for (int64_t i = 0; i < size_; ++i) counts_[i] = std::exchange(times_[ids_[i]], 0);
    is_counted_ = true;
    return counts_.data();
  }

  void clear() {
    if (!is_counted_)
      for (int64_t i = 0; i < size_; ++i) times_[ids_[i]] = 0;
    is_counted_ = false;
    size_ = 0;
  }

 private:
  static constexpr int64_t kMostRows = 1 << 18;
  std::vector<uint16_t> times_;  // by id
  std::vector<int32_t> ids_, counts_;
  int64_t size_ = 0;
  bool is_counted_ = false;
};

// Writes the `wanted` ids of lowest rank, in stable order, padded with -1. A counting sort of ranks 0 ..
// highest.
template <typename Rank, typename Out>
void take_best(const int32_t* ids, int64_t count, const Rank& rank, int64_t highest, int64_t wanted,
               std::vector<int64_t>& start, Out* out) {
  start.assign(highest + 2, 0);
  for (int64_t i = 0; i < count; ++i) ++start[rank(i) + 1];
  int64_t last = 0;  // the highest rank that is taken
  for (; last < highest; ++last) {
    start[last + 1] += start[last];
    if (start[last + 1] >= wanted) break;
  }
  std::fill(out + std::min(count, wanted), out + wanted, -1);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t own = rank(i);
    if (own > last) continue;
    const int64_t position = start[own]++;
    if (position < wanted) out[position] = ids[i];
  }
}

// The checked arguments of query_tables. Null codes: not given.
struct Lookup {
  const int32_t *ids, *counts;             // [tables, buckets, bucket_size], [tables, buckets]
  const int32_t* probed;                   // buckets [batch, tables, probes]; -1: none
  const int32_t *row_codes, *query_codes;  // [rows, words], [batch, words]
  int64_t num_tables, num_buckets, bucket_size, probes;
  int64_t num_rows, words;
  int64_t max_candidates, min_matches;
  bool vanilla;

  int64_t reachable() const { return num_tables * probes * bucket_size; }
};

// Memory of a thread, kept between calls.
template <typename Tally>
struct Scratch {
  Tally tally;
  std::vector<int32_t> nearest, matching, matches, shared, times_shared, shortlist, distances;
  std::vector<int64_t> start;
};

// Answers queries one by one. Not thread-safe: one per thread.
template <typename Tally>
class Search {
 public:
  Search(const Lookup& in, Scratch<Tally>& scratch)
      : in_(in), scratch_(scratch), hamming_(kernels<HashKernels>().hamming) {
    scratch.tally.reserve(in.reachable(), in.num_rows);
    scratch.shared.resize(in.reachable());
    scratch.times_shared.resize(in.reachable());
    scratch.shortlist.resize(in.reachable());
    scratch.distances.resize(in.reachable());
    scratch.nearest.resize(in.num_tables);
  }

  // Prefetches the nearest bucket of every table. Inlined always: GCC drops calls of a function that does
  // nothing but prefetch.
  [[gnu::always_inline]] inline void prefetch(int64_t query) const {
    for (int64_t t = 0; t < in_.num_tables; ++t) {
      const int64_t bucket = std::max(probed_of(query)[t * in_.probes], 0),
                    number = t * in_.num_buckets + bucket;
      __builtin_prefetch(in_.counts + number);
      for (int64_t i = 0; i < in_.bucket_size; i += kLine / 4)
        __builtin_prefetch(in_.ids + number * in_.bucket_size + i);
    }
  }

  // Writes the max_candidates best rows of a query, padded with -1.
  void run(int64_t query, int64_t* out) {
    const int32_t* const probed = probed_of(query);
    for (int64_t t = 0; t < in_.num_tables; ++t) scratch_.nearest[t] = probed[t * in_.probes];
    const Cleared cleared{scratch_.tally};
    collect(probed);
    rank(query, matching(), out);
  }

 private:
  // The tally serves later calls, also where this one runs out of memory.
  struct Cleared {
    Tally& tally;
    ~Cleared() { tally.clear(); }
  };
  struct Matches {
    const int32_t *ids, *counts;  // rows, and the number of buckets that hold each
    int64_t size;
  };

  const int32_t* probed_of(int64_t query) const { return in_.probed + query * in_.num_tables * in_.probes; }

  // Tallies the rows of the probed buckets: the nearest bucket of every table before the second nearest of
  // any. Ranking breaks ties by first appearance, so the first table and entry are drawn from a hash of the
  // buckets: neither table 0 nor low ids are favoured.
  void collect(const int32_t* probed) {
    uint64_t salt = 0;
    for (int64_t t = 0; t < in_.num_tables; ++t)
      salt = mix(salt + static_cast<uint64_t>(scratch_.nearest[t]));
    const int64_t first_table = random_below(salt, 0, in_.num_tables);
    for (int64_t i = 0; i < in_.num_tables * in_.probes; ++i) {
      if (in_.vanilla && scratch_.tally.size() >= in_.max_candidates) return;
      const int64_t t = (first_table + i) % in_.num_tables, p = i / in_.num_tables;
      const int32_t* const of_table = probed + t * in_.probes;
      // With fewer buckets than codes, probes of a table may share a bucket.
      if (of_table[p] < 0 || std::find(of_table, of_table + p, of_table[p]) != of_table + p) continue;
      const int64_t number = t * in_.num_buckets + of_table[p];
      const int64_t fill = std::clamp<int64_t>(in_.counts[number], 0, in_.bucket_size);
      const int64_t first = random_below(salt, static_cast<uint64_t>(t + 1), fill);
      const int32_t* const rows = in_.ids + number * in_.bucket_size;
      scratch_.tally.add(rows + first, rows + fill, in_.num_rows);
      scratch_.tally.add(rows, rows + first, in_.num_rows);
    }
  }

  // The rows in at least min_matches of the buckets.
  Matches matching() {
    Tally& tally = scratch_.tally;
    const Matches all{tally.ids(), tally.counts(), tally.size()};
    if (in_.min_matches == 1) return all;
    scratch_.matching.clear();
    scratch_.matches.clear();
    for (int64_t i = 0; i < all.size; ++i)
      if (all.counts[i] >= in_.min_matches) {
        scratch_.matching.push_back(all.ids[i]);
        scratch_.matches.push_back(all.counts[i]);
      }
    return {scratch_.matching.data(), scratch_.matches.data(),
            static_cast<int64_t>(scratch_.matching.size())};
  }

  // vanilla: in order of appearance. Without codes: by number of shared buckets. With codes: by Hamming
  // distance. Reading a row's code is a cache miss, so only the rows in most buckets are compared.
  void rank(int64_t query, const Matches& found, int64_t* out) {
    const int64_t wanted = in_.max_candidates;
    if (in_.vanilla) {
      take_best(found.ids, found.size, [](int64_t) { return int64_t{0}; }, 0, wanted, scratch_.start, out);
    } else if (in_.row_codes == nullptr) {
      take_most_shared(found, wanted, out);
    } else {
      const int64_t examined = std::min(found.size, kExamined * wanted);
      int32_t* const shortlist = scratch_.shortlist.data();
      int32_t* const distances = scratch_.distances.data();
      take_most_shared(found, examined, shortlist);
      hamming_(in_.query_codes == nullptr ? scratch_.nearest.data() : in_.query_codes + query * in_.words,
               in_.row_codes, shortlist, examined, in_.words, distances);
      take_best(
          shortlist, examined, [&](int64_t i) { return static_cast<int64_t>(distances[i]); }, 32 * in_.words,
          wanted, scratch_.start, out);
    }
  }

  // Writes the `wanted` rows that are in most buckets, in stable order, padded with -1. Only rows in several
  // buckets are sorted; most are in one.
  template <typename Out>
  void take_most_shared(const Matches& found, int64_t wanted, Out* out) {
    const int64_t num_tables = in_.num_tables, several = num_tables > 1 ? 2 : INT32_MAX;
    int32_t *const ids = scratch_.shared.data(), *const counts = scratch_.times_shared.data();
    int64_t shared = 0;
    for (int64_t i = 0; i < found.size; ++i) {  // without branches, which nobody could predict
      ids[shared] = found.ids[i];
      counts[shared] = found.counts[i];
      shared += found.counts[i] >= several;
    }
    const auto unshared = [&](int64_t i) { return num_tables - std::min<int64_t>(counts[i], num_tables); };
    take_best(ids, shared, unshared, num_tables, wanted, scratch_.start, out);
    for (int64_t i = 0, taken = shared, all = std::min(found.size, wanted); taken < all; ++i) {
      out[taken] = found.ids[i];
      taken += found.counts[i] < several;
    }
  }

  const Lookup& in_;
  Scratch<Tally>& scratch_;
  decltype(HashKernels::hamming) const hamming_;
};

// Null if there is no tensor.
const int32_t* codes_of(const std::optional<Tensor>& codes) {
  return codes.has_value() ? codes->const_data_ptr<int32_t>() : nullptr;
}

Lookup checked_lookup(const Tensor& ids, const Tensor& counts, const std::optional<Tensor>& row_codes,
                      const Tensor& buckets, int64_t max_candidates, int64_t min_matches, bool vanilla,
                      const std::optional<Tensor>& query_codes) {
  check_tables(ids, counts);
  TORCH_LSH_CHECK(buckets.dim() == 2 || buckets.dim() == 3, "buckets has shape ", shape_of(buckets),
                  "; wanted [B, L] or [B, L, P]");
  check_operand(buckets, "buckets", buckets.dim(), ScalarType::Int);
  const int64_t probes = buckets.dim() == 3 ? buckets.size(2) : 1;
  TORCH_LSH_CHECK(probes >= 1, "buckets has shape ", shape_of(buckets), "; wanted at least one probe");
  TORCH_LSH_CHECK(min_matches >= 1, "min_matches is ", min_matches, "; wanted at least 1");
  const int64_t num_tables = ids.size(0), num_buckets = ids.size(1), bucket_size = ids.size(2);
  check_size(buckets, "buckets", 1, num_tables);
  int64_t num_rows = int64_t{INT32_MAX} + 1, words = 0;
  if (row_codes.has_value()) {
    check_operand(*row_codes, "row_codes", 2, ScalarType::Int);
    num_rows = row_codes->size(0);
    words = row_codes->size(1);
    if (query_codes.has_value()) {
      check_operand(*query_codes, "query_codes", 2, ScalarType::Int);
      check_size(*query_codes, "query_codes", 0, buckets.size(0));
      check_size(*query_codes, "query_codes", 1, words);
    } else {
      check_size(*row_codes, "row_codes", 1, num_tables);
    }
  } else {
    TORCH_LSH_CHECK(!query_codes.has_value(), "query_codes is given without row_codes; wanted both or none");
  }
  check_count(max_candidates, "max_candidates");
  constexpr int64_t kMostReachable = int64_t{1} << 30;
  const int64_t probed_buckets = buckets.size(0) == 0 ? 0 : num_tables * probes;
  TORCH_LSH_CHECK(probed_buckets < kMostReachable / bucket_size, "ids has shape ", shape_of(ids),
                  "; wanted fewer than 2^30 entries in the probed buckets of a query");
  const auto* probed = buckets.const_data_ptr<int32_t>();
  check_buckets(probed, buckets.numel(), num_buckets, "buckets", probes > 1 ? -1 : 0);
  return {ids.const_data_ptr<int32_t>(),
          counts.const_data_ptr<int32_t>(),
          probed,
          codes_of(row_codes),
          codes_of(query_codes),
          num_tables,
          num_buckets,
          bucket_size,
          probes,
          num_rows,
          words,
          max_candidates,
          min_matches,
          vanilla};
}

template <typename Tally>
void search(const Lookup& lookup, int64_t queries, int64_t* out) {
  parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch<Tally> scratch;
    Search<Tally> search(lookup, scratch);
    if (begin < end) search.prefetch(begin);
    for (int64_t b = begin; b < end; ++b) {
      if (b + 1 < end) search.prefetch(b + 1);
      search.run(b, out + b * lookup.max_candidates);
    }
  });
}

}  // namespace

Tensor query_tables(const Tensor& ids, const Tensor& counts, const std::optional<Tensor>& row_codes,
                    const Tensor& buckets, int64_t max_candidates, int64_t min_matches, bool vanilla,
                    const std::optional<Tensor>& query_codes) {
  const Lookup lookup =
      checked_lookup(ids, counts, row_codes, buckets, max_candidates, min_matches, vanilla, query_codes);
  Tensor candidates = new_tensor({buckets.size(0), max_candidates}, ScalarType::Long);
  auto* out = candidates.mutable_data_ptr<int64_t>();
  const bool is_small = DirectTally::fits(lookup.reachable(), lookup.num_rows);
  (is_small ? search<DirectTally> : search<HashedTally>)(lookup, buckets.size(0), out);
  return candidates;
}

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "build_tables", &build_tables);
  TORCH_LSH_IMPL(m, "update_tables", &update_tables);
  TORCH_LSH_IMPL(m, "insert_labels", &insert_labels);
  TORCH_LSH_IMPL(m, "query_tables", &query_tables);
}

}  // namespace torch_lsh
