// AArch64: NEON is part of the base instruction set, so the compiler's own vectorisation is all that is
// needed.
#if defined(__aarch64__)
#if defined(__GNUC__) && !defined(__clang__)
// Scheduled before registers are given out, a tile's factors are all loaded at once and its sums spill.
#pragma GCC optimize("no-schedule-insns")
#endif
#define TORCH_LSH_LEVEL neon
#define TORCH_LSH_VECTOR_BYTES 16
#define TORCH_LSH_TILE_ROWS 12
#include "kernels/levels/level.h"
#endif
