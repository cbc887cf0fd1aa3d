// The neon level with products of bfloat16 and int8 numbers: FEAT_BF16 and FEAT_I8MM (Neoverse V1, N2 and
// later).
#if defined(__aarch64__) && defined(__linux__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16,i8mm,dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16+i8mm+dotprod")
// Scheduled before registers are given out, a tile's factors are all loaded at once and its sums spill.
#pragma GCC optimize("no-schedule-insns")
#endif
#define TORCH_LSH_LEVEL neon_bf16
#define TORCH_LSH_BF16_DOT
#define TORCH_LSH_ARM_BF16
#define TORCH_LSH_VECTOR_BYTES 16
#define TORCH_LSH_TILE_ROWS 12
#include "kernels/levels/level.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
