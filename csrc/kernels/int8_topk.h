// The exact top-k's logits of int8 rows, where a level multiplies int8 numbers as such. Compiled once per
// instruction set: include only from kernels/levels/*.cpp.
//
// Samples are float, so a sample x is rounded to step * numbers, with numbers of 8 bits. A row's product with
// them, an exact integer, says what its product with x is, give or take 128 times the sum of |x - step *
// numbers|. That bounds the logit from above. The few whose bound is above the threshold are computed in
// float.
//
// Where many bounds are above it, as of rows that are nearly equal, the difference x - step * numbers is
// rounded to 8 bits, too: a second product brings the bounds some 250 times closer to the logits.
//
// Samples that cannot be rounded so (infinities, NaN, the smallest and largest numbers) have a bound of NaN,
// which no threshold excludes, as have rows so long that the integers could overflow.
#pragma once

#include "kernels/topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// What makes bounds of the integers of a group's lanes: a product with x is at most step * integer + above,
// and at least step * integer + below. `add`: these are what is added to bounds that were written before.
struct Int8Bounds {
  const float *step, *above, *below;
  bool add;

  // Bounds of a row's logits, from the integers of its first lanes.
  template <int64_t Vectors>
  void write(const Vector<int32_t> (&sums)[Vectors], Affine<float, true> affine, int64_t row,
             float* out) const {
    const float *const scales = step, *const margins = affine.scale[row] < 0 ? below : above;
    // What rounding takes from a sum with the bias, at most.
    const float lost = __builtin_fabsf(affine.bias[row]) * 0x1p-22f;
#pragma GCC unroll 4
    for (int64_t v = 0; v < Vectors; ++v) {
      const int64_t lane = v * kLanes<float>;
      const auto numbers = __builtin_convertvector(sums[v], Vector<float>);
      const Vector<float> sum = numbers * load_as<float>(scales + lane) + load_as<float>(margins + lane);
      const Vector<float> bound =
          add ? load_as<float>(out + lane) + (sum * affine.scale[row] + lost) : affine(sum, row);
      __builtin_memcpy(out + lane, &bound, sizeof(bound));
    }
  }
};

// Product: how integers are multiplied,
//   kGroup    samples of a group at most, a multiple of a vector's lanes
//   kRows     rows of a block
//   kAdded    what is added to each number of a row before it is multiplied
//   floats(lanes, width)                  that the numbers of `lanes` samples take
//   place(lanes, width, sample, i)        where number i of a sample is
//   multiply(rows, count, width, numbers, lanes, bounds, affine, out)
// Few: computes logits of up to Few::kSamples samples.
template <typename Product, typename Few>
struct Int8Topk {
  static constexpr int64_t kGroup = Product::kGroup, kRows = Product::kRows;
  static constexpr int64_t kLargestWidth = 1 << 16;  // 2^16 products of up to 255 * 127
  static constexpr double kLeast = 1e-30, kLargest = 1e30;
  static constexpr int64_t kDigits = 2;

  // A packed group: step, above and below of each lane by digit, the margin of each lane, numbers of all
  // samples by digit, each sample as Few packs it.
  struct Packed {
    int64_t samples, width;

    int64_t lanes() const { return round_up(samples, kLanes<float>); }
    int64_t bounds(int64_t digit) const { return digit * 3 * lanes(); }
    int64_t margins() const { return bounds(kDigits); }
    int64_t numbers(int64_t digit) const {
      return round_up(margins() + lanes(), 16) + digit * round_up(Product::floats(lanes(), width), 16);
    }
    int64_t one_size() const { return round_up(Few::packed_size(1, width), 16); }
    int64_t one(int64_t sample) const { return numbers(kDigits) + sample * one_size(); }
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
    float largest = 0;
    double size = 0;
    for (int64_t i = 0; i < layout.width; ++i) {
      largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
      size += __builtin_fabsf(x[i]);
    }
    if (!(size < kLargest) || (size > 0 && largest < kLeast) || layout.width > kLargestWidth) {
      float* const above = packed + layout.bounds(0) + layout.lanes() + sample;
      above[0] = above[layout.lanes()] = __builtin_nanf("");
      return;
    }
    if (size == 0) return;
    // Sums in float, of the logit and of the bound, are off by some roundings for each of their terms at
    // most.
    const double roundings = size * static_cast<double>(2 * layout.width + 64) * 0x1p-24;
    float steps[kDigits] = {largest / 127};
    for (int64_t d = 1; d < kDigits; ++d) steps[d] = steps[d - 1] / 254;
    const Rounded rounded = round_digits(x, layout, sample, steps, packed);
    double margin = 0;
    for (int64_t d = 0; d < kDigits; ++d) {
      float* const step = packed + layout.bounds(d) + sample;
      float *const above = step + layout.lanes(), *const below = above + layout.lanes();
      const double before = margin,
                   added = static_cast<double>(Product::kAdded * rounded.total[d]) * steps[d];
      margin = 128 * (rounded.rest[d] + roundings);
      *step = steps[d];
      *above = static_cast<float>(margin - before - added);
      *below = static_cast<float>(before - margin - added);
    }
    packed[layout.margins() + sample] = static_cast<float>(margin);
  }

  struct Rounded {
    int64_t total[kDigits];  // of the numbers
    double rest[kDigits];    // sum of what rounding leaves
  };

  // Writes the digits of a sample.
  static Rounded round_digits(const float* x, const Packed& layout, int64_t sample,
                              const float (&steps)[kDigits], float* packed) {
    Rounded result{};
    double inverse[kDigits];
    for (int64_t d = 0; d < kDigits; ++d) inverse[d] = 1 / static_cast<double>(steps[d]);
    for (int64_t i = 0; i < layout.width; ++i) {
      const int64_t place = Product::place(layout.lanes(), layout.width, sample, i);
      double rest = x[i];
      for (int64_t d = 0; d < kDigits; ++d) {
        const double nearest = __builtin_rint(rest * inverse[d]);
        const double number = nearest < -127 ? -127 : nearest > 127 ? 127 : nearest;
        reinterpret_cast<int8_t*>(packed + layout.numbers(d))[place] = static_cast<int8_t>(number);
        rest -= static_cast<double>(steps[d]) * number;
        result.total[d] += static_cast<int64_t>(number);
        result.rest[d] += __builtin_fabs(rest);
      }
    }
    return result;
  }

  // Multiplies by one digit of the samples.
  static void multiply_digit(int64_t digit, const int8_t* rows, int64_t count, const Packed& layout,
                             const float* packed, Affine<float, true> affine, float* bounds) {
    const int64_t lanes = layout.lanes();
    const float* const step = packed + layout.bounds(digit);
    Product::multiply(rows, count, layout.width,
                      reinterpret_cast<const int8_t*>(packed + layout.numbers(digit)), lanes,
                      Int8Bounds{step, step + lanes, step + 2 * lanes, digit > 0}, affine, bounds);
  }

  static void multiply(const int8_t* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                       const float* scale, const float* bias, const float* expanded, float* logits) {
    if (samples <= Few::kSamples)
      return Few::multiply(rows, count, width, packed, samples, scale, bias, logits);
    multiply_digit(0, rows, count, Packed{samples, width}, packed, Affine<float, true>{scale, bias}, logits);
  }

  static void sharpen(const int8_t* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                      const float* scale, const float* bias, float* bounds) {
    if (samples > Few::kSamples)
      multiply_digit(1, rows, count, Packed{samples, width}, packed, Affine<float, true>{scale, bias},
                     bounds);
  }

  static float excess(const float* packed, int64_t samples, int64_t width, int64_t sample, float scale,
                      float bias) {
    if (samples <= Few::kSamples) return 0;
    const float margin = packed[Packed{samples, width}.margins() + sample];
    return 2 * margin * scale + bias * 0x1p-21f;
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
