// Optimizer steps on single rows, one fused pass over the row, its state and its gradient. Compiled once per
// instruction set: include only from kernels/levels/*.cpp. Rows are unique, so a row belongs to the thread
// that was given it.
//
// T is the storage type of parameter and gradient, Sum that of the state and of the arithmetic: float for
// bfloat16 parameters, because a bfloat16 second moment would round its own decay (0.999) away.
#pragma once

#include "kernels/convert.h"
#include "kernels/gather.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

template <typename T, typename Sum>
void adam_rows(T* parameter, Sum* first, Sum* second, const int64_t* rows, const T* gradient,
               const double* decays, int64_t count, int64_t width, const AdamStep& step) {
  const Sum beta1 = step.beta1, beta2 = step.beta2, eps = step.eps;
  const Sum take1 = 1 - step.beta1, take2 = 1 - step.beta2;  // subtracted in double, as PyTorch does
  const Sum rate = step.lr / step.bias_correction1;
  const Sum inverse_root = 1 / __builtin_sqrt(step.bias_correction2);
  const Sum sign = step.maximize ? -1 : 1;
  const Sum l2 = step.decoupled ? 0 : step.weight_decay;
  const Sum shrink = step.decoupled ? 1 - step.lr * step.weight_decay : 1;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) {
      const int64_t next = rows[i + kPrefetchRows] * width;
      prefetch_row(parameter + next, width);
      prefetch_row(first + next, width);
      prefetch_row(second + next, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    Sum* __restrict m = first + rows[i] * width;
    Sum* __restrict v = second + rows[i] * width;
    const T* __restrict g = gradient + i * width;
    // What the steps that this row missed would have decayed.
    const Sum keep1 = decays == nullptr ? beta1 : static_cast<Sum>(step.beta1 * decays[3 * i]);
    const Sum keep2 = decays == nullptr ? beta2 : static_cast<Sum>(step.beta2 * decays[3 * i + 1]);
    const Sum keep = decays == nullptr ? shrink : static_cast<Sum>(shrink * decays[3 * i + 2]);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = static_cast<Sum>(to_float(p[j])) * keep;
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + l2 * weight;
      const Sum mean = keep1 * m[j] + take1 * slope;
      const Sum square = keep2 * v[j] + take2 * slope * slope;
      m[j] = mean;
      v[j] = square;
      store(weight - rate * mean / (square_root(square) * inverse_root + eps), p + j);
    }
  }
}

template <typename T, typename Sum>
void sgd_rows(T* parameter, Sum* momentum, const int64_t* rows, const T* gradient, int64_t count,
              int64_t width, const SgdStep& step) {
  const Sum lr = step.lr, decay = step.weight_decay, keep = step.momentum, take = 1 - step.dampening;
  const Sum sign = step.maximize ? -1 : 1;
  const bool nesterov = step.nesterov;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) {
      prefetch_row(parameter + rows[i + kPrefetchRows] * width, width);
      if (momentum != nullptr) prefetch_row(momentum + rows[i + kPrefetchRows] * width, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    const T* __restrict g = gradient + i * width;
    if (momentum == nullptr) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const Sum weight = to_float(p[j]);
        store(weight - lr * (sign * static_cast<Sum>(to_float(g[j])) + decay * weight), p + j);
      }
      continue;
    }
    Sum* __restrict b = momentum + rows[i] * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = to_float(p[j]);
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + decay * weight;
      const Sum velocity = keep * b[j] + take * slope;
      b[j] = velocity;
      store(weight - lr * (nesterov ? slope + keep * velocity : velocity), p + j);
    }
  }
}

template <typename T, typename Sum>
void adagrad_rows(T* parameter, Sum* squares, const int64_t* rows, const T* gradient, int64_t count,
                  int64_t width, const AdagradStep& step) {
  const Sum lr = step.lr, decay = step.weight_decay, eps = step.eps;
  const Sum sign = step.maximize ? -1 : 1;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) {
      prefetch_row(parameter + rows[i + kPrefetchRows] * width, width);
      prefetch_row(squares + rows[i + kPrefetchRows] * width, width);
    }
    T* __restrict p = parameter + rows[i] * width;
    Sum* __restrict s = squares + rows[i] * width;
    const T* __restrict g = gradient + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const Sum weight = to_float(p[j]);
      const Sum slope = sign * static_cast<Sum>(to_float(g[j])) + decay * weight;
      const Sum square = s[j] + slope * slope;
      s[j] = square;
      store(weight - lr * slope / (square_root(square) + eps), p + j);
    }
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
