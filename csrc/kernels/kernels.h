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

  // hash.h: SimHash codes [count, num_tables] of rows x[count, width] by the signs of their products with
  // projections[width, num_tables * bits]. scratch: 4 * (width + num_tables * bits) floats.
  void (*simhash_f32)(const float* x, int64_t count, int64_t width, const float* projections,
                      int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  void (*simhash_f64)(const double* x, int64_t count, int64_t width, const float* projections,
                      int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  void (*simhash_bf16)(const BFloat16* x, int64_t count, int64_t width, const float* projections,
                       int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  // The same of one sparse row with `count` nonzeros. scratch: num_tables * bits floats.
  void (*simhash_sparse)(const int64_t* columns, const float* values, int64_t count, const float* projections,
                         int64_t num_tables, int64_t bits, float* scratch, int32_t* codes);
  // out[i] = the number of bits in which codes[ids[i], :] differ from query[num_tables].
  void (*hamming)(const int32_t* query, const int32_t* codes, const int32_t* ids, int64_t count,
                  int64_t num_tables, int32_t* out);
};

// The table for this CPU, or the one that the environment variable TORCH_LSH_SIMD names
// (scalar, avx2, avx512 or neon). Throws std::runtime_error when that one cannot run here.
const Kernels& kernels();

// Makes kernels() return the table of that name from now on, in every thread. For tests and benchmarks, which
// compare levels in one process; not to be called while an operator runs.
void use_level(const char* name);

}  // namespace torch_lsh
