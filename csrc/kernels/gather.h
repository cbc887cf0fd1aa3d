// Row gathers and row prefetches. Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"
#include "kernels/tuning.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Prefetch distance in rows. Rows are scattered, so each costs a cache miss per line; this many misses
// overlap.
constexpr int64_t kPrefetchRows = 8;

// Prefetch distance for updates. Rows shorter than a cache line take less time each, so more of them are
// needed to cover one miss.
template <typename T>
constexpr int64_t rows_ahead(int64_t width) {
  return width * static_cast<int64_t>(sizeof(T)) < 64 ? 4 * kPrefetchRows : kPrefetchRows;
}

// Locality 0 bypasses the outer caches, for rows that are not reused soon: a step visits more rows than the
// caches hold, and would evict everything else (tables, the interpreter).
template <int Locality = 3, typename T>
inline void prefetch_row(const T* row, int64_t width) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = width * static_cast<int64_t>(sizeof(T));
  for (int64_t offset = 0; offset < size; offset += 64) __builtin_prefetch(bytes + offset, 0, Locality);
}

// For a row that is used once, soon.
template <typename T>
inline void prefetch_once(const T* row, int64_t width) {
  if (tuning.prefetches_to_l2) {
    prefetch_row<2>(row, width);
  } else {
    prefetch_row<0>(row, width);
  }
}

template <typename From, typename To>
void gather(const From* table, const int64_t* rows, int64_t count, int64_t width, To* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) prefetch_once(table + rows[i + kPrefetchRows] * width, width);
    convert(table + rows[i] * width, width, out + i * width);
  }
}

template <typename From, typename To>
constexpr void fill(GatherKernels<From, To>& table) {
  table = {.gather = gather<From, To>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
