// Optimizer steps on single rows, one fused pass over the row, its state and its gradient. Compiled once per
// instruction set: include only from kernels/levels/*.cpp. Rows are unique, so a row belongs to the thread
// that was given it.
//
// T is the storage type of parameter and gradient, State that of the moments, Sum that of the arithmetic.
// bfloat16 numbers are rounded at random where the step says so (see Rounding): rounded to nearest, a weight
// would not notice steps below 1/256 of itself, and a second moment its own decay (0.999).
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// How numbers of one row are stored. Random words are a function of (seed, row, column), so that the result
// does not depend on threads.
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

  // `random` has 16 bits.
  void store(Sum value, Sum* out, uint32_t random) const { *out = value; }
  void store(Sum value, BFloat16* out, uint32_t random) const
    requires(!__is_same(Sum, BFloat16))
  {
    *out =
        at_random ? to_bfloat16(static_cast<float>(value), random) : to_bfloat16(static_cast<float>(value));
  }
};

template <typename T, typename State, typename Sum>
void adam_rows(T* parameter, State* first, State* second, const int64_t* rows, const T* gradient,
               const double* decays, int64_t count, int64_t listed, int64_t width, const AdamStep& step) {
  const Sum beta1 = step.beta1, beta2 = step.beta2, eps = step.eps;
  const Sum take1 = 1 - step.beta1, take2 = 1 - step.beta2;  // subtracted in double, as PyTorch does
  const Sum rate = step.lr / step.bias_correction1;
  const Sum inverse_root = 1 / __builtin_sqrt(step.bias_correction2);
  const Sum sign = step.maximize ? -1 : 1;
  const Sum l2 = step.decoupled ? 0 : step.weight_decay;
  const Sum shrink = step.decoupled ? 1 - step.lr * step.weight_decay : 1;
  const int64_t ahead = rows_ahead<T>(width);
  for (int64_t i = 0; i < count; ++i) {
    if (i + ahead < listed) {
      const int64_t next = rows[i + ahead] * width;
      prefetch_row<0>(parameter + next, width);
      prefetch_row<0>(first + next, width);
      prefetch_row<0>(second + next, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    State* __restrict m = first + rows[i] * width;
    State* __restrict v = second + rows[i] * width;
    const Rounding<Sum> rounding(step.seed, rows[i]);
    const T* __restrict g = gradient + i * width;
    // What the steps that this row missed would have decayed.
    const Sum keep1 = decays == nullptr ? beta1 : static_cast<Sum>(step.beta1 * decays[3 * i]);
    const Sum keep2 = decays == nullptr ? beta2 : static_cast<Sum>(step.beta2 * decays[3 * i + 1]);
    const Sum keep = decays == nullptr ? shrink : static_cast<Sum>(shrink * decays[3 * i + 2]);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = static_cast<Sum>(to_float(p[j])) * keep;
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + l2 * weight;
      const Sum mean = keep1 * static_cast<Sum>(to_float(m[j])) + take1 * slope;
      const Sum square = keep2 * static_cast<Sum>(to_float(v[j])) + take2 * slope * slope;
      const uint32_t word = rounding.word(j);
      rounding.store(mean, m + j, word >> 16);
      rounding.store(square, v + j, (word >> 8) ^ (word * 0x85ebca6bu >> 16));
      rounding.store(weight - rate * mean / (square_root(square) * inverse_root + eps), p + j, word);
    }
  }
}

template <typename T, typename State, typename Sum>
void sgd_rows(T* parameter, State* momentum, const int64_t* rows, const T* gradient, int64_t count,
              int64_t listed, int64_t width, const SgdStep& step) {
  const Sum lr = step.lr, decay = step.weight_decay, keep = step.momentum, take = 1 - step.dampening;
  const Sum sign = step.maximize ? -1 : 1;
  const bool nesterov = step.nesterov;
  const int64_t ahead = rows_ahead<T>(width);
  for (int64_t i = 0; i < count; ++i) {
    if (i + ahead < listed) {
      prefetch_row<0>(parameter + rows[i + ahead] * width, width);
      if (momentum != nullptr) prefetch_row<0>(momentum + rows[i + ahead] * width, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    const T* __restrict g = gradient + i * width;
    const Rounding<Sum> rounding(step.seed, rows[i]);
    if (momentum == nullptr) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const Sum weight = to_float(p[j]);
        rounding.store(weight - lr * (sign * static_cast<Sum>(to_float(g[j])) + decay * weight), p + j,
                       rounding.word(j));
      }
      continue;
    }
    State* __restrict b = momentum + rows[i] * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = to_float(p[j]);
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + decay * weight;
      const Sum velocity = keep * static_cast<Sum>(to_float(b[j])) + take * slope;
      const uint32_t word = rounding.word(j);
      rounding.store(velocity, b + j, word >> 16);
      rounding.store(weight - lr * (nesterov ? slope + keep * velocity : velocity), p + j, word);
    }
  }
}

template <typename T, typename State, typename Sum>
void adagrad_rows(T* parameter, State* squares, const int64_t* rows, const T* gradient, int64_t count,
                  int64_t listed, int64_t width, const AdagradStep& step) {
  const Sum lr = step.lr, decay = step.weight_decay, eps = step.eps;
  const Sum sign = step.maximize ? -1 : 1;
  const int64_t ahead = rows_ahead<T>(width);
  for (int64_t i = 0; i < count; ++i) {
    if (i + ahead < listed) {
      prefetch_row<0>(parameter + rows[i + ahead] * width, width);
      prefetch_row<0>(squares + rows[i + ahead] * width, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    State* __restrict s = squares + rows[i] * width;
    const T* __restrict g = gradient + i * width;
    const Rounding<Sum> rounding(step.seed, rows[i]);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = to_float(p[j]);
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + decay * weight;
      const Sum square = static_cast<Sum>(to_float(s[j])) + slope * slope;
      const uint32_t word = rounding.word(j);
      rounding.store(square, s + j, word >> 16);
      rounding.store(weight - lr * slope / (square_root(square) + eps), p + j, word);
    }
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
