// One kernel of one instruction set, for an emulator to count its instructions:
//   kernels LEVEL KERNEL TIMES    runs it TIMES times
//   kernels LEVEL                 compares all kernels with those of the scalar level
//   kernels                       prints the names of the kernels and their multiply-adds
//   kernels count LEVEL ...       compares them, and prints the instructions of each per multiply-add: on x86
//                                 in Bochs, whose time stamp counter counts instructions
#include "kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

using namespace torch_lsh;

namespace {

BFloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<uint16_t>((bits + 0x8000) >> 16)};
}

float as_float(float value) {
  return value;
}
float as_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
std::vector<float> as_floats(const std::vector<T>& values) {
  std::vector<float> result;
  for (const T value : values) result.push_back(as_float(value));
  return result;
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

// The first multiple of 64 bytes, as operators allocate packed operands.
float* aligned(std::vector<float>& numbers) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(numbers.data()) + 63) / 64 * 64);
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

struct Shape {
  int64_t rows, depth, columns;
  bool a_transposed, b_transposed;  // in memory
};

// a [rows, depth] · b [depth, columns], as an operator multiplies them: b packed, then tasks of some rows of
// a.
template <typename T>
Kernel product_kernel(const std::vector<T>& a, const std::vector<T>& b, const Shape& shape) {
  const auto& k = kernels<ProductKernels<T>>();
  const auto [rows, depth, columns, a_transposed, b_transposed] = shape;
  const int64_t panels = (columns + k.panel_width - 1) / k.panel_width;
  const int64_t a_row = a_transposed ? 1 : depth, a_col = a_transposed ? rows : 1;
  const int64_t b_row = b_transposed ? 1 : columns, b_col = b_transposed ? depth : 1;
  const auto bias = numbers<float>(rows, 3);
  std::vector<float> packed(panels * k.panel_size(depth));
  auto out = std::make_shared<std::vector<float>>(rows * columns);
  const auto run = [=]() mutable {
    for (int64_t panel = 0; panel < panels; ++panel)
      k.pack_panel(b.data(), b_row, b_col, depth, columns, panel, 0, depth, packed.data());
    for (int64_t r = 0; r < rows; r += k.task_rows)
      k.product(a.data() + r * a_row, a_row, a_col, std::min(k.task_rows, rows - r), depth, packed.data(),
                columns, bias.data() + r, false, out->data() + r * columns, columns);
  };
  return {run, [=] { return *out; }};
}

template <typename T>
Case product_case(const char* name, const Shape& shape) {
  return {name, shape.rows * shape.depth * shape.columns, [=] {
            const auto a = numbers<T>(shape.rows * shape.depth, 1),
                       b = numbers<T>(shape.depth * shape.columns, 2);
            if constexpr (std::is_same_v<T, BFloat16>)
              if (!kernels().multiplies_bfloat16) return product_kernel(as_floats(a), as_floats(b), shape);
            return product_kernel(a, b, shape);
          }};
}

// Logits of rows for samples, as an operator computes them: samples packed in groups, rows in blocks. With
// `sharpen`, where they are bounded, by the second product, too.
template <typename T>
Case topk_case(const char* name, int64_t rows, int64_t width, int64_t samples, bool sharpen = false) {
  return {name, rows * width * samples, [=] {
            const auto& k = kernels<TopkKernels<T>>();
            const auto weight = numbers<T>(rows * width, 1);
            const auto x = numbers<SampleOf<T>>(samples * width, 2);
            const auto bias = numbers<float>(rows, 3), scale = numbers<float>(rows, 4);
            const int64_t groups = (samples + k.largest_group - 1) / k.largest_group;
            const auto of_group = [=](int64_t g) {
              return std::min(k.largest_group, samples - g * k.largest_group);
            };
            auto packed = std::make_shared<std::vector<std::vector<float>>>(groups);
            auto logits = std::make_shared<std::vector<std::vector<float>>>(groups);
            for (int64_t g = 0; g < groups; ++g) {
              (*packed)[g].resize(k.packed_size(of_group(g), width) + 16);
              k.pack(x.data() + g * k.largest_group * width, of_group(g), width, aligned((*packed)[g]));
              (*logits)[g].resize(rows * k.lanes(of_group(g)));
            }
            std::vector<float> expanded(k.block_rows * width);
            const auto run = [=]() mutable {
              for (int64_t r = 0; r < rows; r += k.block_rows) {
                const int64_t count = std::min(k.block_rows, rows - r);
                if (k.expand != nullptr && samples > 4)
                  k.expand(weight.data() + r * width, count * width, expanded.data());
                for (int64_t g = 0; g < groups; ++g) {
                  float* const out = (*logits)[g].data() + r * k.lanes(of_group(g));
                  k.multiply(weight.data() + r * width, count, width, aligned((*packed)[g]), of_group(g),
                             scale.data() + r, bias.data() + r, expanded.data(), out);
                  if (sharpen && k.sharpen != nullptr)
                    k.sharpen(weight.data() + r * width, count, width, aligned((*packed)[g]), of_group(g),
                              scale.data() + r, bias.data() + r, out);
                }
              }
            };
            const auto result = [=] {
              std::vector<float> out;
              for (int64_t r = 0; r < rows; ++r)
                for (int64_t s = 0; s < samples; ++s) {
                  const int64_t g = s / k.largest_group;
                  const int64_t sample = s % k.largest_group;
                  const float logit = (*logits)[g][r * k.lanes(of_group(g)) + sample];
                  if (k.refine == nullptr) {
                    out.push_back(logit);
                    continue;
                  }
                  const float refined =
                      k.refine(logit, weight.data() + r * width, width, aligned((*packed)[g]), of_group(g),
                               sample, scale.data() + r, bias.data() + r);
                  const float excess = k.excess(aligned((*packed)[g]), of_group(g), width, sample,
                                                std::abs(scale[r]), std::abs(bias[r]));
                  const bool bounded = logit >= refined && (!sharpen || logit <= refined + excess + 1e-6f);
                  out.push_back(bounded ? refined : std::numeric_limits<float>::infinity());
                }
              return out;
            };
            return Kernel{run, result};
          }};
}

// Copies of rows in another type. A number that is copied counts as a product.
template <typename From, typename To>
Case gather_case(const char* name, int64_t rows, int64_t width) {
  return {name, rows * width, [=] {
            const auto table = numbers<From>(rows * width, 1);
            std::vector<int64_t> order(rows);
            for (int64_t r = 0; r < rows; ++r) order[r] = rows - 1 - r;
            auto out = std::make_shared<std::vector<To>>(rows * width);
            const auto run = [=] {
              kernels<GatherKernels<From, To>>().gather(table.data(), order.data(), rows, width, out->data());
            };
            return Kernel{run, [=] { return as_floats(*out); }};
          }};
}

// Products of a sample with rows.
template <typename T>
Case dot_case(const char* name, int64_t rows, int64_t width) {
  return {name, rows * width, [=] {
            const auto table = numbers<T>(rows * width, 1), x = numbers<T>(width, 2);
            std::vector<int64_t> order(rows);
            for (int64_t r = 0; r < rows; ++r) order[r] = rows - 1 - r;
            auto out = std::make_shared<std::vector<T>>(rows);
            const auto run = [=] {
              kernels<DotKernels<T>>().dot_rows(x.data(), table.data(), order.data(), rows, width,
                                                out->data());
            };
            return Kernel{run, [=] { return as_floats(*out); }};
          }};
}

// Sums of 20 rows each.
template <typename T>
Case bag_case(const char* name, int64_t rows, int64_t width) {
  return {name, rows * width, [=] {
            const auto table = numbers<T>(rows * width, 1), weights = numbers<T>(rows, 2);
            std::vector<int64_t> order(rows), start;
            for (int64_t r = 0; r < rows; ++r) order[r] = rows - 1 - r;
            for (int64_t r = 0; r <= rows; r += 20) start.push_back(r);
            const int64_t runs = static_cast<int64_t>(start.size()) - 1;
            auto out = std::make_shared<std::vector<T>>(runs * width);
            const auto run = [=] {
              kernels<EmbeddingBagKernels<T>>().weighted_sums(table.data(), start.data(), runs, order.data(),
                                                              weights.data(), width, out->data());
            };
            return Kernel{run, [=] { return as_floats(*out); }};
          }};
}

// Exponentials of logits, which are summed up by sample.
Case exponentials_case(const char* name, int64_t rows, int64_t batch) {
  return {name, rows * batch, [=] {
            const auto logits = numbers<float>(rows * batch, 1), weights = numbers<float>(rows, 2);
            const std::vector<float> reference(batch, 3), mass(batch, 1);
            auto out = std::make_shared<std::vector<float>>(rows * batch);
            auto sums = std::make_shared<std::vector<float>>(batch);
            const auto run = [=] {
              *out = logits;
              kernels<SoftmaxKernels<float>>().column_exponentials(
                  out->data(), weights.data(), rows, batch, reference.data(), mass.data(), sums->data());
            };
            return Kernel{run, [=] { return *out; }};
          }};
}

// Sums of the gradient of a row's logits, and of its positive terms; terms as T for the products.
template <typename T>
Case slopes_case(const char* name, int64_t rows, int64_t batch) {
  return {name, rows * batch, [=] {
            const auto values = numbers<float>(rows * batch, 1), factors = numbers<float>(batch, 2);
            auto products = std::make_shared<std::vector<T>>(rows * batch);
            auto sums = std::make_shared<std::vector<float>>(2 * rows);
            const auto run = [=] {
              for (int64_t r = 0; r < rows; ++r)
                kernels<SlopeKernels<T>>().weighted_row(values.data() + r * batch, factors.data(), batch,
                                                        products->data() + r * batch, sums->data() + 2 * r,
                                                        sums->data() + 2 * r + 1);
            };
            return Kernel{run, [=] {
                            std::vector<float> result = as_floats(*products);
                            result.insert(result.end(), sums->begin(), sums->end());
                            return result;
                          }};
          }};
}

// Scores of rows by sign codes. A dimension of a row counts as a product.
Case sketch_case(const char* name, int64_t blocks, int64_t width) {
  return {name, blocks * kSketchRows * width, [=] {
            std::vector<uint8_t> codes, tables;
            for (const int8_t code : numbers<int8_t>(blocks * kSketchRows * width / 8, 1))
              codes.push_back(static_cast<uint8_t>(code));
            for (const int8_t entry : numbers<int8_t>(width / 4 * 16, 2))
              tables.push_back(static_cast<uint8_t>(entry & 127));
            const auto factors = numbers<BFloat16>(blocks * 2 * kSketchRows, 3);
            auto out = std::make_shared<std::vector<float>>(blocks * kSketchRows);
            const auto run = [=] {
              kernels<SketchKernels>().scores(codes.data(), factors.data(), blocks, 1, width / 8,
                                              tables.data(), 0.01f, -1, out->data());
            };
            return Kernel{run, [=] { return *out; }};
          }};
}

// Products whose signs are SimHash codes.
Case project_case(const char* name, int64_t rows, int64_t width, int64_t columns) {
  return {name, rows * width * columns, [=] {
            const auto x = numbers<float>(rows * width, 1), projections = numbers<float>(width * columns, 2);
            auto out = std::make_shared<std::vector<float>>(rows * columns);
            const auto run = [=] {
              kernels<HashKernels>().project(x.data(), rows, width, projections.data(), columns, out->data());
            };
            return Kernel{run, [=] { return *out; }};
          }};
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      product_case<float>("product_float32", {576, 128, 256, false, true}),
      product_case<BFloat16>("product_bfloat16", {576, 128, 256, false, true}),
      product_case<float>("transposed_float32", {256, 256, 128, true, false}),
      product_case<BFloat16>("transposed_bfloat16", {256, 256, 128, true, false}),
      product_case<float>("odd_float32", {61, 301, 37, false, true}),
      product_case<BFloat16>("odd_bfloat16", {61, 301, 37, false, true}),
      product_case<BFloat16>("odd_transposed_bfloat16", {61, 301, 37, true, false}),
      topk_case<float>("topk_256_float32", 256, 128, 256),
      topk_case<BFloat16>("topk_256_bfloat16", 256, 128, 256),
      topk_case<int8_t>("topk_256_int8", 256, 128, 256),
      topk_case<int8_t>("topk_256_int8_sharpened", 256, 128, 256, true),
      topk_case<float>("topk_1_float32", 256, 128, 1),
      topk_case<BFloat16>("topk_1_bfloat16", 256, 128, 1),
      topk_case<int8_t>("topk_1_int8", 256, 128, 1),
      topk_case<float>("topk_4_float32", 256, 128, 4),
      topk_case<BFloat16>("topk_4_bfloat16", 256, 128, 4),
      topk_case<int8_t>("topk_4_int8", 256, 128, 4),
      topk_case<float>("topk_2_float32", 256, 128, 2),
      topk_case<BFloat16>("topk_2_bfloat16", 256, 128, 2),
      topk_case<int8_t>("topk_2_int8", 256, 128, 2),
      topk_case<int8_t>("topk_odd_int8", 259, 101, 70),
      topk_case<BFloat16>("topk_odd_bfloat16", 259, 101, 70),
      topk_case<int8_t>("topk_odd_1_int8", 259, 101, 1),
      dot_case<float>("dot_float32", 256, 131),
      dot_case<BFloat16>("dot_bfloat16", 256, 131),
      gather_case<float, float>("gather_float32", 256, 131),
      gather_case<float, BFloat16>("gather_float32_bfloat16", 256, 131),
      gather_case<BFloat16, BFloat16>("gather_bfloat16", 256, 131),
      gather_case<BFloat16, float>("gather_bfloat16_float32", 256, 131),
      bag_case<float>("bag_float32", 260, 131),
      bag_case<BFloat16>("bag_bfloat16", 260, 131),
      exponentials_case("exponentials_float32", 192, 250),
      slopes_case<float>("slopes_float32", 64, 301),
      slopes_case<BFloat16>("slopes_bfloat16", 64, 301),
      sketch_case("sketch", 8, 128),
      project_case("project_float32", 250, 128, 164),
  };
  return all;
}

// Whether both levels agree but for the rounding of sums.
bool agree(const Case& which, const char* level) {
  use_level("scalar");
  Kernel kernel = which.prepare();
  kernel.run();
  const std::vector<float> expected = kernel.result();
  use_level(level);
  kernel = which.prepare();
  kernel.run();
  const std::vector<float> result = kernel.result();
  double largest = 0, difference = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max<double>(largest, std::fabs(expected[i]));
    difference = std::max<double>(difference, std::fabs(expected[i] - result[i]));
  }
  std::printf("%-26s %.1e of %.1e\n", which.name.c_str(), difference, largest);
  return difference <= 2e-6 * largest;
}

#if defined(__x86_64__)
// Ticks of the time stamp counter of the quickest of some runs: one that no interrupt lengthened.
uint64_t fewest_ticks(const Case& which, const char* level) {
  use_level(level);
  Kernel kernel = which.prepare();
  uint64_t fewest = std::numeric_limits<uint64_t>::max();
  for (int times = 0; times < 5; ++times) {
    const uint64_t start = __rdtsc();
    kernel.run();
    fewest = std::min<uint64_t>(fewest, __rdtsc() - start);
  }
  return fewest;
}
#endif

}  // namespace

int main(int count, char** arguments) {
  if (count == 1)
    for (const Case& each : cases())
      std::printf("%s %lld\n", each.name.c_str(), static_cast<long long>(each.products));
  bool fine = true;
  if (count == 2)
    for (const Case& each : cases()) fine &= agree(each, arguments[1]);
#if defined(__x86_64__)
  if (count > 2 && std::strcmp(arguments[1], "count") == 0) {
    for (int i = 2; i < count; ++i)
      for (const Case& each : cases()) fine &= agree(each, arguments[i]);
    for (const Case& each : cases()) {
      std::printf("%s", each.name.c_str());
      for (int i = 2; i < count; ++i)
        std::printf(" %.4f", static_cast<double>(fewest_ticks(each, arguments[i])) / each.products);
      std::printf("\n");
    }
    return fine ? 0 : 1;
  }
#endif
  if (count == 4) {
    use_level(arguments[1]);
    for (const Case& each : cases())
      if (each.name == arguments[2]) {
        Kernel kernel = each.prepare();
        for (int times = std::atoi(arguments[3]); times > 0; --times) kernel.run();
      }
  }
  return fine ? 0 : 1;
}
