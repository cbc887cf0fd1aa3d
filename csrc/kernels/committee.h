// The output layer of committees: ReLU, the sum of each member's units, softmax and the way back. Compiled
// once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/kernels.h"
#include "kernels/product.h"
#include "kernels/softmax.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Sums of the lanes that are equal modulo To.
template <int64_t To, typename V>
inline auto fold(V vector) {
  constexpr int64_t lanes = sizeof(V) / sizeof(vector[0]);
  if constexpr (lanes == To) {
    return vector;
  } else {
    typename VectorType<__typeof__(vector[0] + vector[0]), lanes / 2>::type halves[2];
    __builtin_memcpy(halves, &vector, sizeof(vector));
    return fold<To>(halves[0] + halves[1]);
  }
}

// A pair of numbers in all lanes, in turn. As integers: doubles that are denormal may count as 0.
inline Vector<float> repeat_pair(const float* pair) {
  int64_t bits;
  __builtin_memcpy(&bits, pair, sizeof(bits));
  return (Vector<float>)(bits - Vector<int64_t>{});
}

inline void store_vector(Vector<float> vector, float* to) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

// The sums over the units of each of `Members` members, whose units take turns.
template <int64_t Members, int64_t Vectors>
inline auto member_scores(const float* units, const Vector<float> (&output)[Vectors]) {
  Vector<float> sum{};
#pragma GCC unroll 16
  for (int64_t v = 0; v < Vectors; ++v) {
    const auto unit = load_vector<Vector<float>>(units + v * kLanes<float>);
    sum += (unit > 0 ? unit : Vector<float>{}) * output[v];
  }
  return fold<Members>(sum);
}

// Scores [count, 2] of a row's candidates, the first `right` of which are right -> slopes of the loss there.
// Writes up to a vector beyond them.
inline void softmax_slopes(float* scores, int64_t count, int64_t right, float weight) {
  using V = Vector<float>;
  constexpr int64_t kVector = kLanes<float>;
  // Exponentials of far less, denormal or 0, take several times as long; those of more are infinite.
  constexpr float kLeast = -30, kMost = 80;
  const int64_t begin = 2 * right, end = 2 * count;
  for (int64_t i = end; i < end + kVector; ++i) scores[i] = -__builtin_inff();
  V most = V{} - __builtin_inff();
  for (int64_t i = begin; i < end; i += kVector) {
    const V some = load_vector<V>(scores + i);
    most = some > most ? some : most;
  }
  float largest[2] = {most[0], most[1]}, sum[2], missed[2] = {};
  for (int64_t lane = 2; lane < kVector; ++lane)
    largest[lane % 2] = most[lane] > largest[lane % 2] ? most[lane] : largest[lane % 2];
  const V reference = repeat_pair(largest);
  for (int64_t i = 0; i < end; i += kVector) {
    V below = load_vector<V>(scores + i) - reference;
    below = below < kLeast ? V{} + kLeast : below;
    store_vector(below > kMost ? V{} + kMost : below, scores + i);
  }
#pragma omp simd
  for (int64_t i = 0; i < end; ++i) scores[i] = exponential(scores[i]);
  for (int64_t i = end; i < end + kVector; ++i) scores[i] = 0;
  V total{};
  for (int64_t i = begin; i < end; i += kVector) total += load_vector<V>(scores + i);
  const auto sums = fold<2>(total);
  __builtin_memcpy(sum, &sums, sizeof(sum));
  for (int64_t i = 0; i < begin; ++i) {
    const float share = weight * sum[i % 2] / (sum[i % 2] + scores[i]);
    missed[i % 2] += share;
    scores[i] = -share;
  }
  const float factors[2] = {missed[0] / sum[0], missed[1] / sum[1]};
  const V factor = repeat_pair(factors);
  for (int64_t i = begin; i < end; i += kVector)
    store_vector(load_vector<V>(scores + i) * factor, scores + i);
}

void committee_slopes(const float* units, int64_t count, int64_t padded, int64_t right, const float* output,
                      float weight, float* scores, float* slopes, float* of_output) {
  using V = Vector<float>;
  constexpr int64_t kVector = kLanes<float>, kVectors = kPairUnits / kVector;
  // Of a panel, at once.
  constexpr int64_t kPart = kVector < kPanelWidth<float> ? kVector : kPanelWidth<float>;
  V out[kVectors], sum[kVectors] = {};
  for (int64_t v = 0; v < kVectors; ++v) out[v] = load_vector<V>(output + v * kVector);
  for (int64_t c = 0; c < count; ++c) {
    const auto pair = member_scores<2>(units + c * kPairUnits, out);
    __builtin_memcpy(scores + 2 * c, &pair, sizeof(pair));
  }
  softmax_slopes(scores, count, right, weight);
  for (int64_t c = 0; c < padded; ++c) {
    const V slope = c < count ? repeat_pair(scores + 2 * c) : V{};
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) {
      const V unit = load_vector<V>(units + c * kPairUnits + v * kVector);
      const V active = unit > 0 ? slope : V{};
      sum[v] += active * unit;
      const V of_unit = active * out[v];
      for (int64_t part = 0; part < kVector; part += kPart) {
        const int64_t column = v * kVector + part, width = kPanelWidth<float>;
        __builtin_memcpy(slopes + (column / width * padded + c) * width + column % width,
                         reinterpret_cast<const float*>(&of_unit) + part, sizeof(float) * kPart);
      }
    }
  }
  for (int64_t v = 0; v < kVectors; ++v)
    store_vector(load_vector<V>(of_output + v * kVector) + sum[v], of_output + v * kVector);
}

void committee_scores(const float* units, int64_t count, int64_t width, const float* output, float* scores) {
  for (int64_t c = 0; c < count; ++c) {
    Vector<float> sum{};
    for (int64_t i = 0; i < width; i += kLanes<float>) {
      const auto unit = load_vector<Vector<float>>(units + c * width + i);
      sum += (unit > 0 ? unit : Vector<float>{}) * load_vector<Vector<float>>(output + i);
    }
    scores[c] = sum_lanes(sum);
  }
}

constexpr void fill(CommitteeKernels& table) {
  table = {.slopes = committee_slopes, .scores = committee_scores};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
