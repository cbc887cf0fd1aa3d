// The exact top-k's logits by tiles (tiles.h): rows are the left operand, read where they lie, samples the
// right one. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// bfloat16: a product with the bias as the sums' beginning.
//
// int8: rows are multiplied with samples of 24 bits, exactly. Each sample is step * (65536 * a + 256 * b + c)
// with digits a, b, c of 8 bits, whose products with the rows are summed as integers and then joined in
// float. Samples that no such digits describe (infinities, NaN, numbers near the smallest ones) are
// multiplied in float, as are rows so long that the integers could overflow.
//
// A few samples, up to Few::kSamples, are multiplied in a form of their own: reading the rows is what takes
// the time.
#pragma once

#include "kernels/tile_product.h"
#include "kernels/topk.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

constexpr int64_t kTileTopkRows = 128, kTileTopkGroup = 64;

// A few samples as in topk.h.
template <typename T>
struct FewTopk {
  static constexpr int64_t kSamples = kFewSamples;

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

template <typename Tiles, typename Few = FewTopk<BFloat16>>
struct BFloat16TileTopk {
  using Product = TileProduct<Tiles>;

  static int64_t lanes(int64_t samples) {
    return samples <= Few::kSamples ? topk_lanes<float>(samples) : round_up(samples, Product::kPanelWidth);
  }

  static int64_t packed_size(int64_t samples, int64_t width) {
    if (samples <= Few::kSamples) return round_up(Few::packed_size(samples, width), 16);
    return lanes(samples) / Product::kPanelWidth * Product::panel_size(width);
  }

  static void pack(const BFloat16* x, int64_t samples, int64_t width, float* packed) {
    if (samples <= Few::kSamples) return Few::pack(x, samples, width, packed);
    for (int64_t panel = 0; panel * Product::kPanelWidth < samples; ++panel)
      Product::pack_panel(x, 1, width, width, samples, panel, 0, width, packed);
  }

  static void multiply(const BFloat16* rows, int64_t count, int64_t width, const float* packed,
                       int64_t samples, const float* scale, const float* bias, const float* expanded,
                       float* logits) {
    if (samples <= Few::kSamples) {
      Few::multiply(rows, count, width, packed, samples, scale, bias, logits);
    } else {
      Product::product(rows, width, 1, count, width, packed, lanes(samples), bias, false, logits,
                       lanes(samples));
    }
  }
};

template <typename Tiles, typename Few = FewTopk<int8_t>>
struct Int8TileTopk {
  using Product = TileProduct<Tiles>;
  static constexpr int64_t kDigits = 3;
  static constexpr int64_t kSamples = Product::kPanelWidth / kDigits;  // of a panel: digits of the same place
  static_assert(Product::kPanelWidth % kDigits == 0);                  // are next to each other
  // Panels that are multiplied at a time. Where rows have to be packed, this is done once for all of them.
  static constexpr int64_t kPanels = Tiles::kInPlace ? 1 : 8;
  static constexpr int64_t kLargestWidth = 1 << 16;  // 2^16 products of 2^14
  static constexpr float kLargest = 127 * 65536;     // in steps: leaves room to round

  // Of a group: `exact`, the steps of its samples, their digits, and the samples themselves.
  struct Packed {
    int64_t samples, width;

    int64_t panels() const { return (samples + kSamples - 1) / kSamples; }
    static constexpr int64_t exact() { return 0; }
    static constexpr int64_t steps() { return 16; }
    int64_t digits() const { return steps() + round_up(samples, 16); }
    int64_t floats() const { return digits() + panels() * Product::panel_size(width); }
    int64_t stride() const { return round_up(width, kLanes<float>); }
    int64_t size() const { return round_up(floats() + samples * stride(), 16); }
  };

  static int64_t lanes(int64_t samples) {
    return samples <= Few::kSamples ? topk_lanes<float>(samples)
                                    : round_up(round_up(samples, kSamples), kLanes<float>);
  }

  static int64_t packed_size(int64_t samples, int64_t width) {
    if (samples <= Few::kSamples) return round_up(Few::packed_size(samples, width), 16);
    return Packed{samples, width}.size();
  }

  // A number as digits of signed bytes, the highest first.
  static void split(float value, float step, int8_t (&digits)[kDigits]) {
    int32_t rest = step == 0 ? 0 : static_cast<int32_t>(__builtin_rintf(value / step));
    for (int64_t d = kDigits - 1; d >= 0; --d) {
      digits[d] = static_cast<int8_t>(rest & 255);
      rest = (rest - digits[d]) / 256;
    }
  }

  // 0 for zeros only; NaN where no step will do.
  static float step_of(const float* x, int64_t width) {
    float largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < width; ++i) {
      const float size = __builtin_fabsf(x[i]);
      largest = size > largest ? size : largest;
      finite &= size < __builtin_inff();
    }
    const float step = largest / kLargest;
    return finite && (largest == 0 || step >= 0x1p-126f) ? step : __builtin_nanf("");
  }

  static void pack_samples(const float* x, int64_t samples, int64_t width, const float* steps, int64_t panel,
                           int32_t* digits) {
    int8_t of_step[Product::kPanelWidth * Product::kDepth];  // [column, depth]
    auto* to = reinterpret_cast<int8_t*>(digits) + panel * Product::panel_numbers(width);
    for (int64_t begin = 0; begin < width; begin += Product::kDepth) {
      const int64_t depth = width - begin < Product::kDepth ? width - begin : Product::kDepth;
      for (int64_t i = 0; i < kSamples; ++i) {
        const int64_t sample = panel * kSamples + i;
        for (int64_t k = 0; k < Product::kDepth; ++k) {
          int8_t split_number[kDigits] = {};
          if (sample < samples && k < depth)
            split(x[sample * width + begin + k], steps[sample], split_number);
          for (int64_t d = 0; d < kDigits; ++d)
            of_step[(d * kSamples + i) * Product::kDepth + k] = split_number[d];
        }
      }
      for (int64_t n = 0; n < Product::kPanelWidth; n += Tiles::kColumns) {
        Product::pack_right_tile(of_step + n * Product::kDepth, 1, Product::kDepth, Product::kDepth,
                                 Tiles::kColumns, to);
        to += Product::kDepth * Tiles::kColumns;
      }
    }
  }

  static void pack(const float* x, int64_t samples, int64_t width, float* packed) {
    if (samples <= Few::kSamples) return Few::pack(x, samples, width, packed);
    const Packed layout{samples, width};
    __builtin_memset(packed, 0, static_cast<size_t>(layout.size()) * sizeof(float));
    float* const steps = packed + layout.steps();
    bool exact = width <= kLargestWidth;
    for (int64_t s = 0; s < samples; ++s) {
      steps[s] = step_of(x + s * width, width);
      exact &= steps[s] == steps[s];
      convert(x + s * width, width, packed + layout.floats() + s * layout.stride());
    }
    packed[layout.exact()] = exact;
    if (!exact) return;
    for (int64_t panel = 0; panel < layout.panels(); ++panel)
      pack_samples(x, samples, width, steps, panel, reinterpret_cast<int32_t*>(packed + layout.digits()));
  }

  // The logits of a row for a panel's samples, those included that pad it.
  static void join_digits(const int32_t* __restrict sums, const float* __restrict steps, int64_t row,
                          Affine<float, true> affine, float* __restrict logits) {
#pragma omp simd
    for (int64_t i = 0; i < kSamples; ++i) {
      const float joined = static_cast<float>(sums[i]) * 65536.0f +
                           static_cast<float>(sums[kSamples + i]) * 256.0f +
                           static_cast<float>(sums[2 * kSamples + i]);
      logits[i] = affine(joined * steps[i], row);
    }
  }

  // count: at most a group of rows.
  static void multiply_exactly(const int8_t* rows, int64_t count, int64_t width, const float* packed,
                               int64_t samples, Affine<float, true> affine, float* logits) {
    const Packed layout{samples, width};
    const float* const steps = packed + layout.steps();
    const auto* digits = reinterpret_cast<const int32_t*>(packed + layout.digits());
    constexpr int64_t stride = kPanels * Product::kPanelWidth;
    alignas(64) int32_t sums[Product::kGroupRows * stride];
    for (int64_t panel = 0; panel < layout.panels(); panel += kPanels) {
      const int64_t panels = layout.panels() - panel < kPanels ? layout.panels() - panel : kPanels;
      Product::run(rows, width, 1, count, width, digits + panel * Product::panel_size(width),
                   panels * Product::kPanelWidth, nullptr, false, sums, stride);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t p = 0; p < panels; ++p)
          join_digits(sums + r * stride + p * Product::kPanelWidth, steps + (panel + p) * kSamples, r, affine,
                      logits + r * lanes(samples) + (panel + p) * kSamples);
    }
  }

  static void multiply(const int8_t* rows, int64_t count, int64_t width, const float* packed, int64_t samples,
                       const float* scale, const float* bias, const float* expanded, float* logits) {
    const Affine<float, true> affine{scale, bias};
    if (samples <= Few::kSamples)
      return Few::multiply(rows, count, width, packed, samples, scale, bias, logits);
    if (packed[Packed::exact()] != 0) {
      const typename Tiles::Session session;
      for (int64_t r = 0; r < count; r += Product::kGroupRows)
        multiply_exactly(rows + r * width, count - r < Product::kGroupRows ? count - r : Product::kGroupRows,
                         width, packed, samples, {scale + r, bias + r}, logits + r * lanes(samples));
      return;
    }
    const Packed layout{samples, width};
    for (int64_t r = 0; r < count; ++r)
      for (int64_t s = 0; s < samples; ++s) {
        float* const out = logits + r * lanes(samples) + s;
        dot_few<1>(rows + r * width, width, packed + layout.floats() + s * layout.stride(), out);
        *out = affine(*out, r);
      }
  }
};

template <typename Topk, typename T>
constexpr void fill_topk(TopkKernels<T>& table) {
  table = {.largest_group = kTileTopkGroup,
           .block_rows = kTileTopkRows,
           .vector = kLanes<float>,
           .lanes = Topk::lanes,
           .packed_size = Topk::packed_size,
           .pack = Topk::pack,
           .expand = nullptr,
           .multiply = Topk::multiply,
           .scan = topk_scan<float>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
