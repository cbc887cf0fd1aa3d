// Kernel tables: function pointers of one instruction set, and the choice of that set.
//
// A kernel takes raw pointers and sizes, uses neither torch nor the STL, and runs in the calling thread. The
// caller (csrc/ops) splits the work so that no two threads write to the same row. Each kernel family has one
// table type here, a template over its element types, and its bodies in kernels/<family>.h, which
// kernels/levels/*.cpp compile once per instruction set. kernels<Table>() costs one load: hoist it out of
// loops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/optimizer_steps.h"
#include "kernels/types.h"

namespace torch_lsh {

// gather.h
template <typename From, typename To>
struct GatherKernels {
  // out[i, :] = table[rows[i], :], converted to To.
  void (*gather)(const From* table, const int64_t* rows, int64_t count, int64_t width, To* out);
};

// dot.h
template <typename T>
struct DotKernels {
  // out[i] = x · table[rows[i], :], 0 where rows[i] is negative.
  void (*dot_rows)(const T* x, const T* table, const int64_t* rows, int64_t count, int64_t width, T* out);
  SumOf<T> (*dot)(const T* a, const T* b, int64_t width);
  // out += factor * row
  void (*add_row)(const T* row, SumOf<T> factor, int64_t width, SumOf<T>* out);
};

// embedding_bag.h
template <typename T>
struct EmbeddingBagKernels {
  // out[s, :] = sum over i from start[s] to start[s + 1] - 1 of values[i] * table[rows[i], :] for s < runs.
  // Null values: all ones.
  void (*weighted_sums)(const T* table, const int64_t* start, int64_t runs, const int64_t* rows,
                        const T* values, int64_t width, T* out);
};

// optimizer.h
template <typename Step, typename T, typename State>
struct OptimizerKernels {
  // One step on rows[begin] to rows[end - 1] of a parameter and its Step::kStates states. gradient[i - begin,
  // :] belongs to rows[i]. Prefetches up to rows[count - 1].
  void (*step_rows)(T* parameter, State* const* states, const int64_t* rows, const T* gradient, int64_t begin,
                    int64_t end, int64_t count, int64_t width, const Step& step);
};

// Rows of a right operand that are packed at a time, and of the left one that a task takes: multiples of
// every level's tile.
constexpr int64_t kPackRows = 256, kTaskRows = 48;

// Rows of a table that the calling thread reads soon.
struct RowsAhead {
  const void* table = nullptr;
  const int64_t* rows = nullptr;
  int64_t count = 0, row_bytes = 0;
};

// product.h, or tile_product.h. Null for bfloat16 on levels that do not multiply it
// (Kernels::multiplies_bfloat16).
template <typename T>
struct ProductKernels {
  // out[m, n] = bias[m] + sum over k of a[m * a_row + k * a_col] * b[k, n]. `panels` is b packed by
  // pack_panel; `stride` separates rows of `out`. Null bias: zeros. With `add`, the sums are added to `out`
  // and bias is ignored. Fetches the rows ahead into the second-level cache meanwhile.
  void (*product)(const T* a, int64_t a_row, int64_t a_col, int64_t rows, int64_t depth,
                  const SumOf<T>* panels, int64_t columns, const SumOf<T>* bias, bool add, SumOf<T>* out,
                  int64_t stride, const RowsAhead& ahead);
  // Packs rows `begin` (a multiple of kPackRows) to `end` - 1 of panel `number` of b[k * b_row + n * b_col];
  // `end` is the depth or begin + kPackRows. Panels are panel_size(depth) sums apart.
  void (*pack_panel)(const T* b, int64_t b_row, int64_t b_col, int64_t depth, int64_t columns, int64_t number,
                     int64_t begin, int64_t end, SumOf<T>* panels);
  int64_t (*panel_size)(int64_t depth);
  int64_t panel_width;
  int64_t task_rows;  // that a product is fastest with, where rows are gathered for it
};

// Rows per simhash block, a multiple of every level's tile; bits of a code, used or not.
constexpr int64_t kHashRows = 12, kCodeBits = 32;

// hash.h
template <typename T>
struct SimHashKernels {
  // SimHash codes [count, num_tables] of x[count, width]: signs of the products with
  // projections[width, num_tables * bits]. scratch: kHashRows * (width + num_tables * bits) + kCodeBits
  // floats.
  void (*simhash)(const T* x, int64_t count, int64_t width, const float* projections, int64_t num_tables,
                  int64_t bits, float* scratch, int32_t* codes);
};

struct HashKernels {
  // products[count, columns] = x[count, width] · projections[width, columns], in the same order of summation
  // as simhash.
  void (*project)(const float* x, int64_t count, int64_t width, const float* projections, int64_t columns,
                  float* products);
  // out[i] = Hamming distance of codes[ids[i], :] and query[num_tables], in bits.
  void (*hamming)(const int32_t* query, const int32_t* codes, const int32_t* ids, int64_t count,
                  int64_t num_tables, int32_t* out);
};

// Rows per tile of hadamard.h.
constexpr int64_t kHadamardRows = 16;

// hadamard.h
struct HadamardKernels {
  // products[count][kHadamardRows]: `count` structured random projections of x[height, width], height <=
  // kHadamardRows. signs: [blocks, 3, size], `size` a power of two. rest[width - size, count]: dense
  // projections of the columns beyond `size`. scratch: (width + size) * kHadamardRows floats.
  void (*project)(const float* x, int64_t height, int64_t width, const float* signs, int64_t size,
                  const float* rest, int64_t count, float* scratch, float* products);
  // Codes [height, num_tables] of these products: signs, or closest vertices of cross-polytopes.
  void (*pack_signs)(const float* products, int64_t num_tables, int64_t hashes, int64_t height,
                     int32_t* codes);
  void (*pack_vertices)(const float* products, int64_t num_tables, int64_t hashes, int64_t dimension,
                        int64_t bits, int64_t height, int32_t* codes);
};

// softmax.h. Null log_weights: zeros.
template <typename T>
struct SoftmaxKernels {
  // log sum exp(logits + log_weights)
  T (*log_sum_exp)(const T* logits, const T* log_weights, int64_t count);
  // out = factor * exp(logits + log_weights - log_z)
  void (*scaled_softmax)(const T* logits, const T* log_weights, int64_t count, T log_z, T factor, T* out);

  // column_*: logits [count, batch], one active row after the other.
  // Per sample: maximum of logits + log_weights.
  void (*column_maxima)(const T* logits, const T* log_weights, int64_t count, int64_t batch, T* largest);
  // Per sample: maximum, and sum of exp(logits + log_weights - maximum).
  void (*column_sums)(const T* logits, const T* log_weights, int64_t count, int64_t batch, T* largest,
                      T* sum);
  // Gradient of one active row: out = factor * exp(logits + log_weight - log_z).
  void (*column_softmax)(const T* logits, T log_weight, int64_t batch, const T* log_z, const T* factor,
                         T* out);

  // Sum of max(0, value)
  T (*positive_sum)(const T* values, int64_t count);
  // sums += max(0, row)
  void (*add_positive)(const T* row, int64_t count, T* sums);
};

template <typename T>
struct SlopeKernels {
  // As column_* of SoftmaxKernels. out = mass * exp(logits + log_weights - reference), where subnormal
  // numbers may be rounded to 0; sum, per sample, leaves out the mass. Null mass: ones. Where an exponent is
  // too large, the sum is not finite. Overwrites logits; where T is the type of the logits, out is them.
  void (*column_exponentials)(SumOf<T>* logits, const SumOf<T>* log_weights, int64_t count, int64_t batch,
                              const SumOf<T>* reference, const SumOf<T>* mass, T* out, SumOf<T>* sum);
  // sum: of slopes * factors; positive: of the positive terms.
  void (*row_sums)(const T* slopes, const SumOf<T>* factors, int64_t count, SumOf<T>* sum,
                   SumOf<T>* positive);
};

// topk.h. Rows are stored as T, samples as SampleOf<T>. Samples are multiplied in groups of up to
// `largest_group`; a group's logits of one row take lanes(samples) contiguous lanes, padding included.
template <typename T>
struct SampleType {
  using type = T;
};
template <>
struct SampleType<int8_t> {
  using type = float;
};
template <typename T>
using SampleOf = typename SampleType<T>::type;

template <typename T>
struct TopkKernels {
  using Sum = SumOf<T>;

  int64_t largest_group, block_rows;  // block_rows: rows per call of multiply, at most
  int64_t vector;                     // sums per vector register
  int64_t (*lanes)(int64_t samples);
  // Sums written by pack.
  int64_t (*packed_size)(int64_t samples, int64_t width);
  // Packs x[samples, width] for multiply.
  void (*pack)(const SampleOf<T>* x, int64_t samples, int64_t width, Sum* packed);
  // Converts `count` stored numbers to sums. Null if multiply reads rows as stored; otherwise groups of at
  // least `vector` lanes read `expanded` instead.
  void (*expand)(const T* rows, int64_t count, Sum* expanded);
  // logits[count, lanes] = (rows[count, width] · packed) * scale + bias. Only int8 rows have a scale.
  void (*multiply)(const T* rows, int64_t count, int64_t width, const Sum* packed, int64_t samples,
                   const Sum* scale, const Sum* bias, const Sum* expanded, Sum* logits);
  // The next three are null if multiply writes logits. Otherwise it may write upper bounds, or NaN.
  // Brings the bounds closer to the logits, once.
  void (*sharpen)(const T* rows, int64_t count, int64_t width, const Sum* packed, int64_t samples,
                  const Sum* scale, const Sum* bias, Sum* bounds);
  // By how much a sharpened bound for a sample of the group exceeds the logit at most, of rows of up to that
  // scale and bias in size, unless the bound is infinite or NaN.
  Sum (*excess)(const Sum* packed, int64_t samples, int64_t width, int64_t sample, Sum scale, Sum bias);
  // The logit of a row for a sample of the group, given its bound; scale and bias are the row's.
  Sum (*refine)(Sum bound, const T* row, int64_t width, const Sum* packed, int64_t samples, int64_t sample,
                const Sum* scale, const Sum* bias);
  // Writes the positions i < count with !(logits[i] <= thresholds[i % period]) to hits[count + 1], in
  // increasing order; returns their number. period is a multiple of `vector`; logits are readable up to the
  // next multiple of period.
  int64_t (*scan)(const Sum* logits, int64_t count, const Sum* thresholds, int64_t period, int32_t* hits);
};

// Rows per block of codes (sketch.h).
constexpr int64_t kSketchRows = 64;

struct SketchKernels {
  // scores[blocks * kSketchRows] = factor * (step * (weighted sum of table entries) + base) + addend, per
  // row.
  void (*scores)(const uint8_t* codes, const BFloat16* factors, int64_t blocks, int64_t bits, int64_t bytes,
                 const uint8_t* tables, float step, float base, float* scores);
};

// Units of two members of a committee, which take turns.
constexpr int64_t kPairUnits = 32;

// committee.h
struct CommitteeKernels {
  // The slopes of the loss of a row at its units before ReLU, in panels of the product kernels for a depth of
  // `padded`, zeros from `count` on. units: [count, kPairUnits]; of the candidates, the first `right` are
  // right. scores: scratch, 2 * count + a vector. The slopes of the output weights are added to of_output.
  void (*slopes)(const float* units, int64_t count, int64_t padded, int64_t right, const float* output,
                 float weight, float* scores, float* slopes, float* of_output);
  // scores[i] = max(0, units[i, :]) · output. width: a multiple of every level's vectors.
  void (*scores)(const float* units, int64_t count, int64_t width, const float* output, float* scores);
};

template <typename... Tables>
struct TableSet : Tables... {};

// One table of a family per element type, or pair of types, of a list.
template <template <typename> typename Table, typename... T>
TableSet<Table<T>...> tables_of(Types<T...>);
template <template <typename, typename> typename Table, typename... First, typename... Second>
TableSet<Table<First, Second>...> pair_tables_of(Types<Pair<First, Second>...>);
template <typename Step, typename... T, typename... State>
TableSet<OptimizerKernels<Step, T, State>...> step_tables_of(Types<Pair<T, State>...>);
template <typename... Step>
TableSet<decltype(step_tables_of<Step>(StepTypes<Step>{}))...> optimizer_tables_of(Types<Step...>);

template <template <typename> typename Table, typename List>
using TablesOf = decltype(tables_of<Table>(List{}));
template <template <typename, typename> typename Table, typename List>
using PairTablesOf = decltype(pair_tables_of<Table>(List{}));
using OptimizerTables = decltype(optimizer_tables_of(OptimizerSteps{}));

using KernelTables =
    TableSet<PairTablesOf<GatherKernels, GatherTypes>, TablesOf<DotKernels, FloatingTypes>,
             TablesOf<EmbeddingBagKernels, FloatingTypes>, OptimizerTables,
             TablesOf<ProductKernels, FloatingTypes>, TablesOf<SimHashKernels, FloatingTypes>, HashKernels,
             HadamardKernels, TablesOf<SoftmaxKernels, SumTypes>, TablesOf<SlopeKernels, FloatingTypes>,
             TablesOf<TopkKernels, WeightTypes>, SketchKernels, CommitteeKernels>;

// Those that levels with tile instructions replace.
using TileTables = TableSet<ProductKernels<BFloat16>, TopkKernels<BFloat16>, TopkKernels<int8_t>>;

// All kernels of an instruction set.
struct Kernels : KernelTables {
  const char* name;
  // Whether products of bfloat16 numbers are faster than those of the same numbers as floats. If not,
  // operators convert to float.
  bool multiplies_bfloat16;
};

// The best kernels for this CPU, or those named by the environment variable TORCH_LSH_SIMD (scalar, avx2,
// avx512, avx512_bf16, amx_bf16, neon, neon_bf16 or sve256). Throws std::runtime_error if the CPU does not
// support them. Thread-safe.
const Kernels& kernels();

// One table, such as kernels<DotKernels<float>>().
template <typename Table>
const Table& kernels() {
  return kernels();
}

// Switches kernels() to the named level, in every thread. For tests and benchmarks, which compare levels in
// one process. Must not be called while an operator runs.
void use_level(const char* name);

}  // namespace torch_lsh
