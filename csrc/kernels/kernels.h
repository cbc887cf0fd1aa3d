// The kernels of one instruction set as a table of function pointers, and the choice of that table.
//
// A kernel works on raw pointers and sizes, uses neither torch nor the STL, and runs in the calling thread;
// the caller (csrc/ops) splits the work so that no two threads write to the same row. The bodies are in
// kernels/<family>.h and are compiled once per file in kernels/levels/. kernels() picks a table at the first
// call, so dispatch costs one load and stays outside of loops.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torch_lsh {

// Storage of a bfloat16 number. Kernels compute in float.
struct BFloat16 {
  uint16_t bits;
};

// What products of T are summed in.
template <typename T>
struct SumType {
  using type = T;
};
template <>
struct SumType<BFloat16> {
  using type = float;
};
template <typename T>
using SumOf = typename SumType<T>::type;

// Rows that simhash takes at a time, a multiple of every level's tile; and bits of a code, used or not.
constexpr int64_t kHashRows = 12, kCodeBits = 32;

// Rows that the kernels of hadamard.h take at a time.
constexpr int64_t kHadamardRows = 16;

// The numbers of one optimizer step, named as in torch.optim. seed: of stochastic rounding to bfloat16;
// negative: to nearest.
struct AdamStep {
  double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2;
  bool decoupled, maximize;
  int64_t seed;
};
struct SgdStep {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;
  int64_t seed;
};
struct AdagradStep {
  double lr, eps, weight_decay;
  bool maximize;
  int64_t seed;
};

// Rows of a block of sign codes (sketch.h).
constexpr int64_t kSketchRows = 64;

// Blocked top-k (topk.h) with rows stored as T, samples as X, and sums of type Sum. Samples are multiplied in
// groups of at most `largest_group`; a group takes lanes(samples) lanes, padding included, side by side for
// each row.
template <typename T, typename X, typename Sum>
struct TopkKernels {
  int64_t largest_group, vector;  // vector: lanes of a vector of sums
  bool expands;                   // groups of at least `vector` lanes multiply converted rows
  int64_t (*lanes)(int64_t samples);
  // x[samples, width] in the order in which multiply wants it, packed_size(samples, width) numbers.
  int64_t (*packed_size)(int64_t samples, int64_t width);
  void (*pack)(const X* x, int64_t samples, int64_t width, Sum* packed);
  // Converted rows, where `expands`.
  void (*expand)(const T* rows, int64_t count, Sum* expanded);
  // logits[count, lanes] = (rows[count, width] · packed) * scale + bias. Only int8 rows have a scale.
  void (*multiply)(const T* rows, int64_t count, int64_t width, const Sum* packed, int64_t samples,
                   const Sum* scale, const Sum* bias, const Sum* expanded, Sum* logits);
  // Writes to hits (count + 1) the positions i < count with !(logits[i] <= thresholds[i % period]),
  // increasing, and returns their number. period is a multiple of vector, and logits can be read up to a
  // multiple of it.
  int64_t (*scan)(const Sum* logits, int64_t count, const Sum* thresholds, int64_t period, int32_t* hits);
};

struct Kernels {
  const char* name;

  // gather.h: out[i, :] = table[rows[i], :], converted to the type of out.
  void (*gather_f32_f32)(const float* table, const int64_t* rows, int64_t count, int64_t width, float* out);
  void (*gather_f64_f64)(const double* table, const int64_t* rows, int64_t count, int64_t width, double* out);
  void (*gather_bf16_bf16)(const BFloat16* table, const int64_t* rows, int64_t count, int64_t width,
                           BFloat16* out);
  void (*gather_f32_bf16)(const float* table, const int64_t* rows, int64_t count, int64_t width,
                          BFloat16* out);
  void (*gather_bf16_f32)(const BFloat16* table, const int64_t* rows, int64_t count, int64_t width,
                          float* out);

  // dot.h: out[i] = x · table[rows[i], :], 0 where rows[i] is negative.
  void (*dot_rows_f32)(const float* x, const float* table, const int64_t* rows, int64_t count, int64_t width,
                       float* out);
  void (*dot_rows_f64)(const double* x, const double* table, const int64_t* rows, int64_t count,
                       int64_t width, double* out);
  void (*dot_rows_bf16)(const BFloat16* x, const BFloat16* table, const int64_t* rows, int64_t count,
                        int64_t width, BFloat16* out);

  // embedding_bag.h: out[s, :] = sum over i from start[s] to start[s + 1] - 1 of values[i] * table[rows[i],
  // :] for s < runs; values may be null, which stands for ones.
  void (*weighted_sums_f32)(const float* table, const int64_t* start, int64_t runs, const int64_t* rows,
                            const float* values, int64_t width, float* out);
  void (*weighted_sums_f64)(const double* table, const int64_t* start, int64_t runs, const int64_t* rows,
                            const double* values, int64_t width, double* out);
  void (*weighted_sums_bf16)(const BFloat16* table, const int64_t* start, int64_t runs, const int64_t* rows,
                             const BFloat16* values, int64_t width, BFloat16* out);

  // optimizer.h: one step on the rows of a parameter; gradient[i, :] belongs to row rows[i]. `decays` is null
  // or holds three factors per row: for the first moment, the second, and the weights. Of the `listed` rows
  // the first `count` take the step; those behind them are only prefetched. Names say the types of parameter
  // and state.
  void (*adam_rows_f32)(float* parameter, float* first, float* second, const int64_t* rows,
                        const float* gradient, const double* decays, int64_t count, int64_t listed,
                        int64_t width, const AdamStep& step);
  void (*sgd_rows_f32)(float* parameter, float* momentum, const int64_t* rows, const float* gradient,
                       int64_t count, int64_t listed, int64_t width, const SgdStep& step);
  void (*adagrad_rows_f32)(float* parameter, float* squares, const int64_t* rows, const float* gradient,
                           int64_t count, int64_t listed, int64_t width, const AdagradStep& step);
  void (*adam_rows_f64)(double* parameter, double* first, double* second, const int64_t* rows,
                        const double* gradient, const double* decays, int64_t count, int64_t listed,
                        int64_t width, const AdamStep& step);
  void (*sgd_rows_f64)(double* parameter, double* momentum, const int64_t* rows, const double* gradient,
                       int64_t count, int64_t listed, int64_t width, const SgdStep& step);
  void (*adagrad_rows_f64)(double* parameter, double* squares, const int64_t* rows, const double* gradient,
                           int64_t count, int64_t listed, int64_t width, const AdagradStep& step);
  void (*adam_rows_f32_bf16)(float* parameter, BFloat16* first, BFloat16* second, const int64_t* rows,
                             const float* gradient, const double* decays, int64_t count, int64_t listed,
                             int64_t width, const AdamStep& step);
  void (*sgd_rows_f32_bf16)(float* parameter, BFloat16* momentum, const int64_t* rows, const float* gradient,
                            int64_t count, int64_t listed, int64_t width, const SgdStep& step);
  void (*adagrad_rows_f32_bf16)(float* parameter, BFloat16* squares, const int64_t* rows,
                                const float* gradient, int64_t count, int64_t listed, int64_t width,
                                const AdagradStep& step);
  void (*adam_rows_bf16)(BFloat16* parameter, float* first, float* second, const int64_t* rows,
                         const BFloat16* gradient, const double* decays, int64_t count, int64_t listed,
                         int64_t width, const AdamStep& step);
  void (*sgd_rows_bf16)(BFloat16* parameter, float* momentum, const int64_t* rows, const BFloat16* gradient,
                        int64_t count, int64_t listed, int64_t width, const SgdStep& step);
  void (*adagrad_rows_bf16)(BFloat16* parameter, float* squares, const int64_t* rows,
                            const BFloat16* gradient, int64_t count, int64_t listed, int64_t width,
                            const AdagradStep& step);
  void (*adam_rows_bf16_bf16)(BFloat16* parameter, BFloat16* first, BFloat16* second, const int64_t* rows,
                              const BFloat16* gradient, const double* decays, int64_t count, int64_t listed,
                              int64_t width, const AdamStep& step);
  void (*sgd_rows_bf16_bf16)(BFloat16* parameter, BFloat16* momentum, const int64_t* rows,
                             const BFloat16* gradient, int64_t count, int64_t listed, int64_t width,
                             const SgdStep& step);
  void (*adagrad_rows_bf16_bf16)(BFloat16* parameter, BFloat16* squares, const int64_t* rows,
                                 const BFloat16* gradient, int64_t count, int64_t listed, int64_t width,
                                 const AdagradStep& step);

  // product.h: out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n] (bias may be null), or,
  // if `add`, that sum on top of what is there, where pack_panel made `panels` of b[k * b_row + n * b_col],
  // rows begin to end - 1 of panel `number` at a time, begin even; panels are depth * panel_width sums apart.
  void (*product_f32)(const float* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                      const float* panels, int64_t columns, const float* bias, bool add, float* out,
                      int64_t stride);
  void (*product_f64)(const double* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                      const double* panels, int64_t columns, const double* bias, bool add, double* out,
                      int64_t stride);
  void (*product_bf16)(const BFloat16* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                       const float* panels, int64_t columns, const float* bias, bool add, float* out,
                       int64_t stride);
  void (*pack_panel_f32)(const float* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns,
                         int64_t number, int64_t begin, int64_t end, float* panels);
  void (*pack_panel_f64)(const double* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns,
                         int64_t number, int64_t begin, int64_t end, double* panels);
  void (*pack_panel_bf16)(const BFloat16* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns,
                          int64_t number, int64_t begin, int64_t end, float* panels);
  int64_t panel_width_f32, panel_width_f64;  // that of sums

  // hash.h: SimHash codes [count, num_tables] of rows x[count, width] by the signs of their products with
  // projections[width, num_tables * bits]. scratch: kHashRows * (width + num_tables * bits) + kCodeBits
  // floats.
  void (*simhash_f32)(const float* x, int64_t count, int64_t width, const float* projections,
                      int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  void (*simhash_f64)(const double* x, int64_t count, int64_t width, const float* projections,
                      int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  void (*simhash_bf16)(const BFloat16* x, int64_t count, int64_t width, const float* projections,
                       int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  // The same of one sparse row with `count` nonzeros. scratch: num_tables * bits + kCodeBits floats.
  void (*simhash_sparse)(const int64_t* columns, const float* values, int64_t count, const float* projections,
                         int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  // products[count, columns] = x[count, width] · projections[width, columns], summed as for the codes.
  void (*project)(const float* x, int64_t count, int64_t width, const float* projections, int64_t columns,
                  float* products);
  // out[i] = the number of bits in which codes[ids[i], :] differ from query[num_tables].
  void (*hamming)(const int32_t* query, const int32_t* codes, const int32_t* ids, int64_t count,
                  int64_t num_tables, int32_t* out);

  // hadamard.h: `count` structured random projections of height <= kHadamardRows rows x[height, width], as
  // products[count][kHadamardRows]. signs[blocks, 3, size] of a power of two `size`; rest[width - size,
  // count] are dense projections of what `size` does not reach. scratch: (width + size) * kHadamardRows
  // floats.
  void (*hadamard_project)(const float* x, int64_t height, int64_t width, const float* signs, int64_t size,
                           const float* rest, int64_t count, float* scratch, float* products);
  // Codes [height, num_tables] of such products: by their signs; by the closest vertex of cross-polytopes.
  void (*pack_sign_tile)(const float* products, int64_t num_tables, int64_t hashes, int64_t height,
                         int32_t* codes);
  void (*pack_vertex_tile)(const float* products, int64_t num_tables, int64_t hashes, int64_t dimension,
                           int64_t bits, int64_t height, int32_t* codes);

  // softmax.h: log sum exp(logits + log_weights), and out = factor * exp(logits + log_weights - log_z);
  // log_weights may be null, which stands for zeros.
  float (*log_sum_exp_f32)(const float* logits, const float* log_weights, int64_t count);
  double (*log_sum_exp_f64)(const double* logits, const double* log_weights, int64_t count);
  void (*scaled_softmax_f32)(const float* logits, const float* log_weights, int64_t count, float log_z,
                             float factor, float* out);
  void (*scaled_softmax_f64)(const double* logits, const double* log_weights, int64_t count, double log_z,
                             double factor, double* out);
  // The same with the logits of a row for all samples next to each other: for logits [count, batch] the
  // largest, and the sum of exp of the differences to it per sample; mass * exp(logits + log_weights -
  // reference) in place and its sum without the mass; and one row of the gradient.
  void (*column_maxima_f32)(const float* logits, const float* log_weights, int64_t count, int64_t batch,
                            float* largest);
  void (*column_maxima_f64)(const double* logits, const double* log_weights, int64_t count, int64_t batch,
                            double* largest);
  void (*column_exponentials_f32)(float* logits, const float* log_weights, int64_t count, int64_t batch,
                                  const float* reference, const float* mass, float* sum);
  void (*column_exponentials_f64)(double* logits, const double* log_weights, int64_t count, int64_t batch,
                                  const double* reference, const double* mass, double* sum);
  void (*column_sums_f32)(const float* logits, const float* log_weights, int64_t count, int64_t batch,
                          float* largest, float* sum);
  void (*column_sums_f64)(const double* logits, const double* log_weights, int64_t count, int64_t batch,
                          double* largest, double* sum);
  void (*column_softmax_f32)(const float* logits, float log_weight, int64_t batch, const float* log_z,
                             const float* factor, float* out);
  void (*column_softmax_f64)(const double* logits, double log_weight, int64_t batch, const double* log_z,
                             const double* factor, double* out);
  // sum of values * factors, and of its positive terms
  void (*weighted_row_sums_f32)(const float* values, const float* factors, int64_t count, float* sum,
                                float* positive);
  void (*weighted_row_sums_f64)(const double* values, const double* factors, int64_t count, double* sum,
                                double* positive);
  // The same, and the products rounded to bfloat16.
  void (*weighted_row_bf16)(const float* values, const float* factors, int64_t count, BFloat16* products,
                            float* sum, float* positive);
  // sum of max(0, value)
  float (*positive_sum_f32)(const float* values, int64_t count);
  double (*positive_sum_f64)(const double* values, int64_t count);
  // sums += max(0, row)
  void (*add_positive_f32)(const float* row, int64_t count, float* sums);
  void (*add_positive_f64)(const double* row, int64_t count, double* sums);

  // topk.h
  TopkKernels<float, float, float> topk_f32;
  TopkKernels<double, double, double> topk_f64;
  TopkKernels<BFloat16, BFloat16, float> topk_bf16;
  TopkKernels<int8_t, float, float> topk_i8;

  // sketch.h: scores[blocks * kSketchRows] = factor * (step * (weighted sum of table entries) + base) +
  // addend of each row.
  void (*sketch_scores)(const uint8_t* codes, const BFloat16* factors, int64_t blocks, int64_t bits,
                        int64_t bytes, const uint8_t* tables, float step, float base, float* scores);
};

// The table for this CPU, or the one that the environment variable TORCH_LSH_SIMD names
// (scalar, avx2, avx512, avx512_bf16 or neon). Throws std::runtime_error when that one cannot run here.
const Kernels& kernels();

// Makes kernels() return the table of that name from now on, in every thread. For tests and benchmarks, which
// compare levels in one process; not to be called while an operator runs.
void use_level(const char* name);

}  // namespace torch_lsh
