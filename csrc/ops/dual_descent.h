// Dual coordinate descent for a linear classifier with the squared hinge loss (Hsieh et al., ICML 2008). The
// bias is a feature of value 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "random.h"

namespace torch_lsh {

constexpr int64_t kRowsAhead = 2;        // prefetch distance
constexpr float kConverged = 0.01f;      // largest change of a dual variable in a pass
constexpr double kLeastStretch = 0.003;  // less is not worth its time

// Not thread-safe: one per thread. Rows have
//   int64_t columns(): the number of weights;
//   float squares(i): the squared length of row i, and 1 for the bias;
//   float product(i, weights): without the bias;
//   void add(i, factor, weights): adds a multiple of the row to the weights;
//   void prefetch(i).
class DualDescent {
 public:
  // Begins with another set of rows.
  void start(int64_t rows) {
    dual_.assign(rows, 0.0f);
    order_.resize(rows);
    std::iota(order_.begin(), order_.end(), 0);
    sums_ = {};
  }

  // Changes the weights, which are those of the dual variables so far, and returns the new bias. Ends when a
  // pass adds less than `tolerance` of what all of them have added to the dual objective. Rows whose
  // dual variable is 0 and will stay 0, as far as the slopes of the pass before tell, are looked at no more
  // ("shrinking"). First, and after each pass, all dual variables are stretched.
  template <typename Rows>
  [[gnu::noinline]] float run(const Rows& rows, const uint8_t* positive, float cost, int64_t passes,
                              float tolerance, float bias, uint64_t seed, float* weights) {
    const float diagonal = 0.5f / cost;
    uint64_t draws = 0;
    auto active = static_cast<int64_t>(order_.size());
    float most = std::numeric_limits<float>::infinity();  // slope downhill in the pass before
    float gained = 0;
    Sums sums = sums_;  // local, so that the loop does not store them each time
    stretch(rows.columns(), diagonal, sums, bias, weights);
    for (int64_t pass = 0; pass < passes; ++pass) {
      for (int64_t i = active - 1; i > 0; --i)
        std::swap(order_[i], order_[random_below(seed, draws++, i + 1)]);
      float largest = 0, downhill = 0, gain = 0;
      for (int64_t place = 0; place < active; ++place) {
        if (place + kRowsAhead < active) rows.prefetch(order_[place + kRowsAhead]);
        const int32_t i = order_[place];
        const float sign = positive[i] ? 1.0f : -1.0f;
        const float product = bias + rows.product(i, weights);
        const float slope = sign * product - 1 + diagonal * dual_[i];
        if (dual_[i] == 0 && slope >= 0) {
          if (slope > most) std::swap(order_[place--], order_[--active]);
          continue;
        }
        downhill = std::max(downhill, -slope);
        const float curvature = rows.squares(i) + diagonal;
        const float dual = std::max(dual_[i] - slope / curvature, 0.0f);
        const float change = dual - dual_[i];
        if (change == 0) continue;
        sums.duals += change;
        sums.dual_squares += change * (dual + dual_[i]);
        sums.weight_squares += change * (2 * sign * product + change * rows.squares(i));
        dual_[i] = dual;
        bias += sign * change;
        rows.add(i, sign * change, weights);
        largest = std::max(largest, std::fabs(change));
        gain -= change * (slope + curvature * change / 2);
      }
      stretch(rows.columns(), diagonal, sums, bias, weights);
      most = downhill;
      gained += gain;
      if (largest < kConverged || gain < tolerance * gained) break;
    }
    sums_ = sums;
    return bias;
  }

 private:
  struct Sums {
    double duals = 0, dual_squares = 0, weight_squares = 0;  // the bias is a weight
  };

  // Multiplies the dual variables, and so the weights, by the factor that is best for the dual objective. By
  // changing one variable after the other, that takes several passes.
  void stretch(int64_t columns, float diagonal, Sums& sums, float& bias, float* weights) {
    const double curvature = sums.weight_squares + diagonal * sums.dual_squares;
    if (!(curvature > 0)) return;  // no dual variable yet, or NaN
    const double factor = sums.duals / curvature;
    if (std::fabs(factor - 1) < kLeastStretch) return;
    const auto by = static_cast<float>(factor);
    for (float& dual : dual_) dual *= by;
    for (int64_t i = 0; i < columns; ++i) weights[i] *= by;
    bias *= by;
    sums = {factor * sums.duals, factor * factor * sums.dual_squares, factor * factor * sums.weight_squares};
  }

  std::vector<float> dual_;
  std::vector<int32_t> order_;
  Sums sums_;
};

}  // namespace torch_lsh
