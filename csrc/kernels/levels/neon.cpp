// AArch64. NEON belongs to the base instruction set, so no target options are needed.
#if defined(__aarch64__)
#if defined(__GNUC__) && !defined(__clang__)
// Scheduling before register allocation loads all factors of a tile at once, which spills its sums.
#pragma GCC optimize("no-schedule-insns")
#endif
#define TORCH_LSH_LEVEL neon
#define TORCH_LSH_VECTOR_BYTES 16
#define TORCH_LSH_TILE_ROWS 12
#include "kernels/levels/level.h"
#endif
