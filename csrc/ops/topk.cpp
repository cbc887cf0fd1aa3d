// linear_topk: the k largest outputs of a linear layer, without materializing the outputs. rows_topk: the
// same among candidate rows.
//
// Threads share the rows and process them block by block: the logits of a block stay in cache, and a vector
// comparison with the k-th best value so far discards nearly all of them. The threads' best are merged at the
// end. Results depend on the logits only: largest first, NaN first of all, lower class first among equals.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/dtypes.h"
#include "ops/memory_pool.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/rank.h"

namespace torch_lsh {
namespace {

constexpr int64_t kSegmentBytes = 1 << 17;  // of candidates' rows that are worth a thread
constexpr int64_t kAhead = 8;               // prefetch distance, in candidates

// The k best of each sample, as heaps with the worst on top. Not thread-safe: one per thread.
template <typename Value>
class Best {
  using Key = typename Rank<Value>::Key;

 public:
  Best(int64_t samples, int64_t k) : k_(k), keys_(samples) {}

  void offer(int64_t sample, Value value, int64_t index) {
    std::vector<Key>& heap = keys_[sample];
    const Key key = key_of(value, index);
    if (static_cast<int64_t>(heap.size()) < k_) {
      heap.push_back(key);
      if (static_cast<int64_t>(heap.size()) == k_) std::make_heap(heap.begin(), heap.end(), std::greater<>());
    } else if (key > heap.front()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = key;
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }

  // Values with !(value <= threshold) may be among the best: all values if NaN, only NaN if infinity.
  Value threshold(int64_t sample) const {
    const std::vector<Key>& heap = keys_[sample];
    if (static_cast<int64_t>(heap.size()) < k_) return std::numeric_limits<Value>::quiet_NaN();
    const Value worst = value_of<Value>(heap.front());
    return worst != worst ? std::numeric_limits<Value>::infinity() : worst;
  }

  const std::vector<Key>& keys(int64_t sample) const { return keys_[sample]; }

 private:
  int64_t k_;
  std::vector<std::vector<Key>> keys_;
};

// Merges the parts' best of a sample: writes the k best, padded with -1 and -inf.
template <typename Value>
void merge(const std::vector<Best<Value>>& parts, int64_t sample, int64_t k, Value* values,
           int64_t* indices) {
  thread_local std::vector<typename Rank<Value>::Key> all;
  all.clear();
  for (const Best<Value>& part : parts)
    all.insert(all.end(), part.keys(sample).begin(), part.keys(sample).end());
  const int64_t found = std::min<int64_t>(k, static_cast<int64_t>(all.size()));
  std::partial_sort(all.begin(), all.begin() + found, all.end(), std::greater<>());
  for (int64_t i = 0; i < found; ++i) {
    values[i] = value_of<Value>(all[i]);
    indices[i] = index_of(all[i]);
  }
  std::fill(values + found, values + k, -std::numeric_limits<Value>::infinity());
  std::fill(indices + found, indices + k, -1);
}

// A linear layer. Weights are stored as T, samples and biases as SampleOf<T>.
template <typename T>
struct Layer {
  using X = SampleOf<T>;
  using Value = SumOf<T>;

  const TopkKernels<T>& kernel;
  const T* weight;
  const Value* scale;  // null: ones
  const X* bias;       // null: zeros
  int64_t num_rows, width;

  // The logits of `count` rows, or what is to be refined. Thread-safe.
  void logits(int64_t begin, int64_t count, const Value* packed, int64_t samples, const Value* expanded,
              const Value* biases, Value* out) const {
    kernel.multiply(weight + begin * width, count, width, packed, samples,
                    scale == nullptr ? nullptr : scale + begin, biases, expanded, out);
  }

  // The logit of a row for a sample, given what logits() wrote. Thread-safe.
  Value refined(Value bound, int64_t row, const Value* packed, int64_t samples, int64_t sample,
                const Value* bias_of_row) const {
    if (kernel.refine == nullptr) return bound;
    return kernel.refine(bound, weight + row * width, width, packed, samples, sample,
                         scale == nullptr ? nullptr : scale + row, bias_of_row);
  }

  void biases(int64_t begin, int64_t count, Value* out) const {
    for (int64_t i = 0; i < count; ++i) out[i] = bias == nullptr ? Value(0) : number(bias[begin + i]);
  }
};

// Samples that are multiplied together.
struct Group {
  int64_t first, samples, lanes, period;
  int64_t packed, thresholds;  // offsets of its packed samples and its thresholds
};

struct Groups {
  std::vector<Group> list;
  int64_t packed_size = 0, lanes = 0;  // of all groups
  bool panels = false;                 // some group takes whole vectors of lanes
};

// Groups of nearly equal numbers of vectors: full ones and a small last one would be slower.
template <typename T>
Groups make_groups(const TopkKernels<T>& kernel, int64_t batch, int64_t width) {
  Groups groups;
  const int64_t count = (batch + kernel.largest_group - 1) / kernel.largest_group;
  const int64_t vectors = (batch + kernel.vector - 1) / kernel.vector;
  for (int64_t g = 0, first = 0; g < count; ++g) {
    const int64_t end = std::min(batch, vectors * (g + 1) / count * kernel.vector);
    const int64_t samples = end - first;
    const int64_t lanes = kernel.lanes(samples), period = std::max(lanes, kernel.vector);
    groups.list.push_back({first, samples, lanes, period, groups.packed_size, groups.lanes});
    groups.packed_size += kernel.packed_size(samples, width);
    groups.lanes += period;
    groups.panels |= lanes >= kernel.vector;
    first = end;
  }
  return groups;
}

// Offers the logits of the rows of some blocks to `best`.
template <typename T>
void search_blocks(const Layer<T>& layer, const Groups& groups, const SumOf<T>* packed, int64_t first_block,
                   int64_t last_block, Best<SumOf<T>>& best) {
  using Value = SumOf<T>;
  const auto& kernel = layer.kernel;
  const int64_t width = layer.width, block_rows = kernel.block_rows;
  thread_local std::vector<Value> thresholds, expanded, biases, logits;
  thread_local std::vector<int32_t> hits;
  thresholds.assign(groups.lanes, std::numeric_limits<Value>::infinity());
  expanded.resize(kernel.expand != nullptr && groups.panels ? block_rows * width : 0);
  biases.resize(block_rows);
  logits.resize(block_rows * kernel.largest_group);
  hits.resize(logits.size() + 1);
  const auto update_threshold = [&](const Group& group, int64_t s) {
    const Value threshold = best.threshold(group.first + s);
    for (int64_t lane = s; lane < group.period; lane += group.lanes)
      thresholds[group.thresholds + lane] = threshold;
  };
  for (const Group& group : groups.list)
    for (int64_t s = 0; s < group.samples; ++s) update_threshold(group, s);
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t row = block * block_rows, count = std::min(block_rows, layer.num_rows - row);
    layer.biases(row, count, biases.data());
    if (!expanded.empty()) kernel.expand(layer.weight + row * width, count * width, expanded.data());
    for (const Group& group : groups.list) {
      layer.logits(row, count, packed + group.packed, group.samples, expanded.data(), biases.data(),
                   logits.data());
      const int64_t found = kernel.scan(logits.data(), count * group.lanes,
                                        thresholds.data() + group.thresholds, group.period, hits.data());
      for (int64_t i = 0; i < found; ++i) {
        const int64_t r = hits[i] / group.lanes, s = hits[i] % group.lanes;
        if (s >= group.samples) continue;                                   // padding: NaN if the row has NaN
        if (logits[hits[i]] <= thresholds[group.thresholds + s]) continue;  // raised since the scan
        const Value logit = layer.refined(logits[hits[i]], row + r, packed + group.packed, group.samples, s,
                                          biases.data() + r);
        best.offer(group.first + s, logit, row + r);
        update_threshold(group, s);
      }
    }
  }
}

template <typename T>
void search(const Layer<T>& layer, const SampleOf<T>* x, int64_t batch, int64_t k, SumOf<T>* values,
            int64_t* indices) {
  using Value = SumOf<T>;
  const auto& kernel = layer.kernel;
  const int64_t width = layer.width;
  const Groups groups = make_groups(kernel, batch, width);
  const Workspace workspace(sizeof(Value) * groups.packed_size);
  auto* const packed = static_cast<Value*>(workspace.data());
  parallel_for(0, static_cast<int64_t>(groups.list.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const Group& group = groups.list[g];
      kernel.pack(x + group.first * width, group.samples, width, packed + group.packed);
    }
  });
  const int64_t blocks = (layer.num_rows + kernel.block_rows - 1) / kernel.block_rows;
  const int64_t num_parts = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  std::vector<Best<Value>> parts(num_parts, Best<Value>(batch, k));
  parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      search_blocks(layer, groups, packed, blocks * part / num_parts, blocks * (part + 1) / num_parts,
                    parts[part]);
  });
  parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) merge(parts, b, k, values + b * k, indices + b * k);
  });
}

// Splits the rows of each sample into segments, enough to keep all threads busy.
template <typename T>
void search_rows(const Layer<T>& layer, const SampleOf<T>* x, const int64_t* rows, int64_t batch,
                 int64_t candidates, int64_t k, SumOf<T>* values, int64_t* indices) {
  using Value = SumOf<T>;
  const auto& kernel = layer.kernel;
  const int64_t width = layer.width;
  // Starting a thread takes as long as reading some hundred rows.
  const int64_t worthwhile = candidates * width * static_cast<int64_t>(sizeof(T)) / kSegmentBytes;
  const int64_t idle = torch::stable::get_num_threads() / std::max<int64_t>(1, batch);
  const int64_t segments = std::max<int64_t>(1, std::min(idle, worthwhile));
  std::vector<Best<Value>> parts(segments, Best<Value>(batch, k));
  parallel_for(0, batch * segments, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<Value> packed;
    packed.resize(kernel.packed_size(1, width));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / segments, segment = unit % segments;
      const int64_t* mine = rows + b * candidates;
      const int64_t stop = candidates * (segment + 1) / segments;
      Best<Value>& best = parts[segment];
      kernel.pack(x + b * width, 1, width, packed.data());
      for (int64_t i = candidates * segment / segments; i < stop; ++i) {
        if (i + kAhead < stop && mine[i + kAhead] >= 0) {
          const auto* next = reinterpret_cast<const char*>(layer.weight + mine[i + kAhead] * width);
          for (int64_t offset = 0; offset < width * static_cast<int64_t>(sizeof(T)); offset += 64)
            __builtin_prefetch(next + offset);
        }
        if (mine[i] < 0) continue;
        Value bias, logit;
        layer.biases(mine[i], 1, &bias);
        layer.logits(mine[i], 1, packed.data(), 1, nullptr, &bias, &logit);
        best.offer(b, logit, mine[i]);
      }
    }
  });
  for (int64_t b = 0; b < batch; ++b) merge(parts, b, k, values + b * k, indices + b * k);
}

void check(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& scale) {
  const bool quantized = weight.scalar_type() == ScalarType::Char;
  if (!quantized) check_floating(weight, "weight");
  const ScalarType dtype = quantized ? ScalarType::Float : weight.scalar_type();
  check_operand(x, "x", 2, dtype);
  check_operand(weight, "weight", 2, weight.scalar_type());
  check_size(weight, "weight", 1, x.size(1));
  TORCH_LSH_CHECK(weight.size(0) <= INT32_MAX, "weight has shape ", shape_of(weight), "; wanted at most ",
                  INT32_MAX, " rows");
  if (bias.has_value()) {
    check_operand(*bias, "bias", 1, dtype);
    check_size(*bias, "bias", 0, weight.size(0));
  }
  TORCH_LSH_CHECK(scale.has_value() == quantized, "scale is ", scale.has_value() ? "given" : "missing",
                  "; wanted with weights of dtype Char, and only then");
  if (quantized) {
    check_operand(*scale, "scale", 1, ScalarType::Float);
    check_size(*scale, "scale", 0, weight.size(0));
  }
}

// Calls run(layer, samples, values) with the element types of the checked arguments.
template <typename Run>
void with_layer(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& scale, Tensor& values, const Run& run) {
  by_dtype(WeightTypes{}, weight.scalar_type(), "weight", [&]<typename T>() {
    const Layer<T> layer{kernels<TopkKernels<T>>(), data<T>(weight), data<SumOf<T>>(scale),
                         data<SampleOf<T>>(bias),   weight.size(0),  weight.size(1)};
    run(layer, data<SampleOf<T>>(x), mutable_data<SumOf<T>>(values));
  });
}

std::tuple<Tensor, Tensor> empty_result(const Tensor& x, int64_t k) {
  return {new_tensor({x.size(0), k}, sum_dtype(x.scalar_type())),
          new_tensor({x.size(0), k}, ScalarType::Long)};
}

std::tuple<Tensor, Tensor> linear_topk(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                       int64_t k, std::optional<Tensor> scale) {
  check(x, weight, bias, scale);
  TORCH_LSH_CHECK(k >= 1 && k <= weight.size(0), "k is ", k, "; wanted 1 to ", weight.size(0));
  auto [values, indices] = empty_result(x, k);
  auto* index = indices.mutable_data_ptr<int64_t>();
  with_layer(x, weight, bias, scale, values, [&](const auto& layer, const auto* samples, auto* value) {
    search(layer, samples, x.size(0), k, value, index);
  });
  return {values, indices};
}

std::tuple<Tensor, Tensor> rows_topk(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                                     const Tensor& rows, int64_t k, std::optional<Tensor> scale) {
  check(x, weight, bias, scale);
  check_operand(rows, "rows", 2, ScalarType::Long);
  check_size(rows, "rows", 0, x.size(0));
  check_count(k, "k");
  const auto* ids = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0, size = rows.numel(); i < size; ++i)
    TORCH_LSH_CHECK(ids[i] < weight.size(0), "rows holds ", ids[i], "; wanted at most ", weight.size(0) - 1);
  auto [values, indices] = empty_result(x, k);
  auto* index = indices.mutable_data_ptr<int64_t>();
  with_layer(x, weight, bias, scale, values, [&](const auto& layer, const auto* samples, auto* value) {
    search_rows(layer, samples, ids, x.size(0), rows.size(1), k, value, index);
  });
  return {values, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "linear_topk", &linear_topk);
  TORCH_LSH_IMPL(m, "rows_topk", &rows_topk);
}

}  // namespace torch_lsh
