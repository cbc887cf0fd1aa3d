// AArch64 with SVE whose vectors have 256 bits, and its products of tiles (Graviton3). The length is a
// constant of this file: the build passes -msve-vector-bits=256 along with TORCH_LSH_SVE256. Clang has no
// such vectors in one file alone.
#if defined(__aarch64__) && defined(TORCH_LSH_SVE256) && !defined(__clang__)
#pragma GCC target("arch=armv8.2-a+sve+bf16+i8mm+dotprod")
// Scheduled before registers are given out, a tile's factors are all loaded at once and its sums spill.
#pragma GCC optimize("no-schedule-insns")
#define TORCH_LSH_LEVEL sve256
#define TORCH_LSH_BF16_DOT
#define TORCH_LSH_ARM_BF16
#define TORCH_LSH_VECTOR_BYTES 32
#define TORCH_LSH_TILE_ROWS 12
#include "kernels/levels/level.h"
#endif
