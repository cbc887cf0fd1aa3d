// Row-sparse optimizer steps: one fused pass over a row, its state and its gradient. Compiled once per
// instruction set: include only from kernels/levels/*.cpp. Rows are unique, so each is owned by one thread.
//
// An optimizer consists of its hyperparameters (kernels/optimizer_steps.h) and its Rule here.
//
// T: storage type of parameter and gradient. State: storage type of the state. Sum: accumulator type.
// bfloat16 is rounded stochastically on request (see Rounding). Round-to-nearest would drop steps below 1/256
// of a weight, and the decay of a second moment (0.999).
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Stores the numbers of one row. Random bits are a function of (seed, row, column), so results do not depend
// on the number of threads.
template <typename Sum>
struct Rounding {
  bool at_random;
  uint32_t key;

  Rounding(int64_t seed, int64_t row) : at_random(seed >= 0), key(0) {
    const uint64_t mixed = (static_cast<uint64_t>(seed) * 0x9e3779b97f4a7c15ull) ^
                           (static_cast<uint64_t>(row) * 0xbf58476d1ce4e5b9ull);
    key = static_cast<uint32_t>(mixed ^ (mixed >> 32));
  }
  uint32_t word(int64_t column) const {
    return at_random ? random_word(key, static_cast<uint32_t>(column)) : 0;
  }

  // random: 16 bits.
  void store(Sum value, Sum* out, uint32_t random) const { *out = value; }
  void store(Sum value, BFloat16* out, uint32_t random) const {
    *out =
        at_random ? to_bfloat16(static_cast<float>(value), random) : to_bfloat16(static_cast<float>(value));
  }
};

// The update of one weight, in Sum:
//   Rule(step)                               computes what all rows share;
//   start_row(i)                             prepares row rows[i];
//   update(weight, gradient, first, second)  returns the new weight and updates the first Step::kStates
//   states.
template <typename Step, typename Sum>
struct Rule;

template <typename Sum>
struct Rule<AdamStep, Sum> {
  const AdamStep& step;
  const Sum eps, take1, take2, rate, inverse_root, sign, l2, shrink;
  Sum keep1, keep2, keep;

  explicit Rule(const AdamStep& s)
      : step(s),
        eps(s.eps),
        take1(1 - s.beta1),  // subtracted in double, as in PyTorch
        take2(1 - s.beta2),
        rate(s.lr / s.bias_correction1),
        inverse_root(1 / __builtin_sqrt(s.bias_correction2)),
        sign(s.maximize ? -1 : 1),
        l2(s.decoupled ? 0 : s.weight_decay),
        shrink(s.decoupled ? 1 - s.lr * s.weight_decay : 1),
        keep1(s.beta1),
        keep2(s.beta2),
        keep(shrink) {}

  // Catches up on the decay of the steps that skipped this row.
  void start_row(int64_t i) {
    if (step.decays == nullptr) return;
    keep1 = step.beta1 * step.decays[3 * i];
    keep2 = step.beta2 * step.decays[3 * i + 1];
    keep = shrink * step.decays[3 * i + 2];
  }

  Sum update(Sum weight, Sum gradient, Sum& first, Sum& second) const {
    weight *= keep;
    const Sum slope = sign * gradient + l2 * weight;
    first = keep1 * first + take1 * slope;
    second = keep2 * second + take2 * slope * slope;
    return weight - rate * first / (square_root(second) * inverse_root + eps);
  }
};

template <typename Sum>
struct Rule<SgdStep, Sum> {
  const Sum lr, decay, sign;

  explicit Rule(const SgdStep& s) : lr(s.lr), decay(s.weight_decay), sign(s.maximize ? -1 : 1) {}
  void start_row(int64_t) {}
  Sum update(Sum weight, Sum gradient, Sum&, Sum&) const {
    return weight - lr * (sign * gradient + decay * weight);
  }
};

template <typename Sum>
struct Rule<MomentumStep, Sum> {
  const Sum lr, decay, keep, take, sign;
  const bool nesterov;

  explicit Rule(const MomentumStep& s)
      : lr(s.lr),
        decay(s.weight_decay),
        keep(s.momentum),
        take(1 - s.dampening),
        sign(s.maximize ? -1 : 1),
        nesterov(s.nesterov) {}
  void start_row(int64_t) {}
  Sum update(Sum weight, Sum gradient, Sum& velocity, Sum&) const {
    const Sum slope = sign * gradient + decay * weight;
    velocity = keep * velocity + take * slope;
    return weight - lr * (nesterov ? slope + keep * velocity : velocity);
  }
};

template <typename Sum>
struct Rule<AdagradStep, Sum> {
  const Sum lr, decay, eps, sign;

  explicit Rule(const AdagradStep& s)
      : lr(s.lr), decay(s.weight_decay), eps(s.eps), sign(s.maximize ? -1 : 1) {}
  void start_row(int64_t) {}
  Sum update(Sum weight, Sum gradient, Sum& squares, Sum&) const {
    const Sum slope = sign * gradient + decay * weight;
    squares += slope * slope;
    return weight - lr * slope / (square_root(squares) + eps);
  }
};

template <typename Sum>
struct Rule<LionStep, Sum> {
  const Sum lr, keep1, take1, keep2, take2, shrink, sign;

  explicit Rule(const LionStep& s)
      : lr(s.lr),
        keep1(s.beta1),
        take1(1 - s.beta1),
        keep2(s.beta2),
        take2(1 - s.beta2),
        shrink(1 - s.lr * s.weight_decay),
        sign(s.maximize ? -1 : 1) {}
  void start_row(int64_t) {}
  Sum update(Sum weight, Sum gradient, Sum& average, Sum&) const {
    const Sum slope = sign * gradient;
    const Sum direction = keep1 * average + take1 * slope;
    average = keep2 * average + take2 * slope;
    return shrink * weight - lr * (Sum(direction > 0) - Sum(direction < 0));
  }
};

template <typename Step, typename T, typename State>
void step_rows(T* parameter, State* const* states, const int64_t* rows, const T* gradient, int64_t begin,
               int64_t end, int64_t count, int64_t width, const Step& step) {
  using Sum = SumOf<T>;
  constexpr int kStates = Step::kStates;
  static_assert(kStates <= 2, "a third state needs random bits of its own");
  const int64_t ahead = rows_ahead<T>(width);
  Rule<Step, Sum> rule(step);
  for (int64_t i = begin; i < end; ++i) {
    if (i + ahead < count) {
      const int64_t next = rows[i + ahead] * width;
      prefetch_once(parameter + next, width);
      for (int s = 0; s < kStates; ++s) prefetch_once(states[s] + next, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    State* __restrict first = kStates > 0 ? states[0] + rows[i] * width : nullptr;
    State* __restrict second = kStates > 1 ? states[1] + rows[i] * width : nullptr;
    const T* __restrict g = gradient + (i - begin) * width;
    const Rounding<Sum> rounding(step.seed, rows[i]);
    rule.start_row(i);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      Sum state0 = 0, state1 = 0;
      if constexpr (kStates > 0) state0 = to_float(first[j]);
      if constexpr (kStates > 1) state1 = to_float(second[j]);
      const Sum weight = rule.update(to_float(p[j]), to_float(g[j]), state0, state1);
      const uint32_t word = rounding.word(j);
      if constexpr (kStates > 0) rounding.store(state0, first + j, word >> 16);
      if constexpr (kStates > 1) rounding.store(state1, second + j, (word >> 8) ^ (word * 0x85ebca6bu >> 16));
      rounding.store(weight, p + j, word);
    }
  }
}

template <typename Step, typename T, typename State>
constexpr void fill(OptimizerKernels<Step, T, State>& table) {
  table = {.step_rows = step_rows<Step, T, State>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
