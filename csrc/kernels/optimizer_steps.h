// The numbers of a step of each optimizer, named as in torch.optim. The update rules are in optimizer.h.
//
// A step has `kStates` state tensors. `seed` selects the stochastic rounding to bfloat16; a negative seed
// rounds to nearest.
#pragma once

#include <cstdint>

#include "kernels/types.h"

namespace torch_lsh {

struct AdamStep {
  static constexpr int kStates = 2;  // first and second moment
  double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2;
  bool decoupled, maximize;
  int64_t seed;
  const double* decays;  // null, or [rows, 3]: extra decay of first moment, second moment and weights
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
  static constexpr int kStates = 1;  // average of gradients
  double lr, beta1, beta2, weight_decay;
  bool maximize;
  int64_t seed;
};

using OptimizerSteps = Types<AdamStep, SgdStep, MomentumStep, AdagradStep, LionStep>;

}  // namespace torch_lsh
