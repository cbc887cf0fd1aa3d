// Row gathers. Compiled once per instruction set: include only from kernels/levels/*.cpp.
#pragma once

#include "kernels/convert.h"
#include "kernels/kernels.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

// Rows are far apart in memory, so each one costs a cache miss per line; asking for a row this many
// iterations before it is copied lets about that many misses run at the same time.
constexpr int64_t kPrefetchRows = 8;

// The same for rows that are updated: of those within a line more are needed to take as long as a miss does.
template <typename T>
constexpr int64_t rows_ahead(int64_t width) {
  return width * static_cast<int64_t>(sizeof(T)) < 64 ? 4 * kPrefetchRows : kPrefetchRows;
}

// Locality 0, where the row is not visited again soon, keeps it from the outer caches: a step visits more
// rows than they hold, which would drive out everything else (tables, the interpreter).
template <int Locality = 3, typename T>
inline void prefetch_row(const T* row, int64_t width) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = width * static_cast<int64_t>(sizeof(T));
  for (int64_t offset = 0; offset < size; offset += 64) __builtin_prefetch(bytes + offset, 0, Locality);
}

template <typename From, typename To>
void gather(const From* table, const int64_t* rows, int64_t count, int64_t width, To* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) prefetch_row<0>(table + rows[i + kPrefetchRows] * width, width);
    convert(table + rows[i] * width, width, out + i * width);
  }
}

template <typename From, typename To>
constexpr void fill(GatherKernels<From, To>& table) {
  table = {.gather = gather<From, To>};
}

}  // namespace torch_lsh::TORCH_LSH_LEVEL
