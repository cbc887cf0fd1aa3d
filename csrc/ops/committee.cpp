// fit_committee and committee_scores: small networks that score the candidates of rows. A thread trains two
// members to the end, so the results do not depend on the number of threads.
//
// A row's candidates stay in L1 from the forward product to the gradient, and both products are the kernels
// of product.h. 224 steps of 2,100 candidates of 20 inputs and 64 units are 2.4 GFLOP, 9.6 ms of a core that
// multiplies at 248 GFLOP/s; training takes 15. Of the rest, 4 are for the output layer and the softmax.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "checks.h"
#include "kernels/kernels.h"
#include "ops/allocate.h"
#include "ops/memory_pool.h"
#include "ops/operator.h"
#include "ops/parallel.h"
#include "ops/product.h"

namespace torch_lsh {
namespace {

constexpr int64_t kMemberUnits = 16;
constexpr int64_t kMostCounted = 5;                          // right candidates of a row
constexpr double kLeastDeviation = 1e-5;                     // what varies less is as good as constant
constexpr float kMostDeviations = 10;                        // from the mean
constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;  // of AdamW
constexpr int64_t kBlock = 4096;                             // candidates that a thread sums up at a time
constexpr int64_t kFloatsPerLine = 16;

// Sizes of products are multiples of 4: tiles of single rows would wait for their sums.
int64_t padded(int64_t count) {
  return (count + 3) / 4 * 4;
}

// What is known of the candidates of rows.
struct Candidates {
  const float* values;  // [rows, width, size]
  const uint8_t* none;  // [rows, width]
  int64_t rows, width, size;

  // By their number among all.
  int64_t count() const { return rows * width; }
  bool has(int64_t i) const { return none[i] == 0; }
  const float* of(int64_t i) const { return values + i * size; }
};

Candidates check_candidates(const Tensor& values, const Tensor& none) {
  check_operand(values, "values", 3, ScalarType::Float);
  check_operand(none, "none", 2, ScalarType::Bool);
  check_size(none, "none", 0, values.size(0));
  check_size(none, "none", 1, values.size(1));
  return {values.const_data_ptr<float>(), static_cast<const uint8_t*>(none.const_data_ptr()), values.size(0),
          values.size(1), values.size(2)};
}

// Weights of the hidden units [units, size], their bias, and weights of the output.
struct Layers {
  const float *weight, *bias, *output;
  int64_t units, size;
};

Layers check_layers(const Tensor& weight, const Tensor& bias, const Tensor& output, int64_t size) {
  check_operand(weight, "weight", 2, ScalarType::Float);
  check_size(weight, "weight", 1, size);
  const int64_t units = weight.size(0);
  TORCH_LSH_CHECK(units > 0 && units % kPairUnits == 0, "weight has shape ", shape_of(weight),
                  "; wanted a positive multiple of ", kPairUnits, " in dimension 0");
  check_operand(bias, "bias", 1, ScalarType::Float);
  check_size(bias, "bias", 0, units);
  check_operand(output, "output", 1, ScalarType::Float);
  check_size(output, "output", 0, units);
  return {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), output.const_data_ptr<float>(), units,
          size};
}

// Values -> deviations from their mean, in units of the standard deviation, and 1, the input of the bias.
class Scale {
 public:
  Scale(const float* mean, const float* deviation, int64_t size) : size_(size), mean_(mean), inverse_(size) {
    for (int64_t i = 0; i < size; ++i) inverse_[i] = 1 / deviation[i];
  }

  int64_t inputs() const { return padded(size_ + 1); }

  void apply(const float* __restrict values, float* __restrict inputs) const {
    const float* __restrict mean = mean_;
    const float* __restrict inverse = inverse_.data();
    for (int64_t i = 0; i < size_; ++i) {
      float value = (values[i] - mean[i]) * inverse[i];
      value = value < -kMostDeviations ? -kMostDeviations : value;
      inputs[i] = value > kMostDeviations ? kMostDeviations : value;
    }
    inputs[size_] = 1;
    for (int64_t i = size_ + 1; i < this->inputs(); ++i) inputs[i] = 0;
  }

 private:
  int64_t size_;
  const float* mean_;
  std::vector<float> inverse_;
};

// Mean and standard deviation of each value of all candidates.
void find_scale(const Candidates& candidates, float* mean, float* deviation) {
  const int64_t size = candidates.size, all = candidates.count();
  const int64_t first = std::find(candidates.none, candidates.none + all, 0) - candidates.none;
  const int64_t blocks = (all + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks * 2 * size);
  std::vector<int64_t> counts(blocks);
  parallel_for(0, blocks, 1, [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      double* __restrict sum = sums.data() + block * 2 * size;
      double* __restrict squares = sum + size;
      for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, all); ++i) {
        if (!candidates.has(i)) continue;
        ++counts[block];
        const float *values = candidates.of(i), *origin = candidates.of(first);
        for (int64_t e = 0; e < size; ++e) {
          // Less those of the first, so that what is constant has no deviation.
          const double value = static_cast<double>(values[e]) - static_cast<double>(origin[e]);
          sum[e] += value;
          squares[e] += value * value;
        }
      }
    }
  });
  const auto count = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  for (int64_t e = 0; e < size; ++e) {
    double sum = 0, squares = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      sum += sums[block * 2 * size + e];
      squares += sums[(block * 2 + 1) * size + e];
    }
    const double shift = sum / count, found = std::sqrt(std::max(squares / count - shift * shift, 0.0));
    mean[e] = count == 0 ? 0.0f : static_cast<float>(candidates.of(first)[e] + shift);
    deviation[e] = found > kLeastDeviation ? static_cast<float>(found) : 1.0f;
  }
}

// Packs weights [inputs, units] as the right operand of products.
void pack(const float* weights, int64_t inputs, int64_t units, float* packed) {
  const auto& products = kernels<ProductKernels<float>>();
  for (int64_t panel = 0; panel < count_panels<float>(units); ++panel)
    for (int64_t begin = 0; begin < inputs; begin += kPackRows)
      products.pack_panel(weights, units, 1, inputs, units, panel, begin, std::min(begin + kPackRows, inputs),
                          packed);
}

// A row's candidates, right ones first; none where all are right, or all wrong.
struct Example {
  int64_t start = 0, count = 0, right = 0;
  float weight = 0;  // of each right candidate
};

// The candidates of rows, scaled, with an input for the bias and zeros up to whole tiles.
class Examples {
 public:
  Examples(const Candidates& candidates, const uint8_t* right, const Scale& scale)
      : rows_(candidates.rows),
        width_(scale.inputs()),
        size_(count(candidates, right)),
        storage_(sizeof(float) * size_ * width_) {
    parallel_for(0, candidates.rows, 64, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const Example& example = rows_[row];
        if (example.count == 0) continue;
        float* to = mutable_inputs(example);
        for (const bool are_right : {true, false})
          for (int64_t i = row * candidates.width; i < (row + 1) * candidates.width; ++i) {
            if (!candidates.has(i) || (right[i] != 0) != are_right) continue;
            scale.apply(candidates.of(i), to);
            to += width_;
          }
        std::fill(to, mutable_inputs(example) + padded(example.count) * width_, 0.0f);
      }
    });
  }

  const Example& operator[](int64_t row) const { return rows_[row]; }
  const float* inputs(const Example& example) const { return mutable_inputs(example); }
  void prefetch(const Example& example) const {
    for (int64_t i = 0; i < example.count * width_; i += kFloatsPerLine)
      __builtin_prefetch(inputs(example) + i);
  }
  int64_t width() const { return width_; }
  // Candidates of a row, at most.
  int64_t most() const { return most_; }

 private:
  // Fills in rows_; returns the number of all candidates.
  int64_t count(const Candidates& candidates, const uint8_t* right) {
    int64_t size = 0, counted = 0, rows = 0;
    for (int64_t row = 0; row < candidates.rows; ++row) {
      Example& example = rows_[row];
      example.start = size;
      for (int64_t i = row * candidates.width; i < (row + 1) * candidates.width; ++i) {
        example.count += candidates.has(i);
        example.right += candidates.has(i) && right[i] != 0;
      }
      counted += std::min(example.right, kMostCounted);
      rows += example.right > 0;
      if (example.right == 0 || example.right == example.count) example.count = 0;  // nothing to tell apart
      size += padded(example.count);
      most_ = std::max(most_, padded(example.count));
    }
    for (Example& example : rows_)
      if (example.count > 0)
        example.weight = static_cast<float>(std::min(example.right, kMostCounted) * rows) /
                         static_cast<float>(counted * example.right);
    return size;
  }
  float* mutable_inputs(const Example& example) const {
    return static_cast<float*>(storage_.data()) + example.start * width_;
  }

  std::vector<Example> rows_;
  int64_t width_, most_ = 0, size_;
  Workspace storage_;
};

// The rows of all steps: `epochs` times the same number, in batches.
struct Schedule {
  const int64_t* order;
  int64_t epochs, rows, batch;
  double rate, decay;

  int64_t steps() const { return epochs * ((rows + batch - 1) / batch); }
};

// Parameters with the state of AdamW and their gradient.
class Parameters {
 public:
  explicit Parameters(int64_t count)
      : count_(count), weights_(count), first_(count), second_(count), gradient_(count) {}

  float* weights() { return weights_.data(); }
  float* gradient() { return gradient_.data(); }

  // Takes a step, and sets the gradient to zero.
  void update(int64_t step, double rate, double decay) {
    const AdamStep settings{.lr = rate,
                            .beta1 = kBeta1,
                            .beta2 = kBeta2,
                            .eps = kEps,
                            .weight_decay = decay,
                            .bias_correction1 = 1 - std::pow(kBeta1, step),
                            .bias_correction2 = 1 - std::pow(kBeta2, step),
                            .decoupled = true,
                            .maximize = false,
                            .seed = -1,
                            .decays = nullptr};
    float* const states[] = {first_.data(), second_.data()};
    const int64_t row = 0;
    kernels<OptimizerKernels<AdamStep, float, float>>().step_rows(
        weights_.data(), states, &row, gradient_.data(), 0, 1, 1, count_, settings);
    std::fill(gradient_.begin(), gradient_.end(), 0.0f);
  }

 private:
  int64_t count_;
  std::vector<float> weights_, first_, second_, gradient_;
};

// Two members in training; their units take turns.
class Pair {
 public:
  Pair(const Examples& examples)
      : products_(kernels<ProductKernels<float>>()),
        committee_(kernels<CommitteeKernels>()),
        examples_(examples),
        inputs_(examples.width()),
        hidden_(inputs_ * kPairUnits),
        output_(kPairUnits),
        packed_(packed_size<float>(inputs_, kPairUnits)),
        units_(examples.most() * kPairUnits),
        slopes_(packed_size<float>(examples.most(), kPairUnits)),
        scores_(2 * examples.most() + kPairUnits) {}

  // Where the numbers of a unit, 0 to kPairUnits - 1, are: that of input i, and that of the output.
  float& hidden(int64_t unit, int64_t i) { return hidden_.weights()[i * kPairUnits + place(unit)]; }
  float& output(int64_t unit) { return output_.weights()[place(unit)]; }

  void train(const Schedule& schedule) {
    int64_t step = 0;
    for (int64_t epoch = 0; epoch < schedule.epochs; ++epoch)
      for (int64_t begin = 0; begin < schedule.rows; begin += schedule.batch) {
        const int64_t count = std::min(schedule.batch, schedule.rows - begin);
        add_gradients(schedule.order + epoch * schedule.rows + begin, count);
        const double rate = schedule.rate * (1 - static_cast<double>(step++) / schedule.steps());
        hidden_.update(step, rate, schedule.decay);
        output_.update(step, rate, schedule.decay);
      }
  }

 private:
  static int64_t place(int64_t unit) { return unit % kMemberUnits * 2 + unit / kMemberUnits; }

  void add_gradients(const int64_t* rows, int64_t count) {
    pack(hidden_.weights(), inputs_, kPairUnits, packed_.data());
    for (int64_t i = 0; i < count; ++i) {
      const Example& example = examples_[rows[i]];
      if (i + 1 < count) examples_.prefetch(examples_[rows[i + 1]]);
      if (example.count == 0) continue;
      const int64_t size = padded(example.count);
      const float* const inputs = examples_.inputs(example);
      products_.product(inputs, inputs_, 1, size, inputs_, packed_.data(), kPairUnits, nullptr, false,
                        units_.data(), kPairUnits, {});
      committee_.slopes(units_.data(), example.count, size, example.right, output_.weights(),
                        example.weight / static_cast<float>(count), scores_.data(), slopes_.data(),
                        output_.gradient());
      products_.product(inputs, 1, inputs_, inputs_, size, slopes_.data(), kPairUnits, nullptr, true,
                        hidden_.gradient(), kPairUnits, {});
    }
  }

  const ProductKernels<float>& products_;
  const CommitteeKernels& committee_;
  const Examples& examples_;
  int64_t inputs_;
  Parameters hidden_, output_;
  std::vector<float> packed_, units_, slopes_, scores_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fit_committee(const Tensor& values, const Tensor& none,
                                                                 const Tensor& right, const Tensor& order,
                                                                 int64_t batch, const Tensor& weight,
                                                                 const Tensor& bias, const Tensor& output,
                                                                 double rate, double decay) {
  const Candidates candidates = check_candidates(values, none);
  check_operand(right, "right", 2, ScalarType::Bool);
  check_size(right, "right", 0, candidates.rows);
  check_size(right, "right", 1, candidates.width);
  check_operand(order, "order", 2, ScalarType::Long);
  check_rows_in_range(order.const_data_ptr<int64_t>(), order.numel(), candidates.rows, "order");
  check_count(batch, "batch");
  TORCH_LSH_CHECK(rate > 0, "rate is ", rate, "; wanted a positive number");
  TORCH_LSH_CHECK(decay >= 0, "decay is ", decay, "; wanted at least 0");
  const Layers before = check_layers(weight, bias, output, candidates.size);
  const Schedule schedule{order.const_data_ptr<int64_t>(), order.size(0), order.size(1), batch, rate, decay};
  const int64_t units = before.units, size = before.size;
  Tensor mean = new_tensor({size}, ScalarType::Float), deviation = new_tensor({size}, ScalarType::Float);
  Tensor made_weight = new_tensor({units, size}, ScalarType::Float);
  Tensor made_bias = new_tensor({units}, ScalarType::Float),
         made_output = new_tensor({units}, ScalarType::Float);
  auto* const to_weight = made_weight.mutable_data_ptr<float>();
  auto* const to_bias = made_bias.mutable_data_ptr<float>();
  auto* const to_output = made_output.mutable_data_ptr<float>();
  find_scale(candidates, mean.mutable_data_ptr<float>(), deviation.mutable_data_ptr<float>());
  const Scale scale(mean.const_data_ptr<float>(), deviation.const_data_ptr<float>(), size);
  const Examples examples(candidates, static_cast<const uint8_t*>(right.const_data_ptr()), scale);
  parallel_for(0, units / kPairUnits, 1, [&](int64_t first, int64_t last) {
    for (int64_t number = first; number < last; ++number) {
      Pair pair(examples);
      const int64_t begin = number * kPairUnits;
      for (int64_t unit = 0; unit < kPairUnits; ++unit) {
        for (int64_t i = 0; i < size; ++i) pair.hidden(unit, i) = before.weight[(begin + unit) * size + i];
        pair.hidden(unit, size) = before.bias[begin + unit];
        pair.output(unit) = before.output[begin + unit];
      }
      pair.train(schedule);
      for (int64_t unit = 0; unit < kPairUnits; ++unit) {
        for (int64_t i = 0; i < size; ++i) to_weight[(begin + unit) * size + i] = pair.hidden(unit, i);
        to_bias[begin + unit] = pair.hidden(unit, size);
        to_output[begin + unit] = pair.output(unit);
      }
    }
  });
  return {made_weight, made_bias, made_output, mean, deviation};
}

Tensor committee_scores(const Tensor& values, const Tensor& none, const Tensor& mean, const Tensor& deviation,
                        const Tensor& weight, const Tensor& bias, const Tensor& output) {
  const Candidates candidates = check_candidates(values, none);
  const Layers layers = check_layers(weight, bias, output, candidates.size);
  const int64_t units = layers.units, size = layers.size;
  check_operand(mean, "mean", 1, ScalarType::Float);
  check_size(mean, "mean", 0, size);
  check_operand(deviation, "deviation", 1, ScalarType::Float);
  check_size(deviation, "deviation", 0, size);
  const Scale scale(mean.const_data_ptr<float>(), deviation.const_data_ptr<float>(), size);
  const int64_t width = scale.inputs(), all = candidates.rows * candidates.width;
  std::vector<float> hidden(width * units), packed(packed_size<float>(width, units));
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t i = 0; i < size; ++i) hidden[i * units + unit] = layers.weight[unit * size + i];
    hidden[size * units + unit] = layers.bias[unit];
  }
  pack(hidden.data(), width, units, packed.data());
  Tensor scores = new_tensor({candidates.rows, candidates.width}, ScalarType::Float);
  auto* const to = scores.mutable_data_ptr<float>();
  parallel_for(0, all, 16 * kTaskRows, [&](int64_t first, int64_t last) {
    const auto& products = kernels<ProductKernels<float>>();
    const auto& committee = kernels<CommitteeKernels>();
    std::vector<float> inputs(kTaskRows * width), at_units(kTaskRows * units);
    float found[kTaskRows];
    int64_t places[kTaskRows], count = 0;
    const auto score = [&] {
      products.product(inputs.data(), width, 1, padded(count), width, packed.data(), units, nullptr, false,
                       at_units.data(), units, {});
      committee.scores(at_units.data(), count, units, layers.output, found);
      for (int64_t i = 0; i < count; ++i) to[places[i]] = found[i];
      count = 0;
    };
    for (int64_t i = first; i < last; ++i) {
      to[i] = -INFINITY;
      if (!candidates.has(i)) continue;
      scale.apply(candidates.of(i), inputs.data() + count * width);
      places[count++] = i;
      if (count == kTaskRows) score();
    }
    score();
  });
  return scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_lsh, CPU, m) {
  TORCH_LSH_IMPL(m, "fit_committee", &fit_committee);
  TORCH_LSH_IMPL(m, "committee_scores", &committee_scores);
}

}  // namespace torch_lsh
