// The exact top-k's logits by tiles (tiles.h): rows are the left operand, read where they lie, samples the
// right one. Compiled once per instruction set: include only from kernels/levels/*.cpp.
//
// bfloat16: a product with the bias as the sums' beginning. int8: see int8_topk.h.
#pragma once

#include "kernels/int8_topk.h"
#include "kernels/tile_product.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Samples of a group, rows of a block: their logits and the rows stay in the first-level cache.
constexpr int64_t kTileTopkGroup = 64, kTileTopkRows = 64;

template <typename Tiles, typename Few = FewTopk<BFloat16>>
struct BFloat16TileTopk {
  using Product = TileProduct<Tiles>;
  static constexpr int64_t kGroup = kTileTopkGroup, kRows = kTileTopkRows;

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
      Product::scan(rows, count, width, packed, lanes(samples), bias, logits);
    }
  }
};

template <typename Tiles>
struct TileInt8Product {
  using Product = TileProduct<Tiles>;
  static constexpr int64_t kGroup = kTileTopkGroup, kRows = kTileTopkRows, kAdded = 0;

  static int64_t panels(int64_t lanes) { return (lanes + Product::kPanelWidth - 1) / Product::kPanelWidth; }
  static int64_t floats(int64_t lanes, int64_t width) { return panels(lanes) * Product::panel_size(width); }

  // As TileProduct::pack_panel packs them.
  static int64_t place(int64_t lanes, int64_t width, int64_t sample, int64_t i) {
    constexpr int64_t kDepth = Tiles::kDepth, kColumns = Tiles::kColumns, kTogether = Tiles::kTogether;
    const int64_t panel = sample / Product::kPanelWidth, column = sample % Product::kPanelWidth;
    return panel * Product::panel_numbers(width) +
           (i / kDepth * Tiles::kAcross + column / kColumns) * kDepth * kColumns +
           (i % kDepth / kTogether * kColumns + column % kColumns) * kTogether + i % kTogether;
  }

  // New bounds are made of integers in their place.
  static void multiply(const int8_t* rows, int64_t count, int64_t width, const int8_t* numbers, int64_t lanes,
                       Int8Bounds bounds, Affine<float, true> affine, float* out) {
    alignas(64) int32_t apart[kTileTopkRows * kGroup];
    auto* const integers = bounds.add ? apart : reinterpret_cast<int32_t*>(out);
    Product::scan(rows, count, width, reinterpret_cast<const int32_t*>(numbers), lanes, nullptr, integers);
    for (int64_t lane = 0; lane < lanes; lane += kLanes<float>)
      for (int64_t r = 0; r < count; ++r) {
        float* const to = out + r * lanes + lane;
        const Vector<int32_t> sums[1] = {load_vector<Vector<int32_t>>(integers + r * lanes + lane)};
        Int8Bounds{bounds.step + lane, bounds.above + lane, bounds.below + lane, bounds.add}.write(
            sums, affine, r, to);
      }
  }
};

template <typename Tiles, typename Few = FewTopk<int8_t>>
using Int8TileTopk = Int8Topk<TileInt8Product<Tiles>, Few>;

}  // namespace torch_lsh::TORCH_LSH_LEVEL
