// build_tables, update_tables, insert_labels, query_tables: hash tables of row numbers.
//
// L tables of 2^bucket_bits buckets of fixed capacity: ids [L, buckets, bucket_size] int32, of which the
// first counts [L, buckets] of each bucket are in use. row_buckets [N, L] says which bucket each row belongs
// to.
//
// A bucket that more rows belong to than fit keeps those of lowest priority number, a pure function of (seed,
// table, row): a uniform sample of them, whatever the order of insertion, as a reservoir would hold. Or, with
// `fifo`, it keeps those inserted last, oldest first. A row that found no room comes back when it is inserted
// again (its bucket changes) or at the next build.
//
// While tables change, each table is owned by one thread.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/huge_pages.h"
#include "random.h"

namespace torch_lsh {
namespace {

constexpr int64_t kMaxBucketBits = 30;
constexpr int64_t kPrefetch = 8;  // insertions that a bucket is asked for ahead of time
constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kGrainRows = 256;
constexpr int64_t kExamined = 8;  // candidates whose codes a query compares, per candidate that it returns

// One table, of which only one thread knows.
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

  // In a full bucket the row that goes first is at entry 0.
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

  // `forced`: even where the row would be the first to go.
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
    if (found == rows + used) return;  // it had found no room
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

void check_tables(const Tensor& ids, const Tensor& counts) {
  check_operand(ids, "ids", 3, ScalarType::Int);
  check_operand(counts, "counts", 2, ScalarType::Int);
  check_size(counts, "counts", 0, ids.size(0));
  check_size(counts, "counts", 1, ids.size(1));
}

std::tuple<Tensor, Tensor> build_tables(const Tensor& row_buckets, int64_t bucket_bits, int64_t bucket_size,
                                        int64_t seed, bool fifo) {
  check_operand(row_buckets, "row_buckets", 2, ScalarType::Int);
  TORCH_LSH_CHECK(bucket_bits >= 0 && bucket_bits <= kMaxBucketBits, "bucket_bits is ", bucket_bits,
                  "; wanted 0 to ", kMaxBucketBits);
  TORCH_LSH_CHECK(bucket_size >= 1 && bucket_size <= INT32_MAX, "bucket_size is ", bucket_size,
                  "; wanted at least 1");
  TORCH_LSH_CHECK(row_buckets.size(0) <= INT32_MAX, "row_buckets has shape ", shape_of(row_buckets),
                  "; wanted at most ", INT32_MAX, " rows");
  const int64_t num_rows = row_buckets.size(0), num_tables = row_buckets.size(1);
  const int64_t num_buckets = int64_t{1} << bucket_bits;
  const auto* bucket = row_buckets.const_data_ptr<int32_t>();
  check_buckets(bucket, row_buckets.numel(), num_buckets, "row_buckets");
  Tensor ids = torch::stable::empty({num_tables, num_buckets, bucket_size}, ScalarType::Int);
  Tensor counts = torch::stable::empty({num_tables, num_buckets}, ScalarType::Int);
  prefer_huge_pages(ids.const_data_ptr(), ids.numel() * 4, false);
  prefer_huge_pages(counts.const_data_ptr(), counts.numel() * 4, false);
  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
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
      // Where the last ones stay, every table begins elsewhere, or the same rows would be missing in all.
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

  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  std::vector<int64_t> moved(num_tables);
  torch::stable::parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
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
        ++changed;
      }
      moved[t] = changed;
    }
  });
  // Not by the owners of the tables, who would write to the same lines.
  torch::stable::parallel_for(0, num_updates, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::copy_n(wanted + i * num_tables, num_tables, current + row[i] * num_tables);
  });
  Tensor total = torch::stable::empty({}, ScalarType::Long);
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
  const int64_t batch = labels.size(0), width = labels.size(1);
  const auto* bucket = buckets.const_data_ptr<int32_t>();
  const auto* label = labels.const_data_ptr<int64_t>();
  check_buckets(bucket, buckets.numel(), num_buckets, "buckets");
  for (int64_t i = 0, size = labels.numel(); i < size; ++i)
    TORCH_LSH_CHECK(label[i] < num_rows, "labels holds row ", label[i], "; wanted at most ", num_rows - 1);

  auto* id = ids.mutable_data_ptr<int32_t>();
  auto* count = counts.mutable_data_ptr<int32_t>();
  const auto table = [&](int64_t t) { return table_of(id, count, num_buckets, bucket_size, t, seed, fifo); };
  // Which labels a look-up would not have found is decided before any of them goes in.
  std::vector<uint8_t> missing(batch * width);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width; i < end * width; ++i) {
      bool found = label[i] < 0;
      for (int64_t t = 0; t < num_tables && !found; ++t)
        found = table(t).contains(bucket[i / width * num_tables + t], static_cast<int32_t>(label[i]));
      missing[i] = !found;
    }
  });
  torch::stable::parallel_for(0, num_tables, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < batch * width; ++i) {
        const int32_t number = missing[i] ? bucket[i / width * num_tables + t] : 0;
        const auto row = static_cast<int32_t>(label[i]);
        if (missing[i] && !table(t).contains(number, row)) table(t).insert(number, row, true);
      }
  });
  Tensor total = torch::stable::empty({}, ScalarType::Long);
  *total.mutable_data_ptr<int64_t>() = std::count(missing.begin(), missing.end(), uint8_t{1});
  return total;
}

// How often each id was seen, in the order of the first time: an open-addressing hash table that is emptied
// by its entries, so a sample costs its candidates only. Not thread-safe: one per thread.
class Tally {
 public:
  void reserve(int64_t candidates) {
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

  int64_t size() const { return size_; }
  const int32_t* ids() const { return ids_.data(); }  // [size], in the order of first sight

  // [size]: how often each id was added.
  const int32_t* counts() {
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
  std::vector<Slot> slots_;
  std::vector<uint32_t> used_;
  std::vector<int32_t> ids_, counts_;
  int64_t size_ = 0;
  int64_t shift_ = 0;
  uint32_t mask_ = 0;
};

// Writes the `wanted` ids of lowest rank, lowest first and in the given order among equals, and pads with -1.
// Ranks are in 0 .. highest. A counting sort.
template <typename Rank, typename Out>
void take_best(const int32_t* ids, int64_t count, const Rank& rank, int64_t highest, int64_t wanted,
               std::vector<int64_t>& start, Out* out) {
  start.assign(highest + 2, 0);
  for (int64_t i = 0; i < count; ++i) ++start[rank(i) + 1];
  for (int64_t r = 0; r < highest; ++r) start[r + 1] += start[r];
  std::fill(out + std::min(count, wanted), out + wanted, -1);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = start[rank(i)]++;
    if (position < wanted) out[position] = ids[i];
  }
}

Tensor query_tables(const Tensor& ids, const Tensor& counts, const std::optional<Tensor>& row_codes,
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
  int64_t num_rows = 0, words = 0;
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
    TORCH_LSH_CHECK(!query_codes.has_value(), "query_codes came without row_codes to compare with");
  }
  TORCH_LSH_CHECK(max_candidates >= 1, "max_candidates is ", max_candidates, "; wanted at least 1");
  TORCH_LSH_CHECK(num_tables * probes * bucket_size < int64_t{1} << 30, "ids has shape ", shape_of(ids),
                  "; wanted fewer than 2^30 entries in the probed buckets of all tables");
  const int64_t batch = buckets.size(0);
  const auto* bucket = buckets.const_data_ptr<int32_t>();
  check_buckets(bucket, buckets.numel(), num_buckets, "buckets", probes > 1 ? -1 : 0);
  Tensor candidates = torch::stable::empty({batch, max_candidates}, ScalarType::Long);
  const auto* id = ids.const_data_ptr<int32_t>();
  const auto* count = counts.const_data_ptr<int32_t>();
  const auto* codes = row_codes.has_value() ? row_codes->const_data_ptr<int32_t>() : nullptr;
  const auto* sketch = query_codes.has_value() ? query_codes->const_data_ptr<int32_t>() : nullptr;
  auto* out = candidates.mutable_data_ptr<int64_t>();
  const auto hamming = kernels<HashKernels>().hamming;

  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    thread_local Tally tally;
    thread_local std::vector<int32_t> own, shortlist, distances, matching, matches;
    thread_local std::vector<int64_t> start;
    const int64_t reachable = num_tables * probes * bucket_size;
    tally.reserve(reachable);
    shortlist.resize(reachable);
    distances.resize(reachable);
    own.resize(num_tables);
    const auto add = [&](int32_t row) {
      // Tables that somebody filled by hand may hold anything.
      if (codes == nullptr || (row >= 0 && row < num_rows)) tally.add(row);
    };
    const auto prefetch = [&](int64_t b) {
      for (int64_t t = 0; t < num_tables; ++t) {
        const int64_t number = t * num_buckets + std::max(bucket[(b * num_tables + t) * probes], 0);
        __builtin_prefetch(count + number);
        for (int64_t i = 0; i < bucket_size; i += kLine / 4)
          __builtin_prefetch(id + number * bucket_size + i);
      }
    };
    if (begin < end) prefetch(begin);
    for (int64_t b = begin; b < end; ++b) {
      if (b + 1 < end) prefetch(b + 1);
      const int32_t* const mine = bucket + b * num_tables * probes;
      for (int64_t t = 0; t < num_tables; ++t) own[t] = mine[t * probes];
      // Among equals the first seen wins: start at a table and an entry that depend on the
      // sample's buckets, so that neither the first table nor low ids are preferred.
      uint64_t salt = 0;
      for (int64_t t = 0; t < num_tables; ++t) salt = mix(salt + static_cast<uint64_t>(own[t]));
      const int64_t first_table = random_below(salt, 0, num_tables);
      for (int64_t i = 0; i < num_tables * probes; ++i) {
        if (vanilla && tally.size() >= max_candidates) break;
        // The nearest bucket of every table before the second nearest of any.
        const int64_t t = (first_table + i) % num_tables, p = i / num_tables;
        const int32_t* const of_table = mine + t * probes;
        // Different codes may share a bucket where there are fewer buckets than codes.
        if (of_table[p] < 0 || std::find(of_table, of_table + p, of_table[p]) != of_table + p) continue;
        const int64_t number = t * num_buckets + of_table[p];
        const int32_t* rows = id + number * bucket_size;
        const int64_t fill = std::clamp<int64_t>(count[number], 0, bucket_size);
        const int64_t first = random_below(salt, static_cast<uint64_t>(t + 1), fill);
        for (int64_t j = first; j < fill; ++j) add(rows[j]);
        for (int64_t j = 0; j < first; ++j) add(rows[j]);
      }
      int64_t* const best = out + b * max_candidates;
      const int32_t* found = tally.ids();
      const int32_t* shared = tally.counts();
      int64_t size = tally.size();
      if (min_matches > 1) {
        matching.clear();
        matches.clear();
        for (int64_t i = 0; i < size; ++i)
          if (shared[i] >= min_matches) {
            matching.push_back(found[i]);
            matches.push_back(shared[i]);
          }
        found = matching.data();
        shared = matches.data();
        size = static_cast<int64_t>(matching.size());
      }
      const auto unshared = [&](int64_t i) { return num_tables - std::min<int64_t>(shared[i], num_tables); };
      if (vanilla) {
        take_best(found, size, [](int64_t) { return int64_t{0}; }, 0, max_candidates, start, best);
      } else if (codes == nullptr) {
        take_best(found, size, unshared, num_tables, max_candidates, start, best);
      } else {
        // Reading the codes of a row is a cache miss: only those in most buckets get this far.
        const int64_t examined = std::min(size, kExamined * max_candidates);
        take_best(found, size, unshared, num_tables, examined, start, shortlist.data());
        hamming(sketch == nullptr ? own.data() : sketch + b * words, codes, shortlist.data(), examined, words,
                distances.data());
        take_best(
            shortlist.data(), examined, [&](int64_t i) { return static_cast<int64_t>(distances[i]); },
            32 * words, max_candidates, start, best);
      }
      tally.clear();
    }
  });
  return candidates;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  m.impl("build_tables", TORCH_BOX(&build_tables));
  m.impl("update_tables", TORCH_BOX(&update_tables));
  m.impl("insert_labels", TORCH_BOX(&insert_labels));
  m.impl("query_tables", TORCH_BOX(&query_tables));
}

}  // namespace torch_lsh
