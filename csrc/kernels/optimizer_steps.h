// Hyperparameters of one step of each optimizer, named as in torch.optim. The update rules are in
// optimizer.h.
//
// kStates: number of state tensors. seed: stochastic rounding to bfloat16; negative rounds to nearest.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace torch_lsh {

struct AdamStep {
  static constexpr int kStates = 2;  // first and second moment
  double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2;
  bool decoupled, maximize;
  int64_t seed;
  const double* decays;  // null, or [rows, 3]: catch-up decay of first moment, second moment and weights
};

struct SgdStep {
  static constexpr int kStates = 0;
  double lr, weight_decay;
  bool maximize;
  int64_t seed;
};

struct MomentumStep {  // SGD with momentum
  static constexpr int kStates = 1;
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;
  int64_t seed;
};

struct AdagradStep {
  static constexpr int kStates = 1;  // sum of squares
  double lr, eps, weight_decay;
  bool maximize;
  int64_t seed;
};

struct LionStep {
  static constexpr int kStates = 1;  // moving average of gradients
  double lr, beta1, beta2, weight_decay;
  bool maximize;
  int64_t seed;
};

using OptimizerSteps = Types<AdamStep, SgdStep, MomentumStep, AdagradStep, LionStep>;

template <int kStates>
struct TypesOfStates {
  using type = StateTypes;
};
template <>
struct TypesOfStates<0> {
  using type = StatelessTypes;
};
// The element types that a step is instantiated for.
template <typename Step>
using StepTypes = typename TypesOfStates<Step::kStates>::type;

}  // namespace torch_lsh
