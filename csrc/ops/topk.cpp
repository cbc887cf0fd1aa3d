// linear_topk: the k largest outputs of a linear layer, without materializing the outputs. rows_topk: the
// same among candidate rows.
//
// Threads share the rows and process them block by block: the logits of a block stay in cache, and a vector
// comparison with the k-th best value so far discards nearly all of them. The threads' best are merged at the
// end (best.h). Results depend on the logits only: largest first, NaN first of all, lower class first among
// equals.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/best.h"
#include "ops/dtypes.h"
#include "ops/memory_pool.h"
#include "ops/operator.h"
#include "ops/parallel.h"

namespace torch_lsh {
namespace {

constexpr int64_t kSegmentBytes = 1 << 17;  // of candidates' rows that are worth a thread
constexpr int64_t kAhead = 8;               // prefetch distance, in candidates
constexpr int64_t kManyHits = 16;   // bounds are sharpened where one in that many is above the threshold
constexpr int64_t kManyBest = 128;  // bounds are refined at the end where k is one row in that many

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

  // Brings bounds that logits() wrote closer to the logits. Thread-safe.
  void sharpen(int64_t begin, int64_t count, const Value* packed, int64_t samples, const Value* biases,
               Value* out) const {
    kernel.sharpen(weight + begin * width, count, width, packed, samples, scale + begin, biases, out);
  }

  // The logit of a row for a sample, given what logits() wrote. Thread-safe.
  Value refined(Value bound, int64_t row, const Value* packed, int64_t samples, int64_t sample) const {
    if (kernel.refine == nullptr) return bound;
    Value of_row;
    biases(row, 1, &of_row);
    return kernel.refine(bound, weight + row * width, width, packed, samples, sample, scale + row, &of_row);
  }

  void prefetch(int64_t row) const {
    const auto* const bytes = reinterpret_cast<const char*>(weight + row * width);
    for (int64_t offset = 0; offset < width * static_cast<int64_t>(sizeof(T)); offset += 64)
      __builtin_prefetch(bytes + offset);
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

// A batch of samples, and how their best rows are found. Thread-safe.
template <typename T>
struct Batch {
  using Value = SumOf<T>;

  const Layer<T>& layer;
  const Groups& groups;
  const Value* packed;
  std::vector<Value> excess;  // as Best wants it

  // By how much sharpened bounds exceed the logits at most, by sample.
  void bound_excess() {
    Value scale{0}, bias{0};
    for (int64_t row = 0; row < layer.num_rows; ++row) {
      Value of_row;
      layer.biases(row, 1, &of_row);
      bias = std::max(bias, std::abs(of_row));
      scale = std::max(scale, std::abs(layer.scale[row]));
    }
    for (const Group& group : groups.list)
      for (int64_t s = 0; s < group.samples; ++s)
        excess.push_back(
            layer.kernel.excess(packed + group.packed, group.samples, layer.width, s, scale, bias));
  }
};

// Computes logits of a sample from their bounds. Thread-safe.
template <typename T>
struct Refine {
  using Value = SumOf<T>;

  const Batch<T>& batch;
  const Group& group;
  int64_t sample;  // of the group

  Value operator()(Value bound, int64_t row) const {
    return batch.layer.refined(bound, row, batch.packed + group.packed, group.samples, sample);
  }

  void prefetch(int64_t row) const { batch.layer.prefetch(row); }
};

// Where values are exact.
struct Exact {
  template <typename Value>
  Value operator()(Value value, int64_t) const {
    return value;
  }
  void prefetch(int64_t) const {}
};

// What a thread finds among some rows.
template <typename T>
class Part {
 public:
  using Value = SumOf<T>;

  Part(const Batch<T>& batch, Best<Value>& best)
      : batch_(batch), layer_(batch.layer), kernel_(batch.layer.kernel), best_(best) {
    thresholds_.assign(batch.groups.lanes, std::numeric_limits<Value>::infinity());
    if (kernel_.expand != nullptr && batch.groups.panels) expanded_.resize(kernel_.block_rows * layer_.width);
    biases_.resize(kernel_.block_rows);
    logits_.resize(kernel_.block_rows * kernel_.largest_group);
    hits_.resize(logits_.size() + 1);
    for (const Group& group : batch.groups.list)
      for (int64_t s = 0; s < group.samples; ++s) update_threshold(group, s);
  }

  // Offers the logits of the rows of some blocks.
  void search(int64_t first_block, int64_t last_block) {
    const int64_t block_rows = kernel_.block_rows;
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t row = block * block_rows, count = std::min(block_rows, layer_.num_rows - row);
      layer_.biases(row, count, biases_.data());
      if (!expanded_.empty())
        kernel_.expand(layer_.weight + row * layer_.width, count * layer_.width, expanded_.data());
      for (const Group& group : batch_.groups.list) search_block(row, count, group);
    }
  }

 private:
  void search_block(int64_t row, int64_t count, const Group& group) {
    const Value* const packed = batch_.packed + group.packed;
    layer_.logits(row, count, packed, group.samples, expanded_.data(), biases_.data(), logits_.data());
    const auto sharpen = [&] {
      layer_.sharpen(row, count, packed, group.samples, biases_.data(), logits_.data());
    };
    const bool late = !batch_.excess.empty();
    if (late) sharpen();
    int64_t found = scan(count, group);
    if (kernel_.sharpen != nullptr && !late && found * kManyHits > count * group.lanes) {
      sharpen();
      found = scan(count, group);
    }
    for (int64_t i = 0, r = 0; i < found; ++i) {
      while (hits_[i] >= (r + 1) * group.lanes) ++r;
      const int64_t s = hits_[i] - r * group.lanes;
      if (s >= group.samples) continue;  // padding: NaN if the row has NaN
      if (best_.offer(group.first + s, logits_[hits_[i]], row + r, Refine<T>{batch_, group, s}))
        update_threshold(group, s);
    }
  }

  int64_t scan(int64_t count, const Group& group) {
    return kernel_.scan(logits_.data(), count * group.lanes, thresholds_.data() + group.thresholds,
                        group.period, hits_.data());
  }

  void update_threshold(const Group& group, int64_t s) {
    const Value threshold = best_.threshold(group.first + s);
    for (int64_t lane = s; lane < group.period; lane += group.lanes)
      thresholds_[group.thresholds + lane] = threshold;
  }

  const Batch<T>& batch_;
  const Layer<T>& layer_;
  const TopkKernels<T>& kernel_;
  Best<Value>& best_;
  std::vector<Value> thresholds_, expanded_, biases_, logits_;
  std::vector<int32_t> hits_;
};

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
  Batch<T> samples{layer, groups, packed, {}};
  if (kernel.excess != nullptr && k >= layer.num_rows / kManyBest) samples.bound_excess();
  const int64_t blocks = (layer.num_rows + kernel.block_rows - 1) / kernel.block_rows;
  const int64_t num_parts = std::min<int64_t>(blocks, torch::stable::get_num_threads());
  std::vector<Best<Value>> parts(num_parts, Best<Value>(batch, k, samples.excess));
  parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      Part<T>(samples, parts[part]).search(blocks * part / num_parts, blocks * (part + 1) / num_parts);
  });
  parallel_for(0, static_cast<int64_t>(groups.list.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g)
      for (int64_t s = 0; s < groups.list[g].samples; ++s) {
        const int64_t b = groups.list[g].first + s;
        merge(parts, b, k, samples.excess, Refine<T>{samples, groups.list[g], s}, values + b * k,
              indices + b * k);
      }
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
  const std::vector<Value> excess;
  std::vector<Best<Value>> parts(segments, Best<Value>(batch, k, excess));
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
        if (i + kAhead < stop && mine[i + kAhead] >= 0) layer.prefetch(mine[i + kAhead]);
        if (mine[i] < 0) continue;
        Value bias, logit;
        layer.biases(mine[i], 1, &bias);
        layer.logits(mine[i], 1, packed.data(), 1, nullptr, &bias, &logit);
        best.offer(b, logit, mine[i], Exact{});
      }
    }
  });
  for (int64_t b = 0; b < batch; ++b) merge(parts, b, k, excess, Exact{}, values + b * k, indices + b * k);
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
