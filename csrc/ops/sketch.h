// Look-up tables of a query, for estimating inner products from codes of a few bits (kernels/sketch.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace torch_lsh {

// For every four dimensions, the query's product with each of the 16 sign patterns, quantized to 8 bits: the
// product is about step * sum + base. With several bits, plane p's sum weighs 2^(bits - 1 - p).
struct SignTables {
  std::vector<uint8_t> entries;
  float step = 0, base = 0;
  int64_t bits;

  SignTables(const float* x, int64_t width, int64_t bits) : entries(width / 4 * 16), bits(bits) {
    // Pairs of entries are summed in 8 bits; all entries, times the weights of the planes, in 16.
    const int64_t units = (int64_t{1} << bits) - 1;
    const float levels = static_cast<float>(std::min<int64_t>(127, UINT16_MAX / (width / 4 * units)));
    float widest = 0;
    for (int64_t j = 0; j < width; j += 4) {
      const float span = std::abs(x[j]) + std::abs(x[j + 1]) + std::abs(x[j + 2]) + std::abs(x[j + 3]);
      base -= span;
      widest = std::max(widest, 2 * span);
    }
    base *= static_cast<float>(units);
    step = widest / levels;
    if (!(step > 0 && std::isfinite(base))) {  // zeros, infinities or NaN: all rows score alike
      step = base = 0;
      return;
    }
    for (int64_t j = 0; j < width; j += 4) {
      float products[16] = {};
      for (int64_t i = 0; i < 4; ++i) products[0] += std::abs(x[j + i]) - x[j + i];
      for (int64_t code = 1; code < 16; ++code)
        products[code] = products[code & (code - 1)] + 2 * x[j + __builtin_ctzll(code)];
      for (int64_t code = 0; code < 16; ++code)
        entries[j * 4 + code] =
            static_cast<uint8_t>(std::clamp(products[code] * (1 / step) + 0.5f, 0.0f, levels));
    }
  }

  // The base for codes of `fewer` bits, whose products are about step * sum + base as well.
  float base_of(int64_t fewer) const {
    return base * static_cast<float>((1 << fewer) - 1) / static_cast<float>((1 << bits) - 1);
  }
};

}  // namespace torch_lsh
