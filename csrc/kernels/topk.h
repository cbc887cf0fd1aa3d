// Logits of a block of rows for a group of samples, and the scan for large ones. Compiled once per
// instruction set: include only from kernels/levels/*.cpp.
//
// Two products, by the number of samples:
// - few (up to 4): lanes run along the features. Memory-bound, so each row is read once.
// - panel (up to three vectors of samples): lanes are samples, features are broadcast from the rows, and a
//   tile of kTopkRows x 3 vectors of sums stays in registers.
// Both sum the features of a (row, sample) pair in an order independent of block and tile, so logits do not
// depend on how rows are split.
//
// T: storage type of rows. X: storage type of samples. Sum: accumulator type.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"
#include "kernels/row_prefetch.h"
#include "kernels/vectors.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

constexpr int64_t kFewSamples = 4, kTopkVectors = 3;
// 32 registers hold 8 x 3 sums, 16 registers 4 x 3.
constexpr int64_t kTopkRows = TORCH_LSH_TILE_ROWS >= 12 ? 8 : 4;

template <typename V>
inline bool any_bit(V vector) {
  uint64_t words[sizeof(V) / 8], bits = 0;
  __builtin_memcpy(words, &vector, sizeof(vector));
  for (const uint64_t word : words) bits |= word;
  return bits != 0;
}

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// --- few samples: x[Samples, stride], zero-padded to whole vectors ---

template <int64_t Samples, typename T, typename Sum>
inline void dot_few(const T* __restrict row, int64_t width, const Sum* __restrict x, Sum* __restrict out) {
  constexpr int64_t lanes = kLanes<Sum>;
  const int64_t stride = round_up(width, lanes);
  Vector<Sum> sum[Samples] = {};
  const auto add = [&](const T* weights, int64_t i) {
    const Vector<Sum> w = load_as<Sum>(weights);
#pragma GCC unroll 4
    for (int64_t s = 0; s < Samples; ++s) sum[s] += w * load_as<Sum>(x + s * stride + i);
  };
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) add(row + i, i);
  if (i < width) {
    T rest[lanes] = {};
    __builtin_memcpy(rest, row + i, static_cast<size_t>(width - i) * sizeof(T));
    add(rest, i);
  }
#pragma GCC unroll 4
  for (int64_t s = 0; s < Samples; ++s) out[s] = sum_lanes(sum[s]);
}

// --- panel: packed[width, Vectors * lanes], samples side by side ---

template <int64_t Rows, int64_t Vectors, typename Sum>
inline void multiply_tile(const Sum* __restrict rows, int64_t width, const Sum* __restrict packed,
                          Vector<Sum> (&sum)[Rows][Vectors]) {
  constexpr int64_t lanes = kLanes<Sum>;
  for (int64_t i = 0; i < width; ++i) {
    prefetch_scan(rows + Rows * i);  // hardware does not foresee a tile's distant columns
    Vector<Sum> x[Vectors];
#pragma GCC unroll 3
    for (int64_t v = 0; v < Vectors; ++v) x[v] = load_as<Sum>(packed + (i * Vectors + v) * lanes);
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r) {
      const Sum w = rows[r * width + i];
#pragma GCC unroll 3
      for (int64_t v = 0; v < Vectors; ++v) sum[r][v] += w * x[v];
    }
  }
}

#ifdef TORCH_LSH_BF16_DOT
// bfloat16 versions, which multiply pairs of features. Samples are bfloat16, too; a panel packs them as pairs
// [ceil(width / 2), lanes], the first feature in the low half.

template <int64_t Samples>
inline void dot_few(const BFloat16* __restrict row, int64_t width, const BFloat16* __restrict x,
                    float* __restrict out) {
  constexpr int64_t lanes = kLanes<BFloat16>;
  const int64_t stride = round_up(width, lanes);
  Vector<float> sum[Samples] = {};
  const auto add = [&](Pairs w, int64_t i) {
#pragma GCC unroll 4
    for (int64_t s = 0; s < Samples; ++s)
      sum[s] = add_pairs(sum[s], w, load_vector<Pairs>(x + s * stride + i));
  };
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) add(load_vector<Pairs>(row + i), i);
  if (i < width) add(load_first_pairs(row + i, width - i), i);
#pragma GCC unroll 4
  for (int64_t s = 0; s < Samples; ++s) out[s] = sum_lanes(sum[s]);
}

template <int64_t Rows, int64_t Vectors>
inline void multiply_tile(const BFloat16* __restrict rows, int64_t width, const float* __restrict packed,
                          Vector<float> (&sum)[Rows][Vectors]) {
  const auto add = [&](const float* pairs, const auto& pair_of_row) {
    Pairs x[Vectors];
#pragma GCC unroll 3
    for (int64_t v = 0; v < Vectors; ++v) x[v] = load_vector<Pairs>(pairs + v * kLanes<float>);
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r) {
      const Pairs w = pair_of_row(r);
#pragma GCC unroll 3
      for (int64_t v = 0; v < Vectors; ++v) sum[r][v] = add_pairs(sum[r][v], w, x[v]);
    }
  };
  for (int64_t i = 0; i + 1 < width; i += 2) {
    prefetch_scan(rows + Rows * i);
    add(packed + i / 2 * Vectors * kLanes<float>,
        [&](int64_t r) { return same_pairs(rows + r * width + i); });
  }
  if (width % 2 != 0)
    add(packed + width / 2 * Vectors * kLanes<float>,
        [&](int64_t r) { return static_cast<int32_t>(rows[r * width + width - 1].bits) - Pairs{}; });
}
#endif

// --- blocks ---

// Lanes per group of samples, padding included: 1, 2, 4, or whole vectors.
template <typename Sum>
int64_t topk_lanes(int64_t samples) {
  if (samples <= 2) return samples;
  return samples <= kFewSamples ? kFewSamples : round_up(samples, kLanes<Sum>);
}

// Sums written by topk_pack.
template <typename T, typename Sum>
int64_t topk_packed_size(int64_t samples, int64_t width) {
  return topk_lanes<Sum>(samples) * round_up(width, kLanes<typename Operand<T, Sum>::type>);
}

template <typename T, typename X, typename Sum>
void topk_pack(const X* x, int64_t samples, int64_t width, Sum* packed) {
  using Packed = typename Operand<T, Sum>::type;
  constexpr int64_t together = sizeof(Sum) / sizeof(Packed);  // adjacent features of a sample in a panel
  const int64_t lanes = topk_lanes<Sum>(samples), stride = round_up(width, kLanes<Packed>);
  auto* out = reinterpret_cast<Packed*>(packed);
  __builtin_memset(out, 0, static_cast<size_t>(lanes * stride) * sizeof(Packed));
  for (int64_t s = 0; s < samples; ++s) {
    if (lanes <= kFewSamples) {
      convert(x + s * width, width, out + s * stride);
    } else {
      for (int64_t i = 0; i < width; ++i)
        convert(x + s * width + i, 1, out + (i / together * lanes + s) * together + i % together);
    }
  }
}

// logit = sum * scale + bias, per row. Unscaled rows have a null scale; the type decides, outside the loops.
template <typename Sum, bool Scaled>
struct Affine {
  const Sum *scale, *bias;
  template <typename V>
  V operator()(V sum, int64_t row) const {
    if constexpr (Scaled) return sum * scale[row] + bias[row];
    return sum + bias[row];
  }
};

template <int64_t Samples, typename T, typename Packed, typename Sum, bool Scaled>
void multiply_few(const T* rows, int64_t count, int64_t width, const Packed* x, Affine<Sum, Scaled> affine,
                  Sum* out) {
  for (int64_t r = 0; r < count; ++r, out += Samples) {
    if (count > 1)
      for (int64_t i = 0; i < width; i += 64 / sizeof(T)) prefetch_scan(rows + r * width + i);
    dot_few<Samples>(rows + r * width, width, x, out);
#pragma GCC unroll 4
    for (int64_t s = 0; s < Samples; ++s) out[s] = affine(out[s], r);
  }
}

template <int64_t Vectors, typename T, typename Sum, bool Scaled>
void multiply_panel(const T* rows, int64_t count, int64_t width, const Sum* packed,
                    Affine<Sum, Scaled> affine, Sum* out) {
  const auto tile = [&]<int64_t Rows>(int64_t begin) {
    Vector<Sum> sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 3
      for (int64_t v = 0; v < Vectors; ++v) sum[r][v] = Vector<Sum>{};
    multiply_tile<Rows, Vectors>(rows + begin * width, width, packed, sum);
#pragma GCC unroll 8
    for (int64_t r = 0; r < Rows; ++r)
#pragma GCC unroll 3
      for (int64_t v = 0; v < Vectors; ++v) {
        const Vector<Sum> logits = affine(sum[r][v], begin + r);
        __builtin_memcpy(out + ((begin + r) * Vectors + v) * kLanes<Sum>, &logits, sizeof(logits));
      }
  };
  int64_t r = 0;
  for (; r + kTopkRows <= count; r += kTopkRows) tile.template operator()<kTopkRows>(r);
  for (; r < count; ++r) tile.template operator()<1>(r);
}

template <typename T, typename Sum>
void topk_expand(const T* rows, int64_t count, Sum* out) {
  int64_t i = 0;
  for (; i + kLanes<Sum> <= count; i += kLanes<Sum>) {
    const Vector<Sum> wide = load_as<Sum>(rows + i);
    __builtin_memcpy(out + i, &wide, sizeof(wide));
  }
  for (; i < count; ++i) out[i] = to_float(rows[i]);
}

template <typename T, typename Sum>
void topk_multiply_few(const T* rows, int64_t count, int64_t width, const Sum* packed, int64_t samples,
                       const Sum* scale, const Sum* bias, Sum* out) {
  const Affine<Sum, __is_same(T, int8_t)> affine{scale, bias};
  const auto* x = reinterpret_cast<const typename Operand<T, Sum>::type*>(packed);
  const int64_t lanes = topk_lanes<Sum>(samples);
  if (lanes == 1) multiply_few<1>(rows, count, width, x, affine, out);
  if (lanes == 2) multiply_few<2>(rows, count, width, x, affine, out);
  if (lanes == 4) multiply_few<4>(rows, count, width, x, affine, out);
}

template <typename T, typename Sum>
void topk_multiply(const T* rows, int64_t count, int64_t width, const Sum* packed, int64_t samples,
                   const Sum* scale, const Sum* bias, const Sum* expanded, Sum* out) {
  if (samples <= kFewSamples) return topk_multiply_few(rows, count, width, packed, samples, scale, bias, out);
  const Affine<Sum, __is_same(T, int8_t)> affine{scale, bias};
  const auto panel = [&](const auto* operand) {
    const int64_t vectors = topk_lanes<Sum>(samples) / kLanes<Sum>;
    if (vectors == 1) multiply_panel<1>(operand, count, width, packed, affine, out);
    if (vectors == 2) multiply_panel<2>(operand, count, width, packed, affine, out);
    if (vectors == 3) multiply_panel<3>(operand, count, width, packed, affine, out);
  };
  if constexpr (__is_same(T, typename Operand<T, Sum>::type)) {
    panel(rows);
  } else {
    panel(expanded);
  }
}

// Tests eight periods at once, and looks for the hits among them only if there is one.
template <typename Sum>
int64_t topk_scan(const Sum* logits, int64_t count, const Sum* thresholds, int64_t period, int32_t* hits) {
  constexpr int64_t lanes = kLanes<Sum>, together = 8;
  int64_t found = 0;
  for (int64_t begin = 0; begin < count; begin += together * period) {
    const int64_t end = begin + together * period < count ? begin + together * period : count;
    decltype(load_as<Sum>(logits) <= load_as<Sum>(thresholds)) above{};
    for (int64_t i = begin; i < end; i += period)
      for (int64_t v = 0; v < period; v += lanes)
        above |= ~(load_as<Sum>(logits + i + v) <= load_as<Sum>(thresholds + v));
    if (!any_bit(above)) continue;
    for (int64_t i = begin; i < end; i += period)
      for (int64_t v = 0; v < period && i + v < end; ++v) {
        hits[found] = static_cast<int32_t>(i + v);
        found += !(logits[i + v] <= thresholds[v]);
      }
  }
  return found;
}

// The parts of a table for up to Samples samples, which other tables use: reading the rows is what takes the
// time, not how they are multiplied.
template <typename T, int64_t Samples = kFewSamples>
struct FewTopk {
  static constexpr int64_t kSamples = Samples;

  static int64_t packed_size(int64_t samples, int64_t width) {
    return topk_packed_size<T, float>(samples, width);
  }
  static void pack(const SampleOf<T>* x, int64_t samples, int64_t width, float* packed) {
    topk_pack<T, SampleOf<T>, float>(x, samples, width, packed);
  }
  static void multiply(const T* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                       const float* scale, const float* bias, float* logits) {
    topk_multiply_few(rows, count, width, packed, samples, scale, bias, logits);
  }
};

template <typename T>
constexpr void fill(TopkKernels<T>& table) {
  using Sum = SumOf<T>;
  table = {
      .largest_group = kTopkVectors * kLanes<Sum>,
      .block_rows = 32,  // their logits stay in the first-level cache
      .vector = kLanes<Sum>,
      .lanes = topk_lanes<Sum>,
      .packed_size = topk_packed_size<T, Sum>,
      .pack = topk_pack<T, SampleOf<T>, Sum>,
      .expand = nullptr,
      .multiply = topk_multiply<T, Sum>,
      .sharpen = nullptr,
      .excess = nullptr,
      .refine = nullptr,
      .scan = topk_scan<Sum>,
  };
  if constexpr (!__is_same(T, typename Operand<T, Sum>::type)) table.expand = topk_expand<T, Sum>;
}

// A table of other products.
template <typename Topk, typename T>
constexpr void fill_topk(TopkKernels<T>& table) {
  table = {.largest_group = Topk::kGroup,
           .block_rows = Topk::kRows,
           .vector = kLanes<float>,
           .lanes = Topk::lanes,
           .packed_size = Topk::packed_size,
           .pack = Topk::pack,
           .expand = nullptr,
           .multiply = Topk::multiply,
           .sharpen = nullptr,
           .excess = nullptr,
           .refine = nullptr,
           .scan = topk_scan<float>};
  if constexpr (requires { Topk::refine; }) {
    table.sharpen = Topk::sharpen;
    table.excess = Topk::excess;
    table.refine = Topk::refine;
  }
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
