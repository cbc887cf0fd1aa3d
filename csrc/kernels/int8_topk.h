// The exact top-k's logits of int8 rows, where a level multiplies int8 numbers as such. Compiled once per
// instruction set: include only from kernels/levels/*.cpp.
//
// Samples are float, so a sample x is rounded to step * numbers, with numbers of 8 bits. A row's product with
// them, an exact integer, says what its product with x is, give or take 128 times the sum of |x - step *
// numbers|. That bounds the logit from above. The few whose bound is above the threshold are computed in
// float.
//
// Samples that cannot be rounded so (infinities, NaN, the smallest and largest numbers) have a bound of NaN,
// which no threshold excludes, as have rows so long that the integers could overflow.
#pragma once

#include "kernels/topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// What makes bounds of the integers of a group's lanes: a product with x is at most step * integer + above,
// and at least step * integer + below.
struct Int8Bounds {
  const float *step, *above, *below;

  // Bounds of a row's logits, from the integers of its first lanes.
  template <int64_t Vectors>
  void write(const Vector<int32_t> (&sums)[Vectors], Affine<float, true> affine, int64_t row,
             float* out) const {
    const float *const scales = step, *const margins = affine.scale[row] < 0 ? below : above;
#pragma GCC unroll 4
    for (int64_t v = 0; v < Vectors; ++v) {
      const int64_t lane = v * kLanes<float>;
      const auto numbers = __builtin_convertvector(sums[v], Vector<float>);
      const Vector<float> bound =
          affine(numbers * load_as<float>(scales + lane) + load_as<float>(margins + lane), row);
      __builtin_memcpy(out + lane, &bound, sizeof(bound));
    }
  }
};

// Product: how integers are multiplied,
//   kGroup    samples of a group at most, a multiple of a vector's lanes
//   kAdded    what is added to each number of a row before it is multiplied
//   floats(lanes, width)                  that the numbers of `lanes` samples take
//   place(lanes, width, sample, i)        where number i of a sample is
//   multiply(rows, count, width, numbers, lanes, bounds, affine, out)
// Few: computes logits of up to Few::kSamples samples.
template <typename Product, typename Few>
struct Int8Topk {
  static constexpr int64_t kGroup = Product::kGroup;
  static constexpr int64_t kLargestWidth = 1 << 16;  // 2^16 products of up to 255 * 127
  static constexpr double kLeast = 1e-30, kLargest = 1e30;

  // A packed group: step, above and below of each lane, numbers of all samples, each sample as Few packs it.
  struct Packed {
    int64_t samples, width;

    int64_t lanes() const { return round_up(samples, kLanes<float>); }
    int64_t numbers() const { return round_up(3 * lanes(), 16); }
    int64_t one_size() const { return round_up(Few::packed_size(1, width), 16); }
    int64_t one(int64_t sample) const {
      return numbers() + round_up(Product::floats(lanes(), width), 16) + sample * one_size();
    }
    int64_t size() const { return one(samples); }
  };

  static int64_t lanes(int64_t samples) {
    return samples <= Few::kSamples ? topk_lanes<float>(samples) : Packed{samples, 0}.lanes();
  }

  static int64_t packed_size(int64_t samples, int64_t width) {
    return samples <= Few::kSamples ? round_up(Few::packed_size(samples, width), 16)
                                    : Packed{samples, width}.size();
  }

  static void pack(const float* x, int64_t samples, int64_t width, float* packed) {
    if (samples <= Few::kSamples) return Few::pack(x, samples, width, packed);
    const Packed layout{samples, width};
    __builtin_memset(packed, 0, static_cast<size_t>(layout.size()) * sizeof(float));
    for (int64_t s = 0; s < samples; ++s, x += width) {
      round_sample(x, layout, s, packed);
      Few::pack(x, 1, width, packed + layout.one(s));
    }
  }

  static void round_sample(const float* x, const Packed& layout, int64_t sample, float* packed) {
    const int64_t width = layout.width, lanes = layout.lanes();
    float* const step = packed + sample;
    float *const above = step + lanes, *const below = above + lanes;
    auto* const numbers = reinterpret_cast<int8_t*>(packed + layout.numbers());
    float largest = 0;
    double size = 0, rest = 0;
    for (int64_t i = 0; i < width; ++i) {
      largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
      size += __builtin_fabsf(x[i]);
    }
    if (!(size < kLargest) || (size > 0 && largest < kLeast) || width > kLargestWidth) {
      *above = *below = __builtin_nanf("");
      return;
    }
    if (size == 0) return;
    *step = largest / 127;
    int64_t total = 0;
    for (int64_t i = 0; i < width; ++i) {
      const auto number = static_cast<int8_t>(__builtin_rintf(x[i] / *step));
      numbers[Product::place(lanes, width, sample, i)] = number;
      total += number;
      rest += __builtin_fabs(x[i] - static_cast<double>(*step) * number);
    }
    // Sums in float, of the logit and of the bound, are off by a rounding for each of their terms at most.
    const double margin = 128 * (rest + size * static_cast<double>(width + 32) * 0x1p-24);
    const double added = static_cast<double>(Product::kAdded * total) * *step;
    *above = static_cast<float>(margin - added);
    *below = static_cast<float>(-margin - added);
  }

  static void multiply(const int8_t* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                       const float* scale, const float* bias, const float* expanded, float* logits) {
    if (samples <= Few::kSamples)
      return Few::multiply(rows, count, width, packed, samples, scale, bias, logits);
    const Packed layout{samples, width};
    const int64_t lanes = layout.lanes();
    Product::multiply(rows, count, width, reinterpret_cast<const int8_t*>(packed + layout.numbers()), lanes,
                      Int8Bounds{packed, packed + lanes, packed + 2 * lanes},
                      Affine<float, true>{scale, bias}, logits);
  }

  static float refine(float bound, const int8_t* row, int64_t width, const float* packed, int64_t samples,
                      int64_t sample, const float* scale, const float* bias) {
    if (samples <= Few::kSamples) return bound;
    float logit;
    Few::multiply(row, 1, width, packed + Packed{samples, width}.one(sample), 1, scale, bias, &logit);
    return logit;
  }
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
