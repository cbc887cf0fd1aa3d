// One kernel of one instruction set, for an emulator to count its instructions:
//   kernels LEVEL KERNEL TIMES    runs it TIMES times
//   kernels LEVEL                 compares all kernels with those of the scalar level
//   kernels                       prints the names of the kernels and their multiply-adds
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

using namespace torch_lsh;

namespace {

BFloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x8000) >> 16)};
}

// Numbers from -1 to 1, or all of int8.
template <typename T>
std::vector<T> numbers(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> result(count);
  for (T& value : result) {
    const float number = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
    if constexpr (std::is_same_v<T, BFloat16>)
      value = rounded(number);
    else if constexpr (std::is_same_v<T, int8_t>)
      value = static_cast<int8_t>(std::lround(number * 127));
    else
      value = number;
  }
  return result;
}

// What is run, and the results that it leaves behind.
struct Kernel {
  std::function<void()> run;
  std::function<std::vector<float>()> result;
};

struct Case {
  std::string name;
  int64_t products;
  std::function<Kernel()> prepare;  // for the level in use
};

// a [rows, depth] · b [depth, columns], as an operator multiplies them: b packed, then tasks of some rows of a.
template <typename T>
Case product_case(const char* name, int64_t rows, int64_t depth, int64_t columns, bool a_transposed,
                  bool b_transposed) {
  return {name, rows * depth * columns, [=] {
            const auto& k = kernels<ProductKernels<T>>();
            const auto a = numbers<T>(rows * depth, 1), b = numbers<T>(depth * columns, 2);
            const auto bias = numbers<float>(rows, 3);
            const int64_t panels = (columns + k.panel_width - 1) / k.panel_width;
            std::vector<float> packed(panels * k.panel_size(depth));
            auto out = std::make_shared<std::vector<float>>(rows * columns);
            const auto run = [=]() mutable {
              for (int64_t panel = 0; panel < panels; ++panel)
                k.pack_panel(b.data(), b_transposed ? 1 : columns, b_transposed ? depth : 1, depth, columns, panel,
                             0, depth, packed.data());
              const int64_t a_row = a_transposed ? 1 : depth, a_col = a_transposed ? rows : 1;
              for (int64_t r = 0; r < rows; r += k.task_rows)
                k.product(a.data() + r * a_row, a_row, a_col, std::min(k.task_rows, rows - r), depth, packed.data(),
                          columns, bias.data() + r, false, out->data() + r * columns, columns);
            };
            return Kernel{run, [=] { return *out; }};
          }};
}
